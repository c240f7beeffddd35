"""What the doctor tries where it is asked to: to write a file, and to train as a study does."""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from pathlib import Path

from nanoscale.commands.findings import FAULTY, OK, Finding
from nanoscale.errors import UserError, make_folder, missing_folders

TEXT = "the cat sat on the mat, the dog sat on the log.\n" * 400
MODEL_TRIED = {
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 32,
    "block_size": 32,
    "batch_size": 8,
    "gradient_accumulation_steps": 1,
    "max_iters": 60,
    "warmup_iters": 0,
    "eval_interval": 0,
    "final_eval_tokens": 500,
    "threads": 1,
}
RUN_SECONDS = 300.0


def attempts(output_root: Path) -> Iterator[Finding]:
    """Write and remove a file in the output root, and train a tiny model there, for a second."""
    made = missing_folders(output_root)
    try:
        make_folder(output_root)
        with tempfile.TemporaryDirectory(
            dir=output_root, prefix=".doctor-", ignore_cleanup_errors=True
        ) as place:
            (Path(place) / "file").write_bytes(b"written")
            (Path(place) / "file").unlink()
            yield Finding("Tried", "a file", OK, f"written and removed in {output_root}")
            yield from run(Path(place))
    except (UserError, OSError) as e:
        remedy = "choose another folder: --output_root=DIR"
        yield Finding("Tried", "a file", FAULTY, str(e), remedy)
    finally:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


def run(place: Path) -> Iterator[Finding]:
    """A run of a tiny model, in a process of its own as those of a study."""
    from nanoscale.data.dataset import open_dataset
    from nanoscale.data.prepare import prepare
    from nanoscale.experiments.failures import log_tail
    from nanoscale.experiments.local import local_backend
    from nanoscale.experiments.machine import slots
    from nanoscale.spec.sources import Source, build
    from nanoscale.store.folder import COMPLETE, RunFolder, run_spec

    (place / "text.txt").write_text(TEXT, encoding="utf-8")
    with redirect_stdout(io.StringIO()):
        data = prepare("text", input=str(place / "text.txt"), out=place / "data")
    config = build([Source("doctor", MODEL_TRIED | {"dataset": str(data)})])
    folder = RunFolder(place / "run")
    folder.create(run_spec(config, open_dataset(str(data)), {}))

    backend = local_backend()
    began = time.monotonic()
    try:
        backend.start(folder.path, slots("auto", 1, None)[0])
        while not backend.poll(0.2) and time.monotonic() < began + RUN_SECONDS:
            pass
    finally:
        backend.close()
    seconds = time.monotonic() - began
    results = folder.metrics()
    if folder.status().state != COMPLETE or results is None:
        log = log_tail(folder, 1) or ["no word of it"]
        yield Finding("Tried", "a run", FAULTY, f"a tiny model did not train: {log[0]}")
        return
    said = f"a tiny model trained to a loss of {results['val_loss']:.3f}, in {seconds:.1f} s"
    yield Finding("Tried", "a run", OK, f"{said} with its start")
