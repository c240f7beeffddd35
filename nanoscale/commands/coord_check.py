"""`nanoscale coord-check`: does the config's parametrization hold over width, or depth?"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from nanoscale.checks.coordinate_bands import DEPTH, WIDTH
from nanoscale.checks.coordinate_verdict import CoordinateVerdict, JudgedSlope, StepSlope
from nanoscale.checks.coordinates import FAIL, PASS, UNSURE
from nanoscale.errors import DONE, FAILED, INCONCLUSIVE, UserError, did_you_mean
from nanoscale.experiments.records import Asked
from nanoscale.spec.sources import COMMAND_LINE, FIELDS, coerce, parse_arguments
from nanoscale.store.files import check_outputs, write_json
from nanoscale.studies.coordinate_study import LEAST_SIZES, SEEDS, STEPS, CoordinatePlan

USAGE = """usage: nanoscale coord-check [config.py ...] [--key=value ...] --widths 64,128,256
       nanoscale coord-check [config.py ...] [--key=value ...] --depths 2,4,8,16
  --steps 10 --seeds 3 --json OUT.json --figure OUT.png --output_root experiments_out --workers N
exit code: 0 pass, 1 fail (naming the module and the likely rule), 3 inconclusive, 2 bad input

Over widths, heads of the config's size are added; type --n_head alone to keep their number, so that
they grow. The model and the parametrization come from the config, the run's settings (LR, batch,
schedule) are the check's own unless typed here as flags; --seed=N is the first of the seeds."""
OPTIONS = ("widths", "depths", "steps", "seeds", "json", "figure", "output_root", "workers")
SWEEPS = {"widths": (WIDTH, "64,128,256"), "depths": (DEPTH, "2,4,8,16")}
EXIT_CODES = {PASS: DONE, FAIL: FAILED, UNSURE: INCONCLUSIVE}
SHOWN = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)  # steps, and the last one
NAMED = 3  # of the intervals that are too wide


def main(arguments: Sequence[str]) -> int:
    """Run the check and return the exit code of its verdict."""
    if not arguments or "--help" in arguments or "-h" in arguments:
        print(USAGE)
        return DONE
    options, others = split(arguments)
    plan = plan_of(options, others)
    asked = Asked(command=shlex.join(["nanoscale", "coord-check", *arguments]))
    workers = count(options, "workers", 0) or None
    verdict = plan.run(asked, options.get("output_root", "experiments_out"), workers)
    if verdict is None:
        print("no verdict: some runs have failed")
        return FAILED
    print("\n".join(lines(verdict)))
    if "json" in options:
        write_json(Path(options["json"]), verdict.to_json())
    if "figure" in options:
        from nanoscale.report import save
        from nanoscale.report.activation_panels import coordinates_figure

        save(coordinates_figure(verdict), options["figure"])
    return EXIT_CODES[verdict.verdict]


# -- what was asked -------------------------------------------------------------------------------
def split(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The check's own options, as `--key=value` or `--key value`, and the other arguments."""
    options: dict[str, str] = {}
    others: list[str] = []
    waiting = list(arguments)
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


def plan_of(options: Mapping[str, str], others: Sequence[str]) -> CoordinatePlan:
    sweep, sizes = sizes_of(options)
    steps = count(options, "steps", STEPS)
    seeds = count(options, "seeds", SEEDS)
    check_outputs(options)
    sources = parse_arguments(others)
    files = [source for source in sources if source.name != COMMAND_LINE]
    flags = [source for source in sources if source.name == COMMAND_LINE]
    return CoordinatePlan.of(sweep, sizes, steps, seeds, files, flags)


def count(options: Mapping[str, str], name: str, default: int) -> int:
    """A whole number of at least 1."""
    if name not in options:
        return default
    value = int(coerce(name, options[name], int))
    if value < 1:
        raise UserError(f"--{name}={value}: must be at least 1")
    return value


def sizes_of(options: Mapping[str, str]) -> tuple[str, list[int]]:
    """`width` or `depth`, and the sizes, ascending."""
    named = [name for name in SWEEPS if name in options]
    if len(named) != 1:
        raise UserError("give one of --widths and --depths, as in --widths 64,128,256")
    name = named[0]
    text = options[name]
    sweep, example = SWEEPS[name]
    try:
        sizes = sorted({int(part) for part in text.strip("[]()").split(",")})
    except ValueError:
        sizes = [0]
    if sizes[0] < 1:
        raise UserError(f"--{name}={text}: expected whole numbers, as in --{name} {example}")
    if len(sizes) < LEAST_SIZES:
        raise UserError(
            f"--{name}={text}: a slope needs at least {LEAST_SIZES} sizes, as in --{name} {example}"
        )
    return sweep, sizes


# -- what is printed ------------------------------------------------------------------------------
def lines(verdict: CoordinateVerdict) -> list[str]:
    """The table of slopes and the verdict."""
    steps = [t for t in SHOWN if t < verdict.steps] + [verdict.steps]
    sizes, seeds = ", ".join(map(str, verdict.sizes)), ", ".join(map(str, verdict.seeds))
    heads = [f"{'step 1' if t == 1 else t:>6}" for t in steps]
    table = [
        "",
        f"octaves of rms per doubling of {verdict.sweep} ({sizes}); seeds {seeds}",
        f"{'':26}{''.join(heads)}  judged         slope  95 % interval   allowed",
    ]
    for name, by_step in verdict.slopes.items():
        start = f"{name:<26}" + "".join(slope_text(by_step.get(str(t))) for t in steps)
        judged = [finding for finding in verdict.findings if finding.quantity == name]
        if not judged:
            table.append(start)
        for finding in judged:
            table.append(f"{start}  {finding_text(finding)}")
            start = " " * len(start)
    losses = [
        f"{loss:.3f} at {size}"
        for size, loss in zip(verdict.sizes, verdict.losses, strict=True)
        if loss is not None
    ]
    last = f"train loss of the last step: {', '.join(losses)}"
    return [*table, last, "", verdict_line(verdict)]


def slope_text(slope: StepSlope | None) -> str:
    return f"{'-':>6}" if slope is None else f"{slope.slope:+6.2f}"


def finding_text(finding: JudgedSlope) -> str:
    return (
        f"{finding.window:<13} {finding.slope:+.2f}  {interval_text(finding.ci95)}  "
        f"{interval_text(finding.allowed)}  {finding.verdict}"
    )


def interval_text(ends: tuple[float, float]) -> str:
    return f"[{ends[0]:+.2f}, {ends[1]:+.2f}]"


def verdict_line(verdict: CoordinateVerdict) -> str:
    """The last line: the verdict and why."""
    word, findings = verdict.verdict, verdict.findings
    if verdict.says:
        return f"{word}: {verdict.says}"
    if not findings:
        return f"{word}: nothing could be judged"
    unsure = [finding for finding in findings if finding.verdict == UNSURE]
    if not unsure:
        return f"{word}: all {len(findings)} intervals lie within what is allowed"
    what = ", ".join(f"{finding.quantity} at {finding.window}" for finding in unsure[:NAMED])
    if len(unsure) > NAMED:
        what += f" and {len(unsure) - NAMED} more"
    return f"{word}: the intervals of {what} are too wide; take more seeds or sizes"
