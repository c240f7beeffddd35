"""The run that narrows an answer most per FLOP, and studies that go on by it."""

from __future__ import annotations

import json
from pathlib import Path

import fake_worker
import pytest
from fake_worker import CRASH, SURFACE, TINY

from nanoscale.__main__ import main
from nanoscale.errors import DONE, INCONCLUSIVE
from nanoscale.experiments import Study

KEYS = {"n_layer": 2, "batch_size": 4, "beta1": SURFACE, "eval_interval": 0}
BASE = {key: value for key, value in (TINY | KEYS).items() if key != "max_iters"}
ISOFLOP = "[isoflop]\nbudgets = [2e10, 5e10, 1e11]\nrefine = false" + "".join(
    f"\n[[isoflop.sizes]]\nn_embd = {width}" for width in (48, 64, 80, 96)
)
LADDER = "tokens_per_param = 1\n[ladder]\nseeds = [1, 2]" + "".join(
    f"\n[[ladder.sizes]]\nn_embd = {width}" for width in (32, 40, 48, 56, 64)
)
ABLATION = LADDER.replace("ladder", "ablation") + '\n[[ablation.arms]]\nname = "a"\ndropout = 0.3'
SOAK = pytest.mark.soak
STUDIES = {"isoflop": ISOFLOP, "ladder": LADDER, "ablation": ABLATION}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    fake_worker.stand_in(tmp_path, monkeypatch)


def study_of(recipe: str, **base: object) -> str:
    """The file of a study of that name."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in (BASE | base).items()]
    head = f'[study]\nname = "{recipe}"\nrecipe = "{recipe}"\n[base]\n'
    Path("s.toml").write_text(head + "\n".join(lines) + f"\n{STUDIES[recipe]}\n")
    return "s.toml"


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["ablation", pytest.param("isoflop", marks=SOAK)])
def test_a_study_goes_on_until_its_answer_is_narrow(recipe, capsys):
    assert main(["study", study_of(recipe)]) == DONE
    before = len(Study.open(f"experiments_out/{recipe}"))
    capsys.readouterr()
    assert main(["next", recipe, "--json=next.json"]) == DONE
    said = capsys.readouterr().out
    proposal = json.loads(Path("next.json").read_text())
    assert f"within a factor of {proposal['width']:.4g} (95 %)" in said
    assert 0 < proposal["left"] < 1
    assert 1 < proposal["then"] < proposal["width"]
    assert len(Study.open(f"experiments_out/{recipe}")) == before

    aim = proposal["width"] ** 0.85
    assert main(["next", recipe, f"--until-width={aim}", "--budget=3e12"]) == DONE
    capsys.readouterr()
    after = Study.open(f"experiments_out/{recipe}")
    added = json.loads(Path(f"experiments_out/{recipe}/added.json").read_text())["rows"]
    assert len(after) == before + len(added) > before
    assert main(["next", recipe, "--json=next.json"]) == DONE
    assert json.loads(Path("next.json").read_text())["width"] <= aim

    # the study's own command goes on with what was added
    assert main(["study", "s.toml"]) == DONE
    assert len(Study.open(f"experiments_out/{recipe}")) == len(after)
    assert " start " not in capsys.readouterr().out


@SOAK
def test_additions_that_narrow_nothing_end_it(capsys):
    """The planted noise is of the sizes, so further seeds of them help little."""
    assert main(["study", study_of("ladder")]) == DONE
    assert main(["next", "ladder", "--until-width=1.001", "--budget=1e13"]) == INCONCLUSIVE
    assert "the last 3 additions did not narrow it" in capsys.readouterr().out


@pytest.mark.slow
def test_where_the_budget_ends_the_answer_stays_as_it_is(capsys):
    assert main(["study", study_of("ladder")]) == DONE
    assert main(["next", "ladder", "--until-width=1.000001", "--budget=1"]) == INCONCLUSIVE
    assert "1 FLOPs are left, and it takes" in capsys.readouterr().out
    assert not Path("experiments_out/ladder/added.json").exists()


@pytest.mark.parametrize("width", ["1", "0.5", "wide"])
def test_a_width_that_no_interval_has_is_refused(width, capsys):
    assert main(["next", "ladder", f"--until-width={width}"]) == 2
    assert "--until-width" in capsys.readouterr().err


@pytest.mark.slow
def test_a_recipe_without_an_interval_and_a_file_of_another_are_refused(capsys):
    text = Path(study_of("ladder")).read_text()
    grid = text.partition("tokens_per_param")[0].replace("ladder", "grid")
    Path("s.toml").write_text(grid + "max_iters = 5\n[grid]\nseed = [1, 2]\n")
    assert main(["study", "s.toml"]) == DONE
    assert main(["next", "grid"]) == 2
    said = capsys.readouterr().err
    assert "has no interval that one run more would narrow; there are" in said
    assert "'ladder'" in said

    assert main(["study", study_of("ladder")]) == DONE
    Path("experiments_out/ladder/added.json").write_text("[]")
    assert main(["study", "s.toml"]) == 2
    assert "not what `nanoscale next` leaves" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", STUDIES)
def test_a_study_of_which_nothing_has_finished_says_so(recipe, capsys):
    assert main(["study", study_of(recipe, beta1=CRASH)]) == 1
    said = capsys.readouterr()
    assert "report: " in said.out
    assert "Traceback" not in said.err
    assert main(["next", recipe]) == 2
    said = capsys.readouterr().err
    assert f"{recipe}: its answer has no interval yet" in said
    assert said.endswith("; nanoscale study s.toml goes on with it\n")
