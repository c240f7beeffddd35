"""The README's commands work as written, shortened by flags alone, and its links lead somewhere."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from tiny import ROOT, run_nanoscale, run_python

from nanoscale.__main__ import main
from nanoscale.spec.resolve import resolve, warnings
from nanoscale.spec.sources import build, parse_arguments

README = (ROOT / "README.md").read_text(encoding="utf-8")
SMALL = [
    "--max_iters=2",
    "--lr_decay_iters=None",
    "--device=cpu",
    "--compile=False",
    "--batch_size=2",
    "--block_size=16",
    "--n_layer=1",
    "--n_head=2",
    "--n_embd=16",
    "--eval_iters=1",
    "--final_eval_tokens=64",
    "--threads=1",
]
TRAINED = "train_shakespeare_char"
SHORTER = {"train.py": SMALL, "sample.py": ["--num_samples=1", "--max_new_tokens=5"]}


def commands() -> list[str]:
    """Every command in the README's sh blocks, continued lines joined."""
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip()]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Path:
    """A working folder like a clone, with small data under the names that the README uses."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("config", "docs", "studies", "train.py", "sample.py", "README.md"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("shakespeare_char", "pysource"):
        shutil.copytree(data_root / "tiny", folder / "data" / name)
    return folder


def test_the_readme_has_its_two_commands_and_the_rest():
    found = commands()
    assert found[0] == "make study"
    assert len(found) >= 8
    assert "`make test`" in README


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in commands() if not c.startswith("make ")])
def test_a_command(desk, command):
    program, *arguments = shlex.split(command)
    if arguments[:3] == ["data", "prepare", "shakespeare_char"]:
        pytest.skip("it downloads; test_prepare.py has it with --input")
    needed = "out-shakespeare-char"
    if needed in command and not (desk / needed).exists():  # another process has that command
        run_python("train.py", f"config/{TRAINED}.py", *SMALL, cwd=desk)
    if program == "python":
        done = run_python(*arguments, *SHORTER[arguments[0]], cwd=desk)
    else:
        assert program == "nanoscale"
        arguments = [*(a.replace("--budget=1e13", "--budget=1e9") for a in arguments)]
        done = run_nanoscale(*arguments, cwd=desk)
    if arguments[-1] == "--dry-run":
        assert " on 2 workers" in done.stdout  # by a calibration, or runs of the other commands
    undecided = 3 if arguments[0] == "fit" else 0  # E, K and g of that table stay letters
    assert done.returncode in (0, undecided), done.stderr


def test_the_snippet_is_the_originals():
    from grids import SNIPPET

    snippet = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    assert snippet.split() == SNIPPET.split()


@pytest.mark.slow
def test_the_example_from_python_runs_as_written(desk):
    snippet = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[1]
    done = run_python("-c", snippet, cwd=desk)
    assert done.stdout.startswith("L(C) = E + K / C^g\nat 5.86e+13"), done.stderr


def test_the_law_of_the_first_screen_is_what_fit_prints(capsys):
    table = ROOT / "docs" / "results" / "shakespeare" / "table.csv"
    assert main(["fit", str(table)]) == 3  # E, K and g stay letters
    law, far = capsys.readouterr().out.splitlines()[:2]
    assert f"```\n{law}\n{far}\n```" in README
    record = json.loads((table.parent / "power.json").read_text(encoding="utf-8"))
    assert record["summary"][:2] == [law, far]


def test_links_lead_somewhere():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


@pytest.mark.parametrize("preset", sorted((ROOT / "config").glob("*.py")), ids=lambda p: p.stem)
def test_every_preset_is_a_config(preset):
    config = resolve(build(parse_arguments([str(preset)])), 50304)
    assert config.max_iters > 0
    assert not warnings(config)
