"""`nanoscale eval`: losses of a run, or of other weights, on any data, and lm-eval's tasks."""

from __future__ import annotations

from pathlib import Path

import click

from nanoscale.commands.verb import COUNT, json_output, option, say, verb, warned
from nanoscale.errors import UserError


@verb(
    "nanoscale eval gpt2 --data=shakespeare",
    "nanoscale eval out --data=val,wiki --tasks=lambada_openai,my_task.yaml",
)
@click.argument("weights", metavar="RUN")
@option("data", "NAME,...", "Validation sets, as the key val_sets names them (those of the run).")
@option("data_root", "DIR", "Where data sets lie now (as the run says, else data).")
@option("tokens", "N", "Most tokens of a set (1000000).", COUNT, default=1_000_000)
@option("tasks", "TASK,...", "Tasks of lm-eval: names, or .yaml files.")
@option("limit", "N", "Most examples of a task.", COUNT)
@option("device", "DEVICE", "auto, cpu, cuda or mps (auto).", default="auto")
@json_output("losses and metrics")
def command(
    weights: str,
    data: str | None,
    data_root: str | None,
    tokens: int,
    tasks: str | None,
    limit: int | None,
    device: str,
    json_path: Path | None,
) -> None:
    """Evaluate RUN (a run folder, or what init_from takes) on validation sets, in float32."""
    from nanoscale.training.eval import EvalOptions, evaluate_weights

    found = evaluate_weights(
        EvalOptions(
            weights, named("data", data), data_root, device, tokens, named("tasks", tasks), limit
        )
    )
    for line in warned(found.warnings):
        click.echo(line, err=True)
    say(found.lines(), json_path, found.to_json())


def named(option: str, text: str | None) -> tuple[str, ...]:
    """Names between commas, none of them empty."""
    if text is None:
        return ()
    names = tuple(part.strip() for part in text.split(","))
    if "" in names:
        raise UserError(f"--{option}={text}: expected names between commas, or leave it out")
    return names
