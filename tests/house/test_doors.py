"""The names of the original README, imported from a clone's root as it says."""

from __future__ import annotations

import sys

import pytest
from tiny import ROOT, run_python

import nanoscale

IMPORTS = {
    "from model import GPT": "nanoscale.model.gpt",
    "from config import ExperimentConfig": "nanoscale.spec.config",
    "from muon import Muon": "nanoscale.model.muon",
    "from parametrization import register": "nanoscale.spec.parametrization",
    "from experiments import ExperimentRunner": "nanoscale.experiments.runner",
}


@pytest.mark.slow
@pytest.mark.parametrize("line", IMPORTS)
def test_a_name_of_the_original_readme(line):
    name = line.split()[-1]
    done = run_python("-c", f"{line}; print({name}.__module__)", cwd=ROOT)
    assert done.stdout.strip() == IMPORTS[line], done.stderr


def test_the_door_named_config_leaves_the_folder_of_presets_where_it_was():
    code = "import config.train_shakespeare_char as preset; print(preset.n_layer)"
    assert run_python("-c", code, cwd=ROOT).stdout == "6\n"


@pytest.mark.slow
def test_a_config_file_may_build_on_another(tmp_path):
    """`from config.NAME import *` in a config file runs; its own assignments are what counts."""
    (tmp_path / "mine.py").write_text(
        "from config.train_shakespeare_char import n_layer as _theirs\nn_layer = _theirs + 1\n"
    )
    done = run_python(str(ROOT / "train.py"), str(tmp_path / "mine.py"), "--n_layr=1", cwd=tmp_path)
    assert "n_layr" in done.stderr  # the file was read, the flag after it refused
    code = (
        "from nanoscale.spec.sources import build, parse_arguments; "
        f"print(build(parse_arguments([{str(tmp_path / 'mine.py')!r}])).n_layer)"
    )
    assert run_python("-c", code, cwd=ROOT).stdout == "7\n"


def test_the_version_is_one():
    done = run_python("-m", "nanoscale", "--version")
    assert done.stdout.split()[-1] == nanoscale.__version__
    assert nanoscale.__version__ in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert sys.version_info >= (3, 11)
