"""`nanoscale bench`: the training step, timed as nanoGPT's bench.py does."""

from __future__ import annotations

import click

from nanoscale.commands.verb import ConfigVerb, Value
from nanoscale.spec.sources import help_text, parse_arguments


@click.command(
    cls=ConfigVerb,
    keys_help=lambda: help_text("Keys, over these defaults (accumulation: 1 unless given):"),
    examples=[
        "nanoscale bench --dataset=shakespeare_char --dtype=float32 --compile=False",
        "nanoscale bench --real_data=False --peer=../nanoGPT",
    ],
)
@click.option(
    "--real_data",
    metavar="BOOL",
    type=Value(bool),
    default=True,
    help="False: random tokens, no dataset needed.",
)
@click.option(
    "--profile",
    metavar="BOOL",
    type=Value(bool),
    default=False,
    help="True: write a torch profiler trace to ./bench_log instead.",
)
@click.option(
    "--peer",
    metavar="DIR",
    type=Value(str | None),
    help="A nanoGPT clone, timed in alternation at the same shapes.",
)
def command(arguments: tuple[str, ...], real_data: bool, profile: bool, peer: str | None) -> None:
    """Time the training step of a config; nanoGPT's line comes last."""
    sources = parse_arguments(arguments)
    from nanoscale.training.bench import BenchOptions, bench, benchmark_of

    bench(benchmark_of(sources, BenchOptions(real_data, profile, peer)))
