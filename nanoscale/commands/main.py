"""`nanoscale VERB ...`: `commands/X.py` is `nanoscale X`, imported when it is called."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from nanoscale import __version__
from nanoscale.commands.usage import HELP, in_our_words
from nanoscale.errors import BAD_INPUT, DONE

# Verbs by task, each with its line of help: what `nanoscale --help` says without an import.
TASKS: dict[str, dict[str, str]] = {
    "One run": {
        "data": "make a dataset: data prepare NAME",
        "train": "train one GPT into --out_dir",
        "run": "train what a run folder's config says",
        "sample": "generate text from a run",
        "eval": "losses of a run on any data; lm-eval's tasks",
        "export": "write a run's weights for transformers",
        "bench": "time the training step",
        "params": "every tensor's role and rule; N, FLOPs, memory",
    },
    "Many runs": {
        "study": "many runs, one question, a report",
        "status": "where the runs of a study stand",
        "watch": "its runs as they go on, wherever they run",
        "retry": "run again what failed or waits",
        "next": "the run that would narrow its answer most",
        "table": "rebuild table.csv from the run folders",
        "report": "rebuild report.html",
        "sync": "finished runs to W&B, Trackio or TensorBoard",
    },
    "Verdicts": {
        "coord-check": "do activations keep their size as models grow?",
        "noise-check": "how much of an update is signal, over widths?",
        "transfer": "does the best learning rate hold over sizes?",
        "compare": "is B's loss lower than A's? from paired seeds",
    },
    "Laws": {
        "fit": "a scaling law, its certainty and intervals",
        "plan": "the next run: N, D, a model, its loss, hours",
        "forecast": "the loss of a run not yet made, sealed",
        "verify": "a sealed forecast made again, and judged",
        "design": "before training: what will the intervals be?",
        "sweep-law": "the best learning rate or batch, as a law of scale",
    },
    "The folder": {"init": "a working folder with a study and a config to edit"},
    "The machine": {"doctor": "what it can do, what is missing, how to get it"},
    "The shell": {"completion": "completion of verbs and options for bash, zsh or fish"},
}
VERBS = {verb: line for verbs in TASKS.values() for verb, line in verbs.items()}


class Interrupted(Exception):
    """Ctrl-C, in words that click leaves alone: it would print an empty line of its own."""


class Verbs(click.Group):
    """The verbs, found by name: a call imports one module and no other."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in VERBS:
            return None
        module = import_module(f"nanoscale.commands.{name.replace('-', '_')}")
        command: click.Command = module.command
        command.name = name
        return command

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except KeyboardInterrupt as e:
            raise Interrupted from e

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        for task, verbs in TASKS.items():
            with formatter.section(task):
                formatter.write_dl(list(verbs.items()))


@click.group(
    cls=Verbs,
    invoke_without_command=True,
    context_settings=HELP,
    epilog="nanoscale VERB --help has a verb's options; nanoscale train --help, every config key.",
)
@click.version_option(__version__, prog_name="nanoscale")
@click.pass_context
def program(context: click.Context) -> int:
    """Scaling studies and hyperparameter optimisation of small GPTs."""
    if context.invoked_subcommand is not None:
        return DONE
    click.echo(context.get_help())
    return BAD_INPUT


def dispatch(arguments: Sequence[str]) -> int:
    """Run a verb and return its exit code; a refusal is raised."""
    if list(arguments[:1]) == ["help"]:
        arguments = ["--help", *arguments[1:]]
    streams = (sys.stdout, sys.stderr)
    try:
        code = program.main(list(arguments), prog_name="nanoscale", standalone_mode=False)
    except click.UsageError as error:
        raise in_our_words(error, arguments) from error
    except Interrupted:
        raise KeyboardInterrupt from None
    except SystemExit:
        if sys.stdout is streams[0]:
            raise
        # click wraps both when a reader goes away, and exits with 1; to us that is no error
        sys.stdout, sys.stderr = streams
        raise BrokenPipeError from None
    return code or DONE
