"""`ExperimentRunner`: grids and searches of runs by content.

A finished run is never run again, a killed one goes on where it was, one run's failure is its own.

Here questions become cells, checked before anything starts; `planning` says what each still needs,
and `execution` brings it to a result. The runs of all studies lie in one store below the output
root, so the same cell in two studies is one run.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from nanoscale.data.dataset import open_dataset
from nanoscale.errors import UserError, program
from nanoscale.experiments.backends import backend_of
from nanoscale.experiments.cells import (
    Cell,
    check_axes,
    combinations,
    grid_lists,
    make_cells,
    plain_values,
    questions,
)
from nanoscale.experiments.execution import Execution
from nanoscale.experiments.machine import on_gpu
from nanoscale.experiments.neighbours import Neighbours
from nanoscale.experiments.planning import (
    LEFT_OUT,
    PlannedRun,
    dry_lines,
    in_turn,
    plan_line,
    planned,
    read_budget,
    total_line,
    within,
)
from nanoscale.experiments.pool import Limits
from nanoscale.experiments.records import Asked
from nanoscale.experiments.results import RUNS, Study, check_name, matching_studies
from nanoscale.experiments.samplers import need_optuna
from nanoscale.experiments.search import SearchPlan, check_count
from nanoscale.experiments.space import read_space
from nanoscale.experiments.timing import RunTimes, estimate
from nanoscale.experiments.trials import Trials
from nanoscale.experiments.worker import Backend
from nanoscale.paths import in_a_shell
from nanoscale.spec.config import ExperimentConfig, flatten
from nanoscale.spec.sources import Source, read_file
from nanoscale.spec.values import Json, Overrides

# Config keys as a user gives them: values, nested tables, and lists of values, numpy's too.
Params: TypeAlias = "Mapping[str, Json | Iterable[Any]]"


class ExperimentRunner:
    """Runs studies on this machine, or on a cluster.

    Args:
        base_config_path: a config file under every run, or the name of one that comes with the
            package; or None.
        output_root: where runs and studies are kept.
        workers: runs at once; by default one per GPU, or the physical cores over `threads`.
        threads: CPU threads of a run unless its config says otherwise; unused on a GPU.
        backend: who starts the runs: local (a fork each), subprocess, ray or slurm, or a name that
            was registered (see `register_backend`).
        backend_options: sbatch's for slurm, as in {"partition": "gpu", "exclusive": True};
            {"address": ...} for ray.
        retries: how often a run that crashed is tried again, from its last checkpoint.
        time_limit: seconds a run may take in one call; then it saves, and counts as failed.
        memory_limit: bytes a run may take; then it goes on with half the micro-batch.
        budget: of a study: training FLOPs as a number, for its cheapest runs, cached ones too;
            or a time as in "90 min", after which a call starts no run and the last ones save.

    Raises:
        UserError: an argument is no number that it can be, or names no backend.

    >>> import nanoscale as ns
    >>> data = ns.prepare("synthetic")
    vocab size: 32...
    >>> base = {"dataset": "synthetic", "n_head": 2, "n_embd": 16, "block_size": 16,
    ...         "batch_size": 4, "gradient_accumulation_steps": 1, "max_iters": 5,
    ...         "warmup_iters": 0, "eval_interval": 0, "final_eval_tokens": 256}
    >>> runner = ns.ExperimentRunner(workers=1)
    >>> study = runner.run_grid("depths", base, {"n_layer": [1, 2]})
    [depths] ...
    >>> study.ok, list(study.frame()["n_layer"])
    (True, [1, 2])
    """

    def __init__(
        self,
        base_config_path: str | Path | None = None,
        output_root: str | Path = "experiments_out",
        workers: int | None = None,
        threads: int = 1,
        backend: str | Backend = "local",
        retries: int = 1,
        time_limit: float | None = None,
        memory_limit: float | None = None,
        budget: float | str | None = None,
        backend_options: Mapping[str, Json] | None = None,
    ) -> None:
        check_count("workers", 1 if workers is None else workers, 1)
        check_count("threads", threads, 1)
        check_count("retries", retries, 0)
        _check_limit("time_limit", time_limit)
        _check_limit("memory_limit", memory_limit)
        self.base = [_read_base(base_config_path)] if base_config_path else []
        self.output_root = Path(output_root)
        self.store = self.output_root.absolute() / RUNS
        self.threads = threads
        chosen = backend_of(backend, self.output_root, backend_options or {})
        flops, seconds = read_budget(budget)
        self.budget = flops or math.inf
        limits = Limits(
            time_limit or math.inf,
            memory_limit or math.inf,
            retries,
            seconds or math.inf,
            cheapest_first=budget is not None,
        )
        self.execution = Execution(chosen, workers, limits)

    # -- what users call --------------------------------------------------------------------
    def run_grid(
        self,
        grid_name: str,
        base_params: Params | None = None,
        grid_params: Params | None = None,
        seeds: Iterable[int] | None = None,
        dry_run: bool = False,
    ) -> Study:
        """Run every combination of the lists in `grid_params`, for each of `seeds` if given.

        The study `grid_name` becomes exactly these runs; those that have finished, in whatever
        study, are not run again. Failed runs do not raise: see `.failed`.

        Raises:
            UserError: a name, key, value or combination is bad; nothing was started or written.
        """
        lists = grid_lists(grid_params, seeds, "grid_params")
        study = self.run_rows(
            grid_name,
            Source("base_params", plain_values("base_params", base_params)),
            combinations(lists),
            "grid_params",
            asked=Asked(grid_params=lists),
            dry_run=dry_run,
        )
        return _ended(study, dry_run)

    def run_random(
        self,
        name: str,
        base_params: Params | None = None,
        space: Params | None = None,
        trials: int = 32,
        search_seed: int = 0,
        proxy: Params | None = None,
        seeds: Iterable[int] | None = None,
        dry_run: bool = False,
    ) -> Study:
        """`trials` points of `space` in all, each a function of `search_seed` and its number."""
        return self.run_hpo(
            name,
            base_params,
            space,
            trials,
            "random",
            search_seed,
            proxy=proxy,
            seeds=seeds,
            dry_run=dry_run,
        )

    def run_hpo(
        self,
        name: str,
        base_params: Params | None = None,
        space: Params | None = None,
        trials: int = 32,
        sampler: str = "tpe",
        search_seed: int = 0,
        rungs: Sequence[int] = (),
        promote: float = 1 / 3,
        proxy: Params | None = None,
        seeds: Iterable[int] | None = None,
        dry_run: bool = False,
    ) -> Study:
        """Search `space` for the lowest final validation loss with `trials` trials in all.

        Args:
            space: key -> a list of values, or a range {"low": 1e-4, "high": 1e-1, "log": True}.
            trials: in all; a call that finds as many done runs nothing.
            sampler: tpe, gp or cma (of Optuna, extra `hpo`), or random.
            rungs: lengths in updates, as in [250, 500, 1000], of WSD runs: every trial begins at
                the first, the best `promote` of a rung go on to the next from where their cooldown
                began. Without, every trial is one run of the base's length.
            proxy: what makes the trials' model small, as in {"n_embd": 64}; the best values are
                then used at the base's own size, where muP or CompleteP keeps them the best.
            seeds: with which the best values are trained anew, at the base's own size.

        Finished runs of any study below the output root that differ from the trials in keys of
        the space alone are told to the sampler first. `Study.best` is the outcome, and
        `Study.target` what became of it with `seeds`.

        Raises:
            UserError: a name, key, value or range is bad; nothing was started or written.
        """
        fresh = grid_lists({}, seeds, "search").get("seed", ())
        plan = SearchPlan(
            read_space(space, "space"),
            trials,
            sampler,
            search_seed,
            tuple(rungs) or (0,),
            promote,
            plain_values("proxy", proxy),
            fresh,
        )
        base = Source("base_params", plain_values("base_params", base_params))
        return _ended(self.run_search(name, base, plan, "space", dry_run=dry_run), dry_run)

    def run_experiment(
        self, params: Params | None = None, name: str | None = None, dry_run: bool = False
    ) -> Study:
        """Run one config as the study `name`, by default the name of its run folder."""
        source = Source("params", plain_values("params", params))
        return _ended(self.run_rows(name, source, [{}], "params", dry_run=dry_run), dry_run)

    def load_metrics(self, grid_name_filter: str = "") -> list[dict[str, Any]]:
        """`metrics.json` of the finished runs of the study of that name, else of all studies whose
        names contain it; in the order they were asked, each run once, with `experiment_name`.

        Raises:
            UserError: a name that no study's contains, naming the nearest.
        """
        by_run: dict[str, dict[str, Any]] = {}
        for study in matching_studies(self.output_root, grid_name_filter):
            for metrics in study.metrics():
                by_run.setdefault(metrics["id"], metrics)
        return list(by_run.values())

    def retry(self, name: str) -> Study:
        """Run again what failed in the study `name`, and what waits, from its folders alone."""
        study = Study.open(self.output_root / name)
        cells = []
        for entry, folder in study.runs():
            if folder.exists():
                try:
                    spec = folder.spec()
                except UserError as e:
                    study.warn([str(e)])
                    continue
                cells.append(Cell(entry.values, spec.config, spec))
        planned = self._planned(cells)
        self.execution.bring(study, self._announce(study, planned))
        return study

    # -- the way down -----------------------------------------------------------------------
    def run_rows(
        self,
        name: str | None,
        base: Source,
        rows: Sequence[Overrides],
        where: str,
        *,
        defaults: Overrides | None = None,
        asked: Asked | None = None,
        dry_run: bool = False,
    ) -> Study:
        """Run a study of explicit rows: dicts of config keys over `base`.

        `where` is how messages call the rows, `defaults` lie under the base config, and `asked` is
        kept in the study's record.

        Raises:
            UserError: as `run_grid`.
        """
        if name is not None:
            check_name(name)
        cells = self.cells(base, rows, where, defaults)
        check_axes(cells, where)
        return self.run_specs(
            name or cells[0].spec.name,
            cells,
            asked=self.over(base, asked),
            warn=questions(cells, len(rows)),
            dry_run=dry_run,
        )

    def cells(
        self,
        base: Source,
        rows: Sequence[Overrides],
        where: str,
        defaults: Overrides | None = None,
    ) -> list[Cell]:
        """The cells of explicit rows, of which none is started; `UserError` as `run_rows`."""
        sources = [*self.base, base]
        return make_cells(self._defaults(sources, defaults), sources, rows, where)

    def run_specs(
        self,
        name: str,
        cells: Sequence[Cell],
        *,
        asked: Asked,
        warn: list[str],
        dry_run: bool = False,
    ) -> Study:
        """Bring every cell that the budget pays for to a result, and return the study."""
        runs = within(self._planned(cells), self.budget)
        entries = [replace(run.entry, left_out=run.plan == LEFT_OUT) for run in runs]
        study = Study(name, asked, self.output_root, entries, warn)
        self._announce(study, runs)
        study.warn(warn)
        if dry_run:
            neighbours = Neighbours(self.store)
            parts = [self._times(study, part, neighbours) for part in in_turn(runs)]
            study.say(*dry_lines(runs, neighbours, parts))
        else:
            self.execution.bring(study, runs)
        return study

    def run_search(
        self,
        name: str,
        base: Source,
        plan: SearchPlan,
        where: str,
        *,
        defaults: Overrides | None = None,
        asked: Asked | None = None,
        dry_run: bool = False,
    ) -> Study:
        """Run a search as a study; `run_hpo` with the arguments of `run_rows`."""
        check_name(name)
        need_optuna(plan.sampler)
        sources = [*self.base, base]
        under = self._defaults(sources, defaults)
        dataset_of = cache(open_dataset)

        def make(row: Overrides) -> Cell:
            return make_cells(under, sources, [row], where, dataset_of)[0]

        asked = replace(self.over(base, asked), search=plan.to_json())
        study = Study(name, asked, self.output_root)
        trials = Trials(study, plan, make, self.store, self.budget)
        study.concerns = trials.warnings()
        study.say(trials.title())
        study.warn(study.concerns)
        if dry_run:
            slots = self.execution.slots(study, [trials.last_rung])
            cells = trials.expected_cells()
            times = estimate(cells, Neighbours(self.store), self.execution.backend, slots)
            seconds = sum(times.seconds[cell.id] for cell in cells)
            study.say(*total_line([(seconds, times)]))
            return study

        try:
            if trials.replay():
                cells = [trials.last_rung]
                left = list(trials.underway.values())
                self.execution.run(study, left, cells, trials.more, trials.left)
        finally:
            trials.journal()
        study.say(*trials.conclude())
        if targets := trials.targets():
            self._bring_targets(study, targets)
        return study

    def _bring_targets(self, study: Study, cells: Sequence[Cell]) -> None:
        """Train a search's best values at the target, and say what came of it."""
        runs = self._planned(cells)
        for run in runs:  # one may be a trial's too, without a proxy, and stays it
            ids = [entry.id for entry in study.entries]
            if run.cell.id not in ids:
                ids.append(run.cell.id)
                study.entries.append(run.entry)
            place = ids.index(run.cell.id)
            entry = study.entries[place]
            study.entries[place] = replace(entry, values=run.entry.values, target=True)

        self.execution.bring(study, self._announce(study, runs, "at the target: "))
        study.say(str(study.target))

    def _times(self, study: Study, cells: Sequence[Cell], neighbours: Neighbours) -> RunTimes:
        slots = self.execution.slots(study, cells)
        return estimate(cells, neighbours, self.execution.backend, slots)

    def _planned(self, cells: Sequence[Cell]) -> list[PlannedRun]:
        return [planned(cell, self.store) for cell in cells]

    def _announce(
        self, study: Study, runs: Sequence[PlannedRun], where: str = ""
    ) -> Sequence[PlannedRun]:
        """The runs, once it is said what they need, and kept in the study."""
        for run in runs:
            study.plan[run.cell.id] = run.plan
        study.say(where + plan_line(runs))
        return runs

    def _defaults(self, sources: Sequence[Source], more: Overrides | None) -> Overrides:
        """On a CPU, the study's threads and no compilation, which pays only on long runs there."""
        device = "auto"
        for source in sources:
            device = str(source.values.get("device", device))
        below = {} if on_gpu(device) else {"threads": self.threads, "compile": False}
        return {**below, **(more or {})}

    def over(self, base: Source, asked: Asked | None) -> Asked:
        """What is asked, with what lies under its runs."""
        files = [source.name for source in self.base]
        return replace(asked or Asked(), base_config=files, base_params=dict(base.values))


def _ended(study: Study, dry_run: bool) -> Study:
    """The study, once it is said what shows its runs, or mends them."""
    if not dry_run:
        verb = "report" if study.ok else "retry"
        root = in_a_shell(study.output_root)
        study.say(f"next: {program()} {verb} {shlex.quote(study.name)} --output_root={root}")
    return study


def _check_limit(name: str, limit: object) -> None:
    if limit is not None and not (isinstance(limit, (int, float)) and limit > 0):
        raise UserError(f"{name}={limit!r}: expected a positive number")


def _read_base(path: str | Path) -> Source:
    """The base config file, from here or of those that come with the package."""
    return read_file(str(path), flatten(ExperimentConfig()))
