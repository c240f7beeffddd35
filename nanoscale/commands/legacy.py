"""Verbs that click does not parse yet: their arguments go on as they were typed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nanoscale.commands.verb import Verb
from nanoscale.errors import DONE, FAILED, INTERRUPTED, UserError

if TYPE_CHECKING:
    from nanoscale.spec.config import ExperimentConfig
    from nanoscale.store.folder import RunFolder


class Passthrough(Verb):
    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        context.params["arguments"] = tuple(arguments)
        return []


def train(arguments: Sequence[str]) -> int:
    """train [config.py ...] [--key=value ...]     train one GPT into --out_dir"""
    from nanoscale.data.dataset import open_dataset
    from nanoscale.spec.parametrization import scheme_of
    from nanoscale.spec.resolve import resolve
    from nanoscale.spec.sources import build, help_text, parse_arguments, typed
    from nanoscale.store.folder import RunFolder, run_spec
    from nanoscale.store.resume import open_folder

    if asks_help(arguments):
        print(help_text("usage: train [config.py ...] [--key=value ...], left to right"))
        return DONE
    sources = parse_arguments(arguments)
    config = build(sources)
    dataset = open_dataset(config.dataset, config.data_root)
    spec = run_spec(resolve(config, dataset.vocab_size), dataset, typed(sources))
    dataset.require_block(config.block_size)
    scheme_of(spec.config)  # a user's own file of rules may refuse
    check_machine(config)
    path, resume = Path(config.out_dir), config.init_from == "resume"
    if config.eval_only:
        from nanoscale.training.evaluation import evaluate_only

        evaluate_only(spec, RunFolder(path))
        return DONE
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from nanoscale.training.loop import train_ranks

        return EXIT_CODES[train_ranks(spec, path, resume)]
    return train_folder(open_folder(path, spec, resume))


def check_machine(config: ExperimentConfig) -> None:
    """Refuse a device or a mirror that is not here, before anything is written."""
    from importlib.util import find_spec

    for wanted, package in ((config.wandb_log, "wandb"), (config.tensorboard_log, "tensorboard")):
        if wanted and find_spec(package) is None:
            raise UserError(
                f"{package}_log=True needs {package}: pip install "
                f"'nanoscale[{package}]', or leave it out"
            )
    if config.device not in ("auto", "cpu"):
        from nanoscale.model.distributed import pick_device

        pick_device(config)


def run(arguments: Sequence[str]) -> int:
    """run FOLDER                                  train what a run folder's config says"""
    from nanoscale.store.folder import RunFolder
    from nanoscale.store.lease import Held

    if len(arguments) != 1 or asks_help(arguments):
        raise UserError("usage: nanoscale run FOLDER, a folder that holds config.json")
    try:
        return train_folder(RunFolder(arguments[0]))
    except Held as e:  # two runners started it; this one may come back when that is done
        print(e)
        return INTERRUPTED


EXIT_CODES = {"COMPLETE": DONE, "WAITING": INTERRUPTED, "DIVERGED": FAILED, "PRUNED": FAILED}


def train_folder(folder: RunFolder) -> int:
    """Train what is left to train; say where the result is and what to try next."""
    from nanoscale.store.resume import is_finished

    folder.spec()
    if is_finished(folder):
        state = folder.state()
        print(f"{folder.path}: this run is {state} already; see {folder / 'metrics.json'}")
        return EXIT_CODES[state]
    from nanoscale.training.loop import train

    state = train(folder)
    if state == "COMPLETE":
        print(
            f"COMPLETE: results in {folder / 'metrics.json'}; "
            f"next: python sample.py --out_dir={folder.path}"
        )
    elif state == "DIVERGED":
        print(f"DIVERGED: see {folder / 'metrics.jsonl'}; try a lower learning_rate")
    return EXIT_CODES[state]


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
