"""What every verb is made of: a click command with examples, its options, and its last lines.

A usage error is one line that names what was typed and the remedy (a `UserError`, exit code 2). A
verb that takes a config's keys beside its own options leaves them, in order, in `arguments`. Every
verb has `--json OUT`; with `-` its record is all that it writes to standard output.
"""

from __future__ import annotations

import math
import os.path
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from nanoscale.commands.usage import HELP, options_of
from nanoscale.data.gauge import watched
from nanoscale.errors import (
    DONE,
    FAILURE,
    INCONCLUSIVE,
    UserError,
    did_you_mean,
    nearest_or_all,
    one_of,
)
from nanoscale.spec.options import Kind
from nanoscale.spec.sources import FIELDS, coerce
from nanoscale.spec.values import Json
from nanoscale.store.files import json_text, write_json

if TYPE_CHECKING:
    from nanoscale.experiments import Study

FILES = ("PATH", "FILE", "DIR")  # of options whose value a shell completes
PRINTED = Path("-")  # of --json
EXIT_CODES = {"pass": DONE, "inconclusive": INCONCLUSIVE, "fail": FAILURE}  # the worst comes last

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class FileOrName(click.types.StringParamType):
    """Text that may name a file, so that a shell completes files."""

    def shell_complete(
        self, context: click.Context, parameter: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type="file")]


class Verb(click.Command):
    """A command with examples below its options, and below a list of keys if it has one."""

    def __init__(
        self,
        *args: Any,
        examples: Sequence[str],
        keys_help: Callable[[], str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.context_settings = {**HELP, "allow_extra_args": True}
        self.examples = examples
        self.keys_help = keys_help
        for parameter in self.params:
            of_files = isinstance(parameter, click.Argument) or parameter.metavar in FILES
            if of_files and parameter.type is click.STRING:
                parameter.type = FileOrName()

    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        try:
            rest = super().parse_args(context, list(map(expanded, arguments)))
        except click.UsageError as error:
            error.ctx = context  # not all have one
            raise
        if rest and not context.resilient_parsing:  # of a shell that completes
            name = context.command_path
            raise UserError(f"{name}: {rest[0]}: one argument too many; see {name} --help")
        return rest

    def invoke(self, context: click.Context) -> Any:
        with watched(context.info_name or ""):
            if context.params.get("json_path") != PRINTED:
                return super().invoke(context)
            context.meta["stdout"] = sys.stdout
            with redirect_stdout(sys.stderr):  # all that is said beside the record
                return super().invoke(context)

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        if self.keys_help is not None:
            formatter.write(f"\n{self.keys_help()}\n")
        with formatter.section("Examples"):
            for example in self.examples:
                formatter.write_text(example)


class ConfigVerb(Verb):
    """A verb that takes config files and `--key=value` beside its own options.

    nanoGPT's flags are not click's: what is no option of the verb goes on as it was typed.
    """

    def collect_usage_pieces(self, context: click.Context) -> list[str]:
        return ["[config.py ...]", "[--key=value ...]", *super().collect_usage_pieces(context)]

    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        options = [name.removeprefix("--") for name in options_of(self)]
        ours: list[str] = []
        keys: list[str] = []
        waiting = list(arguments)
        while waiting:
            argument = waiting.pop(0)
            name, equals, _ = argument.removeprefix("--").partition("=")
            if argument in ("-h", "--help"):
                ours.append(argument)
            elif not argument.startswith("--"):
                keys.append(expanded(argument))
            elif name not in options:
                check_key(name, options)
                keys.append(argument)
            else:
                ours.append(argument)
                if not equals and waiting and not waiting[0].startswith("--"):
                    ours.append(waiting.pop(0))
        super().parse_args(context, ours)
        context.params["arguments"] = tuple(keys)
        context.meta["typed"] = tuple(arguments)
        return []

    def shell_complete(self, context: click.Context, incomplete: str) -> list[CompletionItem]:
        if not incomplete.startswith("-"):
            return [CompletionItem(incomplete, type="file")]
        keys = [f"--{key}" for key in FIELDS]
        matching = [CompletionItem(key) for key in keys if key.startswith(incomplete)]
        return [*super().shell_complete(context, incomplete), *matching]


def expanded(argument: str) -> str:
    """An argument whose paths, with commas, begin with the home of the user instead of `~`.

    A shell leaves it where it is in `--option=~/x`.
    """
    option, equals, value = argument.partition("=")
    if not (equals and option.startswith("--")):
        option, equals, value = "", "", argument
    return option + equals + ",".join(map(os.path.expanduser, value.split(",")))


def check_key(name: str, options: Sequence[str]) -> None:
    """Refuse what is nearest to an option of the verb; a config refuses its own keys."""
    if name in FIELDS:
        return
    near = did_you_mean(name, [*options, *FIELDS])
    if near and near == did_you_mean(name, options):
        raise UserError(f"--{name}: unknown key{near}")


def verb(*examples: str) -> Callable[[Callable[..., Any]], Verb]:
    return click.command(cls=Verb, examples=examples)


def config_verb(
    *examples: str, keys_help: Callable[[], str] | None = None
) -> Callable[[Callable[..., Any]], ConfigVerb]:
    return click.command(cls=ConfigVerb, examples=examples, keys_help=keys_help)


# -- types of values ----------------------------------------------------------------------------
class Read(click.ParamType[Any]):
    """What a function reads from a value, and from `--option=value`, which begins its refusals."""

    name = "value"

    def __init__(self, read: Callable[[Any, str], object]) -> None:
        self.read = read

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> Any:
        option = parameter.opts[0] if parameter else ""
        return self.read(value, f"{option}={value}")


def number_in(value: Any, typed: str, whole: bool = False) -> float | int:
    """A finite number: a float, or an int that must be one."""
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or (whole and not number.is_integer()):
        what = "a whole number" if whole else "a number"
        raise UserError(f"{typed}: expected {what}")
    return int(number) if whole else number


def scale_of(text: str, read: Sequence[str] = (), *, flag: str = "--at") -> dict[str, float]:
    """`N=1e9,D=2e10`; or the numbers alone, of what is `read` in this order."""
    typed = f"{flag}={text}"
    parts = text.split(",")
    if "=" not in text and len(parts) == len(read):
        parts = [f"{name}={part}" for name, part in zip(read, parts, strict=True)]
    scale = {}
    for part in parts:
        name, equals, value = part.partition("=")
        if not equals:
            raise UserError(f"{typed}: expected names and numbers, as in {flag}=N=1e9,D=2e10")
        if name.strip() in scale:
            raise UserError(f"{typed}: {name.strip()} is given twice")
        scale[name.strip()] = number_in(value, typed)
    return scale


def number(*, whole: bool = False, least: int | None = None, above: int | None = None) -> Read:
    """A number within bounds."""

    def read(value: Any, typed: str) -> float | int:
        number = number_in(value, typed, whole)
        if least is not None and number < least:
            raise UserError(f"{typed}: must be at least {least}")
        if above is not None and number <= above:
            raise UserError(f"{typed}: must be above {above}")
        return number

    return Read(read)


def value_of(kind: Kind) -> Read:
    """What a config's key of the same kind takes: True or False, text, None."""
    return Read(lambda value, typed: coerce(typed.partition("=")[0], value, kind))


def choice(*words: str) -> Read:
    """One of a few words."""

    def read(value: str, typed: str) -> str:
        if value not in words:
            raise UserError(f"{typed}: not known{nearest_or_all(value, words)}")
        return value

    return Read(read)


def output_file(*endings: str) -> Read:
    """A file to write, refused before any work where its name or folder cannot be."""

    def read(value: str, typed: str) -> Path:
        path = Path(value)
        if path.suffix.lower() not in endings:
            raise UserError(f"{typed}: end the name in {one_of(endings)}")
        return in_a_folder(path, typed)

    return Read(read)


def in_a_folder(path: Path, typed: str) -> Path:
    """The path, refused where what it is to be in is not there."""
    if not path.parent.is_dir():
        raise UserError(f"{typed}: there is no folder {path.parent}; make it first")
    return path


NUMBER, NOT_NEGATIVE, POSITIVE = number(), number(least=0), number(above=0)
COUNT, COUNT_FROM_0 = number(whole=True, least=1), number(whole=True, least=0)
PATH = click.Path(path_type=Path)


# -- options of several verbs -------------------------------------------------------------------
def option(
    name: str,
    metavar: str,
    what: str,
    kind: Read | click.Path | None = None,
    *,
    default: object = None,
    keyword: str | None = None,
) -> Decorator:
    """`--name METAVAR  What it says.`; it arrives as the keyword argument of its name."""
    names = [f"--{name}"] if keyword is None else [f"--{name}", keyword]
    return click.option(*names, metavar=metavar, help=what, type=kind, default=default)


def column(key: str, what: str) -> Decorator:
    return option(key, "COL", what)


def output_root() -> Decorator:
    what = "The folder of studies and run folders (experiments_out)."
    return option("output_root", "DIR", what, PATH, default=Path("experiments_out"))


def json_output(what: str) -> Decorator:
    there = f"Write {what} as JSON there (-: to standard output, and nothing else)."
    file = output_file(".json")
    kind = Read(lambda value, typed: PRINTED if value == "-" else no_seal(file.read(value, typed)))
    return option("json", "OUT", there, kind, keyword="json_path")


def no_seal(path: object) -> object:
    """The file to write, which must not be a sealed forecast."""
    if isinstance(path, Path) and path.is_file():
        from nanoscale.studies.seals import is_seal

        if is_seal(path):
            raise UserError(f"--json={path}: that is a sealed forecast; name another file")
    return path


def figure_output(what: str) -> Decorator:
    there = f"Draw {what} there (png, pdf or svg)."
    return option("figure", "FILE", there, output_file(".png", ".pdf", ".svg"))


def together(*options: Decorator) -> Decorator:
    """Options that several verbs share, as one decorator."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those that were typed."""
    return {key: value for key, value in options.items() if value is not None}


# -- what is printed ----------------------------------------------------------------------------
def say(lines: Iterable[str], json_path: Path | None, record: object) -> None:
    """Print the lines, and write the record where `--json` asks for it."""
    click.echo("\n".join(lines))
    write_record(json_path, record)


def write_record(json_path: Path | None, record: object) -> None:
    """Write the record where `--json` asks for it."""
    if json_path == PRINTED:
        out = click.get_current_context().meta["stdout"]
        print(json_text(record), end="", file=out, flush=True)
    elif json_path is not None:
        write_json(json_path, record)


def study_record(study: Study) -> dict[str, Json]:
    """A study as the verbs that run or show it record it."""
    from nanoscale.experiments.replicates import replicates_of
    from nanoscale.experiments.results import RUNS
    from nanoscale.studies.ranking import ranking_of

    rows = study.rows()
    searched = study.asked.search is not None
    best = study.best_trial if searched else study.best_of(rows)
    record: dict[str, Json] = {
        "name": study.name,
        "folder": str(study.folder),
        "ok": study.ok,
        "states": dict(sorted(study.states().items())),
        "plan": study.plan,
        "warnings": study.warnings,
        "best": {**best.to_json(), "folder": str(study.output_root / RUNS / best.folder)}
        if best
        else None,
        "runs": rows,
    }
    if not searched:
        record["ranking"] = ranking_of(replicates_of(rows, study.setting_keys)).to_json()
    return record


def write_study(json_path: Path | None, study: Study) -> None:
    """Write the record of a study where `--json` asks for it: all its rows are read for that."""
    if json_path is not None:
        write_record(json_path, study_record(study))


def open_study(name: str, output_root: Path) -> Study:
    """The study of that name or path, once it is said which runs are damaged or do not compare."""
    from nanoscale.experiments import results

    study = results.open_study(name, output_root)
    for line in warned(
        [*study.damaged(), *results.mixed_sets(folder for _, folder in study.runs())]
    ):
        click.echo(line, err=True)
    return study


def warned(warnings: Iterable[str]) -> list[str]:
    """Warnings as lines."""
    return [f"warning: {warning}" for warning in warnings]


def aligned(rows: Sequence[Sequence[str]], texts: int = 0) -> list[str]:
    """The rows with every column as wide as its longest cell; the first `texts` to the left."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = list(map(str.rjust, row, widths))
        cells[:texts] = map(str.ljust, row[:texts], widths)
        lines.append("  ".join(cells))
    return lines
