"""`nanoscale coord-check`: does the config's parametrization hold over width, or depth?"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nanoscale.commands.verb import (
    COUNT,
    EXIT_CODES,
    Read,
    config_verb,
    figure_output,
    json_output,
    option,
    output_root,
    say,
)
from nanoscale.errors import DONE, FAILURE, UserError
from nanoscale.spec.sources import COMMAND_LINE, parse_arguments

if TYPE_CHECKING:
    from nanoscale.checks.coordinate_verdict import CoordinateVerdict
    from nanoscale.checks.coordinates import JudgedSlope, Slope
    from nanoscale.studies.coordinate_study import CoordinatePlan

_LEAST_SIZES = 3
_SHOWN = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)  # steps, and the last one


def sizes_as(example: str) -> Read:
    """Sizes with commas, ascending."""

    def read(value: str, typed: str) -> list[int]:
        remedy = f"as in {typed.partition('=')[0]} {example}"
        try:
            sizes = sorted({int(part) for part in value.strip("[]()").split(",")})
        except ValueError:
            sizes = [0]
        if sizes[0] < 1:
            raise UserError(f"{typed}: expected whole numbers, {remedy}")
        if len(sizes) < _LEAST_SIZES:
            raise UserError(f"{typed}: a slope needs at least {_LEAST_SIZES} sizes, {remedy}")
        return sizes

    return Read(read)


@config_verb(
    "nanoscale coord-check --widths 64,128,256 --parametrization.mode=muP",
    "nanoscale coord-check config/my_model.py --depths 2,4,8,16 --figure=depth.png",
)
@option("widths", "W,W,W", "Three or more n_embd.", sizes_as("64,128,256"))
@option("depths", "L,L,L", "Or three or more n_layer.", sizes_as("2,4,8,16"))
@option("steps", "T", "Updates of each run (10).", COUNT, default=10)
@option("seeds", "K", "Runs of each size (3).", COUNT, default=3)
@option("workers", "N", "Runs at once (what fits here).", COUNT)
@json_output("the verdict")
@figure_output("sizes over width or depth")
@output_root()
@click.pass_context
def command(
    context: click.Context,
    /,
    arguments: tuple[str, ...],
    workers: int | None,
    json_path: Path | None,
    figure: Path | None,
    output_root: Path,
    **typed: Any,
) -> int:
    """Train a config at several sizes for a few steps, and judge whether activations and their
    updates keep their size.

    Over widths, heads of the config's size are added; type --n_head alone to keep their number, so
    that they grow. The model and the parametrization come from the config, the run's settings (LR,
    batch, schedule) are the check's own unless typed as flags; --seed=N is the first of the seeds.

    Exits with 0 for pass, 1 for fail (naming the module and the likely rule), 3 for inconclusive.
    """
    if not context.meta["typed"]:
        click.echo(context.get_help())
        return DONE
    plan = plan_of(arguments, **typed)

    from nanoscale.experiments import ExperimentRunner
    from nanoscale.experiments.records import Asked

    asked = Asked(command=shlex.join(["nanoscale", "coord-check", *context.meta["typed"]]))
    runner = ExperimentRunner(output_root=output_root, workers=workers)
    verdict = plan.run(asked, runner)
    if verdict is None:
        click.echo("no verdict: some runs have failed")
        return FAILURE
    say(lines(verdict), json_path, verdict.to_json())
    if figure is not None:
        from nanoscale.report import save
        from nanoscale.report.activation_panels import coordinates_figure

        save(coordinates_figure(verdict), figure)
    return EXIT_CODES[verdict.verdict]


def plan_of(
    arguments: Sequence[str],
    widths: list[int] | None,
    depths: list[int] | None,
    steps: int,
    seeds: int,
) -> CoordinatePlan:
    """The runs of what was typed; all that can be refused is refused here."""
    from nanoscale.studies.coordinate_study import CoordinatePlan

    if (widths is None) == (depths is None):
        raise UserError("give one of --widths and --depths, as in --widths 64,128,256")
    sources = parse_arguments(arguments)
    files = [source for source in sources if source.name != COMMAND_LINE]
    flags = [source for source in sources if source.name == COMMAND_LINE]
    if widths is not None:
        return CoordinatePlan.of("width", widths, steps, seeds, files, flags)
    return CoordinatePlan.of("depth", depths or [], steps, seeds, files, flags)


# -- what is printed ------------------------------------------------------------------------------
def lines(verdict: CoordinateVerdict) -> list[str]:
    """The table of slopes and the verdict."""
    steps = [t for t in _SHOWN if t < verdict.steps] + [verdict.steps]
    sizes, seeds = ", ".join(map(str, verdict.sizes)), ", ".join(map(str, verdict.seeds))
    heads = [f"{'step 1' if t == 1 else t:>6}" for t in steps]
    table = []
    for name, by_step in verdict.slopes.items():
        slopes = [slope_text(by_step.get(str(t))) for t in steps]
        judged = [finding_text(finding) for finding in verdict.findings if finding.quantity == name]
        table += quantity_lines(f"{name:<26}{''.join(slopes)}", judged)
    losses = []
    for size, loss in zip(verdict.sizes, verdict.losses, strict=True):
        if loss is not None:
            losses.append(f"{loss:.3f} at {size}")
    return [
        "",
        f"octaves of rms per doubling of {verdict.sweep} ({sizes}); seeds {seeds}",
        f"{'':26}{''.join(heads)}  judged         slope  95 % interval   allowed",
        *table,
        f"train loss of the last step: {', '.join(losses)}",
        "",
        verdict.line(),
    ]


def quantity_lines(start: str, judged: Sequence[str]) -> list[str]:
    """A quantity's slopes once, and what is judged of it below one another."""
    if not judged:
        return [start]
    first, *others = judged
    blank = " " * len(start)
    return [f"{start}  {first}", *(f"{blank}  {other}" for other in others)]


def slope_text(slope: Slope | None) -> str:
    return f"{'-':>6}" if slope is None else f"{slope.slope:+6.2f}"


def finding_text(finding: JudgedSlope) -> str:
    ends, allowed = interval_text(finding.ci95), interval_text(finding.allowed)
    return f"{finding.window:<13} {finding.slope:+.2f}  {ends}  {allowed}  {finding.verdict}"


def interval_text(ends: tuple[float, float]) -> str:
    low, high = ends
    return f"[{low:+.2f}, {high:+.2f}]"
