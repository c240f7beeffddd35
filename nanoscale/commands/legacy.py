"""Verbs that click does not parse yet: their arguments go on as they were typed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import click

from nanoscale.commands.verb import Verb
from nanoscale.errors import DONE


class Passthrough(Verb):
    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        context.params["arguments"] = tuple(arguments)
        return []


def fit(arguments: Sequence[str]) -> int:
    """fit TABLE|STUDY --n=COL --d=COL --loss=COL  a scaling law, its certainty and intervals"""
    from nanoscale.commands.fit import FIGURES, OPTIONS, SWITCHES, main

    return with_options(main, (*OPTIONS, FIGURES), arguments, SWITCHES)


def plan(arguments: Sequence[str]) -> int:
    """plan TABLE|STUDY|FIT.json --budget=FLOPS    the next run: N, D, a model, its loss, hours"""
    from nanoscale.commands.plan import OPTIONS, main

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


LEGACY = {verb.__name__.replace("_", "-"): verb for verb in (fit, plan)}


def command_of(name: str) -> click.Command:
    return Passthrough(
        name,
        callback=lambda arguments: LEGACY[name](list(arguments)),
        params=[],
        help=LEGACY[name].__doc__,
    )
