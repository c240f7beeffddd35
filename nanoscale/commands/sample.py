"""`nanoscale sample`: text from a trained run, by nanoGPT's flags."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence

import click

from nanoscale.commands.verb import ConfigVerb
from nanoscale.errors import UserError, did_you_mean
from nanoscale.spec.sources import coerce, read_file
from nanoscale.training.sample_options import SAMPLE_KEYS, SampleOptions


def keys_help() -> str:
    """Every key with its default and one line of meaning."""
    lines = ["Keys, left to right over these defaults:"]
    for name, key in SAMPLE_KEYS.items():
        lines.append(f"  --{name}={key.default!r}".ljust(28) + f" {key.doc}")
    return "\n".join(lines)


@click.command(
    cls=ConfigVerb,
    keys_help=keys_help,
    examples=[
        'nanoscale sample --out_dir=out-shakespeare-char --start="ROMEO:" --num_samples=3',
        "nanoscale sample --out_dir=out --start=FILE:prompt.txt --temperature=0",
    ],
)
def command(arguments: tuple[str, ...]) -> None:
    """Continue a text by the run in --out_dir, with a line of dashes after each sample."""
    options = options_of(arguments)
    from nanoscale.training.sample import sample

    for text in sample(options):
        click.echo(text)
        click.echo("---------------")


def options_of(arguments: Sequence[str]) -> SampleOptions:
    """`[config.py ...] [--key=value ...]`, left to right over the defaults."""
    values = {name: key.default for name, key in SAMPLE_KEYS.items()}
    for argument in arguments:
        if argument.startswith("-"):
            name, equals, value = argument.lstrip("-").partition("=")
            check_name(name, f"--{name}")
            if not argument.startswith("--") or not equals:
                example = f"--{name}={SAMPLE_KEYS[name].default!r}"
                raise UserError(f"{argument}: flags are written --key=value, as in {example}")
            typed: Mapping[str, object] = {name: unquoted(value) if name == "start" else value}
            place = "--"
        else:
            typed = read_file(argument, values).values
            place = f"{argument}: "
        for name, given in typed.items():
            check_name(name, place + name)
            verbatim = name == "start" and isinstance(given, str)
            values[name] = (
                given if verbatim else coerce(place + name, given, SAMPLE_KEYS[name].kind)
            )
            SAMPLE_KEYS[name].check(values[name], place + name)
    return SampleOptions(**values)


def check_name(name: str, spelled: str) -> None:
    """Refuse a key that sampling does not have."""
    if name not in SAMPLE_KEYS:
        raise UserError(
            f"{spelled}: unknown key{did_you_mean(name, SAMPLE_KEYS) or '; see --help'}"
        )


def unquoted(text: str) -> str:
    """A Python string literal, as in --start='"\\n"', as what it spells; else the text itself."""
    if text[:1] not in ("'", '"'):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, str) else text
