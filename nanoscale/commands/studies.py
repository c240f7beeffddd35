"""The commands about studies: run one, look at it, watch it, try it again, make it a table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nanoscale.commands.options import number, parse, usage_of
from nanoscale.errors import DONE, FAILED, UserError
from nanoscale.experiments import ExperimentRunner, Study, rebuild_table
from nanoscale.experiments.progress import read
from nanoscale.experiments.results import export, study_names
from nanoscale.experiments.watching import watch
from nanoscale.studies.stages import OUTPUT_ROOT, conclude, run_study, varied

NUMBERS = ("workers", "retries", "time_limit", "memory_limit")  # of the runner
WORDS = ("budget", "backend")


def study(arguments: list[str]) -> int:
    """nanoscale study FILE [--output_root=DIR] [--workers=N] [--budget=1e15|90min] [--retries=N]
    [--backend=local|subprocess|ray|slurm] [--time_limit=SECONDS] [--memory_limit=BYTES] [--dry-run]
    """
    names, options = parse(arguments, study, ("output_root", *WORDS, *NUMBERS), ("dry-run",))
    if names is None:
        return DONE
    if len(names) != 1:
        raise UserError(f"usage: {usage_of(study)}")
    found = run_study(
        names[0], root_of(options), dry_run="dry-run" in options, **how_to_run(options)
    )
    return DONE if "dry-run" in options or found.ok else FAILED


def status(arguments: list[str]) -> int:
    """nanoscale status [STUDY] [--output_root=DIR]"""
    names, options = parse(arguments, status, ("output_root",))
    if names is None:
        return DONE
    root = root_of(options)
    studies = [Study.open(root / name) for name in names or study_names(root)]
    if not studies:
        print(f"no studies in {root}")
    for one in studies:
        counts = ", ".join(f"{n} {state}" for state, n in sorted(one.states().items()))
        print(f"{one.name}: {len(one)} runs: {counts}")
        if names:
            frame = one.frame()
            frame["step"] = [f"{r.step}/{r.max_iters}" for r in (read(f) for _, f in one.runs())]
            columns = [*varied(one), "state", "step", "val_loss", "run"]
            print(frame[columns].to_string(index=False))
    return DONE


def watch_study(arguments: list[str]) -> int:
    """nanoscale watch STUDY [--output_root=DIR]"""
    found = one_study(arguments, watch_study)
    if found is None:
        return DONE
    watch(found)
    return DONE if found.ok else FAILED


def retry(arguments: list[str]) -> int:
    """nanoscale retry STUDY [--output_root=DIR] [--workers=N] [--retries=N]
    [--backend=local|subprocess|ray|slurm] [--time_limit=SECONDS] [--memory_limit=BYTES]
    """
    names, options = parse(arguments, retry, ("output_root", "backend", *NUMBERS))
    if names is None:
        return DONE
    if len(names) != 1:
        raise UserError(f"usage: {usage_of(retry)}")
    runner = ExperimentRunner(output_root=root_of(options), **how_to_run(options))
    return DONE if runner.retry(names[0]).ok else FAILED


def table(arguments: list[str]) -> int:
    """nanoscale table STUDY [--output_root=DIR] [--out=FILE.csv|FILE.parquet]"""
    options: dict[str, str] = {}
    found = one_study(arguments, table, ("out",), options)
    if found is not None:
        print(
            export(found, Path(options["out"])) if "out" in options else rebuild_table(found.folder)
        )
    return DONE


def report(arguments: list[str]) -> int:
    """nanoscale report STUDY [--output_root=DIR]"""
    found = one_study(arguments, report)
    if found is not None:
        print("\n".join(conclude(found)))
    return DONE


def one_study(
    arguments: list[str],
    command: Callable[[list[str]], int],
    known: tuple[str, ...] = (),
    options: dict[str, str] | None = None,
) -> Study | None:
    """The study that the arguments name, None after the help; other options go to `options`."""
    names, given = parse(arguments, command, ("output_root", *known))
    if names is None:
        return None
    if len(names) != 1:
        raise UserError(f"usage: {usage_of(command)}")
    if options is not None:
        options |= given
    return Study.open(root_of(given) / names[0])


def root_of(options: dict[str, str]) -> Path:
    return Path(options.get("output_root", OUTPUT_ROOT))


def how_to_run(options: dict[str, str]) -> dict[str, Any]:
    """The runner's arguments among the options."""
    return {
        key: number(key, value) if key in NUMBERS else value
        for key, value in options.items()
        if key in (*NUMBERS, *WORDS)
    }
