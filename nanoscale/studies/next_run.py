"""What to train with a budget: from a table of runs, which is fitted anew, or from a fit.

A table's plan has intervals from the fit's resamples; a stored fit without draws gives the point
alone.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nanoscale.errors import UserError, program
from nanoscale.experiments.results import STUDY, Study, study_folder
from nanoscale.experiments.tables import read_table
from nanoscale.spec.config import LENGTH_KEYS
from nanoscale.spec.values import Json
from nanoscale.studies.row_runs import DEFAULTS
from nanoscale.studies.table_fit import FitSettings, fit_table
from nanoscale.studies.tuning import found_in

if TYPE_CHECKING:
    from pandas import DataFrame

    from nanoscale.laws import LawFit
    from nanoscale.laws.plan import Extension, Plan
    from nanoscale.laws.predict import Basis
    from nanoscale.spec.identity import RunSpec

# What a run has of being a trunk, or a branch of one.
OF_TRUNK = ("warmup_frac", "warmup_iters", "checkpoint_steps", "branch_from")
VOCAB_SIZE, BLOCK_SIZE = 50304, 1024  # GPT-2's vocabulary, padded, as nanoGPT


@dataclass(frozen=True)
class Grounds:
    """What a plan rests on: a fit, and what is known of the runs that it is of."""

    fit: LawFit
    basis: Basis | None = None
    vocab_size: int | None = None
    block_size: int | None = None
    warnings: tuple[str, ...] = ()
    study: Study | None = None
    tokens_per_param: float | None = None  # where N and D rise together


def plan(
    table_or_fit: DataFrame | LawFit | Grounds | str | Path,
    *,
    budget: float,
    settings: FitSettings | None = None,
    vocab_size: int | None = None,
    block_size: int | None = None,
    batch_tokens: float | None = None,
    tokens_per_second: float | None = None,
    flops_per_second: float | None = None,
) -> Plan:
    """What to train with `budget` FLOPs: N* and D*, the nearest model, its loss and its time.

    Args:
        table_or_fit: runs (a table, or the name of one or of a study), or a law's fit (itself, or
            the file that `nanoscale fit --json` wrote).
        budget: FLOPs, counted as 6 N D.
        settings: how a table is fitted.
        vocab_size, block_size: of the model; by default the table's, else GPT-2's.
        batch_tokens: of an update; by default what Step Law says for D*.
        tokens_per_second, flops_per_second: how fast the run will be, in one of them.

    Raises:
        UserError: the table, the fit or a number is none that a plan can be made of.

    Example:
        >>> import nanoscale as ns
        >>> N = [1e6, 1e7, 1e8, 1e9] * 4
        >>> D = [1e8] * 4 + [1e9] * 4 + [1e10] * 4 + [1e11] * 4
        >>> losses = [1.7 + 400 / n**0.34 + 400 / d**0.28 for n, d in zip(N, D)]
        >>> fit = ns.fit_law({"N": N, "D": D}, losses, resamples=0)
        >>> run = ns.plan(fit, budget=1e20)
        >>> f"{run.N:.2e} parameters, {run.D:.2e} tokens, loss {run.loss:.3f}"
        '6.56e+08 parameters, 2.54e+10 tokens, loss 2.590'
    """
    from nanoscale.laws.plan import plan as plan_run

    if tokens_per_second is not None and flops_per_second is not None:
        raise UserError("--tokens-per-second and --flops-per-second: give one of them")
    grounds = grounds_of(table_or_fit, settings)
    speed = flops_per_second if tokens_per_second is None else tokens_per_second
    unit = "FLOP/s" if tokens_per_second is None else "tokens/s"
    if grounds.fit.form.predictors == ("x",):
        for name, value in (("vocab_size", vocab_size), ("block_size", block_size)):
            if value is not None:
                raise UserError(f"--{name}: a ladder goes on with its own; leave it out")
        goes_on = _extended(grounds, budget, batch_tokens, speed, unit)
        return replace(goes_on, warnings=[*grounds.warnings, *goes_on.warnings])
    made = plan_run(
        grounds.fit,
        budget,
        grounds.basis,
        vocab_size=vocab_size or grounds.vocab_size or VOCAB_SIZE,
        block_size=block_size or grounds.block_size or BLOCK_SIZE,
        batch_tokens=batch_tokens,
        speed=speed,
        unit=unit,
    )
    return replace(made, warnings=[*grounds.warnings, *made.warnings])


def _extended(
    grounds: Grounds,
    budget: float,
    batch_tokens: float | None,
    speed: float | None,
    unit: str,
) -> Extension:
    """The next run of a study's ladder."""
    from nanoscale.laws.plan import SHAPE, extend

    study, ratio, basis = grounds.study, grounds.tokens_per_param, grounds.basis
    spec = None if study is None else _largest(study)
    if study is None or spec is None or ratio is None or basis is None or "C" not in basis.reach:
        raise UserError(
            f"a law of {grounds.fit.x_names[0]} alone says no N* and D*: name the study of a "
            "ladder to extend it, or vary D at fixed N and fit both"
        )
    config = spec.config
    made = extend(
        grounds.fit,
        budget,
        ratio,
        config,
        basis,
        batch_tokens=batch_tokens or config.tokens_per_iter,
        speed=speed,
        unit=unit,
    )
    typed: dict[str, Json] = {**DEFAULTS, **study.asked.base_params}
    typed |= {key: value for key, value in spec.typed.items() if key not in OF_TRUNK}
    typed = {key: value for key, value in typed.items() if key not in LENGTH_KEYS}
    typed |= {key: made.run.config[key] for key in SHAPE}
    _, tuned = found_in(study.folder)
    if tuned is not None:
        D = made.run.iterations * (batch_tokens or config.tokens_per_iter)
        typed[tuned.key] = tuned.rule.at(made.run.N, D)
    typed |= {"max_iters": made.run.iterations, "out_dir": "out-next"}
    flags = [f"--{key}={value}" for key, value in typed.items()]
    return replace(made, command=shlex.join([*program().split(), "train", *flags]))


def grounds_of(
    source: DataFrame | LawFit | Grounds | str | Path,
    settings: FitSettings | None = None,
    output_root: str | Path = "experiments_out",
) -> Grounds:
    """Fit a table, or take a fit as it is."""
    from nanoscale.laws import LawFit

    if isinstance(source, Grounds):
        return source
    if isinstance(source, LawFit):
        return Grounds(source)
    if isinstance(source, str | Path):
        source = _studys_own(Path(source)) or source
        stored = stored_fit(source)
        if stored is not None:
            return _of_stored(str(source), stored)
        study = _study_of(source, output_root)
        source = read_table(source, output_root=output_root)
        grounds = _of_table(source, settings)
        return replace(grounds, study=study)
    return _of_table(source, settings)


def _of_table(table: DataFrame, settings: FitSettings | None) -> Grounds:
    result = fit_table(table, settings)
    return Grounds(
        result.fit,
        result.basis,
        _shared(table, "vocab_size"),
        _shared(table, "block_size"),
        tuple(result.warnings),
        tokens_per_param=result.rows.ratio,
    )


def _study_of(name: str | Path, output_root: str | Path) -> Study | None:
    folder = study_folder(name, output_root)
    return Study.open(folder) if (folder / STUDY).is_file() else None


def _largest(study: Study) -> RunSpec | None:
    """The finished run of most FLOPs."""
    finished = [(entry, folder) for entry, folder in study.runs() if folder.metrics()]
    if not finished:
        return None
    _, folder = max(finished, key=lambda run: run[0].flops)
    return folder.spec()


def _shared(table: DataFrame, key: str) -> int | None:
    """The whole number that all runs of a table share."""
    if key not in table or table[key].isna().any() or table[key].nunique() != 1:
        return None
    return int(float(table[key].iloc[0]))


def _studys_own(path: Path) -> Path | None:
    """The study whose fits/power.json `path` is: its runs say more than the record."""
    folder = path.parent.parent
    is_its = path.name == "power.json" and path.parent.name == "fits"
    return folder if is_its and (folder / STUDY).is_file() else None


# -- stored fits --------------------------------------------------------------------------------
def stored_fit(name: str | Path) -> Mapping[str, Json] | None:
    """The record of a stored fit; None for what is no such file."""
    path = Path(name)
    if path.suffix != ".json" or not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None  # JSON lines: a table
    if not isinstance(record, dict):
        return None
    if not {"law", "params", "predictors", "reasons"} <= record.keys():
        raise UserError(
            f"{name}: no fit of a law; write one with nanoscale fit TABLE --json={name}"
            ", or give a table"
        )
    return record


def _of_stored(name: str, record: Mapping[str, Json]) -> Grounds:
    from nanoscale.laws.plan import fit_of
    from nanoscale.laws.predict import Basis

    fit = fit_of(record)
    basis = Basis.read(record) if "noise" in record else None
    if len(fit.draws):
        return Grounds(fit, basis)
    table = record.get("table", "that it was fitted to")
    warning = (
        f"{name} holds no draws, so there are no intervals: give the table ({table}) in its place"
    )
    return Grounds(fit, basis, warnings=(warning,))
