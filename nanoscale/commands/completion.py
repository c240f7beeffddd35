"""`nanoscale completion`: the script that completes verbs and options in a shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from nanoscale.commands.verb import Choice, Verb
from nanoscale.errors import UserError

VARIABLE = "_NANOSCALE_COMPLETE"  # what the script sets to ask for completions


@click.command(
    cls=Verb,
    examples=[
        'eval "$(nanoscale completion bash)"',
        "nanoscale completion fish > ~/.config/fish/completions/nanoscale.fish",
    ],
)
@click.argument("shell", metavar="SHELL", type=Choice("bash", "zsh", "fish"))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print the completion script of SHELL: bash, zsh or fish."""
    completion = get_completion_class(shell)
    if completion is None:
        raise UserError(f"{shell}: no completion for this shell")
    program = context.find_root().command
    click.echo(completion(program, {}, "nanoscale", VARIABLE).source())
