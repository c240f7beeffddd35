"""Recipes are registered objects: a user's own file adds one and touches nothing of ours."""

from __future__ import annotations

import json
import re
from pathlib import Path

import fake_worker
import pytest
from fake_worker import TINY
from tiny import PACKAGE, ROOT

from nanoscale.__main__ import main
from nanoscale.commands.main import dispatch
from nanoscale.errors import UserError
from nanoscale.experiments import backends
from nanoscale.experiments.local import ForkServer
from nanoscale.experiments.worker import Worker
from nanoscale.studies import recipe
from nanoscale.studies.recipe import (
    BUILT_IN_RECIPES,
    Recipe,
    load_recipes,
    recipe_names,
    recipe_of,
    register_recipe,
)
from nanoscale.studies.study_file import read_study

BASE = "\n".join(f"{key} = {json.dumps(value)}" for key, value in TINY.items())
STUDY = f"""
[study]
question = "Do two seeds agree?"
recipe = "agreement"
recipes = "mine.py"
[base]
{BASE}
[agreement]
seeds = [1, 2, 3]
"""
MINE = '''
"""Whether seeds agree: the spread of their losses, drawn as a line."""

import nanoscale as ns
from nanoscale.studies.recipe import Answer, Picture, Question, Recipe


def rows(table):
    return Question([{"seed": seed} for seed in table.values["seeds"]], table.where(), {"kept": 7})


def conclude(study, frame):
    spread = frame["val_loss"].max() - frame["val_loss"].min()
    return Answer([f"{len(frame)} seeds, kept {study.asked.extras['kept']}"], spread)


def figures(study, frame, answer):
    figure = ns.lines_figure(frame, x="seed", y={"val_loss": "loss"})
    return [Picture("seeds", "The loss of every seed.", figure)]


ns.register_recipe("agreement", Recipe(("seeds",), rows, conclude, figures))
'''


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(fake_worker.__file__).parent))
    monkeypatch.setattr(recipe, "_registered", {})
    fake_worker.make_dataset(tmp_path)
    fake = ForkServer(Worker(entry="fake_worker:main", preload=()))
    monkeypatch.setattr("nanoscale.experiments.backends.local_backend", lambda: fake)
    Path("mine.py").write_text(MINE)
    Path("study.toml").write_text(STUDY)


@pytest.mark.slow
def test_a_users_recipe_trains_answers_and_draws(monkeypatch, capsys):
    assert dispatch(["study", "study.toml"]) == 0
    assert "[study] 3 seeds, kept 7" in capsys.readouterr().out
    assert Path("experiments_out/study/figures/seeds.png").is_file()
    assert "The loss of every seed." in Path("experiments_out/study/report.html").read_text()

    # a later process knows nothing of the file but what study.json keeps
    monkeypatch.setattr(recipe, "_registered", {})
    assert dispatch(["report", "study"]) == 0
    assert "3 seeds, kept 7" in capsys.readouterr().out


def test_recipes_may_lie_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    (tmp_path / "me").mkdir()
    (tmp_path / "me" / "ours.py").write_text(MINE)
    Path("study.toml").write_text(STUDY.replace("mine.py", "~/ours.py"))
    assert read_study(Path("study.toml")).recipes == tmp_path / "me" / "ours.py"


@pytest.mark.slow
def test_the_recipe_of_the_documentation(capsys):
    page = (ROOT / "docs" / "reference" / "experiments.md").read_text(encoding="utf-8")
    section = page.split("## A recipe of your own", 1)[1]
    Path("mine.py").write_text(section.split("```python\n", 1)[1].split("```", 1)[0])
    text = STUDY.replace('"agreement"', '"pair"').split("[agreement]")[0]
    Path("study.toml").write_text(text)
    assert dispatch(["study", "study.toml"]) == 0
    assert "two seeds lie 0." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (STUDY.replace('recipes = "mine.py"', ""), "no table [agreement] in a study file"),
        (STUDY.replace('"mine.py"', '"none.py"'), "recipes='none.py': no such file"),
        (STUDY.replace('"mine.py"', "3"), "recipes=3: expected a file, as in 'mine.py'"),
        (STUDY.replace("seeds =", "seds ="), "[agreement]: unknown key 'seds'; did you mean"),
        (STUDY.replace("[agreement]", "[grid]"), "[grid] belongs to recipe = 'grid'"),
    ],
)
def test_a_bad_study_file_is_refused(text, words):
    Path("study.toml").write_text(text)
    with pytest.raises(UserError, match=re.escape(words)):
        dispatch(["study", "study.toml"])
    assert not Path("experiments_out").exists()


@pytest.mark.parametrize(
    ("mine", "words"),
    [
        ("x = 1", "registers no recipe and no backend; call register_recipe(name, recipe) in it"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def f(:", "SyntaxError"),
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("import nanoscale as ns; ns.register_recipe('mine', 5)", "expected a Recipe, got 5"),
        (MINE.replace('"agreement", Recipe', '"grid", Recipe'), "recipe 'grid' is built in"),
        (MINE.replace('"agreement", Recipe', '"a b", Recipe'), "recipe 'a b': expected a name"),
    ],
)
def test_a_broken_file_of_recipes_is_one_line_that_names_it(mine, words):
    Path("mine.py").write_text(mine)
    with pytest.raises(UserError, match=re.escape(words)) as refusal:
        dispatch(["study", "study.toml"])
    assert "mine.py" in str(refusal.value)


def line_of(text: str, of: str) -> int:
    return text[: text.index(of)].count("\n") + 1


@pytest.mark.parametrize(
    ("right", "wrong", "words"),
    [
        ('table.values["seeds"]', 'table.values["sides"]', "KeyError: 'sides'"),
        ("], table.where(), {", "], *5, {", "TypeError: "),
        ("return Question", "Question", "rows returned None, expected a Question"),
    ],
)
def test_a_recipe_that_fails_at_work_is_one_line_that_names_the_place(right, wrong, words, capsys):
    mine = MINE.replace(right, wrong)
    Path("mine.py").write_text(mine)
    assert main(["study", "study.toml"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert words in said
    assert wrong == "Question" or f"mine.py, line {line_of(mine, wrong)}: " in said


@pytest.mark.slow
def test_an_answer_that_fails_leaves_the_runs_and_names_the_place(capsys):
    mine = MINE.replace('frame["val_loss"].max()', "frame.nothing()")
    Path("mine.py").write_text(mine)
    assert main(["study", "study.toml"]) == 2
    said = capsys.readouterr().err
    assert f"mine.py, line {line_of(mine, 'frame.nothing')}: AttributeError: " in said
    Path("mine.py").write_text(MINE)
    assert main(["report", "study"]) == 0


@pytest.mark.slow
def test_retry_knows_the_backend_that_the_recipes_file_registers(capsys):
    Path("mine.py").write_text(
        MINE
        + """
from nanoscale.experiments.backends import local_backend
ns.register_backend("mine", lambda root, options: local_backend())
"""
    )
    assert main(["study", "study.toml", "--backend=mine"]) == 0
    backends._MAKERS.pop("mine")
    assert main(["retry", "study", "--backend=mine"]) == 0
    backends._MAKERS.pop("mine")
    assert main(["retry", "study", "--backend=other"]) == 2


def test_a_file_that_fails_registers_nothing_and_one_loaded_again_registers_again():
    file = Path("again.py")
    file.write_text(
        "import nanoscale as ns\nfrom nanoscale.studies.grid_recipe import RECIPE\n"
        "ns.register_recipe('mygrid', RECIPE)\n"
    )
    for _ in range(2):
        load_recipes(file, "s")
        assert recipe_names()[-1] == "mygrid"
    broken = Path("broken.py")
    broken.write_text(file.read_text().replace("mygrid", "broken") + "1 / 0\n")
    with pytest.raises(UserError, match=r"broken\.py"):
        load_recipes(broken, "s")
    assert recipe_names()[-1] == "mygrid"


@pytest.mark.slow
def test_a_picture_stays_in_the_studys_folder():
    Path("mine.py").write_text(MINE.replace('Picture("seeds"', 'Picture("../../seeds"'))
    with pytest.raises(UserError, match="expected the name of a file, no path"):
        dispatch(["study", "study.toml"])
    assert not list(Path().rglob("seeds.png"))


@pytest.mark.parametrize("name", BUILT_IN_RECIPES)
def test_a_built_in_is_an_object_in_a_file_of_its_own(name):
    assert isinstance(recipe_of(name, ""), Recipe)
    assert (PACKAGE / "studies" / f"{name}_recipe.py").is_file()
    with pytest.raises(UserError, match="is built in; choose another name"):
        register_recipe(name, recipe_of(name, ""))


def test_nothing_asks_for_a_recipe_by_its_name():
    """What a recipe means stands in its object, not in comparisons elsewhere."""
    for file in PACKAGE.rglob("*.py"):
        assert not re.search(r"recipe(_name)? [!=]= ['\"]", file.read_text(encoding="utf-8")), file
