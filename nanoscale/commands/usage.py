"""Usage errors as one line: what was typed and the remedy, in our words instead of click's."""

from __future__ import annotations

from collections.abc import Sequence

import click

from nanoscale.errors import UserError, did_you_mean

HELP = {"help_option_names": ["--help", "-h"]}


def in_our_words(error: click.UsageError, arguments: Sequence[str]) -> UserError:
    """The same refusal as one line with what was typed and the remedy."""
    context = error.ctx
    assert context is not None
    name = context.command_path
    usage = f"; see {name} --help"
    if isinstance(error, click.NoSuchCommand) and isinstance(context.command, click.Group):
        hint = did_you_mean(error.command_name, context.command.list_commands(context))
        return UserError(f"{error.command_name}: unknown verb{hint or '; see --help'}")
    if isinstance(error, click.NoSuchOption):
        hint = did_you_mean(error.option_name, options_of(context.command))
        return UserError(f"{typed(error.option_name, arguments)}: unknown option{hint or usage}")
    if isinstance(error, click.MissingParameter) and error.param is not None:
        lacking = error.param.make_metavar(context)
        if isinstance(error.param, click.Option):
            lacking = f"{error.param.opts[0]} {lacking}"
        return UserError(f"{name}: {lacking} is missing{usage}")
    if isinstance(error, click.BadOptionUsage):
        argument = typed(error.option_name, arguments)
        wrong = "the option takes no value" if "=" in argument else "a value is missing"
        return UserError(f"{argument}: {wrong}{usage}")
    return UserError(f"{name}: {error.format_message().rstrip('.')}{usage}")


def options_of(command: click.Command) -> list[str]:
    """Every option as it is typed."""
    return [name for parameter in command.params for name in parameter.opts if name[:1] == "-"]


def typed(option: str, arguments: Sequence[str]) -> str:
    """The argument that gave an option, as it was typed."""
    return next((a for a in arguments if a.partition("=")[0] == option), option)
