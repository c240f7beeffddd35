"""`nanoscale fit`: a scaling law through a table of runs, with its certainty and its intervals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nanoscale.commands.options import usage_of
from nanoscale.errors import DONE, INCONCLUSIVE, UserError
from nanoscale.experiments.tables import read_table
from nanoscale.store.files import check_outputs, write_json
from nanoscale.studies.table_fit import FitSettings, TableFit, check_surface, fit_table

if TYPE_CHECKING:
    from nanoscale.laws import LawFit
    from nanoscale.laws.envelope import Envelope
    from nanoscale.laws.isoflop import Bias, IsoFlop
    from nanoscale.laws.multiverse import Multiverse
    from nanoscale.studies.approaches import Approaches, Valleys

COLUMNS = ("n", "d", "c", "u", "loss", "group")
OPTIONS = (
    *COLUMNS,
    "law",
    "laws",
    "objective",
    "delta",
    "drop-worst",
    "bootstrap",
    "seed",
    "resample",
    "holdout",
    "json",
    "output_root",
)
FIGURES = "figures"  # of this command alone, as these are
SWITCHES = ("isoflop", "multiverse", "profile", "influence")


def main(names: Sequence[str], options: Mapping[str, str]) -> int:
    """nanoscale fit TABLE|STUDY --n=COL --d=COL --loss=COL [--c=COL] [--u=COL] [--law=chinchilla]
    [--laws=FILE.py] [--objective=log-huber|lad|mse|envelope] [--delta=1e-3] [--drop-worst=K]
    [--bootstrap=4000] [--seed=0] [--resample=pairs|cluster|stratified|residual|wild|parametric]
    [--group=COL] [--holdout=FLOPS] [--isoflop] [--multiverse] [--profile] [--influence]
    [--figures=DIR] [--json=OUT] [--output_root=DIR]"""
    if len(names) != 1:
        raise UserError(f"usage: {usage_of(main)}")
    check_outputs(options)
    settings = settings_of(options)
    asked = {switch: switch in options for switch in SWITCHES}
    if asked["isoflop"] or asked["multiverse"]:
        check_surface(settings.form, asked["multiverse"])
    figures = _folder_of(options)
    holdout = _number("holdout", options["holdout"]) if "holdout" in options else None

    table = read_table(names[0], output_root=options.get("output_root", "experiments_out"))
    result = fit_table(table, settings, name=names[0])
    result = result.ask(holdout=holdout, rollout=figures is not None, **asked)
    print("\n".join(_lines(result)))
    if "json" in options:
        write_json(Path(options["json"]), result.to_json())
    if figures is not None:
        from nanoscale.studies.fit_gallery import gallery, write_figures

        written = write_figures(gallery(result), figures)
        print(f"figures in {figures}: {', '.join(path.name for path in written)}")
    return DONE if result.fit.status == "converged" else INCONCLUSIVE


# -- options ------------------------------------------------------------------------------------
def settings_of(options: Mapping[str, str]) -> FitSettings:
    """How to fit, as the options say; `UserError` for a law or a number that is none."""
    from nanoscale.laws import law_of

    if "laws" in options:
        from nanoscale.laws.registry import load_laws

        load_laws(options["laws"])
    resamples = options.get("bootstrap")
    return FitSettings(
        **{key: options[key] for key in COLUMNS if key in options},
        law=law_of(options.get("law", "chinchilla")),
        objective=options.get("objective", "log-huber"),
        delta=_number("delta", options.get("delta", "1e-3")),
        drop_worst=_whole("drop-worst", options.get("drop-worst", "0")),
        resamples=None if resamples is None else _whole("bootstrap", resamples),
        resampling=options.get("resample", "pairs"),
        seed=_whole("seed", options.get("seed", "0")),
    )


def _number(key: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"--{key}={text}: expected a number") from None
    if value < 0:
        raise UserError(f"--{key}={text}: must not be below 0")
    return value


def _whole(key: str, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise UserError(f"--{key}={text}: expected a whole number") from None
    return int(_number(key, str(value)))


def _folder_of(options: Mapping[str, str]) -> Path | None:
    """Of the figures; `UserError` for one that cannot be."""
    if FIGURES not in options:
        return None
    folder = Path(options[FIGURES])
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--figures={folder}: that is a file; name a folder")
    if not folder.parent.is_dir():
        raise UserError(f"--figures={folder}: there is no folder {folder.parent}; make it first")
    return folder


# -- what is printed ----------------------------------------------------------------------------
def _lines(result: TableFit) -> list[str]:
    """The law, the columns that it reads, what was asked beside it, what to beware of."""
    lines = [*result.fit.summary(), _columns_line(result.rows.columns)]
    if result.holdout is not None:
        lines.append(result.holdout.text())
    if result.isoflop is not None:
        lines += _approach_lines(result.isoflop)
    if result.multiverse is not None:
        lines += _multiverse_lines(result.multiverse)
    if result.profile is not None:
        lines += ["profile intervals, 95 %:", *result.profile.text()]
        lines += [f"  {warning}" for warning in result.profile.warnings]
    if result.influence is not None:
        lines.append(f"influence: {result.influence.text()}")
    return lines + [f"warning: {warning}" for warning in result.warnings]


def _columns_line(columns: Mapping[str, str]) -> str:
    """Which columns were read, and what follows from which."""
    names = {"loss": "L", "group": "group"}
    line = ", ".join(f"{names.get(key, key.upper())} = {name}" for key, name in columns.items())
    if {"c", "n"} <= columns.keys():
        line += "; D = C / 6N"
    if {"c", "d"} <= columns.keys():
        line += "; N = C / 6D"
    return line


def _approach_lines(approaches: Approaches) -> list[str]:
    """The exponent a by each approach."""
    envelope, surface = approaches.envelope, approaches.surface
    if isinstance(envelope, str):
        lines = [f"Approach 1: {envelope}"]
    else:
        runs = len(envelope.runs)
        lines = [f"Approach 1: {_exponent(envelope)}, {runs} runs on the envelope"]
    lines += _valley_lines("parabola", approaches.parabola)
    lines += _valley_lines("cubic", approaches.cubic)
    doubt = "" if surface.status == "converged" else f" (the surface is {surface.status})"
    return [*lines, f"Approach 3: {_exponent(surface)}{doubt}"]


def _valley_lines(name: str, valleys: Valleys | str) -> list[str]:
    from nanoscale.laws.isoflop import MOST_LOST

    if isinstance(valleys, str):
        return [f"Approach 2, {name}: {valleys}"]
    found = valleys.isoflop
    used = sum(valley.used for valley in found.valleys)
    line = f"Approach 2, {name}: {_exponent(found)}, {used} of {len(found.valleys)} budgets"
    flags = Counter(flag for valley in found.valleys for flag in valley.flags)
    if flags:
        counts = ", ".join(f"{count} {flag}" for flag, count in flags.items())
        line += f" ({counts})"
    lines = [line]
    if found.lost > MOST_LOST * found.resamples:
        lines.append(
            f"  {found.lost} of {found.resamples} resamples have a budget without a minimum"
            ": flat valleys beside the noise"
        )
    return lines + _bias_lines(valleys.bias)


def _bias_lines(bias: Bias | None) -> list[str]:
    if bias is None:
        return ["  its bias is not known: the law has no optimum"]
    if not math.isfinite(bias.bias["N"]):
        return [f"  its bias is not known: {'; '.join(bias.warnings)}"]
    a, n = (round(bias.bias[key], 3) + 0.0 for key in ("a", "N"))  # no -0.000
    return [
        f"  on the fitted surface this grid errs by {a:+.3f} in a and {100 * n:+.1f} % in N* "
        f"at {bias.C:.2g} FLOPs; corrected: a {bias.corrected['a']:.3f}, N* "
        f"{bias.corrected['N']:.3g}",
        *(f"  {warning}" for warning in bias.warnings),
    ]


def _exponent(fit: LawFit | Envelope | IsoFlop) -> str:
    """a and its interval, if they are known."""
    if "a" not in fit.exponents:
        return "no exponent a"
    text = f"a {fit.exponents['a']:.3f}"
    if "a" in fit.ci95:
        low, high = fit.ci95["a"]
        text += f" [{low:.3f}, {high:.3f}]"
    return text


def _multiverse_lines(multiverse: Multiverse) -> list[str]:
    """How far a moves in all, and with each choice."""
    a = multiverse.a
    without = sum(row.a is None for row in multiverse.rows)
    lost = f", {without} without a fit" if without else ""
    known = [(moved, choice) for choice, moved in multiverse.spread.items() if moved is not None]
    moves = ", ".join(f"{moved:.3f} with {choice}" for moved, choice in sorted(known, reverse=True))
    return [
        f"multiverse: {len(multiverse.rows)} analyses{lost}: a from {a['lowest']:.3f} to "
        f"{a['highest']:.3f}, median {a['median']:.3f}",
        f"  all else equal a moves by {moves}",
    ]
