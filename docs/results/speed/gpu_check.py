"""Everything that waits for a GPU, in at most 8 minutes: each answer as it comes, then a table.

    make gpu-check
    PYTHONPATH=. python docs/results/speed/gpu_check.py --only=resume --out=FILE.json

The second form needs no installation, only torch and what nanoscale imports; neither needs data or
a network. Every item of `gpu_items.py` is a process of its own with a limit, and may also use what
the items before it have left of theirs. One that fails or runs out of time says so, and the rest
goes on. `gpu.json` here, or FILE, is written anew with each answer, so a check that is stopped or
killed keeps what it had.

Exit code: 0 all is well, 1 something is not, 3 something had no time, 2 there is no GPU (and no
file is written but by --out). `--device=cpu --tiny` goes through it in small, on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from nanoscale.errors import BAD_INPUT, DONE, FAILURE, INCONCLUSIVE, INTERRUPTED
from nanoscale.spec.values import Json
from nanoscale.store.files import write_json
from nanoscale.store.provenance import provenance

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
SCRIPT = HERE / "gpu_items.py"
# Item -> its limit in seconds; what would be missed most comes first.
LIMITS = {
    "machine": 20,
    "gpt2": 110,
    "resume": 40,
    "small": 60,
    "tests": 50,
    "loss": 35,
    "ranks": 55,
    "dtypes": 30,
    "presets": 45,
    "engine": 25,
}
TOTAL = 8 * 60
GRACE = 2  # seconds from an item's SIGTERM to its SIGKILL
LONGEST = 160  # letters of a reason
COMPLETE, NO_GPU, NOT_REACHED, STOPPED = "done", "no GPU", "not reached", "stopped"

Row = dict[str, Json]  # what, said, passed (None: there is nothing to pass), and numbers


@dataclass
class Answer:
    """What an item came to."""

    state: str = NOT_REACHED
    seconds: float = 0.0
    rows: dict[str, Row] = field(default_factory=dict)  # by what; a later one replaces

    @property
    def failed(self) -> bool:
        return self.state.startswith("failed") or any(
            row["passed"] is False for row in self.rows.values()
        )

    def to_json(self) -> dict[str, Json]:
        return {
            "state": self.state,
            "seconds": round(self.seconds, 1),
            "rows": list(self.rows.values()),
        }


Answers = dict[str, Answer]


# -- one item -------------------------------------------------------------------------------------
def ask(
    command: Sequence[str], seconds: float, answer: Answer, heard: Callable[[Row], None]
) -> None:
    """Run an item's process for at most so long; `heard` is told of each row of its output."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    began = time.monotonic()
    late = threading.Event()
    with (
        tempfile.TemporaryFile("w+", errors="replace") as errors,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
            env=environment,
            process_group=0,  # to be ended as one; in our session, which may end with us
        ) as process,
    ):

        def stop() -> None:
            late.set()
            end(process)

        timer = threading.Timer(seconds, stop)
        timer.start()
        answer.state = STOPPED  # unless it comes to an end
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if not line.endswith("\n"):
                    break  # it was killed in the middle
                row: Row = json.loads(line)
                answer.rows[str(row["what"])] = row
                heard(row)
            code = process.wait()
        finally:
            timer.cancel()
            end(process)
            answer.seconds = time.monotonic() - began

        errors.seek(0)
        if late.is_set():
            answer.state = f"out of time after {seconds:.0f} s"
        elif code:
            answer.state = f"failed: {reason(errors.read(), code)}"
        else:
            answer.state = COMPLETE


def end(process: subprocess.Popen[str]) -> None:
    """Make an item's process leave, and all that it has started."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)


def reason(errors: str, code: int) -> str:
    """Why a process failed, in one line: the last that it wrote."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    last = lines[-1] if lines else "no reason given"
    if code < 0:
        last = f"killed by {signal.Signals(-code).name}; {last}"
    return last[:LONGEST]


# -- all of them ----------------------------------------------------------------------------------
def check(answers: Answers, options: list[str], keep: Callable[[], None]) -> None:
    """Ask one item after another, the first whether there is a GPU; `keep` what has been heard."""
    began = time.monotonic()
    until = 0.0  # seconds from the beginning
    for name, answer in answers.items():
        until += LIMITS[name]
        left = until - (time.monotonic() - began)

        def heard(row: Row, name: str = name) -> None:
            print(f"{name}: {row['what']}: {row['said']}{verdict(row)}", flush=True)
            if not row.get("absent"):
                keep()

        ask([sys.executable, str(SCRIPT), name, *options], left, answer, heard)
        if any(row.get("absent") for row in answer.rows.values()):
            for other in answers.values():
                other.state = NO_GPU
                other.rows = {}
            return
        if answer.state != COMPLETE:
            print(f"{name}: {answer.state}", flush=True)
        keep()


def verdict(row: Row) -> str:
    return {None: "", True: ": ok", False: ": NOT OK"}[row["passed"]]  # type: ignore[index]


def table(answers: Answers) -> str:
    """All answers, for people and for a page."""
    lines = ["| item | | found | |", "|---|---|---|---|"]
    for name, answer in answers.items():
        for row in answer.rows.values():
            passed = verdict(row).removeprefix(": ")
            lines.append(f"| {name} | {row['what']} | {row['said']} | {passed} |")
        if answer.state != COMPLETE:
            lines.append(f"| {name} | | {answer.state} | |")
    return "\n".join(line.replace("\n", " ") for line in lines)


def exit_code(answers: Answers) -> int:
    states = [answer.state for answer in answers.values()]
    if NO_GPU in states:
        return BAD_INPUT
    if any(answer.failed for answer in answers.values()):
        return FAILURE
    if STOPPED in states:
        return INTERRUPTED
    return DONE if all(state == COMPLETE for state in states) else INCONCLUSIVE


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes for trying the script itself")
    parser.add_argument("--only", action="append", choices=LIMITS, help="this item; repeatable")
    parser.add_argument("--out", type=Path, help="the JSON file (gpu.json beside this script)")
    asked = parser.parse_args(arguments)
    chosen = asked.only or list(LIMITS)
    answers = {name: Answer() for name in LIMITS if name in chosen or name == next(iter(LIMITS))}
    options = [f"--device={asked.device}", *(["--tiny"] if asked.tiny else [])]
    out = asked.out
    if out is None and asked.device != "cpu" and not asked.tiny and not asked.only:
        out = HERE / "gpu.json"
    about = {
        "date": time.strftime("%Y-%m-%d"),
        "commit": provenance()["git_commit"],
        "device": asked.device,
        "tiny": asked.tiny,
    }
    began = time.monotonic()

    def keep() -> None:
        absent = any(answer.state == NO_GPU for answer in answers.values())
        if out is None or (absent and asked.out is None):
            return  # what was found where there was one stays
        items = {name: answer.to_json() for name, answer in answers.items()}
        seconds = round(time.monotonic() - began, 1)
        write_json(out, about | {"seconds": seconds, "items": items})

    signal.signal(signal.SIGTERM, interrupt)
    with tempfile.TemporaryDirectory() as folder:
        try:
            check(answers, [*options, f"--folder={folder}"], keep)
        except KeyboardInterrupt:
            print("stopped", flush=True)
    keep()
    print(f"\n{table(answers)}", flush=True)
    return exit_code(answers)


if __name__ == "__main__":
    sys.exit(main())
