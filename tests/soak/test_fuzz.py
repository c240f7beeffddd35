"""Whatever is typed or written: a result, or one line and exit code 2; never a traceback.

Every case is a function of its seed, which a failure names.
"""

from __future__ import annotations

import json
import random
import re
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fake_worker
import pytest
from planted_tables import rows, write
from tiny import RUN, flags, run_nanoscale

from nanoscale.__main__ import main
from nanoscale.errors import UserError
from nanoscale.store.folder import TIMING_COLUMNS
from nanoscale.training import checkpoint

STUDY = """[study]
question = "Which LR?"
recipe = "grid"
[base]
dataset = "toy"
n_layer = 1
n_head = 2
n_embd = 16
block_size = 8
batch_size = 2
gradient_accumulation_steps = 1
max_iters = 10
[grid]
learning_rate = [1e-3, 2e-3]
"""
CONFIG = "n_layer = 2\nn_head = 2\nn_embd = 16\nmax_iters = 10\nmin_lr = 1e-5\n"
LRS = "\n".join(
    f"{width},{lr},{2 + (i - 2) ** 2 / 50 + width / 1000},{seed}"
    for width in (16, 32, 64, 128)
    for i, lr in enumerate((1e-3, 2e-3, 4e-3, 8e-3, 16e-3))
    for seed in (1, 2)
)
COMMANDS = (
    "params config.py --vocab_size=65 --n_layer=2 --n_embd=32 --parametrization.mode=muP",
    "study study.toml --dry-run --budget=1e15",
    "fit runs.csv --n=total_params --d=tokens_seen --loss=val_loss --bootstrap=9 --json=out.json",
    "plan runs.csv --budget=1e20 --bootstrap=9",
    "transfer lrs.csv --size=width --lr=lr --loss=loss --seed=seed --tolerance=0.25",
    "design runs.csv --noise=0.01 --worlds=20 --bootstrap=20",
    "status --output_root=out",
    "data prepare text --input config.py --kind char --out data/mine",
)
ODD = ["", "nan", "-1", "inf", "None", "[", "é", "a" * 300, "0", "True", "../..", "{}", "'"]


@pytest.fixture(autouse=True)
def uncalibrated(monkeypatch: pytest.MonkeyPatch) -> None:
    """No dry run of a changed study trains for seconds."""
    monkeypatch.setattr("nanoscale.experiments.timing.measured", lambda *_: {})


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """A folder with one good file for every command."""
    monkeypatch.chdir(tmp_path)
    fake_worker.make_dataset(tmp_path)
    Path("study.toml").write_text(STUDY)
    Path("config.py").write_text(CONFIG)
    Path("lrs.csv").write_text(f"width,lr,loss,seed\n{LRS}\n")
    write(Path("runs.csv"), rows())
    files = ("study.toml", "config.py", "lrs.csv", "runs.csv")
    return {name: Path(name).read_bytes() for name in files}


def worse_command(dice: random.Random, commands: Sequence[str] = COMMANDS) -> list[str]:
    """A good command with one thing changed: an argument, its value, or a character."""
    arguments = shlex.split(dice.choice(commands))
    k = dice.randrange(len(arguments))
    key, equals, _ = arguments[k].partition("=")
    kind = dice.randrange(5)
    if kind == 0:
        del arguments[k]
    elif kind == 1:
        arguments.insert(k, arguments[k])
    elif kind == 2:
        arguments[k] = key + equals + dice.choice(ODD)
    elif kind == 3:
        at = dice.randrange(len(key))
        arguments[k] = key[:at] + dice.choice("xyz-_= é") + arguments[k][at + 1 :]
    return arguments


def worse_file(content: bytes, dice: random.Random) -> bytes:
    """A good file with one thing changed: a byte, a line, its end, or all of it."""
    at = dice.randrange(len(content))
    lines = content.splitlines(keepends=True)
    k = dice.randrange(len(lines))
    return dice.choice(
        (
            content[:at] + bytes([dice.choice(b"x=[],\"'\n\xff#")]) + content[at + 1 :],
            content[:at],
            b"".join(lines[:k] + lines[k + 1 :]),
            b"".join([*lines[:k], lines[k], *lines[k:]]),
            content.replace(b"=", dice.choice((b"==", b":", b"")), 1),
            b"",
        )
    )


def check_one(seed: int, files: dict[str, bytes], capsys: pytest.CaptureFixture[str]) -> None:
    dice = random.Random(seed)
    for name, content in files.items():
        Path(name).write_bytes(content)
    if dice.random() < 0.5:
        arguments = worse_command(dice)
    else:
        arguments = shlex.split(dice.choice(COMMANDS))
        name = dice.choice(list(files))
        Path(name).write_bytes(worse_file(files[name], dice))

    code = main(arguments)
    text = capsys.readouterr()
    assert code in (0, 1, 2, 3), (seed, arguments)
    if code == 2 and arguments:
        lines = text.err.splitlines()
        assert len(lines) == 1, (seed, arguments, text.err)
        assert lines[0].startswith("error: "), (seed, arguments)


@pytest.mark.slow
def test_wrong_input_is_refused_in_one_line(desk, capsys):
    for seed in range(150):
        check_one(seed, desk, capsys)


@pytest.mark.soak
@pytest.mark.parametrize("block", range(20))
def test_much_wrong_input_is_refused_in_one_line(block, desk, capsys):
    for seed in range(1000 * (block + 1), 1000 * (block + 2)):
        check_one(seed, desk, capsys)


# -- runs: what is finished is never lost -------------------------------------------------------
SAMPLE = 8  # of them in `make test`
SIZES = {"n_layer": 1, "n_head": 2, "n_embd": 16, "max_iters": 4, "eval_interval": 3}
TRAINED = RUN | SIZES | {"lr_schedule": "constant", "kernels": "torch"}
BASE_FILE = "".join(f"{key} = {value!r}\n" for key, value in TRAINED.items())
CONFIG_FILES = (  # ways to take a base file in, each with a key of its own
    "exec(open('base.py').read())\nseed = 1\n",
    "from base import *\nlog_interval = 2\n",
    "import base\nglobals().update({k: v for k, v in vars(base).items() if k[0] != '_'})\n",
    "settings = {'beta2': 0.98, 'grad_clip': 0.5}\nfor k, v in settings.items():\n"
    "    globals()[k] = v\ndel settings, k, v\n",
    "for k in [k for k in globals() if k == 'keep']:\n    globals()[k] = 'best'\n",
    "def rate(n):\n    return 1e-3 * n\nlearning_rate = rate(2)\nparametrization.mode = 'muP'\n",
)
ODD_LINES = (
    "n_layer = 'two'",
    "learning_rate = None",
    "batch_size = [1, 2]",
    "checkpoint_steps = {'a': (1, 2)}",
    "n_head = lambda: 2",
    "seed = float('nan')",
    "dropout = 2",
    "max_iters = 10**400",
    "from nowhere import *",
    "from config import *",  # itself
    "exec(open('nowhere.py').read())",
    "exec('n_layer = ')",
    "globals().clear()",
    "globals().update({3: 4})",
    "globals().update(n_layr=3)",
    "del n_layer",
    "for n_layer in range(3): pass",
    "import numpy as np; n_embd = np.int64(16)",
    "import numpy as np; beta1 = np.array([0.9])",
    "raise SystemExit(3)",
    "raise KeyboardInterrupt",
    "assert False",
    "1 / 0",
    "def f(): return f()",
    "(lambda f: f(f))(lambda f: f(f))",
    "parametrization = 3",
    "parametrization = {'mode': 'muP'}",
    "parametrization.mode = 4",
    "parametrization.nothing = 4",
    "__builtins__ = None",
    "import sys; sys.exit('enough')",
    "class Config: n_layer = 3",
    "if (n_layer := 2) > 1: n_embd = 16",
    "n_layer: int = 'x'",
    "n_layer = n_layer.real; n_head = -n_head",
    "\\",
    "\x00",
    "    n_layer = 1",
)
GRID = (
    '[study]\nquestion = "Which LR?"\nrecipe = "grid"\n[base]\n'
    + BASE_FILE.replace("True", "true").replace("False", "false")
    + "[grid]\nlearning_rate = [1e-3, 2e-3]\n"
)
TINY_TRAIN = "train " + " ".join(flags(TRAINED))
TRAIN_AGAIN = (
    "",
    "--init_from=resume",
    "--init_from=resume --max_iters=6",
    "--init_from=resume --max_iters=2",
    "--init_from=resume --n_embd=24",
    "--keep=best --log_interval=2",
    "--keep=none --micro_batch_size=1",
    "--n_layer=2",
    "--seed=3",
    "--eval_only=True",
    "--eval_only=True --init_from=resume",
    "--branch_from=RUN --out_dir=branch --max_iters=6",
    "--branch_from=RUN@4 --out_dir=branch",
    "--data_root=nowhere",
    "--tensorboard_log=False --checkpoint_steps=[1,3]",
    "--dtype=bfloat16",
)
RUN_COMMANDS = (
    *(f"{TINY_TRAIN} --out_dir=RUN {more}" for more in TRAIN_AGAIN),
    *[f"{TINY_TRAIN} --out_dir=RUN --init_from=resume --max_iters=6"] * 10,  # what can destroy
    f"train config.py {' '.join(flags(TRAINED))} --out_dir=new",
    f"train base.py config.py --out_dir=new {' '.join(flags(SIZES))}",
    "params base.py config.py",
    "run RUN",
    "run RUN",
    "sample --out_dir=RUN --max_new_tokens=3 --num_samples=1 --device=cpu",
    "sample --out_dir=RUN --data_root=data --max_new_tokens=2 --num_samples=2 --start=the",
    "status",
    "status grid",
    "table grid",
    "table grid --out=other.csv",
    "report grid",
    "watch grid",
    "retry grid --workers=1 --retries=0",
    "study grid.toml --workers=1 --retries=0",
    "study grid.toml --dry-run",
    "fit experiments_out/grid/table.csv --n=total_params --d=tokens_seen --bootstrap=9",
)
DAMAGED = (
    "config.json",
    "status.json",
    "metrics.json",
    "metrics.jsonl",
    "windows.npy",
    "ckpt.pt",
    "best.pt",
    "log.txt",
    "ckpt.pt",  # twice as often
)
OTHER_JSON = [
    "null",
    "[]",
    "{}",
    "3",
    '"x"',
    "[1, 2]",
    '{"a": 1}',
    "[" * 2000,
    "NaN",
    "-1",
    "1e999",
]
STUDY = "experiments_out/grid/study.json"
RESULTS = ("metrics.json", "windows.npy")
LEFT = (*RESULTS, "metrics.jsonl", "ckpt.pt", "best.pt")


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Path:
    """A working folder with config files, runs that are complete, and one that waits."""
    desk = tmp_path_factory.mktemp("furnished")
    shutil.copytree(data_root, desk / "data")
    (desk / "base.py").write_text(BASE_FILE)
    (desk / "config.py").write_text(CONFIG_FILES[0])
    (desk / "grid.toml").write_text(GRID)
    for command in (
        f"{TINY_TRAIN} --out_dir=out",
        f"{TINY_TRAIN} --out_dir=best --keep=best --seed=1",
        f"{TINY_TRAIN} --out_dir=half --seed=2 --dropout=0.1",
    ):
        done = run_nanoscale(*shlex.split(command), cwd=desk)
        assert done.returncode == 0, done.stderr
    for name in RESULTS:  # as after a kill in the final evaluation
        (desk / "half" / name).unlink()
    status = json.loads((desk / "half" / "status.json").read_text())
    (desk / "half" / "status.json").write_text(json.dumps(status | {"state": "RUNNING"}))
    return desk


@pytest.fixture(scope="module")
def with_study(tmp_path_factory: pytest.TempPathFactory, furnished: Path) -> Path:
    """The same, with a study of two runs."""
    desk = tmp_path_factory.mktemp("study") / "desk"
    shutil.copytree(furnished, desk)
    done = run_nanoscale("study", "grid.toml", "--workers=1", cwd=desk)
    assert done.returncode == 0, done.stderr
    return desk


def other_json(record: Any, dice: random.Random) -> Any:
    """A record with one value, anywhere in it, of another type."""
    if isinstance(record, dict) and record and dice.random() < 0.8:
        key = dice.choice(list(record))
        return record | {key: other_json(record[key], dice)}
    return dice.choice([None, -1, 0, 1e300, "x", [], {}, [None], True])


def damage(path: Path, dice: random.Random) -> None:
    """One thing done to a file that others may do to it."""
    if path.is_dir():
        return
    content = path.read_bytes() if path.is_file() else b""
    at = dice.randrange(len(content) or 1)
    kind = dice.choice(("cut", "empty", "json", "gone", "byte", "value", "folder", "line", "other"))
    if kind == "cut":
        path.write_bytes(content[:at])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "json":
        path.write_text(dice.choice(OTHER_JSON) + "\n")
    elif kind == "byte":
        path.write_bytes(content[:at] + bytes([dice.randrange(256)]) + content[at + 1 :])
    elif kind == "value" and path.suffix == ".json" and content:
        path.write_text(json.dumps(other_json(json.loads(content), dice)))
    elif kind == "line" and path.suffix in (".json", ".jsonl", ".txt"):
        lines = content.splitlines(keepends=True)
        k = dice.randrange(len(lines) or 1)
        odd = dice.choice(OTHER_JSON).encode() + b"\n"
        middle = dice.choice(([], lines[k : k + 1] * 2, [odd], [b"{}\n"]))
        path.write_bytes(b"".join([*lines[:k], *middle, *lines[k + 1 :]]))
    elif kind == "other" and path.suffix == ".pt":
        others = sorted(p for p in path.parent.glob("*.pt") if p != path)
        shutil.copyfile(dice.choice([*others, path.parent / "config.json"]), path)
    else:
        path.unlink(missing_ok=True)
        if kind == "folder":
            path.mkdir()


def content_of(path: Path) -> object:
    """What must stay of a run's file, whoever writes it anew; None where it cannot be read."""
    try:
        if path.suffix == ".json":
            record = json.loads(path.read_text())
            return [
                record[key] for key in ("id", "status", "val_loss", "best_val_loss", "iter_num")
            ]
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            return [{k: v for k, v in row.items() if k not in TIMING_COLUMNS} for row in rows]
        if path.suffix == ".pt":
            content = checkpoint.load(path)
            return checkpoint.digest({k: content.get(k, {}) for k in ("model", "optimizer")})
        return path.read_bytes()
    except (OSError, UserError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def refusal(err: str) -> list[str]:
    """The lines of standard error but for warnings, ours and Python's of unclosed base files."""
    python = r"\S+: ResourceWarning: .*\n(  .*\n)?(ResourceWarning: .*\n)?|warning: .*\n"
    return re.sub(python, "", err).splitlines()


def id_of(folder: Path) -> object:
    """Which run a folder's status is of."""
    try:
        return json.loads((folder / "status.json").read_text())["id"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def lost(desk: Path, before: dict[Path, bytes], longer: Path | None) -> list[str]:
    """The files of complete runs that are not there any more, where they were or moved aside.

    A run in `longer` was lengthened: until it is done it has the shorter one's results.
    """
    missing = []
    for path, content in before.items():
        folder = desk / path.parent
        if path.parent == longer:
            done = b"COMPLETE" in (folder / "status.json").read_bytes()
            if done or path.name not in RESULTS:
                continue
        places = [place / path.name for place in (folder, *folder.parent.glob("*.old-*"))]
        if any(place.is_file() and place.read_bytes() == content for place in places):
            continue
        kept = desk / f"kept-{path.name}"
        kept.write_bytes(content)
        if content_of(kept) not in map(content_of, places):
            missing.append(str(path))
    return missing


@dataclass(frozen=True)
class Try:
    """A command in a folder where something may have been damaged."""

    target: Path  # the run that it is about
    arguments: list[str]
    damaged: list[str]

    def __str__(self) -> str:
        typed = shlex.join(self.arguments).replace(" ".join(flags(TRAINED)), "...")
        return f"{typed}; damaged: {' '.join(self.damaged)}"


def worse_desk(desk: Path, complete: Sequence[Path], dice: random.Random) -> Try:
    """One or two files of a run damaged, the study's record, or a config file; or the command."""
    study = (desk / STUDY).is_file()
    commands = [c for c in RUN_COMMANDS if study or not needs_study(c)]
    target = dice.choice([*complete, *complete[:1] * 4, Path("half")])
    damaged = []
    kind = dice.choice(("run",) * 5 + ("config", "command") + ("study",) * study)
    if kind == "run":
        for name in dice.sample(DAMAGED, dice.choice((1, 1, 2))):
            damage(desk / target / name, dice)
            damaged.append(f"{target}/{name}")
    elif kind == "study":
        damage(desk / STUDY, dice)
        damaged.append(STUDY)
        commands = list(filter(needs_study, commands))
    elif kind == "config":
        name = dice.choice(("base.py", "config.py"))
        text = dice.choice(CONFIG_FILES) if name == "config.py" else BASE_FILE
        line = dice.choice(ODD_LINES) + "\n"
        worse = dice.choice((text + line, line + text, text))
        content = worse.encode() if worse != text else worse_file(text.encode(), dice)
        (desk / name).write_bytes(content)
        damaged.append(name)
        commands = [c for c in commands if "config.py" in c]

    command = dice.choice(commands).replace("RUN", str(target))
    arguments = worse_command(dice, [command]) if kind == "command" else shlex.split(command)
    return Try(target, arguments, damaged)


def needs_study(command: str) -> bool:
    return "grid" in command or command == "status"


def check_runs(seed: int, furnished: Path, desk: Path) -> None:
    dice = random.Random(seed)
    shutil.copytree(furnished, desk)
    store = Path("experiments_out", "runs")
    grid = [store / path.name for path in sorted((desk / store).glob("*"))]
    complete = [Path("out"), Path("best"), *grid]
    this = worse_desk(desk, complete, dice)
    files = [folder / name for folder in complete for name in LEFT]
    files = [path for path in files if str(path) not in this.damaged]  # mended, they are others
    before = {path: (desk / path).read_bytes() for path in files if content_of(desk / path)}

    done = run_nanoscale(*this.arguments, cwd=desk)
    said = done.stdout + done.stderr
    case = f"seed {seed}: {this}\n{said[-2000:]}"
    assert done.returncode in (0, 1, 2, 3, 130), case
    assert "Traceback" not in said, case
    if done.returncode == 2 and this.arguments:
        lines = refusal(done.stderr)
        assert len(lines) == 1, case
        assert lines[0].startswith("error: "), case
    same = id_of(desk / this.target) in (None, id_of(furnished / this.target))
    longer = None if same or "--max_iters=6" not in this.arguments else this.target
    missing = lost(desk, before, longer)
    if any(argument.startswith("--keep=") for argument in this.arguments):
        # a run that is damaged is trained on, and keeps what is asked
        missing = [path for path in missing if not path.endswith(".pt")]
    assert not missing, f"{missing} lost: {case}"
    shutil.rmtree(desk)


@pytest.mark.slow
def test_a_damaged_folder_loses_nothing_finished(furnished, tmp_path):
    for seed in range(SAMPLE):
        check_runs(seed, furnished, tmp_path / str(seed))


@pytest.mark.soak
@pytest.mark.parametrize("block", range(20))
def test_many_damaged_folders_lose_nothing_finished(block, with_study, tmp_path):
    for seed in range(50 * (block + 1), 50 * (block + 2)):
        check_runs(seed, with_study, tmp_path / str(seed))
