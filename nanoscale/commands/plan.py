"""`nanoscale plan`: what to train with a budget, from a table of runs or a stored fit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from nanoscale.commands.fit import OPTIONS as FIT_OPTIONS
from nanoscale.commands.fit import settings_of
from nanoscale.commands.options import number, usage_of
from nanoscale.errors import DONE, INCONCLUSIVE, UserError
from nanoscale.store.files import check_outputs, write_json
from nanoscale.studies.next_run import grounds_of, plan, stored_fit
from nanoscale.studies.table_fit import RESAMPLES

NUMBERS = ("budget", "tokens-per-second", "flops-per-second", "batch-tokens")
WHOLE_NUMBERS = ("vocab_size", "block_size")
OPTIONS = (*NUMBERS, *WHOLE_NUMBERS, *(option for option in FIT_OPTIONS if option != "holdout"))
OF_ANY_FIT = ("json", "laws")  # of those


def main(names: Sequence[str], options: Mapping[str, str]) -> int:
    """nanoscale plan FIT.json|TABLE|STUDY --budget=FLOPS [--tokens-per-second=X |
    --flops-per-second=X] [--vocab_size=50304] [--block_size=1024] [--batch-tokens=B] [--json=OUT]
    and, of a table, the options of nanoscale fit"""
    if len(names) != 1:
        raise UserError(f"usage: {usage_of(main)}")
    if "budget" not in options:
        raise UserError("how many FLOPs? say it, as in --budget=1e20")
    check_outputs(options)
    numbers = {key.replace("-", "_"): _positive(key, options) for key in NUMBERS}
    shape = {key: _whole(key, options) for key in WHOLE_NUMBERS}
    settings = settings_of(options)
    if settings.resamples is None:
        settings = replace(settings, resamples=RESAMPLES)
    _check_stored(names[0], options)

    grounds = grounds_of(names[0], settings, options.get("output_root", "experiments_out"))
    made = plan(grounds, **numbers, **shape)
    print("\n".join([*made.summary(), *(f"warning: {warning}" for warning in made.warnings)]))
    if "json" in options:
        fit = grounds.fit
        record = made.to_json() | {"from": names[0], "params": fit.params, "data": fit.data}
        write_json(Path(options["json"]), record)
    return DONE if grounds.fit.status == "converged" else INCONCLUSIVE


def _check_stored(name: str, options: Mapping[str, str]) -> None:
    """A stored fit has been fitted: options that say how are of its table."""
    stored = stored_fit(name)
    given = [key for key in options if key in FIT_OPTIONS and key not in OF_ANY_FIT]
    if stored is not None and given:
        raise UserError(
            f"{name} is a stored fit; --{given[0]} is of a table, so give "
            f"{stored.get('table', 'the table')} in its place"
        )


def _positive(key: str, options: Mapping[str, str]) -> float | None:
    if key not in options:
        return None
    value = float(number(key, options[key]))
    if not 0 < value < math.inf:
        raise UserError(f"--{key}={options[key]}: expected a number above 0")
    return value


def _whole(key: str, options: Mapping[str, str]) -> int | None:
    value = _positive(key, options)
    if value is None:
        return None
    if not value.is_integer():
        raise UserError(f"--{key}={options[key]}: expected a whole number")
    return int(value)
