"""`nanoscale data`: text to token files."""

from __future__ import annotations

from pathlib import Path

import click

from nanoscale.commands.verb import Number, Verb
from nanoscale.errors import UserError


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["--help", "-h"]})
@click.pass_context
def command(context: click.Context) -> None:
    """Datasets: token files below ./data, in nanoGPT's format."""
    if context.invoked_subcommand is None:
        raise UserError("usage: nanoscale data prepare NAME; see nanoscale data prepare --help")


@command.command(
    "prepare",
    cls=Verb,
    examples=[
        "nanoscale data prepare shakespeare_char",
        "nanoscale data prepare text --input book.txt --kind byte --out data/book",
    ],
)
@click.argument("name", metavar="NAME")
@click.option("--input", metavar="PATH", help="A local tinyshakespeare, or any text.")
@click.option("--kind", metavar="KIND", help="Tokens of a text: char or byte (by its alphabet).")
@click.option("--seed", type=Number(whole=True), help="Of the synthetic chain.")
@click.option("--out", type=click.Path(path_type=Path), help="The folder (data/NAME).")
def prepare_command(
    name: str, input: str | None, kind: str | None, seed: int | None, out: Path | None
) -> None:
    """Make the dataset NAME: shakespeare_char (tinyshakespeare by characters), pysource (the Python
    files of this installation), text (any file or folder), or synthetic (of known entropy).
    """
    from nanoscale.data.prepare import prepare

    prepare(name, input=input, kind=kind, out=out, seed=seed)
