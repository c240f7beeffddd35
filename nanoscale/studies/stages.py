"""A study from its file to its report: data, runs, table, answer, report.

Each stage reads what the one before left in folders, so a study that is run again costs nothing but
its report. This module ties experiments, recipes and report together.
"""

from __future__ import annotations

import io
import shlex
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from nanoscale.errors import UserError
from nanoscale.experiments import ExperimentRunner, Study
from nanoscale.experiments.records import Asked
from nanoscale.experiments.results import OUTPUT_ROOT
from nanoscale.spec.config import ExperimentConfig, flatten
from nanoscale.spec.sources import FIELDS, Source, apply
from nanoscale.spec.values import Json, Overrides
from nanoscale.store.folder import COMPLETE
from nanoscale.studies import grid_recipe
from nanoscale.studies.recipe import Answer, Picture, Recipe, load_recipes, recipe_of
from nanoscale.studies.runs import next_command, runs_table, write_figures
from nanoscale.studies.study_file import StudyFile, read_study

if TYPE_CHECKING:
    from pandas import DataFrame

DEFAULTS: Overrides = {
    "data_order": "epoch",
    "min_lr_frac": 0.1,
    "warmup_frac": 0.05,
    "lr_decay_iters": None,
    "compile": False,
}
MOST_REFINEMENTS = 8
PYSOURCE = "pysource"


# -- stages -------------------------------------------------------------------------------------
def run_study(
    path: Path | str, output_root: Path | str = OUTPUT_ROOT, *, dry_run: bool = False, **how: Any
) -> Study:
    """Every stage of a study file: data, runs, table, answer, report.

    `how` it runs: the arguments of `ExperimentRunner` (workers, budget, backend, ...), before those
    of the file's [run].

    >>> from pathlib import Path
    >>> import nanoscale as ns
    >>> data = ns.prepare("synthetic")
    vocab size: 32...
    >>> text = '''
    ... [study]
    ... recipe = "grid"
    ... [base]
    ... dataset = "synthetic"
    ... n_layer = 1
    ... n_head = 2
    ... n_embd = 16
    ... block_size = 16
    ... max_iters = 10
    ... eval_interval = 0
    ... [grid]
    ... learning_rate = [1e-3, 2e-3]
    ... '''
    >>> written = Path("lrs.toml").write_text(text)
    >>> study = ns.run_study("lrs.toml", dry_run=True)
    [lrs] ...
    >>> len(study)
    2

    Raises:
        UserError: the file, a key, a value or the data; nothing was started or written.
    """
    path = Path(path)
    file = read_study(path)
    if not dry_run:
        prepare_missing(file.base)
        # a second, spent while the workers load torch
        threading.Thread(target=import_module, args=("nanoscale.report",), daemon=True).start()

    runner = ExperimentRunner(output_root=output_root, **{**file.how, **how})
    asked = asked_by(file, output_root)
    if dry_run:
        with standing_in(file.base) as base:
            file = replace(file, base=base)
            return run_rows(runner, file, file.question.rows, asked, dry_run)

    study = run_rows(runner, file, file.question.rows, asked, dry_run)
    study = run_more(study, runner, file, asked)
    for line in conclude(study):
        print(f"[{study.name}] {line}")
    return study


def asked_by(file: StudyFile, output_root: Path | str) -> Asked:
    """What `study.json` keeps of the file, so that `conclude` needs it no more."""
    root = "" if str(output_root) == OUTPUT_ROOT else f" --output_root={output_root}"
    extras = dict(file.question.extras)
    if file.recipes is not None:
        extras["recipes"] = str(file.recipes.absolute())
    return Asked(
        recipe=file.recipe_name,
        question=file.words,
        min_sizes=file.question.min_sizes,
        command=f"nanoscale study {shlex.quote(str(file.path))}{root}",
        file=file.text,
        extras=extras,
    )


def run_rows(
    runner: ExperimentRunner,
    file: StudyFile,
    rows: Sequence[Overrides],
    asked: Asked,
    dry_run: bool,
) -> Study:
    """Bring the rows, or the trials of a search, to a result."""
    base = Source(f"{file.path}, [base]", file.base)
    where = file.question.where
    search = file.question.search
    how: dict[str, Any] = {"defaults": DEFAULTS, "dry_run": dry_run, "asked": asked}
    if search is not None:
        return runner.run_search(file.name, base, search, where, **how)
    return runner.run_rows(file.name, base, rows, where, **how)


def run_more(study: Study, runner: ExperimentRunner, file: StudyFile, asked: Asked) -> Study:
    """Add the rows that the question wants next until none is new."""
    more = file.question.more
    if more is None:
        return study
    rows = list(file.question.rows)
    for _ in range(MOST_REFINEMENTS):
        before = len(rows)
        for row in more(study):
            if row not in rows:
                rows.append(row)
        if len(rows) == before or not study.ok:
            break
        study = run_rows(runner, file, rows, asked, dry_run=False)
    return study


def prepare_missing(base: Overrides) -> None:
    """Make pysource, which needs no download, if it is asked for and not there."""
    from nanoscale.data.prepare import prepare

    folder = missing_pysource(base)
    if folder is not None:
        print(f"{PYSOURCE}: preparing the Python files of this installation in {folder}")
        prepare(PYSOURCE, out=folder)


def missing_pysource(base: Overrides) -> Path | None:
    """Where pysource would lie, if it is asked for and not there."""
    from nanoscale.data.dataset import dataset_folder

    if base.get("dataset") != PYSOURCE:
        return None
    root = str(base.get("data_root", FIELDS["data_root"].default))
    try:
        dataset_folder(PYSOURCE, root)
    except UserError:
        return Path(root) / PYSOURCE
    return None


@contextmanager
def standing_in(base: Overrides) -> Iterator[Overrides]:
    """The base of a dry run: while pysource is not there, on a little text of the same bytes."""
    from nanoscale.data.prepare import prepare

    if missing_pysource(base) is None:
        yield base
        return
    some = Path(__file__).parent
    with TemporaryDirectory(prefix="nanoscale-") as folder:
        with redirect_stdout(io.StringIO()):
            prepare("text", input=str(some), tokenizer="byte", out=Path(folder) / PYSOURCE)
        yield {**base, "data_root": folder}


# -- the answer and the report --------------------------------------------------------------------
def conclude(study: Study) -> list[str]:
    """Answer and report from the run folders; the lines that a user reads at the end."""
    recipe = asked_recipe(study)
    frame = study.frame()
    answer = recipe.conclude(study, frame)
    pictures = recipe.figures(study, frame, answer) or grid_recipe.figures(study, frame, answer)
    report = write_study_report(study, frame, answer, pictures)
    return [*answer.lines, f"report: {report}", *next_command(study, frame)]


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
    study: Study, frame: DataFrame, answer: Answer, pictures: Sequence[Picture]
) -> Path:
    """report.html and figures/*.png from the run folders."""
    from nanoscale.report import write_report

    figures = {}
    for picture in pictures:
        if Path(picture.name).name != picture.name:
            raise UserError(f"picture {picture.name!r}: expected the name of a file, no path")
        figures[picture.name] = picture.figure
    write_figures(figures, study.folder / "figures")
    left_out = []
    for (entry, _), state in zip(study.runs(), frame["state"], strict=True):
        if state != COMPLETE:
            left_out.append(f"{entry} is {state} and in no figure")
    return write_report(
        study.folder / "report.html",
        title=study.name,
        question=study.asked.question,
        summary_lines=answer.lines,
        figures=[(picture.caption, picture.figure) for picture in pictures],
        tables=[*answer.tables, ("The runs.", runs_table(study, frame))],
        settings=settings_of(study),
        command=study.asked.command or f"nanoscale report {study.name}",
        warnings=[*study.warnings, *left_out, *answer.warnings],
    )


def settings_of(study: Study) -> Mapping[str, Json]:
    """What the runs share and nanoGPT's defaults do not say, their data and their numerics."""
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

    for _, folder in study.runs():
        metrics = folder.metrics()
        if metrics:
            data = (metrics.get("provenance") or {}).get("data") or {}
            return settings | {"data": data, "numerics": metrics.get("numerics") or {}}
    return settings
