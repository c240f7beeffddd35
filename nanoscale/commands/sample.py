"""`nanoscale sample`: text from a trained run, by nanoGPT's flags."""

from __future__ import annotations

import ast
import os.path
from collections.abc import Sequence
from pathlib import Path

import click

from nanoscale.commands.verb import config_verb, json_output, write_record
from nanoscale.errors import UserError, did_you_mean
from nanoscale.spec.sources import coerce, read_file
from nanoscale.spec.values import Overrides
from nanoscale.store.folder import RunFolder
from nanoscale.training.sample_options import SAMPLE_KEYS, SampleOptions

LETTERS = 400  # of the text on a study's page, about


def keys_help() -> str:
    """Every key with its default and one line of meaning."""
    lines = ["Keys, left to right over these defaults:"]
    for name, key in SAMPLE_KEYS.items():
        lines.append(f"  --{name}={key.default!r}".ljust(28) + f" {key.doc}")
    return "\n".join(lines)


@config_verb(
    'nanoscale sample --out_dir=out-shakespeare-char --start="ROMEO:" --num_samples=3',
    "nanoscale sample --out_dir=out --start=FILE:prompt.txt --temperature=0",
    keys_help=keys_help,
)
@json_output("the samples")
def command(arguments: tuple[str, ...], json_path: Path | None) -> None:
    """Continue a text by the run in --out_dir, with a line of dashes after each sample."""
    options = options_of(arguments)
    from nanoscale.training.sample import sample

    texts = sample(options)
    folder = RunFolder(options.out_dir)
    if options.init_from == "resume" and folder.exists() and (lost := folder.lost_rows()):
        click.echo(f"warning: {lost}", err=True)
    told = []
    for text in texts:
        click.echo(text)
        click.echo("---------------")
        told.append(text)
    source = "out_dir" if options.init_from == "resume" else "init_from"
    write_record(json_path, {source: getattr(options, source), "samples": told})


def options_of(arguments: Sequence[str]) -> SampleOptions:
    """`[config.py ...] [--key=value ...]`, left to right over the defaults."""
    values = {name: key.default for name, key in SAMPLE_KEYS.items()}
    for argument in arguments:
        place, source = "--", flag_in(argument)
        if source is None:
            place, source = f"{argument}: ", read_file(argument, values).values
        for name, value in source.items():
            spelled = place + name
            check_name(name, spelled)
            verbatim = name == "start" and isinstance(value, str)
            key = SAMPLE_KEYS[name]
            given = value if verbatim else coerce(spelled, value, key.kind)
            key.check(given, spelled)
            values[name] = (
                os.path.expanduser(given) if key.path and isinstance(given, str) else given
            )
    return SampleOptions(**values)


def flag_in(argument: str) -> Overrides | None:
    """`--key=value` as a key and its value; None for a file."""
    if not argument.startswith("-"):
        return None
    name, equals, value = argument.lstrip("-").partition("=")
    check_name(name, f"--{name}")
    if not argument.startswith("--") or not equals:
        example = f"--{name}={SAMPLE_KEYS[name].default!r}"
        raise UserError(f"{argument}: flags are written --key=value, as in {example}")
    return {name: unquoted(value) if name == "start" else value}


def check_name(name: str, spelled: str) -> None:
    """Refuse a key that sampling does not have."""
    if name not in SAMPLE_KEYS:
        hint = did_you_mean(name, SAMPLE_KEYS) or "; see --help"
        raise UserError(f"{spelled}: unknown key{hint}")


def unquoted(text: str) -> str:
    """A Python string literal, as in --start='"\\n"', as what it spells; else the text itself."""
    if text[:1] not in ("'", '"'):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, str) else text


def text_by(folder: Path) -> str | None:
    """What the run in a folder writes; None where it cannot."""
    from nanoscale.training.sample import sample

    options = SampleOptions(
        out_dir=str(folder), num_samples=1, max_new_tokens=LETTERS, device="cpu"
    )
    try:
        (text,) = sample(options)
    except UserError:
        return None
    return text.strip()[:LETTERS]
