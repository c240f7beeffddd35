"""`nanoscale bench`: the training step, timed as nanoGPT's bench.py does."""

from __future__ import annotations

from pathlib import Path

from nanoscale.commands.verb import config_verb, json_output, option, value_of, write_record
from nanoscale.spec.sources import help_text, parse_arguments


@config_verb(
    "nanoscale bench --dataset=shakespeare_char --dtype=float32 --compile=False",
    "nanoscale bench --real_data=False --peer=../nanoGPT",
    keys_help=lambda: help_text("Keys, over these defaults (accumulation: 1 unless given):"),
)
@option(
    "real_data",
    "BOOL",
    "False: random tokens, no dataset needed.",
    value_of(bool),
    default=True,
)
@option(
    "peer",
    "DIR",
    "A nanoGPT clone, timed in alternation at the same shapes.",
    value_of(str | None),
)
@json_output("the times")
def command(
    arguments: tuple[str, ...],
    real_data: bool,
    peer: str | None,
    json_path: Path | None,
) -> None:
    """Time the training step of a config, or with --profile=True say where it goes."""
    sources = parse_arguments(arguments)
    from nanoscale.training.bench import BenchOptions, bench, benchmark_of

    record = bench(benchmark_of(sources, BenchOptions(real_data, peer)))
    write_record(json_path, record)
