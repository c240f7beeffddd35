"""A study that goes on by itself: the run that says most per FLOP, until its answer is narrow."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Any

from nanoscale.errors import UserError, one_of
from nanoscale.experiments import ExperimentRunner, Study
from nanoscale.studies.conclusion import asked_recipe, conclude
from nanoscale.studies.narrowing import Narrowing, add_rows
from nanoscale.studies.recipe import BUILT_IN_RECIPES, recipe_of
from nanoscale.studies.stages import one_backend, run_stages
from nanoscale.studies.study_file import study_of

MOST_IDLE = 3  # additions after which no narrower interval is the last


def narrowing_of(study: Study) -> Narrowing:
    """What would narrow a study's answer.

    Raises:
        UserError: its recipe has no interval, or there is none yet.
    """
    recipe = asked_recipe(study)
    if recipe.narrow is None:
        able = [name for name in BUILT_IN_RECIPES if recipe_of(name, "").narrow is not None]
        raise UserError(
            f"{study.name}: recipe {study.asked.recipe!r} has no interval that one run more would "
            f"narrow; there are {one_of(able)}"
        )
    why = ""
    try:
        found = recipe.narrow(study, study.frame())
    except UserError as e:
        found, why = None, f" ({e})"
    if found is None or not math.isfinite(found.width):
        goes_on = f"{study.asked.command} goes on with it"
        raise UserError(f"{study.name}: its answer has no interval yet{why}; {goes_on}")
    return found


def narrow_until(study: Study, width: float, budget: float | None = None, **how: Any) -> Study:
    """Add one run after another until the answer's interval is as narrow as `width`, one end over
    the other; `inconclusive` where `budget` FLOPs, by default what the study has taken, do not do,
    or further runs do not narrow it.

    how: the arguments of `ExperimentRunner`. Answer and page are made once, at the end.
    """
    runs = len(study)
    own = sum(entry.flops for entry in study.entries)
    study = _narrowed(study, width, own if budget is None else budget, **how)
    if len(study) > runs:
        study.say(*conclude(study))
    return study


def _narrowed(study: Study, width: float, left: float, **how: Any) -> Study:
    widths: list[float] = []
    while True:
        found = narrowing_of(study)
        study.say(*found.lines())
        widths.append(found.width)
        if found.width <= width:
            return study
        ends = ""
        if found.flops > left:
            ends = f"{left:.3g} FLOPs are left, and it takes {found.flops:.3g}: not narrower"
        if min(widths[-MOST_IDLE:]) > min(widths):
            ends = (
                f"the last {MOST_IDLE} additions did not narrow it: what is left differs from size "
                "to size, not from seed to seed"
            )
        if ends:
            study.say(ends)
            study.verdict = "inconclusive"
            return study
        left -= found.flops
        add_rows(study.folder, found.rows)
        study = gone_on(study, **how)
        if not study.ok:
            return study


def gone_on(study: Study, **how: Any) -> Study:
    """The study with all that its file and what was added ask for, as it has kept that."""
    path = Path(shlex.split(study.asked.command)[2])
    file = study_of(study.asked.file, path)
    runner = ExperimentRunner(output_root=study.output_root, **{**file.how, **how})
    with one_backend(runner):
        return run_stages(runner, file, study.asked, None)
