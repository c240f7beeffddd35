"""`nanoscale train`: one GPT, from nanoGPT's config files and flags."""

from __future__ import annotations

import os
from pathlib import Path

from nanoscale.commands.run import ended
from nanoscale.commands.verb import config_verb, json_output, write_record
from nanoscale.errors import DONE
from nanoscale.spec.sources import build, help_text, parse_arguments, typed


@config_verb(
    "nanoscale train config/train_shakespeare_char.py --out_dir=out-shakespeare-char",
    "nanoscale train --dataset=synthetic --n_layer=2 --max_tokens=1e6 --device=cpu",
    keys_help=lambda: help_text("Keys, left to right over these defaults:"),
)
@json_output("what the run came to")
def command(arguments: tuple[str, ...], json_path: Path | None) -> int:
    """Train one GPT into --out_dir, as config files (.py, .toml, .yaml, .json) and flags say.

    The same command goes on where it was stopped.
    """
    from nanoscale.experiments.machine import waiting
    from nanoscale.training.run import evaluate, train

    sources = parse_arguments(arguments)
    config = build(sources)
    os.environ.update(waiting(config.threads))  # before torch is loaded
    if config.eval_only:
        loss = evaluate(config, typed=typed(sources))
        write_record(json_path, {"folder": config.out_dir, "val_loss": loss})
        return DONE
    return ended(train(config, typed=typed(sources)), json_path)
