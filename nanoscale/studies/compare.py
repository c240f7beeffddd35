"""`nanoscale compare`: is arm B's loss lower than arm A's, how surely, and what would settle it?

What an arm is stands in `arms`; the arithmetic is that of `checks.paired`. What is printed and what
is drawn is made from the record that `--json` writes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nanoscale.checks import paired
from nanoscale.checks.paired import Difference, Sample
from nanoscale.commands.options import usage_of
from nanoscale.errors import DONE, INCONCLUSIVE, UserError, one_of
from nanoscale.store.files import check_outputs, plain, write_json
from nanoscale.store.folder import DIVERGED, WINDOWS
from nanoscale.studies.arms import (
    KEYS,
    TOKENS,
    TUNED,
    Arm,
    Cell,
    Run,
    Setting,
    cells_of,
    naming,
    read_arm,
    said,
)

SCHEMA, ROPE = 1, 0.01  # nats within which two arms are as good as equal
OPTIONS = ("loss", "rope", "json", "figure", "output_root")
LOSSES = ("val_loss", "best_val_loss", "train_loss", "val_bits_per_byte")
PER_BYTE = LOSSES[-1]  # comparable over tokenizers
FOLLOW = ("n_head", "n_kv_head", "warmup_iters", "lr_decay_iters", "min_lr")  # other keys, mostly


def main(names: Sequence[str], options: Mapping[str, str]) -> int:
    """nanoscale compare A B [--loss=val_loss] [--rope=0.01] [--json=OUT.json] [--figure=OUT.png]
    [--output_root=experiments_out]; an arm is RUN,RUN.. or STUDY or STUDY:key=value,key=value"""
    if len(names) != 2:
        raise UserError(f"compare {' '.join(names)}: expected two arms; usage: {usage_of(main)}")
    check_outputs(options)
    loss, rope = options.get("loss", LOSSES[0]), _rope(options.get("rope", ROPE))
    if loss not in LOSSES:
        raise UserError(f"--loss={loss}: choose {one_of(LOSSES)}")
    root = Path(options.get("output_root", "experiments_out"))
    record = compare(
        *(read_arm(which, text, root, loss) for which, text in zip("AB", names, strict=True)),
        loss=loss,
        rope=rope,
    )
    print("\n".join(lines(record)))
    if "json" in options:
        write_json(Path(options["json"]), record)
    if "figure" in options:
        from nanoscale.report import compare_figure, save

        save(compare_figure(record), options["figure"])
    return INCONCLUSIVE if record["verdict"] == "inconclusive" else DONE


def _rope(text: str | float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise UserError(f"--rope={text}: expected a number of nats, 0 or more")
    return value


# -- the record ---------------------------------------------------------------------------------
def compare(a: Arm, b: Arm, *, loss: str = LOSSES[0], rope: float = ROPE) -> dict[str, Any]:
    """The record of two arms, as plain JSON types (schema 1).

    Raises:
        UserError: the arms share a run or no size, or their losses are of different data.
    """
    _check_arms(a, b, loss)
    keys = naming([a.runs, b.runs], [key for key in KEYS if key not in TUNED])
    cells = cells_of(a, keys), cells_of(b, keys)
    shared = [cell for cell in cells[0] if cell in cells[1]]
    if not shared:
        there = [
            " or ".join(said(dict(zip(keys, cell, strict=True))) for cell in own) for own in cells
        ]
        raise UserError(
            f"the arms share no {' and '.join(keys)}: A has {there[0]}, B {there[1]}; "
            f"name those to compare, as in STUDY:{keys[0]}=VALUE"
        )
    losses = [{cell: own[cell].choice.losses for cell in shared} for own in cells]
    each = {cell: paired.difference_of(*({cell: own[cell]} for own in losses)) for cell in shared}
    pooled = [cell for cell in shared if each[cell].known] or shared
    held = [{cell: own[cell].choice.held_out for cell in pooled} for own in cells]
    total = paired.difference_of(*({cell: own[cell] for cell in pooled} for own in losses))
    runs = {cell: counted([own[cell] for own in cells], each[cell]) for cell in shared}
    noise = {cell: _windows(runs[cell], loss) for cell in shared}
    windows = _pooled_windows([noise[cell] for cell in pooled], total.value)
    found = {
        **total.to_json(),
        "interval": "seeds" if total.known else "windows",
        "held_out": paired.difference_of(*held).value if total.known else None,
    }
    if not total.known:
        found["ci95"] = windows.get("ci95") or [None, None]
    verdict = paired.judge(total.ci95, rope)
    levels = [[(cell.flops, cell.choice.losses) for cell in own.values()] for own in cells]
    differ = _differ([own[shared[0]] for own in cells], keys)
    record = plain(
        {
            "schema": SCHEMA,
            "check": "compare",
            "verdict": verdict,
            "reason": "",
            "loss": loss,
            "unit": "bits" if loss == PER_BYTE else "nats",
            "rope": rope,
            "keys": keys,
            "differ_in": differ,
            "labels": _labels(differ),
            "arms": [
                _arm(arm, own, {cell: runs[cell][i] for cell in pooled})
                for i, (arm, own) in enumerate(zip((a, b), cells, strict=True))
            ],
            "difference": found,
            "windows": windows,
            "compute_multiplier": paired.multiplier(*levels, total.paired_by is not None),
            "seeds_needed": paired.seeds_needed(total, rope),
            "cells": [
                {
                    "cell": dict(zip(keys, cell, strict=True)),
                    "pooled": cell in pooled,
                    **_cell([own[cell] for own in cells], runs[cell], each[cell]),
                    "window_se": noise[cell].get("se"),
                }
                for cell in shared
            ],
            "left_out": list(_left_out((a, b), cells, keys, each)),
        }
    )
    record["warnings"] = _warnings(record, cells, shared) + _numerics(runs.values(), differ)
    return record | {"reason": _reason(record)}


def _check_arms(a: Arm, b: Arm, loss: str) -> None:
    same = {run.folder.path.resolve() for run in a.runs} & {
        run.folder.path.resolve() for run in b.runs
    }
    if same:
        raise UserError(
            f"both arms hold {min(same).name}"
            f"{f' and {len(same) - 1} more' if len(same) > 1 else ''}: name arms that "
            "share no run, as in STUDY:key=value"
        )
    data = {run.data for run in (*a.runs, *b.runs)}
    if len(data) > 1 and loss != PER_BYTE:
        raise UserError(
            f"the runs are of {len(data)} data sets, whose losses per token are not "
            f"comparable; where the text is the same, compare --loss={PER_BYTE}"
        )


def _differ(pair: Sequence[Cell], keys: Sequence[str]) -> dict[str, list[Any]]:
    """Key -> its value in A and in B, of what does not vary within an arm."""
    a, b = (next(iter(cell.runs.values())).values for cell in pair)
    chosen = {*keys, *pair[0].setting, *pair[1].setting}
    found = {key: [a[key], b[key]] for key in KEYS if a[key] != b[key] and key not in chosen}
    if {"learning_rate", "min_lr"} & {*found, *chosen}:
        found.pop("min_lr", None)  # a fraction of it, as good as always
    return found


def _labels(differ: Mapping[str, Sequence[Any]]) -> list[str]:
    """What to call A and B: by the one key they differ in, where there is one."""
    led = [key for key in differ if key not in FOLLOW] or list(differ)
    if len(led) != 1:
        return ["A", "B"]
    return [value if isinstance(value, str) else said({led[0]: value}) for value in differ[led[0]]]


def counted(pair: Sequence[Cell], difference: Difference) -> list[dict[str, Run]]:
    """Seed -> run of both arms at one size, without those that have no pair where there are."""
    return [
        {
            seed: run
            for seed, run in own.runs.items()
            if not difference.paired_by or seed in pair[1 - i].runs
        }
        for i, own in enumerate(pair)
    ]


def _sample(runs: Mapping[Setting, Mapping[str, Run]]) -> Sample:
    return Sample.of({cell: {s: run.loss for s, run in own.items()} for cell, own in runs.items()})


def _arm(
    arm: Arm, cells: Mapping[Setting, Cell], runs: Mapping[Setting, Mapping[str, Run]]
) -> dict[str, Any]:
    sample = _sample(runs)
    return {
        "name": arm.name,
        "n_runs": sum(map(len, runs.values())),
        "seeds": list(dict.fromkeys(seed for own in runs.values() for seed in own)),
        "mean": sample.mean,
        "se": sample.se,
        "settings": [dict(cells[cell].setting) for cell in runs],
        "n_found": len(arm.runs),
        "n_diverged": sum(run.state == DIVERGED for run in arm.lost),
    }


def _cell(
    pair: Sequence[Cell], runs: Sequence[Mapping[str, Run]], difference: Difference
) -> dict[str, Any]:
    """One size: each arm's chosen setting and mean, their difference, every seed's losses."""
    sides = {}
    for name, own, used in zip("ab", pair, runs, strict=True):
        sample, run = _sample({(): used}), next(iter(own.runs.values()))
        sides[name] = {
            "mean": sample.mean,
            "se": sample.se,
            "n": len(used),
            "setting": own.setting,
            "chosen_of": own.choice.of,
            "flops": own.flops,
            "tokens": run.values[TOKENS],
        }
    a, b = (own.choice.losses for own in pair)
    return {
        **sides,
        "difference": difference.to_json(),
        "seeds": [
            {"seed": seed, "a": a.get(seed), "b": b.get(seed)} for seed in dict.fromkeys((*a, *b))
        ],
    }


def _left_out(
    arms: Sequence[Arm],
    cells: Sequence[Mapping[Setting, Cell]],
    keys: Sequence[str],
    each: Mapping[Setting, Difference],
) -> Iterator[dict[str, Any]]:
    """The runs that the difference does not count, and why; results of other settings are none."""
    for i, (arm, own) in enumerate(zip(arms, cells, strict=True)):
        for cell, offer in own.items():
            at = {"arm": arm.which, "cell": dict(zip(keys, cell, strict=True))}
            yield from (
                {**at, "seed": run.seed, "run": run.folder.path.name, "why": run.state.lower()}
                for run in offer.lost
            )
            alone = (
                {}
                if cell not in each
                else {
                    seed
                    for seed in offer.runs
                    if each[cell].paired_by and seed not in cells[1 - i][cell].runs
                }
            )
            yield from (
                {
                    **at,
                    "seed": seed,
                    "run": run.folder.path.name,
                    "why": "no pair" if cell in each else "only in this arm",
                }
                for seed, run in offer.runs.items()
                if cell not in each or seed in alone
            )
        told = {run.folder.path for offer in own.values() for run in offer.lost}
        for run in arm.lost:
            if run.folder.path not in told:
                known = {key: run.values[key] for key in keys if key in run.values}
                yield {
                    "arm": arm.which,
                    "cell": known,
                    "seed": run.seed,
                    "run": run.folder.path.name,
                    "why": run.state.lower(),
                    "setting": "not chosen",
                }


# -- windows ------------------------------------------------------------------------------------
def _windows(runs: Sequence[Mapping[str, Run]], loss: str) -> dict[str, Any]:
    """How far one size's difference depends on the text: per window, B - A over its seeds."""
    if loss != LOSSES[0]:
        return {"reason": f"{WINDOWS} holds the {LOSSES[0]}, not the {loss}"}
    sides, sizes = [], set()
    for name, own in zip("AB", runs, strict=True):
        try:
            rows = [np.load(run.folder / WINDOWS, allow_pickle=False) for run in own.values()]
        except (OSError, ValueError):
            return {"reason": f"a run of {name} has no {WINDOWS} that can be read"}
        sizes |= {
            (len(row), run.values["block_size"], run.data)
            for row, run in zip(rows, own.values(), strict=True)
        }
        sides.append(rows)
    if len(sizes) > 1:
        return {"reason": "the runs were evaluated on different windows"}
    each = np.mean(sides[1], axis=0) - np.mean(sides[0], axis=0)
    se, block = paired.windows_noise(each)
    return {"n": len(each), "block": block, "se": se, "each": each}


def _pooled_windows(found: Sequence[Mapping[str, Any]], value: float) -> dict[str, Any]:
    reason = next((f["reason"] for f in found if "reason" in f), None)
    if reason or len({f["n"] for f in found}) > 1:
        return {
            "n": 0,
            "se": None,
            "ci95": None,
            "reason": reason or "the sizes were evaluated on different windows",
        }
    se, block = paired.windows_noise(np.mean([f["each"] for f in found], axis=0))
    return {
        "n": found[0]["n"],
        "block": block,
        "se": se,
        "ci95": [value - 1.96 * se, value + 1.96 * se],
        "reason": None,
    }


# -- words --------------------------------------------------------------------------------------
def says(difference: Mapping[str, Any], unit: str) -> str:
    """`B - A is -0.0134 [-0.0247, -0.0021] nats, p = 0.035`."""
    low, high = ("?" if v is None else f"{v:+.4f}" for v in difference["ci95"])
    p = difference["p_value"]
    return f"B - A is {difference['value']:+.4f} [{low}, {high}] {unit}" + (
        "" if p is None else f", p = {p:.2g}"
    )


def _reason(record: Mapping[str, Any]) -> str:
    """The verdict's numbers in one line, and what would settle it."""
    difference, needed, unit = record["difference"], record["seeds_needed"], record["unit"]
    pairs, text = difference["n_pairs"], says(difference, unit)
    over = f", {pairs} pairs of seeds" if pairs > 1 else ""
    lost = [run for run in record["left_out"] if run["why"] == "diverged" and "setting" not in run]
    tail = "".join(
        f"; {n} diverged run{'s' * (n > 1)} of {arm} not counted"
        for arm in "AB"
        for n in [sum(run["arm"] == arm for run in lost)]
        if n
    )
    if difference["interval"] == "windows":
        return (
            f"{text}, an interval of evaluation noise only, as one seed says nothing of the "
            f"seeds' noise: run {needed} more seeds of each arm{tail}"
        )
    more = {
        "better": "B's loss is lower",
        "worse": "B's loss is higher",
        "equal": f"the arms are within {record['rope']:g} {unit} of each other",
    }
    if record["verdict"] in more:
        return f"{more[record['verdict']]}: {text}{over}{tail}"
    if needed is None:
        return (
            f"{text}{over}, does not decide, nor would {paired.MANY_SEEDS} more seeds if mean "
            f"and scatter stay{tail}"
        )
    return (
        f"{text}{over}, does not decide: about {needed} more seed{'s' * (needed > 1)} of each "
        f"arm would, if mean and scatter stay{tail}"
    )


def _warnings(
    record: Mapping[str, Any], cells: Sequence[Mapping[Setting, Cell]], shared: Sequence[Setting]
) -> list[str]:
    """What a careful reader would ask about."""
    found, out, sides = [], record["left_out"], (("A", "a", cells[0]), ("B", "b", cells[1]))
    for arm, why, other in dict.fromkeys((r["arm"], r["why"], r.get("setting")) for r in out):
        names = [
            f"{said(r['cell'])}{', ' * bool(r['cell'])}seed {r['seed']}"
            for r in out
            if (r["arm"], r["why"], r.get("setting")) == (arm, why, other)
        ]
        which = (
            f" (at settings that were not chosen: {len(names)})"
            if other
            else (f": {'; '.join(names[:4])}{f' and {len(names) - 4} more' * (len(names) > 4)}")
        )
        found.append(f"left out of {arm}, {why}{which}")
    if not record["difference"]["paired_by"]:
        found.append(
            "the arms share too few seeds to pair: the interval is Welch's of two "
            "samples; run both arms with the same seeds"
        )
    if not all(cell["pooled"] for cell in record["cells"]):
        found.append("sizes with one seed are not in the pooled difference")
    tuned = [
        name for name, side, _ in sides if any(c[side]["chosen_of"] > 1 for c in record["cells"])
    ]
    if tuned:
        held = record["difference"]["held_out"]
        found.append(
            f"settings of {' and '.join(tuned)} were chosen on the losses they are judged "
            "by, which flatters them"
            + ("" if held is None else f"; chosen on the other seeds, B - A is {held:+.4f}")
        )
    for name, side, own in sides:
        edge = [
            f"{said(c['cell'])}{', ' * bool(c['cell'])}{', '.join(own[cell].edges)}"
            for cell, c in zip(shared, record["cells"], strict=True)
            if own[cell].edges
        ]
        found += (
            [f"{name} is best at the end of what was tried, {'; '.join(edge)}: try beyond"]
            if edge
            else []
        )
        found += [
            f"{name} at {said(c[side]['setting'])} may lose to a setting with fewer seeds; "
            "give that the others"
            for cell, c in zip(shared, record["cells"], strict=True)
            if own[cell].choice.doubts
        ]
    ratios = {
        key: [c["b"][key] / c["a"][key] for c in record["cells"] if c["a"][key] and c["b"][key]]
        for key in (TOKENS, "flops")
    }
    found += [
        f"B has {' to '.join(dict.fromkeys(f'{v:.3g}' for v in (min(r), max(r))))} times A's {key}"
        for key, r in ratios.items()
        if r and max(max(r), 1 / min(r)) > 1.05
    ]
    same = [
        said(c["cell"]) or "every seed"
        for c in record["cells"]
        if all(row["a"] == row["b"] for row in c["seeds"])
    ]
    found += (
        [
            f"the arms' losses are equal to the digit at {'; '.join(same)}: what differs does "
            "nothing there"
        ]
        if same
        else []
    )
    if {"batch_size", "gradient_accumulation_steps"} & {*record["differ_in"]} and len(tuned) < 2:
        found.append(
            "the arms differ in batch size and were not both tuned: retune the LR at "
            "each batch size, tokens fixed"
        )
    return found


def _numerics(
    runs: Collection[Sequence[Mapping[str, Run]]], differ: Mapping[str, Any]
) -> list[str]:
    """A warning per part of the numerics in which the arms differ but were not meant to."""
    sides = [[run.numerics or {} for pair in runs for run in pair[i].values()] for i in (0, 1)]
    found = []
    for key in sorted({key for side in sides for numerics in side for key in numerics}):
        a, b = ({str(numerics.get(key)) for numerics in side} for side in sides)
        if a != b and key not in differ and key != "matmul_precision":  # that follows the width
            found.append(
                f"the arms ran on different numerics, {key} {' and '.join(sorted(a))} "
                f"against {' and '.join(sorted(b))}: their losses differ by rounding too"
            )
    return found


def lines(record: Mapping[str, Any]) -> list[str]:
    """What the record says, for a terminal."""
    unit, w, c = record["unit"], record["windows"], record["compute_multiplier"]
    head = [
        f"{name}: {arm['name']}, {arm['n_runs']} run{'s' * (arm['n_runs'] > 1)}, "
        f"seed{'s' * (len(arm['seeds']) > 1)} {', '.join(arm['seeds'])}"
        for name, arm in zip("AB", record["arms"], strict=True)
    ]
    differ = ", ".join(f"{k} {a} -> {b}" for k, (a, b) in record["differ_in"].items())
    rows = [
        [", ".join(record["keys"]), "A", "B", "B - A", "95 % interval", "p", "pairs"],
        *(
            _row(
                ", ".join(
                    f"{v:g}" if isinstance(v, float) else str(v) for v in cell["cell"].values()
                ),
                cell["a"],
                cell["b"],
                cell["difference"],
            )
            for cell in record["cells"]
        ),
    ]
    if len(record["cells"]) > 1:
        rows.append(_row("mean", *record["arms"], record["difference"]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = [
        "  ".join(text.rjust(n) for text, n in zip(row, widths, strict=True)).strip("\n")
        for row in rows
    ]
    chosen = [
        f"chosen for {name}{' at ' * bool(cell['cell'])}{said(cell['cell'])}: "
        f"{said(cell[side]['setting'])} (of {cell[side]['chosen_of']})"
        for name, side in (("A", "a"), ("B", "b"))
        for cell in record["cells"]
        if cell[side]["chosen_of"] > 1
    ]
    text = w["reason"] or f"{1.96 * w['se']:.4f} {unit}, {w['n']} windows"
    need = c["reason"] or (
        f"A needs {c['value']:.3g} {_ends(c['ci95'], '.3g')} times B's FLOPs for the same loss"
    )
    return [
        *head,
        f"loss {record['loss']}; B differs in {differ or 'nothing but its settings'}",
        *chosen,
        *table,
        f"on other text of this kind, give or take: {text}",
        f"compute: {need}",
        *(f"warning: {warning}" for warning in record["warnings"]),
        f"{record['verdict']}: {record['reason']}",
    ]


def _row(
    name: str, a: Mapping[str, Any], b: Mapping[str, Any], difference: Mapping[str, Any]
) -> list[str]:
    means = [f"{x['mean']:.4f}" + ("" if x["se"] is None else f" ± {x['se']:.4f}") for x in (a, b)]
    p = difference["p_value"]
    return [
        name,
        *means,
        f"{difference['value']:+.4f}",
        _ends(difference["ci95"], "+.4f"),
        "-" if p is None else f"{p:.2g}",
        str(difference["n_pairs"] or "-"),
    ]


def _ends(ends: Sequence[float | None], form: str) -> str:
    return f"[{', '.join('?' if v is None else format(v, form) for v in ends)}]"
