"""`nanoscale plan`: what to train with a budget, from a table of runs or a stored fit.

A table or a study is fitted anew, as `nanoscale fit` does, so the plan's intervals come from its
resamples; a stored fit without draws gives the point alone. What is printed is made from the record
that `--json` writes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanoscale.commands.options import number, usage_of
from nanoscale.errors import DONE, INCONCLUSIVE, UserError
from nanoscale.experiments.tables import read_table
from nanoscale.store.files import check_outputs, write_json
from nanoscale.studies.table_fit import DEFAULTS, fitted
from nanoscale.studies.table_fit import OPTIONS as FIT_OPTIONS
from nanoscale.studies.table_fit import number_of as fit_number

if TYPE_CHECKING:
    from nanoscale.laws import LawFit

SPEEDS = {"tokens-per-second": "tokens/s", "flops-per-second": "FLOP/s"}
SHAPE = {"vocab_size": 50304, "block_size": 1024}  # GPT-2's vocabulary, padded, as nanoGPT
OPTIONS = ("budget", *SPEEDS, *SHAPE, "batch-tokens", *(o for o in FIT_OPTIONS if o != "holdout"))


def main(names: Sequence[str], options: Mapping[str, str]) -> int:
    """nanoscale plan FIT.json|TABLE|STUDY --budget=FLOPS [--tokens-per-second=X |
    --flops-per-second=X] [--vocab_size=50304] [--block_size=1024] [--batch-tokens=B] [--json=OUT]
    and, of a table, the options of nanoscale fit"""
    if len(names) != 1:
        raise UserError(f"usage: {usage_of(main)}")
    if "budget" not in options:
        raise UserError("how many FLOPs? say it, as in --budget=1e20")
    check_outputs(options)
    budget, speed = _positive("budget", options), _speed(options)
    batch = _positive("batch-tokens", options)
    shape = {key: _whole(key, options) for key in SHAPE}
    fit, record, known, notes = _fit(names[0], options)
    from nanoscale.laws.plan import plan
    from nanoscale.laws.predict import Basis

    made = plan(
        fit,
        budget,
        Basis.read(record) if "noise" in record else None,
        batch_tokens=batch,
        **{k: shape[k] or known.get(k) or SHAPE[k] for k in SHAPE},
        **speed,
    )
    out = made.to_json() | {"from": names[0], "params": fit.params, "data": fit.data}
    out["warnings"] = [*notes, *out["warnings"]]
    print("\n".join([*made.summary(), *(f"warning: {w}" for w in out["warnings"])]))
    if "json" in options:
        write_json(Path(options["json"]), out)
    return DONE if fit.status == "converged" else INCONCLUSIVE


def _fit(
    name: str, options: Mapping[str, str]
) -> tuple[LawFit, dict[str, Any], dict[str, int], list[str]]:
    """The fit, its record, the models' shape where the table says it, and what to warn of."""
    stored = _stored(name)
    if stored is not None:
        from nanoscale.laws.plan import fit_of

        given = [f"--{key}" for key in options if key in FIT_OPTIONS and key != "json"]
        if given:
            raise UserError(
                f"{name} is a stored fit; {given[0]} is of a table, so give "
                f"{stored.get('table', 'the table')} in its place"
            )
        fit = fit_of(stored)
        notes = (
            []
            if len(fit.draws)
            else [
                f"{name} holds no draws, so there are no intervals: give the table "
                f"({stored.get('table', 'that it was fitted to')}) in its place"
            ]
        )
        return fit, stored, {}, notes
    settings = {
        key: fit_number(key, options.get(key, default)) for key, default in DEFAULTS.items()
    }
    frame = read_table(name, output_root=options.get("output_root", "experiments_out"))
    fit, record = fitted(frame, options, settings)
    known = {
        key: int(float(frame[key].iloc[0]))
        for key in SHAPE
        if key in frame and frame[key].nunique() == 1 and frame[key].notna().all()
    }
    return fit, record, known, record["warnings"]


def _stored(name: str) -> dict[str, Any] | None:
    """The record of a stored fit; None for what is no such file."""
    path = Path(name)
    if path.suffix != ".json" or not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None  # JSON lines: a table
    if not isinstance(record, dict):
        return None
    if not {"law", "params", "predictors", "reasons"} <= record.keys():
        raise UserError(
            f"{name}: no fit of a law; write one with nanoscale fit TABLE --json={name}"
            ", or give a table"
        )
    return record


def _positive(key: str, options: Mapping[str, str]) -> float | None:
    if key not in options:
        return None
    value = number(key, options[key])
    if not 0 < value < float("inf"):
        raise UserError(f"--{key}={options[key]}: expected a number above 0")
    return float(value)


def _whole(key: str, options: Mapping[str, str]) -> int | None:
    value = _positive(key, options)
    if value is not None and not value.is_integer():
        raise UserError(f"--{key}={options[key]}: expected a whole number")
    return None if value is None else int(value)


def _speed(options: Mapping[str, str]) -> dict[str, Any]:
    given = [key for key in SPEEDS if key in options]
    if len(given) == 2:
        raise UserError("--tokens-per-second and --flops-per-second: give one of them")
    return {"speed": _positive(given[0], options), "unit": SPEEDS[given[0]]} if given else {}
