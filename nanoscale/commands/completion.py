"""`nanoscale completion`: the script that completes verbs and options in a shell."""

from __future__ import annotations

from pathlib import Path

import click
from click.shell_completion import get_completion_class

from nanoscale.commands.verb import choice, json_output, say, verb

VARIABLE = "_NANOSCALE_COMPLETE"  # what the script sets to ask for completions


@verb(
    'eval "$(nanoscale completion bash)"',
    "nanoscale completion fish > ~/.config/fish/completions/nanoscale.fish",
)
@click.argument("shell", metavar="SHELL", type=choice("bash", "zsh", "fish"))
@json_output("the script")
@click.pass_context
def command(context: click.Context, shell: str, json_path: Path | None) -> None:
    """Print the completion script of SHELL: bash, zsh or fish."""
    completion = get_completion_class(shell)
    assert completion is not None  # click completes all three
    program = context.find_root().command
    script = completion(program, {}, "nanoscale", VARIABLE).source()
    say([script], json_path, {"shell": shell, "script": script})
