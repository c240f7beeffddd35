"""Verbs that click does not parse yet: their arguments go on as they were typed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import click

from nanoscale.commands.verb import Verb
from nanoscale.errors import DONE, FAILED, INTERRUPTED, UserError


class Passthrough(Verb):
    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        context.params["arguments"] = tuple(arguments)
        return []


def train(arguments: Sequence[str]) -> int:
    """train [config.py ...] [--key=value ...]     train one GPT into --out_dir"""
    from nanoscale.spec.sources import build, help_text, parse_arguments, typed
    from nanoscale.training.run import evaluate
    from nanoscale.training.run import train as start

    if asks_help(arguments):
        print(help_text("usage: train [config.py ...] [--key=value ...], left to right"))
        return DONE
    sources = parse_arguments(arguments)
    config = build(sources)
    if config.eval_only:
        evaluate(config, typed=typed(sources))
        return DONE
    return EXIT_CODES[start(config, typed=typed(sources)).status]


def run(arguments: Sequence[str]) -> int:
    """run FOLDER                                  train what a run folder's config says"""
    from nanoscale.store.folder import RunFolder
    from nanoscale.store.lease import Held
    from nanoscale.training.run import train_folder

    if len(arguments) != 1 or asks_help(arguments):
        raise UserError("usage: nanoscale run FOLDER, a folder that holds config.json")
    try:
        return EXIT_CODES[train_folder(RunFolder(arguments[0])).status]
    except Held as e:  # two runners started it; this one may come back when that is done
        print(e)
        return INTERRUPTED


EXIT_CODES = {"COMPLETE": DONE, "WAITING": INTERRUPTED, "DIVERGED": FAILED, "PRUNED": FAILED}


def sample(arguments: Sequence[str]) -> int:
    """sample [--out_dir=DIR] [--start=TEXT] ...   generate text from a run"""
    from nanoscale.training.sample import main

    return main(list(arguments))


def bench(arguments: Sequence[str]) -> int:
    """bench [config.py ...] [--key=value ...]     time the training step"""
    from nanoscale.training.bench import main

    return main(list(arguments))


def fit(arguments: Sequence[str]) -> int:
    """fit TABLE|STUDY --n=COL --d=COL --loss=COL  a scaling law, its certainty and intervals"""
    from nanoscale.studies.table_fit import FIGURES, OPTIONS, SWITCHES, main

    return with_options(main, (*OPTIONS, FIGURES), arguments, SWITCHES)


def plan(arguments: Sequence[str]) -> int:
    """plan TABLE|STUDY|FIT.json --budget=FLOPS    the next run: N, D, a model, its loss, hours"""
    from nanoscale.studies.next_run import OPTIONS, main

    return with_options(main, OPTIONS, arguments)


def with_options(
    main: Callable[..., int],
    known: Sequence[str],
    arguments: Sequence[str],
    switches: Sequence[str] = (),
) -> int:
    """A command that takes its names and options read; its help is its usage."""
    from nanoscale.commands.options import parse

    names, options = parse(arguments, main, known, switches)
    return DONE if names is None else main(names, options)


def asks_help(arguments: Sequence[str]) -> bool:
    return any(a in ("--help", "-h") for a in arguments)


LEGACY = {verb.__name__.replace("_", "-"): verb for verb in (train, run, sample, bench, fit, plan)}


def command_of(name: str) -> click.Command:
    return Passthrough(
        name,
        callback=lambda arguments: LEGACY[name](list(arguments)),
        params=[],
        help=LEGACY[name].__doc__,
    )
