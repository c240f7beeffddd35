"""`nanoscale coord-check`: does the config's parametrization hold over width, or depth? A verdict.

The runs are an ordinary study with statistics at every step, so they are cached; `checks` does the
arithmetic on their rows, and what is printed is made from the record that `--json` writes.
"""

from __future__ import annotations

import math
import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nanoscale.checks import coordinates as checks
from nanoscale.errors import DONE, FAILED, INCONCLUSIVE, UserError, did_you_mean
from nanoscale.experiments import ExperimentRunner
from nanoscale.experiments.cells import Cell, combinations, make_cells, questions
from nanoscale.experiments.records import Asked
from nanoscale.spec.config import (
    LENGTH_KEYS,
    ExperimentConfig,
    ResolvedConfig,
    flatten,
    from_flat,
)
from nanoscale.spec.parametrization import rules_of
from nanoscale.spec.sources import COMMAND_LINE, FIELDS, Source, apply, coerce, parse_arguments
from nanoscale.store.files import check_outputs, write_json

USAGE = """usage: nanoscale coord-check [config.py ...] [--key=value ...] --widths 64,128,256
       nanoscale coord-check [config.py ...] [--key=value ...] --depths 2,4,8,16
  --steps 10 --seeds 3 --json OUT.json --figure OUT.png --output_root experiments_out --workers N
exit code: 0 pass, 1 fail (naming the module and the likely rule), 3 inconclusive, 2 bad input

Over widths, heads of the config's size are added; type --n_head alone to keep their number, so that
they grow. The model and the parametrization come from the config, the run's settings (LR, batch,
schedule) are the check's own unless typed here as flags; --seed=N is the first of the seeds."""
OPTIONS = ("widths", "depths", "steps", "seeds", "json", "figure", "output_root", "workers")
SIZE_KEYS = {checks.WIDTH: "n_embd", checks.DEPTH: "n_layer"}
EXIT_CODES = {checks.PASS: DONE, checks.FAIL: FAILED, checks.UNSURE: INCONCLUSIVE}
LEAST_SIZES = 3
Rows = Sequence[Mapping[str, Any]]  # of a run's metrics.jsonl
SHOWN = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)

MODEL = {"dataset": "shakespeare_char", "n_layer": 2, "n_embd": 64, "n_head": 4}  # of no config
# Small LRs: an update's effect is read from the change it makes, not from a blow-up, which at 1e-2
# differs so much by seed that three of them decide nothing. No clipping, as that depends on the
# gauge: a rule may move a factor between a weight and its multiplier, and with it the norm.
PROTOCOL = {
    "learning_rate": 2e-4,
    "muon_lr": 1e-2,
    "decay_lr": False,
    "min_lr_frac": 0.1,
    "grad_clip": 0.0,
    "batch_size": 4,
    "gradient_accumulation_steps": 1,
    "block_size": 64,
    "dropout": 0.0,
    "seed": 1,
    "dtype": "float32",
    "threads": 1,
    "compile": False,
    "eval_interval": 0,
    "eval_iters": 1,
    "final_eval_tokens": 1024,
}


# -- what was asked -------------------------------------------------------------------------------
def split(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The check's own options, as `--key=value` or `--key value`, and the other arguments."""
    options, others, waiting = {}, [], list(arguments)
    while waiting:
        argument = waiting.pop(0)
        key, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or (key not in OPTIONS and key in FIELDS):
            others.append(argument)
            continue
        if key not in OPTIONS:
            hint = did_you_mean(key, OPTIONS) or did_you_mean(key, FIELDS)
            raise UserError(f"--{key}: unknown key{hint or '; see nanoscale coord-check --help'}")
        if not equals and waiting and not waiting[0].startswith("--"):
            value = waiting.pop(0)
        if not value:
            raise UserError(f"--{key}: a flag needs a value, as in --{key}=VALUE")
        options[key] = value
    return options, others


def whole(options: Mapping[str, str], name: str, default: int | None) -> int | None:
    """A whole number of at least 1."""
    if name not in options:
        return default
    value = coerce(name, options[name], int)
    if value < 1:
        raise UserError(f"--{name}={value}: must be at least 1")
    return value


def sizes_of(options: Mapping[str, str]) -> tuple[str, tuple[int, ...]]:
    """`width` or `depth`, and the sizes, ascending."""
    named = [name for name in ("widths", "depths") if name in options]
    if len(named) != 1:
        raise UserError("give one of --widths and --depths, as in --widths 64,128,256")
    text, example = options[named[0]], {"widths": "64,128,256", "depths": "2,4,8,16"}[named[0]]
    try:
        sizes = tuple(sorted({int(part) for part in text.strip("[]()").split(",")}))
    except ValueError:
        sizes = (0,)
    if sizes[0] < 1:
        raise UserError(
            f"--{named[0]}={text}: expected whole numbers, as in --{named[0]} {example}"
        )
    if len(sizes) < LEAST_SIZES:
        raise UserError(
            f"--{named[0]}={text}: a slope needs at least {LEAST_SIZES} sizes, as in "
            f"--{named[0]} {example}"
        )
    return named[0].removesuffix("s"), sizes


def sources_of(arguments: Sequence[str], steps: int) -> tuple[dict[str, Any], list[Source]]:
    """Defaults and sources, the later over the earlier: files, the check's settings, flags."""
    given = parse_arguments(arguments)
    flags = [source for source in given if source.name == COMMAND_LINE]
    typed = {key for source in flags for key in source.values}
    for key, instead in {
        **dict.fromkeys(LENGTH_KEYS, "--steps"),
        "stats_interval": "--steps",
        "init_seed": "--seed",
        "data_seed": "--seed",
    }.items():
        if key in typed:
            raise UserError(f"--{key}: the check sets it; use {instead}")
    own = {"max_iters": steps, "stats_interval": 1, "init_seed": None, "data_seed": None}
    files = [source for source in given if source.name != COMMAND_LINE]
    settings = Source("the check's settings", PROTOCOL)
    return {} if files else MODEL, [*files, settings, *flags, Source("the check", own)]


def rows_of(
    kind: str,
    sizes: Sequence[int],
    seeds: int,
    defaults: Mapping[str, Any],
    sources: Sequence[Source],
) -> list[dict[str, Any]]:
    """The cells' keys: every size with every seed."""
    values = flatten(ExperimentConfig())
    for source in (Source("defaults", defaults), *sources):
        values = apply(values, source)
    typed = {key for source in sources if source.name == COMMAND_LINE for key in source.values}
    axes = {SIZE_KEYS[kind]: sizes, "seed": range(values["seed"], values["seed"] + seeds)}
    rows = combinations(axes)
    if kind == checks.DEPTH or ("n_head" in typed and "n_embd" not in typed):
        return rows
    config = from_flat(values)
    head, group = config.head_dim, config.n_head // config.kv_heads
    for row in rows:
        if row["n_embd"] % (head * group):
            what = (
                f"{head}, the head size"
                if group == 1
                else (f"{head * group}, as {group} heads of size {head} share their keys")
            )
            raise UserError(
                f"--widths: {row['n_embd']} is not a multiple of {what}; choose "
                f"multiples, or keep the number of heads with --n_head={config.n_head}"
            )
        row["n_head"] = row["n_embd"] // head
        if values["n_kv_head"] is not None:
            row["n_kv_head"] = row["n_head"] // group
    return rows


# -- from runs to a record ------------------------------------------------------------------------
def learning_rates(config: ResolvedConfig) -> dict[str, float]:
    """Role -> LR of its tensors under AdamW, root mean square over their elements."""
    squares: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    rules = rules_of(config)
    for spec in rules.tensors:
        r = rules.rule(spec)
        if r.optimizer == "adamw":
            squares[spec.role] += r.lr**2 * spec.numel
            counts[spec.role] += spec.numel
    return {role: math.sqrt(squares[role] / counts[role]) for role in counts}


def facts_of(kind: str, configs: Sequence[ResolvedConfig]) -> checks.Facts:
    """What the diagnosis needs to know of the sweep's configs."""
    one, varies = configs[0], lambda read: len({read(config) for config in configs}) > 1
    return checks.Facts(
        kind,
        heads_grow=varies(lambda c: c.head_dim),
        tied=one.tie_embeddings,
        muon_scale=one.muon_scale if one.optimizer == "muon" else None,
        residual_varies=varies(lambda c: rules_of(c).multipliers.residual),
        qk_norm=one.use_qk_norm,
    )


def record_of(
    kind: str, sizes: Sequence[int], runs: Sequence[checks.Run], facts: checks.Facts, steps: int
) -> dict[str, Any]:
    """Everything that the check found, as JSON; what is printed and drawn is made from it."""
    seeds = sorted({run.seed for run in runs})
    logs = checks.measurements(runs, sizes, seeds, steps)
    findings = checks.judge(logs, sizes, facts)
    verdict, says, at_fault, rule_named = checks.overall(findings), "", None, None
    if verdict == checks.FAIL:
        at_fault, rule_named = checks.diagnose(findings, facts)
        says = sentence(at_fault, kind, rule_named)
    short = sorted({run.size for run in runs if len(run.rows) < steps})
    if short and verdict != checks.FAIL:  # every size: not a matter of size
        verdict = checks.UNSURE if short == list(sizes) else checks.FAIL
        says = f"training diverged at {kind} {', '.join(map(str, short))}; lower the learning rates"
    return {
        "schema": 1,
        "check": "coordinates",
        "verdict": verdict,
        "says": says,
        "module": at_fault and " of ".join(at_fault.quantity),
        "rule": rule_named,
        "sweep": kind,
        "sizes": list(sizes),
        "seeds": seeds,
        "steps": steps,
        "facts": asdict(facts),
        "findings": [finding_json(f) for f in findings],
        "slopes": {name_of(q): slopes_json(sizes, values) for q, values in logs.items()},
        "values": {name_of(q): values_json(values) for q, values in logs.items()},
        "losses": losses_json(runs, sizes),
    }


def name_of(quantity: checks.Quantity) -> str:
    return ": ".join(quantity)


def finding_json(f: checks.Finding) -> dict[str, Any]:
    return {
        "quantity": name_of(f.quantity),
        "window": f.band.window,
        "verdict": f.verdict,
        "slope": f.slope.mean,
        "ci95": [f.slope.low, f.slope.high],
        "allowed": [f.band.low, f.band.high],
        "why": f.band.why,
    }


def slopes_json(sizes: Sequence[int], values: Any) -> dict[str, Any]:
    """Step -> slope and interval, at the steps that every run has."""
    found = {}
    for t in range(values.shape[-1]):
        if math.isfinite(values[..., t].sum()):
            s = checks.slope(sizes, values[..., t])
            found[str(t + 1)] = {"slope": s.mean, "ci95": [s.low, s.high]}
    return found


def values_json(values: Any) -> list[list[float | None]]:
    """(sizes, steps) geometric means over seeds; None where one has none."""
    return [[2.0**x if math.isfinite(x) else None for x in row] for row in values.mean(axis=0)]


def losses_json(runs: Sequence[checks.Run], sizes: Sequence[int]) -> list[float | None]:
    """The last step's training loss by size, the mean over seeds."""
    ends: dict[int, list[float | None]] = {size: [] for size in sizes}
    for run in runs:
        ends[run.size].append(run.rows[-1]["train_loss"] if run.rows else None)
    return [None if None in found else sum(found) / len(found) for found in ends.values()]


def sentence(f: checks.Finding, kind: str, rule_named: str) -> str:
    """`rms of mlp grows as width^+1.04 [+1.02, +1.06] at step 1 (allowed ...): the init ...`"""
    family, name = f.quantity
    what = {
        checks.SIZE: f"rms of {name}",
        checks.CHANGE: f"change of {name} by one update",
        checks.UPDATE: f"update of {name}",
        checks.PACE: f"update of {name} over its LR",
    }[family]
    s, b = f.slope, f.band
    goes = "grows" if s.mean > 0.1 else "shrinks" if s.mean < -0.1 else "goes"
    return (
        f"{what} {goes} as {kind}^{s.mean:+.2f} [{s.low:+.2f}, {s.high:+.2f}] at {b.window} "
        f"(allowed {b.low:+.2f} to {b.high:+.2f}): {rule_named}"
    )


# -- what is printed ------------------------------------------------------------------------------
def lines(record: Mapping[str, Any]) -> list[str]:
    """The table of slopes and the verdict."""
    shown = [t for t in SHOWN if t < record["steps"]] + [record["steps"]]
    sizes, seeds = ", ".join(map(str, record["sizes"])), ", ".join(map(str, record["seeds"]))
    table = [
        "",
        f"octaves of rms per doubling of {record['sweep']} ({sizes}); seeds {seeds}",
        f"{'':26}"
        + "".join(f"{f'step {t}' if t == 1 else t:>6}" for t in shown)
        + "  judged         slope  95 % interval   allowed",
    ]
    for name, by_step in record["slopes"].items():
        start = f"{name:<26}" + "".join(
            f"{by_step[str(t)]['slope']:+6.2f}" if str(t) in by_step else f"{'-':>6}" for t in shown
        )
        judged = [f for f in record["findings"] if f["quantity"] == name]
        for f in judged:
            table.append(
                f"{start}  {f['window']:<13} {f['slope']:+.2f}  {interval(f['ci95'])}  "
                f"{interval(f['allowed'])}  {f['verdict']}"
            )
            start = " " * len(start)
        if not judged:
            table.append(start)
    losses = ", ".join(
        f"{loss:.3f} at {size}"
        for size, loss in zip(record["sizes"], record["losses"], strict=True)
        if loss is not None
    )
    return [*table, f"train loss of the last step: {losses}", "", verdict_line(record)]


def interval(ends: Sequence[float]) -> str:
    return f"[{ends[0]:+.2f}, {ends[1]:+.2f}]"


def verdict_line(record: Mapping[str, Any]) -> str:
    """The last line: the verdict and why."""
    verdict, findings = record["verdict"], record["findings"]
    if record["says"]:
        return f"{verdict}: {record['says']}"
    if not findings:
        return f"{verdict}: nothing could be judged"
    unsure = [f for f in findings if f["verdict"] == checks.UNSURE]
    if not unsure:
        return f"{verdict}: all {len(findings)} intervals lie within what is allowed"
    what = ", ".join(f"{f['quantity']} at {f['window']}" for f in unsure[:3])
    more = f" and {len(unsure) - 3} more" if len(unsure) > 3 else ""
    return f"{verdict}: the intervals of {what}{more} are too wide; take more seeds or sizes"


# -- the command ----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Plan:
    """What will be run: everything is checked before anything starts."""

    kind: str
    sizes: tuple[int, ...]
    steps: int
    cells: list[Cell]

    @classmethod
    def of(cls, arguments: Sequence[str]) -> tuple[Plan, dict[str, str]]:
        """The plan, and the check's own options."""
        options, others = split(arguments)
        kind, sizes = sizes_of(options)
        steps, seeds = whole(options, "steps", 10), whole(options, "seeds", 3)
        check_outputs(options)
        defaults, sources = sources_of(others, steps)
        rows = rows_of(kind, sizes, seeds, defaults, sources)
        return cls(kind, sizes, steps, make_cells(defaults, sources, rows, f"--{kind}s")), options

    def record(self, found: Iterable[tuple[ResolvedConfig, Rows]]) -> dict[str, Any]:
        """The record of the finished runs, each its config and rows."""
        found = list(found)
        runs = [
            checks.Run(
                getattr(config, SIZE_KEYS[self.kind]),
                config.seed,
                [row for row in rows if "statistics" in row],
                learning_rates(config),
                config.learning_rate,
            )
            for config, rows in found
        ]
        facts = facts_of(self.kind, [config for config, _ in found])
        return record_of(self.kind, self.sizes, runs, facts, self.steps)


def main(arguments: Sequence[str]) -> int:
    """Run the check and return the exit code of its verdict."""
    if not arguments or any(a in ("--help", "-h") for a in arguments):
        print(USAGE)
        return DONE
    plan, options = Plan.of(arguments)
    config = plan.cells[0].spec.config
    runner = ExperimentRunner(
        output_root=options.get("output_root", "experiments_out"),
        workers=whole(options, "workers", None),
    )
    study = runner.run_specs(
        f"coord-check-{plan.kind}-{config.parametrization.mode}-{config.optimizer}",
        plan.cells,
        warn=questions(plan.cells, len(plan.cells)),
        asked=Asked(command=shlex.join(["nanoscale", "coord-check", *arguments])),
    )
    if not study.ok:
        print("no verdict: some runs have failed")
        return FAILED
    configs = {cell.spec.id: cell.spec.config for cell in plan.cells}
    record = plan.record((configs[entry.id], folder.rows()) for entry, folder in study.runs())
    record |= {"asked": study.asked.to_json(), "runs": list(configs)}
    print("\n".join(lines(record)))
    if "json" in options:
        write_json(Path(options["json"]), record)
    if "figure" in options:
        from nanoscale.report import save
        from nanoscale.report.activation_panels import coordinates_figure

        save(coordinates_figure(record), options["figure"])
    return EXIT_CODES[record["verdict"]]
