"""What every verb is made of: a click command with examples, whose refusals are ours.

A usage error is one line that names what was typed and the remedy (a `UserError`, exit code 2). A
verb that takes a config's keys beside its own options leaves them, in order, in `arguments`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from nanoscale.errors import UserError, did_you_mean, one_of
from nanoscale.spec.options import Kind
from nanoscale.spec.sources import FIELDS, coerce

_OUTPUT_ROOT = "experiments_out"


class Verb(click.Command):
    """A command with examples below its options."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        settings = {"help_option_names": ["--help", "-h"], "allow_extra_args": True}
        kwargs.setdefault("context_settings", settings)
        super().__init__(*args, **kwargs)
        self.examples = examples

    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        given = list(arguments)  # click takes what it has read from its list
        try:
            rest = super().parse_args(context, arguments)
        except click.UsageError as error:
            raise in_our_words(error, context, given) from error
        if rest:
            verb = context.command_path
            raise UserError(f"{verb}: {rest[0]}: one argument too many; see {verb} --help")
        return rest

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Examples"):
            for example in self.examples:
                formatter.write_text(example)


class ConfigVerb(Verb):
    """A verb that takes config files and `--key=value` beside its own options.

    nanoGPT's flags are not click's: what is no option of the verb goes on as it was typed.
    `keys_help` lists the keys, below the verb's own options.
    """

    def __init__(self, *args: Any, keys_help: Callable[[], str] | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.keys_help = keys_help

    def collect_usage_pieces(self, context: click.Context) -> list[str]:
        return ["[config.py ...]", "[--key=value ...]", *super().collect_usage_pieces(context)]

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        if self.keys_help is not None:
            formatter.write(f"\n{self.keys_help()}\n")
        super().format_epilog(context, formatter)

    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        options = {name.removeprefix("--") for name in options_of(self)}
        ours: list[str] = []
        keys: list[str] = []
        waiting = list(arguments)
        while waiting:
            argument = waiting.pop(0)
            name, equals, _ = argument.removeprefix("--").partition("=")
            if argument in ("-h", "--help"):
                ours.append(argument)
            elif not argument.startswith("--") or name not in options:
                keys.append(self.checked(argument, name))
            else:
                ours.append(argument)
                takes_next = not equals and waiting and not waiting[0].startswith("--")
                if takes_next and not self.is_switch(name):
                    ours.append(waiting.pop(0))
        super().parse_args(context, ours)
        context.params["arguments"] = tuple(keys)
        context.meta["typed"] = tuple(arguments)
        return []

    def checked(self, argument: str, name: str) -> str:
        """Refuse what is nearest to an option of this verb; a config refuses its own keys."""
        if argument.startswith("--") and name not in FIELDS:
            options = [option.removeprefix("--") for option in options_of(self)]
            near = did_you_mean(name, [*options, *FIELDS])
            if near and near == did_you_mean(name, options):
                raise UserError(f"--{name}: unknown key{near}")
        return argument

    def is_switch(self, name: str) -> bool:
        flags = [p for p in self.params if isinstance(p, click.Option) and p.is_flag]
        return any(f"--{name}" in flag.opts for flag in flags)


# -- refusals -----------------------------------------------------------------------------------
def in_our_words(
    error: click.UsageError, context: click.Context, arguments: Sequence[str]
) -> UserError:
    """The same refusal as one line with what was typed and the remedy."""
    verb = context.command_path
    usage = f"see {verb} --help"
    if isinstance(error, click.NoSuchOption):
        hint = did_you_mean(error.option_name, options_of(context.command))
        argument = typed(error.option_name, arguments)
        return UserError(f"{argument}: unknown option{hint or '; ' + usage}")
    if isinstance(error, click.MissingParameter) and error.param is not None:
        name = error.param.make_metavar(context)
        return UserError(f"{verb}: {name} is missing; {usage}")
    if isinstance(error, click.BadOptionUsage):
        argument = typed(error.option_name, arguments)
        wrong = "the option takes no value" if "=" in argument else "a value is missing"
        return UserError(f"{argument}: {wrong}; {usage}")
    return UserError(f"{verb}: {error.format_message().rstrip('.')}; {usage}")


def options_of(command: click.Command) -> list[str]:
    """Every option as it is typed."""
    return [name for parameter in command.params for name in parameter.opts if name[:1] == "-"]


def typed(option: str, arguments: Sequence[str]) -> str:
    """The argument that gave an option, as it was typed."""
    return next((a for a in arguments if a.partition("=")[0] == option), option)


# -- types of values ----------------------------------------------------------------------------
class Number(click.ParamType[float]):
    """A number within bounds: an int where it is one, and where it must be."""

    name = "number"

    def __init__(
        self, *, whole: bool = False, least: float | None = None, above: float | None = None
    ) -> None:
        self.whole = whole
        self.least = least
        self.above = above

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> float | int:
        typed = f"{parameter.opts[0] if parameter else ''}={value}"
        number = self.read(value, typed)
        if self.least is not None and number < self.least:
            raise UserError(f"{typed}: must be at least {self.least}")
        if self.above is not None and number <= self.above:
            raise UserError(f"{typed}: must be above {self.above}")
        return number

    def read(self, value: Any, typed: str) -> float | int:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number) or (self.whole and not number.is_integer()):
            what = "a whole number" if self.whole else "a number"
            raise UserError(f"{typed}: expected {what}")
        return int(number) if number.is_integer() else number


class Value(click.ParamType[object]):
    """What a config's key of the same kind takes: True or False, text, None."""

    name = "value"

    def __init__(self, kind: Kind) -> None:
        self.kind = kind

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> Any:
        return coerce(parameter.opts[0] if parameter else "", value, self.kind)


class Choice(click.ParamType[str]):
    """One of a few words."""

    name = "choice"

    def __init__(self, *words: str) -> None:
        self.words = words

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> str:
        if value not in self.words:
            typed = f"{parameter.opts[0] if parameter else ''}={value}"
            hint = did_you_mean(str(value), self.words) or f"; choose {one_of(self.words)}"
            raise UserError(f"{typed}: not known{hint}")
        return str(value)


class OutputFile(click.ParamType[Path]):
    """A file to write, refused before any work where its name or folder cannot be."""

    name = "file"

    def __init__(self, *endings: str) -> None:
        self.endings = endings

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> Path:
        typed = f"{parameter.opts[0] if parameter else ''}={value}"
        path = Path(value)
        if path.suffix.lower() not in self.endings:
            raise UserError(f"{typed}: end the name in {one_of(self.endings)}")
        if not path.parent.is_dir():
            raise UserError(f"{typed}: there is no folder {path.parent}; make it first")
        return path


JSON_FILE = OutputFile(".json")
FIGURE_FILE = OutputFile(".png", ".pdf", ".svg")

# -- options of several verbs -------------------------------------------------------------------
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def output_root() -> Decorator:
    return click.option(
        "--output_root",
        metavar="DIR",
        type=click.Path(path_type=Path),
        default=Path(_OUTPUT_ROOT),
        help="The folder of studies and run folders (experiments_out).",
    )


def column(key: str, what: str) -> Decorator:
    return click.option(f"--{key}", metavar="COL", help=what)


def json_output(what: str) -> Decorator:
    return click.option(
        "--json", "json_path", metavar="FILE", type=JSON_FILE, help=f"Write {what} as JSON there."
    )


def figure_output(what: str) -> Decorator:
    return click.option(
        "--figure", metavar="FILE", type=FIGURE_FILE, help=f"Draw {what} there (png, pdf or svg)."
    )
