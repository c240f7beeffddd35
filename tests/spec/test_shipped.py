"""What comes with the package is found by name, in a clone and where a wheel was installed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny import ROOT

from nanoscale.errors import UserError
from nanoscale.spec import shipped as module
from nanoscale.spec.shipped import named, names, shipped
from nanoscale.spec.sources import load_config, small_run
from nanoscale.studies.study_file import read_study

PLACES = ("clone", "wheel")


@pytest.fixture(params=PLACES)
def elsewhere(request, tmp_path, monkeypatch) -> Path:
    """A working folder outside the clone, the package in a clone or installed from a wheel."""
    if request.param == "wheel":
        inside = tmp_path / "site-packages" / "nanoscale" / "shipped"
        for folder in ("config", "studies"):
            shutil.copytree(ROOT / folder, inside / folder)
        monkeypatch.setattr(module, "IN_WHEEL", inside)
        monkeypatch.setattr(module, "PACKAGE", inside.parent)
    here = tmp_path / "work"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


@pytest.mark.parametrize("typed", ["quick", "quick.toml", "studies/quick", "studies/quick.toml"])
def test_a_study_by_its_name(elsewhere, typed):
    study = read_study(Path(typed))
    assert study.name == "quick"
    assert study.text == (ROOT / "studies" / "quick.toml").read_text()


@pytest.mark.parametrize("typed", ["train_gpt2", "train_gpt2.py", "config/train_gpt2.py"])
def test_a_config_by_its_name(elsewhere, typed):
    assert load_config(typed) == load_config(ROOT / "config" / "train_gpt2.py")


def test_ones_own_goes_first(elsewhere):
    (elsewhere / "studies").mkdir()
    own = elsewhere / "studies" / "quick.toml"
    own.write_text((ROOT / "studies" / "sweep.toml").read_text())
    assert read_study(Path("quick")).recipe_name == "grid"
    own.rename(elsewhere / "quick.toml")
    assert read_study(Path("quick.toml")).recipe_name == "grid"
    (elsewhere / "quick").mkdir()  # a folder is no study
    assert read_study(Path("quick")).recipe_name == "forecast"


def test_another_folders_file_is_not_ours(elsewhere):
    with pytest.raises(UserError, match=r"other/quick.toml: no such study file; "):
        read_study(Path("other/quick.toml"))
    for foreign in ("other/quick.toml", "quick.json", "../studies/quick.toml"):
        assert named(Path(foreign), "studies") == Path(foreign)


@pytest.mark.parametrize("typed", ["", ".", "/", "a\0b", "..", "studies"])
def test_what_is_no_files_name_is_refused(elsewhere, typed):
    with pytest.raises(UserError):
        read_study(Path(typed))
    with pytest.raises(UserError):
        load_config(typed)


def test_a_name_whose_file_is_gone_is_not_its_own_remedy(elsewhere):
    (elsewhere / "studies").mkdir()
    (elsewhere / "studies" / "dang.toml").symlink_to("nowhere")
    with pytest.raises(UserError, match="dang: no such study file; 'quick' is one"):
        read_study(Path("dang"))


def test_a_name_that_is_nobodys(elsewhere):
    with pytest.raises(UserError, match=r"qick: no such study file; did you mean 'quick'\?"):
        read_study(Path("qick"))
    with pytest.raises(UserError, match=r"zzz: no such study file; 'quick' is one$"):
        read_study(Path("zzz"))
    with pytest.raises(UserError, match=r"train_gpt: config files end in .*; did you mean 'train_"):
        load_config("train_gpt")


def test_all_names_are_told_and_there(elsewhere):
    for folder, ending in (("config", ".py"), ("studies", ".toml")):
        told = names(folder)
        assert told == sorted(file.stem for file in (ROOT / folder).glob(f"*{ending}"))
        assert all((shipped(folder) / f"{name}{ending}").is_file() for name in told)


def test_the_small_run_that_remedies_name_is_a_config(elsewhere):
    assert load_config(small_run().split()[-1]).n_embd == 128
