"""`nanoscale noise-check`: how much of an update is signal, and how that goes with width."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nanoscale.commands.coord_check import interval_text, sizes_as
from nanoscale.commands.verb import (
    COUNT,
    config_verb,
    figure_output,
    json_output,
    option,
    output_root,
    say,
)
from nanoscale.errors import DONE, FAILURE, UserError
from nanoscale.spec.sources import COMMAND_LINE, parse_arguments
from nanoscale.store.folder import CHECKPOINT, DIVERGED, RunFolder

if TYPE_CHECKING:
    from nanoscale.checks.noise import NoiseReport
    from nanoscale.experiments import Study
    from nanoscale.studies.noise_study import NoisePlan


@config_verb(
    "nanoscale noise-check --widths 32,64,128,256",
    "nanoscale noise-check --batch_size=32 --muon_lr=0.02 --json noise.json",
)
@option("widths", "W,W,W", "Three or more n_embd (32,64,128,256).", sizes_as("32,64,128"))
@option("updates", "T", "Updates of each run (300).", COUNT, default=300)
@option("seeds", "K", "Runs of each width (3).", COUNT, default=3)
@option("workers", "N", "Runs at once (what fits here).", COUNT)
@json_output("what was measured")
@figure_output("signal fractions over width")
@output_root()
@click.pass_context
def command(
    context: click.Context,
    /,
    arguments: tuple[str, ...],
    widths: list[int] | None,
    updates: int,
    seeds: int,
    workers: int | None,
    json_path: Path | None,
    figure: Path | None,
    output_root: Path,
) -> int:
    """Train a config at several widths, freeze the weights, feed two momenta from disjoint streams
    of batches, and compare the updates that would be made of both.

    Their cosine is the part of an update that is signal; its slope over width is the drift to
    expect of the best learning rate (see parametrization.muon_width_power). Beside it stands the
    gradient noise scale, in tokens.
    """
    if not context.meta["typed"]:
        click.echo(context.get_help())
        return DONE
    from nanoscale.experiments import ExperimentRunner
    from nanoscale.experiments.records import Asked
    from nanoscale.studies.noise_study import NoisePlan

    sources = parse_arguments(arguments)
    files = [source for source in sources if source.name != COMMAND_LINE]
    flags = [source for source in sources if source.name == COMMAND_LINE]
    plan = NoisePlan.of(widths or [32, 64, 128, 256], updates, seeds, files, flags)
    asked = Asked(command=shlex.join(["nanoscale", "noise-check", *context.meta["typed"]]))
    runner = ExperimentRunner(output_root=output_root, workers=workers)
    study = plan.bring(asked, runner)
    if not study.ok:
        click.echo("nothing measured: some runs have failed")
        return FAILURE
    report = measured(plan, study)
    say(lines(report), json_path, report.to_json())
    if figure is not None:
        from nanoscale.report import save
        from nanoscale.report.noise_figures import signal_figure

        save(signal_figure(report), figure)
    return DONE


def measured(plan: NoisePlan, study: Study) -> NoiseReport:
    """What two streams say at the weights of every run, and how it goes with width."""
    from nanoscale.checks.noise import NoisePoint, noise_report
    from nanoscale.training.noise import noise_at

    configs = {cell.spec.id: cell.spec.config for cell in plan.cells}
    points = []
    for entry, folder in study.runs():
        config = configs[entry.id]
        check_measurable(folder)
        found = noise_at(folder, plan.batches)
        point = NoisePoint(
            size=config.n_embd,
            seed=config.seed,
            signal=found.signal,
            gradient_square=found.gradient_square,
            noise_trace=found.noise_trace,
        )
        points.append(point)
        place = f"{len(points)} of {len(configs)}"
        study.say(f"measured n_embd={config.n_embd}, seed={config.seed}  ({place})")
    tokens = plan.cells[0].spec.config.tokens_per_iter
    report = noise_report(points, plan.updates, tokens, plan.batches)
    return replace(report, asked=study.asked.to_json(), runs=list(configs))


def check_measurable(folder: RunFolder) -> None:
    """Refuse a run that has no weights to measure at."""
    if folder.state() == DIVERGED:
        raise UserError(f"{folder.path}: diverged; lower --muon_lr or --learning_rate")
    if not (folder / CHECKPOINT).is_file():
        raise UserError(
            f"{folder.path}: its {CHECKPOINT} is gone, of which the check is; delete the folder and"
            " the same command trains it again"
        )


# -- what is printed ------------------------------------------------------------------------------
def lines(report: NoiseReport) -> Sequence[str]:
    """A line per direction, and the noise scale."""
    sizes = "".join(f"{size:>9}" for size in report.sizes)
    table = []
    for direction, over in report.signal.items():
        means = "".join(f"{mean:>9.3f}" for mean in over.means)
        said = "no slope: a cosine is not above 0"
        if over.slope is not None:
            said = f"{over.slope.slope:+.2f}  {interval_text(over.slope.ci95)}"
        table.append(f"{direction:<18}{means}   {said}")
    scales = "".join(f"{noise_text(scale):>9}" for scale in report.noise_scale)
    seeds = ", ".join(map(str, report.seeds))
    return [
        "",
        f"signal fraction after {report.updates} updates of {report.tokens:,} tokens, by two"
        f" streams of {report.batches} batches at these weights; seeds {seeds}",
        f"{'width':<18}{sizes}   octaves per doubling, 95 % interval",
        *table,
        f"{'noise scale':<18}{scales}   tokens",
    ]


def noise_text(scale: float | None) -> str:
    return "-" if scale is None else f"{scale:,.0f}"
