"""`nanoscale coord-check`: does the config's parametrization hold over width, or depth?"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nanoscale.commands.verb import ConfigVerb, Number, figure_output, json_output, output_root
from nanoscale.errors import DONE, FAILED, INCONCLUSIVE, UserError
from nanoscale.spec.sources import COMMAND_LINE, parse_arguments
from nanoscale.store.files import write_json

if TYPE_CHECKING:
    from nanoscale.checks.coordinate_verdict import CoordinateVerdict
    from nanoscale.checks.coordinates import JudgedSlope, Slope
    from nanoscale.studies.coordinate_study import CoordinatePlan

_LEAST_SIZES = 3
_SHOWN = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)  # steps, and the last one
NAMED = 3  # of the intervals that are too wide


class Sizes(click.ParamType[list[int]]):
    """Sizes with commas, ascending."""

    name = "sizes"

    def __init__(self, example: str) -> None:
        self.example = example

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> list[int]:
        option = parameter.opts[0] if parameter else ""
        typed, example = f"{option}={value}", f"{option} {self.example}"
        try:
            sizes = sorted({int(part) for part in value.strip("[]()").split(",")})
        except ValueError:
            sizes = [0]
        if sizes[0] < 1:
            raise UserError(f"{typed}: expected whole numbers, as in {example}")
        if len(sizes) < _LEAST_SIZES:
            raise UserError(
                f"{typed}: a slope needs at least {_LEAST_SIZES} sizes, as in {example}"
            )
        return sizes


_COUNT = Number(whole=True, least=1)


@click.command(
    cls=ConfigVerb,
    examples=[
        "nanoscale coord-check --widths 64,128,256 --parametrization.mode=muP",
        "nanoscale coord-check config/my_model.py --depths 2,4,8,16 --figure=depth.png",
    ],
)
@click.option("--widths", metavar="W,W,W", type=Sizes("64,128,256"), help="Three or more n_embd.")
@click.option("--depths", metavar="L,L,L", type=Sizes("2,4,8,16"), help="Or three or more n_layer.")
@click.option("--steps", metavar="T", type=_COUNT, default=10, help="Updates of each run (10).")
@click.option("--seeds", metavar="K", type=_COUNT, default=3, help="Runs of each size (3).")
@click.option("--workers", metavar="N", type=_COUNT, help="Runs at once (what fits here).")
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

    from nanoscale.experiments.records import Asked

    asked = Asked(command=shlex.join(["nanoscale", "coord-check", *context.meta["typed"]]))
    verdict = plan.run(asked, output_root, workers)
    if verdict is None:
        click.echo("no verdict: some runs have failed")
        return FAILED
    click.echo("\n".join(lines(verdict)))
    if json_path is not None:
        write_json(json_path, verdict.to_json())
    if figure is not None:
        from nanoscale.report import save
        from nanoscale.report.activation_panels import coordinates_figure

        save(coordinates_figure(verdict), figure)
    return {"pass": DONE, "fail": FAILED, "inconclusive": INCONCLUSIVE}[verdict.verdict]


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


def slope_text(slope: Slope | None) -> str:
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
    unsure = [finding for finding in findings if finding.verdict == "inconclusive"]
    if not unsure:
        return f"{word}: all {len(findings)} intervals lie within what is allowed"
    what = ", ".join(f"{finding.quantity} at {finding.window}" for finding in unsure[:NAMED])
    if len(unsure) > NAMED:
        what += f" and {len(unsure) - NAMED} more"
    return f"{word}: the intervals of {what} are too wide; take more seeds or sizes"
