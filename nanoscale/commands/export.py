"""`nanoscale export`: a run's weights as a folder that transformers opens."""

from __future__ import annotations

from pathlib import Path

import click

from nanoscale.commands.verb import PATH, in_a_folder, json_output, option, say, verb, warned


@verb(
    "nanoscale export out-shakespeare-char hf-shakespeare",
    "nanoscale export experiments_out/runs/text-L2-d64-adamw-SP-0a1b2c3d4e hf --data_root=/data",
)
@click.argument("run", metavar="RUN")
@click.argument("out", metavar="OUT", type=PATH)
@option("data_root", "DIR", "Where the run's dataset lies now, if it has moved.")
@json_output("what was exported")
def command(run: str, out: Path, data_root: str | None, json_path: Path | None) -> None:
    """Write the best weights of RUN into a new folder OUT, for AutoModelForCausalLM."""
    in_a_folder(out, f"OUT={out}")
    from nanoscale.training.export import export

    done = export(run, out, data_root)
    for line in warned(done.warnings):
        click.echo(line, err=True)
    say(done.lines(), json_path, done.to_json())
