"""What the site makes of the program itself, as Markdown: its config's keys, its verbs.

A line `<!-- generated: NAME -->` of a page becomes what the function of that name in `GENERATED`
writes, at every build; nothing of it is kept. The objects are those that `--help` reads.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator

import click

from nanoscale.commands.main import TASKS, program
from nanoscale.commands.verb import ConfigVerb, Verb
from nanoscale.spec.identity import IDLE
from nanoscale.spec.options import ConfigKey
from nanoscale.spec.sources import FIELDS

PLACE = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)


def filled(text: str) -> str:
    """A page's Markdown with what is generated in its places."""
    return PLACE.sub(lambda place: GENERATED[place[1]](), text)


def plain(text: str) -> str:
    """Text of the program as Markdown that reads the same; what is in backticks stays code."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([\\*_<>\[\]|#])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


def code(value: object) -> str:
    """Inline code, also within a table."""
    return f"`{value}`".replace("|", r"\|")


# -- the config ---------------------------------------------------------------------------------
def config_keys() -> str:
    """A table of keys per group, in the order of `nanoscale train --help`."""
    lines: list[str] = []
    group = ""
    for name, key in FIELDS.items():
        section = name.partition(".")[0] if "." in name else key.group
        if section != group:
            lines += ["", f"## {section.capitalize()}", "", *HEADER]
            group = section
        lines.append(key_row(key))
    return "\n".join(lines)


HEADER = ("| key | default | what it does | identity |", "|---|---|---|:-:|")


def key_row(key: ConfigKey) -> str:
    """A key's row of its table; the name is an anchor."""
    does = plain(key.doc)
    if key.name in ACTS:
        does += f"; acts with {ACTS[key.name]}"
    named = f"[{code(key.name)}]{{#{key.name.replace('.', '-')}}}"
    says = f"{does} ({kind_of(key)})"
    cells = (named, code(default_of(key)), says, "yes" if key.hashed else "")
    return f"| {' | '.join(cells)} |"


def default_of(key: ConfigKey) -> object:
    """As it is typed; an empty tuple is typed as nothing."""
    return key.default if key.default != () else "()"


def kind_of(key: ConfigKey) -> str:
    """Its choices, or its type and bounds."""
    if key.choices:
        return ", ".join(map(code, key.choices))
    words = [plain(str(getattr(key.kind, "__name__", None) or key.kind))]
    bounds = {"at least": key.least, "above": key.above, "at most": key.most, "below": key.below}
    words += [f"{which} {spelled(bound)}" for which, bound in bounds.items() if bound is not None]
    return ", ".join(words)


def spelled(bound: float) -> str:
    """A bound; the large ones are powers of 2."""
    return f"{bound:g}" if bound < 2**31 else f"2^{int(bound).bit_length() - 1}"


def acting() -> dict[str, str]:
    """Key -> what it needs to act, of keys that do nothing without."""
    found: dict[str, list[str]] = {}
    for idle in IDLE:
        for key in idle.keys:
            found.setdefault(key, []).append(plain(idle.acts))
    return {key: " and ".join(needs) for key, needs in found.items()}


ACTS = acting()


# -- the verbs ----------------------------------------------------------------------------------
def commands() -> str:
    """Every verb by task: what it does, its usage, options and examples."""
    top = click.Context(program, info_name="nanoscale")
    lines: list[str] = []
    for task, verbs in TASKS.items():
        lines += ["", f"## {task}", ""]
        for verb in verbs:
            command = program.get_command(top, verb)
            assert command is not None
            lines += sections(command, click.Context(command, top, verb))
    return "\n".join(lines)


def sections(command: click.Command, context: click.Context) -> Iterator[str]:
    """A verb's section, and those of its own commands."""
    name = context.command_path
    yield from ("", f"### {name}", "", *paragraphs(command.help or ""), "")
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            inner = command.get_command(context, below)
            assert inner is not None
            yield from sections(inner, click.Context(inner, context, below))
        return
    yield from fence("text", [" ".join([name, *command.collect_usage_pieces(context)])])
    yield from ("```{program} " + name, "```")
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            names, does = parameter.get_help_record(context) or ("", "")
            yield from ("```{option} " + names, plain(does), "```")
    yield from keys_of(command)
    if isinstance(command, Verb):
        yield from fence("sh", command.examples)


def keys_of(command: click.Command) -> Iterator[str]:
    """Where the keys of a verb stand that takes some: its own are listed."""
    if not isinstance(command, ConfigVerb):
        return
    listed = command.keys_help() if command.keys_help else ""
    if listed and "--n_layer=" not in listed:
        yield from fence("text", listed.splitlines())
    else:
        yield from ("", "Its keys are those of [a config](config.md).", "")


def paragraphs(text: str) -> Iterator[str]:
    """A docstring's paragraphs, without its indentation."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        yield from (plain(paragraph), "")


def fence(language: str, lines: Iterable[str]) -> Iterator[str]:
    """Lines of code."""
    yield from (f"```{language}", *lines, "```")


GENERATED: dict[str, Callable[[], str]] = {"config_keys": config_keys, "commands": commands}
