"""A study from its file to its report: data, runs, table, answer, report.

Each stage reads what the one before left in folders, so a study that is run again costs nothing but
its report. This module ties experiments, recipes and report together.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nanoscale.checks.coordinates import FAIL
from nanoscale.errors import UserError, make_folder, one_of
from nanoscale.experiments import ExperimentRunner, Study
from nanoscale.experiments.cells import Cell, check_axes, questions
from nanoscale.experiments.planning import planned
from nanoscale.experiments.records import Asked
from nanoscale.experiments.results import OUTPUT_ROOT, STUDY, check_name, study_folder
from nanoscale.paths import in_a_shell
from nanoscale.spec.shipped import named
from nanoscale.spec.sources import FIELDS
from nanoscale.spec.values import Overrides
from nanoscale.store.files import write_json
from nanoscale.studies.conclusion import conclude
from nanoscale.studies.narrowing import added_rows
from nanoscale.studies.recipe import CHECK, Stage
from nanoscale.studies.row_runs import DEFAULTS
from nanoscale.studies.study_facts import Writer
from nanoscale.studies.study_file import STUDIES, StudyFile, read_study

MOST_REFINEMENTS = 8
PYSOURCE = "pysource"


# -- stages -------------------------------------------------------------------------------------
def run_study(
    path: Path | str,
    output_root: Path | str = OUTPUT_ROOT,
    *,
    dry_run: bool = False,
    until: str | None = None,
    writer: Writer | None = None,
    **how: Any,
) -> Study:
    """Every stage of a study file: data, runs, table, answer, report.

    Of a study that has finished nothing is trained again: its answer and its page are made anew. To
    read one without its file there are `open_study` and `answer`, by its name.

    `until` is the last stage of its runs to go to, by default the last of all. `writer`: of a text
    by the best run, for the page (`conclude`). `how` it runs: the arguments of `ExperimentRunner`
    (workers, budget, backend, ...), before those of the file's [run].

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
    path = named(Path(path), STUDIES)
    if not path.is_file():
        refuse_a_name(path, output_root)
    file = read_study(path)
    if until is not None and until not in file.stages:
        there = f"choose {one_of(file.stages)}" if file.stages else "it has one stage alone"
        raise UserError(f"--until={until}: no stage of recipe {file.recipe_name!r}; {there}")
    check_name(file.name)
    runner = ExperimentRunner(output_root=output_root, **{**file.how, **how})
    asked = asked_by(file, output_root)
    if dry_run:
        with standing_in(file.base) as base:
            return foresee(runner, replace(file, base=base), asked, until)

    prepare_missing(file.base)
    # a second, spent while the workers load torch
    threading.Thread(target=import_module, args=("nanoscale.report",), daemon=True).start()
    with one_backend(runner):
        if file.question.search is not None:
            study = run_search(runner, file, asked)
        else:
            study = run_stages(runner, file, asked, until)
    if study.entries and study.verdict != FAIL:
        goes_on = until is not None and until != file.stages[-1]
        for line in conclude(study, goes_on, writer):
            print(f"[{study.name}] {line}")
    return study


def refuse_a_name(path: Path, output_root: Path | str) -> None:
    """`UserError` for the name of a study that is there, where its file is expected."""
    folder = study_folder(path, output_root)
    if (folder / STUDY).is_file():
        study = Study.open(folder)
        again = study.asked.command or "its script"
        raise UserError(
            f"{path}: that is a study, and not its file; nanoscale report {study.name} tells its "
            f"answer, ns.answer({study.name!r}) in Python, and {again} goes on with it"
        )


@contextmanager
def one_backend(runner: ExperimentRunner) -> Iterator[None]:
    """Keep the runner's backend from stage to stage; closed at the end."""
    runner.execution = replace(runner.execution, keep=True)
    try:
        yield
    finally:
        runner.execution.backend.close()


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
        command=f"nanoscale study {in_a_shell(file.path)}{root}",
        file=file.text,
        extras=extras,
    )


def run_search(
    runner: ExperimentRunner, file: StudyFile, asked: Asked, dry_run: bool = False
) -> Study:
    """Bring the trials of a search to a result."""
    plan = file.question.search
    assert plan is not None
    where = file.question.where
    base = file.base_source
    return runner.run_search(
        file.name, base, plan, where, defaults=DEFAULTS, asked=asked, dry_run=dry_run
    )


def foresee(runner: ExperimentRunner, file: StudyFile, asked: Asked, until: str | None) -> Study:
    """Say what every stage will about need, and start nothing."""
    question = file.question
    if question.search is not None:
        return run_search(runner, file, asked, dry_run=True)
    cells = foreseen_cells(runner, file, asked, until)
    if question.coordinates is not None:
        check_coordinates(runner, file, asked, dry_run=True)
    study = bring(runner, file, asked, cells, dry_run=True)
    if question.width is not None:
        study.say(*question.width(study, cells))
    return study


def foreseen_cells(
    runner: ExperimentRunner, file: StudyFile, asked: Asked, until: str | None = None
) -> list[Cell]:
    """The runs of all stages, as they are by what has run so far, or as they are foreseen; checked.

    Raises:
        UserError: one of them is bad, before any has begun.
    """
    asked = runner.over(file.base_source, asked)
    study = Study(file.name, asked, runner.output_root)

    def as_it_is(cells: Sequence[Cell]) -> Study:
        return replace(study, entries=[planned(cell, runner.store).entry for cell in cells])

    found: dict[str, Cell] = {}
    for stage in stages_of(file):
        if stage.foreseen is not None:
            before = len(found)
            if study.ok:
                study, found = settled(runner, file, stage, study, found, as_it_is)
            if not study.ok or len(found) == before:
                found |= cells_of(runner, file, stage, stage.foreseen(study))
        if until is not None and stage.name == until:
            break
    cells = [*found.values()]
    check_axes(cells, file.question.where)
    if file.question.check is not None:
        file.question.check(cells)
    return cells


def stages_of(file: StudyFile) -> list[Stage]:
    """Those of the question, and what was added to the study since."""

    def added(study: Study) -> list[Overrides]:
        return added_rows(study.folder)

    return [*file.question.all_stages, Stage(added, added)]


def run_stages(runner: ExperimentRunner, file: StudyFile, asked: Asked, until: str | None) -> Study:
    """Bring one stage after another to a result, each until it wants no run that is new."""
    with redirect_stdout(io.StringIO()):  # what is said of them is said again on the way
        foreseen_cells(runner, file, asked)
    study = Study(file.name, runner.over(file.base_source, asked), runner.output_root)
    if file.question.coordinates is not None:
        study.verdict = check_coordinates(runner, file, asked)
        if study.verdict == FAIL or until == CHECK:
            return study

    found: dict[str, Cell] = {}
    for stage in stages_of(file):
        study, found = settled(
            runner, file, stage, study, found, lambda cells: bring(runner, file, asked, cells)
        )
        if not study.ok:
            break
        if stage.done is not None:
            if any(entry.left_out for entry in study.entries):
                study.say(f"the budget ends in stage {stage.name}, for which the others wait")
                break
            stage.done(study)
        if stage.name is not None and stage.name == until:
            break
    return study


def settled(
    runner: ExperimentRunner,
    file: StudyFile,
    stage: Stage,
    study: Study,
    before: dict[str, Cell],
    bring: Callable[[Sequence[Cell]], Study],
) -> tuple[Study, dict[str, Cell]]:
    """The study and all its cells, once a stage wants none that is new or one has no result."""
    found, own = before, dict[str, Cell]()
    for _ in range(MOST_REFINEMENTS + 1):
        cells = cells_of(runner, file, stage, stage.rows(study))
        if all(found.get(id) == cell for id, cell in cells.items()):
            break
        # in the order of the last asking, whatever has run before, so that tables are equal
        own = cells | {id: cell for id, cell in own.items() if id not in cells}
        found = {id: cell for id, cell in before.items() if id not in own} | own
        study = bring([*found.values()])
        if not study.ok:
            break
    return study, found


def cells_of(
    runner: ExperimentRunner, file: StudyFile, stage: Stage, rows: Sequence[Overrides]
) -> dict[str, Cell]:
    """Run id -> cell of a stage's rows."""
    cells = runner.cells(file.base_source, rows, file.question.where, DEFAULTS)
    return {cell.id: replace(cell, stage=stage.name) for cell in cells}


def bring(
    runner: ExperimentRunner,
    file: StudyFile,
    asked: Asked,
    cells: Sequence[Cell],
    dry_run: bool = False,
) -> Study:
    """Bring the cells to a result, as the study."""
    twice = sum(len(cell.also) for cell in cells if cell.stage is None)
    return runner.run_specs(
        file.name,
        cells,
        asked=runner.over(file.base_source, asked),
        warn=questions(cells, len(cells) + twice),
        dry_run=dry_run,
    )


def check_coordinates(
    runner: ExperimentRunner, file: StudyFile, asked: Asked, dry_run: bool = False
) -> str:
    """The verdict on the parametrization, by a study of its own beside this one."""
    assert file.question.coordinates is not None
    plan = file.question.coordinates(file.base)
    name = f"{file.name}-{CHECK}"
    asked = Asked(command=asked.command)
    if dry_run:
        plan.bring(asked, runner, name, dry_run=True)
        return ""
    verdict = plan.run(asked, runner, name)
    if verdict is None:
        return FAIL
    make_folder(runner.output_root / file.name)
    write_json(runner.output_root / file.name / f"{CHECK}.json", verdict.to_json())
    print(f"[{name}] {verdict.line()}", flush=True)
    return verdict.verdict if verdict.verdict == FAIL else ""


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
