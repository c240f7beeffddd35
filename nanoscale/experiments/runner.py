"""`ExperimentRunner`: grids of runs by content.

A finished run is never run again, a killed one goes on where it was, one run's failure is its own.

Everything goes through `run_specs`: cells (checked before anything starts) become run folders in
one store below the output root, whatever their study, and a pool runs those without a result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nanoscale.errors import UserError
from nanoscale.experiments import machine
from nanoscale.experiments.backends import Backend
from nanoscale.experiments.cells import (
    Cell,
    combinations,
    grid_lists,
    make_cells,
    plain_values,
    questions,
)
from nanoscale.experiments.clusters import backend_of
from nanoscale.experiments.planning import (
    CACHED,
    LEFT_OUT,
    Store,
    dry_lines,
    make_ready,
    plan_line,
    plan_of,
    read_budget,
    within,
)
from nanoscale.experiments.pool import Job, Limits, Pool
from nanoscale.experiments.progress import duration, open_progress
from nanoscale.experiments.records import Asked
from nanoscale.experiments.results import (
    RUNS,
    TABLE,
    Study,
    check_name,
    failure_lines,
    matching_studies,
)
from nanoscale.experiments.search import SearchPlan, need_optuna
from nanoscale.experiments.space import read_space
from nanoscale.experiments.trials import Ladder, Trials
from nanoscale.spec.config import ExperimentConfig, flatten
from nanoscale.spec.sources import Source, read_file
from nanoscale.store.folder import RunFolder


class ExperimentRunner:
    """Runs studies on this machine.

    Args:
        base_config_path: a config file under every run (from here, else from the clone), or None.
        output_root: where runs and studies are kept.
        workers: runs at once; by default one per GPU, or the physical cores over `threads`.
        threads: CPU threads of a run unless its config says otherwise; unused on a GPU.
        backend: who starts the runs: local (a fork each), subprocess, ray or slurm.
        backend_options: sbatch's for slurm, as in {"partition": "gpu"}; {"address": ...} for ray.
        retries: how often a run that crashed is tried again, from its last checkpoint.
        time_limit: seconds a run may take in one call; then it saves, and counts as failed.
        memory_limit: bytes a run may take; then it goes on with half the micro-batch.
        budget: of a study: training FLOPs as a number, for its cheapest runs, cached ones too;
            or a time as in "90 min", after which a call starts no run and the last ones save.

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
        backend_options: Mapping[str, str] | None = None,
    ) -> None:
        for name, value, least in (
            ("workers", workers, 1),
            ("threads", threads, 1),
            ("retries", retries, 0),
        ):
            if value is not None and (not isinstance(value, int) or value < least):
                raise UserError(f"{name}={value!r}: expected a whole number, at least {least}")
        for name, limit in (("time_limit", time_limit), ("memory_limit", memory_limit)):
            if limit is not None and not (isinstance(limit, (int, float)) and limit > 0):
                raise UserError(f"{name}={limit!r}: expected a positive number")
        self.base = [_read_base(base_config_path)] if base_config_path else []
        self.output_root = Path(output_root)
        self.workers, self.threads = workers, threads
        self.backend = backend_of(backend, self.output_root, backend_options or {})
        self.budget, seconds = read_budget(budget)
        self.limits = Limits(time_limit, memory_limit, retries, seconds, budget is not None)

    # -- what users call --------------------------------------------------------------------
    def run_grid(
        self,
        grid_name: str,
        base_params: Mapping[str, Any] | None = None,
        grid_params: Mapping[str, Any] | None = None,
        seeds: Iterable[int] | None = None,
        dry_run: bool = False,
    ) -> Study:
        """Run every combination of the lists in `grid_params`, for each of `seeds` if given.

        The study `grid_name` becomes exactly these runs. Failed runs do not raise: see `.failed`.

        Raises:
            UserError: a name, key, value or combination is bad; nothing was started or written.
        """
        lists = grid_lists(grid_params or {}, seeds, "grid_params")
        base = Source("base_params", plain_values("base_params", base_params or {}))
        return self.run_rows(
            grid_name,
            base,
            combinations(lists),
            "grid_params",
            asked=Asked(grid_params=lists),
            dry_run=dry_run,
        )

    def run_random(
        self,
        name: str,
        base_params: Mapping[str, Any] | None = None,
        space: Mapping[str, Any] | None = None,
        trials: int = 32,
        search_seed: int = 0,
        proxy: Mapping[str, Any] | None = None,
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
        base_params: Mapping[str, Any] | None = None,
        space: Mapping[str, Any] | None = None,
        trials: int = 32,
        sampler: str = "tpe",
        search_seed: int = 0,
        rungs: Sequence[int] = (),
        promote: float = 1 / 3,
        proxy: Mapping[str, Any] | None = None,
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
        fresh = () if seeds is None else grid_lists({}, seeds, "search")["seed"]
        plan = SearchPlan(
            read_space(space, "space"),
            trials,
            sampler,
            search_seed,
            tuple(rungs) or (0,),
            promote,
            plain_values("proxy", proxy or {}),
            fresh,
        )
        base = Source("base_params", plain_values("base_params", base_params or {}))
        return self.run_search(name, base, plan, "space", dry_run=dry_run)

    def run_experiment(
        self,
        params: Mapping[str, Any] | None = None,
        name: str | None = None,
        dry_run: bool = False,
    ) -> Study:
        """Run one config as the study `name`, by default the name of its run folder."""
        source = Source("params", plain_values("params", params or {}))
        return self.run_rows(name, source, [{}], "params", dry_run=dry_run)

    def load_metrics(self, grid_name_filter: str = "") -> list[dict[str, Any]]:
        """`metrics.json` of the finished runs of the study of that name, else of all studies whose
        names contain it; in the order they were asked, each run once, with `experiment_name`.
        """
        found: dict[str, dict[str, Any]] = {}
        for study in matching_studies(self.output_root, grid_name_filter):
            for metrics in study.metrics():
                found.setdefault(metrics["id"], metrics)
        return list(found.values())

    # -- the way down -----------------------------------------------------------------------
    def run_rows(
        self,
        name: str | None,
        base: Source,
        rows: Sequence[Mapping[str, Any]],
        where: str,
        *,
        defaults: Mapping[str, Any] | None = None,
        asked: Asked | None = None,
        dry_run: bool = False,
    ) -> Study:
        """Run a study of explicit rows: dicts of config keys over `base`.

        `where` is how messages call the rows, `defaults` lie under the base config, and `asked` is
        kept in the study's record.
        """
        if name is not None:
            check_name(name)
        sources = [*self.base, base]
        cells = make_cells(self._defaults(sources) | dict(defaults or {}), sources, rows, where)
        return self.run_specs(
            name or cells[0].spec.name,
            cells,
            asked=self._over(base, asked),
            warn=questions(cells, len(rows)),
            dry_run=dry_run,
        )

    def _over(self, base: Source, asked: Asked | None) -> Asked:
        """What is asked, with what lies under its runs."""
        files = [source.name for source in self.base]
        return replace(asked or Asked(), base_config=files, base_params=dict(base.values))

    def run_search(
        self,
        name: str,
        base: Source,
        plan: SearchPlan,
        where: str,
        *,
        defaults: Mapping[str, Any] | None = None,
        asked: Asked | None = None,
        dry_run: bool = False,
    ) -> Study:
        """Run a search as a study; `run_hpo` with the arguments of `run_rows`."""
        check_name(name)
        need_optuna(plan.sampler)
        sources, opened = [*self.base, base], {}
        under = self._defaults(sources) | dict(defaults or {})

        def make(row: Mapping[str, Any]) -> Cell:
            return make_cells(under, sources, [row], where, opened)[0]

        ladder = Ladder(plan, make)
        asked = replace(self._over(base, asked), search=plan.to_json())
        study = Study(name, asked, self.output_root)
        trials = Trials(
            study, plan, ladder, Store(self.output_root / RUNS), self._folder, self.budget
        )
        study.concerns = trials.warnings()
        for line in [trials.title(), *(f"warning: {text}" for text in study.concerns)]:
            print(f"[{name}] {line}")
        if dry_run:
            return study
        trials.replay()
        if trials.unfinished():
            self._run(study, trials.waiting(), [trials.last_rung], trials.more, trials.expected)
        for line in trials.conclude():
            print(f"[{name}] {line}")
        if targets := trials.targets():
            self._bring_targets(study, targets)
        return study

    def _bring_targets(self, study: Study, cells: Sequence[Cell]) -> None:
        """Train a search's best values at the target, and say what came of it."""
        plan = {cell.spec.id: plan_of(self._folder(cell)) for cell in cells}
        study.plan |= plan
        known = {entry.id: entry for entry in study.entries}
        for cell in cells:  # one may be a trial's too, without a proxy, and stays it
            entry = known.get(cell.spec.id, cell.entry)
            known[entry.id] = replace(entry, values=cell.entry.values, target=True)
        study.entries = list(known.values())
        print(f"[{study.name}] at the target: {plan_line(plan, cells)}")
        self._bring(study, cells)
        print(f"[{study.name}] {study.target}")

    def _defaults(self, sources: Sequence[Source]) -> dict[str, Any]:
        """On a CPU, the study's threads and no compilation, which pays only on long runs there."""
        named = [s.values["device"] for s in sources if "device" in s.values]
        device = str(named[-1]) if named else "auto"
        return {} if machine.on_gpu(device) else {"threads": self.threads, "compile": False}

    def run_specs(
        self,
        name: str,
        cells: Sequence[Cell],
        *,
        asked: Asked,
        warn: Sequence[str] = (),
        dry_run: bool = False,
    ) -> Study:
        """Bring every cell to a result and return the study; what all the others stand on."""
        folders = {cell.spec.id: self._folder(cell) for cell in cells}
        paid = within(cells, self.budget)
        plan = {run: plan_of(folder) for run, folder in folders.items()}
        plan |= {run: LEFT_OUT for run in plan if run not in paid and plan[run] != CACHED}
        entries = [replace(cell.entry, left_out=plan[cell.spec.id] == LEFT_OUT) for cell in cells]
        study = Study(name, asked, self.output_root, entries, warn, plan)
        for line in [plan_line(plan, cells), *(f"warning: {text}" for text in warn)]:
            print(f"[{name}] {line}")
        if dry_run:
            slots, store = self._slots(study, cells), Store(self.output_root / RUNS)
            for line in dry_lines(cells, plan, folders, store, len(slots)):
                print(f"[{name}] {line}")
            return study
        self._bring(study, cells)
        return study

    def retry(self, name: str) -> Study:
        """Run again what failed in the study `name`, and what waits, from its folders alone."""
        study = Study.open(self.output_root / name)
        specs = [(entry, folder.spec()) for entry, folder in study.runs() if folder.exists()]
        cells = [Cell(entry.values, spec.config, spec) for entry, spec in specs]
        study.plan = {cell.spec.id: plan_of(self._folder(cell)) for cell in cells}
        print(f"[{name}] {plan_line(study.plan, cells)}")
        self._bring(study, cells)
        return study

    def _bring(self, study: Study, cells: Sequence[Cell]) -> None:
        """Bring the cells to a result, as the study's plan says."""
        for cell in cells:
            make_ready(self._folder(cell), cell.spec, study.plan[cell.spec.id])
        study.save_record()
        todo = {
            cell.spec.id: Job(self._folder(cell), cell.flops, str(cell))
            for cell in cells
            if study.plan[cell.spec.id] not in (CACHED, LEFT_OUT)
        }
        self._run(study, list(todo.values()), cells)

    def _folder(self, cell: Cell) -> RunFolder:
        return RunFolder(self.output_root.absolute() / RUNS / cell.spec.name)

    def _run(
        self,
        study: Study,
        todo: Sequence[Job],
        cells: Sequence[Cell],
        more: Callable[[int], Sequence[Job]] | None = None,
        expected: tuple[int, float] = (0, 0.0),
    ) -> None:
        """Run what is to be done, and what `more` adds, and say what came of it."""
        began, stopped = time.monotonic(), ""
        try:
            if todo or more:
                slots = self._slots(study, cells)
                with open_progress(study.name, todo, expected) as progress:
                    stopped = Pool(self.backend, slots, progress, self.limits).run(todo, more)
        except KeyboardInterrupt:
            print(f"[{study.name}] interrupted; every run has saved, the same command continues")
            raise
        finally:
            study.save()
        mixed = [f"warning: {text}" for text in study.mixed_numerics()]
        for line in [*mixed, *failure_lines(study)]:
            print(f"[{study.name}] {line}")
        if stopped:
            print(f"[{study.name}] stopped: {stopped}; the same command goes on")
        print(
            f"[{study.name}] {study.counts()} in {duration(time.monotonic() - began)}; table: "
            f"{study.folder / TABLE}",
            flush=True,
        )

    def _slots(self, study: Study, cells: Sequence[Cell]) -> list[machine.Slot]:
        """This machine's slots, for the study's device and its largest number of threads."""
        device = cells[0].spec.config.device
        wanted = {cell.spec.config.threads for cell in cells}
        threads = None if None in wanted else max(wanted)
        slots = self.backend.slots(device, threads, self.workers)
        free = len(machine.cores())
        shared = self.backend.local and not machine.on_gpu(device)
        if shared and len(slots) > max(1, free // (threads or free)):
            print(
                f"[{study.name}] warning: {len(slots)} workers of {threads or free} threads "
                f"share {free} cores and slow each other down; leave workers out to fit them"
            )
        return slots


def _read_base(path: str | Path) -> Source:
    """The base config file, from here or from the clone that the package lies in."""
    clone = Path(__file__).resolve().parents[2]
    found = next((p for p in (Path(path), clone / path) if p.is_file()), Path(path))
    return read_file(str(found), flatten(ExperimentConfig()))
