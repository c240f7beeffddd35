"""A study's answer and its page, from the run folders.

The one idea: a recipe says the answer; where each number comes from, what it cost and what makes it
again is said of every recipe alike.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nanoscale.errors import UserError, make_folder, program
from nanoscale.experiments import Study
from nanoscale.experiments.results import OUTPUT_ROOT, open_study
from nanoscale.spec.config import ExperimentConfig, flatten
from nanoscale.spec.sources import Source, apply
from nanoscale.spec.values import Json
from nanoscale.store.files import write_json
from nanoscale.store.folder import COMPLETE
from nanoscale.studies import grid_recipe
from nanoscale.studies.recipe import Answer, Picture, Recipe, load_recipes, recipe_of
from nanoscale.studies.row_runs import DEFAULTS
from nanoscale.studies.runs import best_with_weights, runs_table, sample_command, write_figures
from nanoscale.studies.study_facts import (
    ANSWER_FILE,
    Writer,
    answer_in,
    facts_of,
    provenance_of,
    text_of,
)

if TYPE_CHECKING:
    from pandas import DataFrame

REPORT = "report.html"  # beside study.json


@dataclass(frozen=True)
class StudyAnswer:
    """What the runs of a study say of its question.

    verdict: `pass` or `fail` of what is judged (of a transfer study the worst of its arms, of a
    forecast whether the loss came inside its interval), `inconclusive` where the runs do not decide
    or say nothing yet, "" where nothing is judged. lines: the answer as its page and its command
    tell it. numbers: the record behind them, in JSON's types, which each recipe has of its own.
    """

    name: str
    question: str
    verdict: str
    lines: Sequence[str]
    warnings: Sequence[str]
    numbers: Mapping[str, Json]

    @property
    def text(self) -> str:
        """The lines, and the warnings under them."""
        return "\n".join([*self.lines, *(f"warning: {warning}" for warning in self.warnings)])

    def to_json(self) -> dict[str, Json]:
        return asdict(self)


def answer(study: Study | str | Path, *, output_root: str | Path = OUTPUT_ROOT) -> StudyAnswer:
    """What a study says, made from its run folders as they are; nothing is trained or written.

    Args:
        study: one that is open, or its name below `output_root`, or its folder.
        output_root: where a study is looked for by its name.

    Raises:
        UserError: there is no such study, naming the nearest, or it has no runs.

    Example:
        >>> import nanoscale as ns
        >>> data = ns.prepare("synthetic")
        vocab size: 32...
        >>> base = {"dataset": "synthetic", "n_layer": 1, "n_head": 2, "n_embd": 16}
        >>> base |= {"block_size": 16, "batch_size": 4, "gradient_accumulation_steps": 1}
        >>> base |= {"max_iters": 2, "eval_interval": 0, "final_eval_tokens": 64, "device": "cpu"}
        >>> study = ns.ExperimentRunner().run_grid("lrs", base, {"learning_rate": [1e-3, 2e-3]})
        [lrs] ...
        >>> answer = ns.answer("lrs")
        >>> answer.lines[0]
        'lowest val_loss ... at learning_rate=...: one seed, so no interval, ...'
        >>> answer.numbers["settings"][0]["standing"]
        'best'
    """
    if not isinstance(study, Study):
        study = open_study(study, output_root)
    with study.still():
        _, said = _answered(study, asked_recipe(study))
    asked = study.asked.question
    warnings = [*study.warnings, *said.warnings]
    return StudyAnswer(study.name, asked, said.verdict, said.lines, warnings, said.numbers)


def _answered(study: Study, recipe: Recipe) -> tuple[DataFrame, Answer]:
    """The table of its runs, and what its recipe says of them."""
    if not study.entries:
        raise UserError(f"{study.folder}: a study without runs; run it again")
    frame = study.frame()
    return frame, recipe.conclude(study, frame)


def conclude(study: Study, goes_on: bool = False, writer: Writer | None = None) -> list[str]:
    """Answer and report from the run folders; the lines that a user reads at the end.

    goes_on: there are more stages, by the study's own command. writer: of a text by the best run,
    for the page, by its folder; what was written before stays.
    """
    with study.still():
        return _concluded(study, goes_on, writer)


def _concluded(study: Study, goes_on: bool, writer: Writer | None) -> list[str]:
    recipe = asked_recipe(study)
    frame, answer = _answered(study, recipe)
    for name, numbers in answer.files.items():
        make_folder((study.folder / name).parent)
        write_json(study.folder / name, numbers)
    pictures = recipe.figures(study, frame, answer) or grid_recipe.figures(study, frame, answer)
    best = best_with_weights(study, frame)
    text = None if best is None else text_of(best, answer_in(study.folder).get("text"), writer)
    record = {"lines": [*answer.lines], "warnings": [*answer.warnings], "text": text}
    write_json(study.folder / ANSWER_FILE, record)
    report = write_study_report(study, frame, answer, pictures, text)
    lines = [*answer.lines, *(f"warning: {warning}" for warning in answer.warnings)]
    lines.append(f"report: {report}")
    if goes_on:
        lines.append(f"next: {study.asked.command}")
    elif study.damage_of_best:
        lines.append(f"next: {study.retry_command}")
    elif best is not None:
        lines.append(f"next: {sample_command(best)}")
    return lines


def asked_recipe(study: Study) -> Recipe:
    """The recipe of the study's file; of a study made in Python, the one like what was asked."""
    if not study.asked.recipe:
        like = "grid" if study.asked.search is None else "search"
        return recipe_of(like, study.name)
    recipes = study.asked.extras.get("recipes")
    where = f"study {study.name}"
    if recipes is not None:
        load_recipes(Path(recipes), where)
    return recipe_of(study.asked.recipe, where)


def write_study_report(
    study: Study,
    frame: DataFrame,
    answer: Answer,
    pictures: Sequence[Picture],
    text: Mapping[str, str] | None,
) -> Path:
    """report.html and figures/*.png from the run folders; `text`: what a run writes."""
    from nanoscale.report import StudyPage, link_runs

    done = frame[frame["state"] == COMPLETE]
    alone = done[~done["val_loss"].duplicated(keep=False)]  # a loss of two runs is nobody's
    runs = dict(zip(alone["val_loss"], alone["run"], strict=True))
    figures = {}
    for picture in pictures:
        if Path(picture.name).name != picture.name:
            raise UserError(f"picture {picture.name!r}: expected the name of a file, no path")
        figures[picture.name] = picture.figure
        link_runs(picture.figure, runs)
    write_figures(figures, study.folder / "figures")
    page = StudyPage(
        title=study.name,
        question=study.asked.question,
        facts=facts_of(study),
        summary_lines=answer.lines,
        warnings=[*study.warnings, *answer.warnings],
        figures=[(picture.caption, picture.figure) for picture in pictures],
        tables=[*answer.tables, ("The runs.", runs_table(study, frame)), *without_result(study)],
        text=None if text is None else (f"run {text['run'].rpartition('-')[2]}", text["text"]),
        settings=settings_of(study),
        provenance=provenance_of(study),
        commands=commands_of(study, answer),
    )
    return page.write(study.folder / REPORT)


def without_result(study: Study) -> list[tuple[str, DataFrame]]:
    """A table of the runs that are in no figure, and why; none where every run is complete."""
    from pandas import DataFrame

    rows = []
    for entry, folder in study.runs():
        state, _ = study.standing(folder)
        if state != COMPLETE:
            reason = folder.status().reason if folder.exists() else ""
            if entry.left_out:
                reason = "beyond the budget"
            rows.append({"run": str(entry), "state": state, "why": reason or ""})
    return [("Runs without a result, which are in no figure.", DataFrame(rows))] if rows else []


def commands_of(study: Study, answer: Answer) -> list[tuple[str, str]]:
    """What each part of the page is made again by."""
    name = shlex.quote(study.name)
    asked = re.sub("^nanoscale ", f"{program()} ", study.asked.command)
    root = study.root_option
    return [
        ("The study, as far as it has not run", asked or "its script, again"),
        *((what, f"{program()} {verb} {name}{root}") for what, verb in answer.commands.items()),
        ("The table of the runs", f"{program()} table {name}{root}"),
        ("This page", f"{program()} report {name}{root}"),
    ]


def settings_of(study: Study) -> Mapping[str, Json]:
    """What the runs share and nanoGPT's defaults do not say."""
    asked = study.asked
    defaults = flatten(ExperimentConfig())
    values = defaults
    ours = DEFAULTS if asked.recipe else {}
    for source in (ours, asked.base_params):
        values = apply(values, Source("study.json", source))
    settings: dict[str, Json] = {}
    for key, value in values.items():
        if value not in (None, defaults[key]):
            settings[key] = value
    if asked.base_config:
        settings["base config"] = ", ".join(asked.base_config)
    return settings
