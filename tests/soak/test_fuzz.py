"""Whatever is typed or written: a result, or one line and exit code 2; never a traceback."""

from __future__ import annotations

import random
import shlex
from pathlib import Path

import fake_worker
import pytest
from planted_tables import rows, write

from nanoscale.commands.main import main

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


def worse_command(dice: random.Random) -> list[str]:
    """A good command with one thing changed: an argument, its value, or a character."""
    arguments = shlex.split(dice.choice(COMMANDS))
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
