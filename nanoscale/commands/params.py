"""`nanoscale params`: every tensor's role and rule; N, FLOPs, memory."""

from __future__ import annotations

from pathlib import Path

from nanoscale.commands.verb import aligned, config_verb, json_output, say
from nanoscale.spec.sources import build, parse_arguments, typed
from nanoscale.spec.weights import begins_with_weights


@config_verb(
    "nanoscale params config/train_shakespeare_char.py",
    "nanoscale params --vocab_size=50304 --parametrization.mode=muP",
)
@json_output("the tensors and the counts")
def command(arguments: tuple[str, ...], json_path: Path | None) -> None:
    """Print each tensor's role, shape and rule, the parameters and FLOPs of a config
    ([config.py ...] [--key=value ...]) under every convention, and the memory it needs.

    Needs no data when --vocab_size is given.
    """
    from nanoscale.data.dataset import open_dataset
    from nanoscale.spec.listing import (
        TEXT_COLUMNS,
        count_lines,
        in_words,
        listing,
        memory_lines,
        tensor_rows,
    )
    from nanoscale.spec.parametrization import rules_of
    from nanoscale.spec.resolve import resolve

    sources = parse_arguments(arguments)
    config = build(sources)
    if begins_with_weights(config):
        from nanoscale.model.init_from import weights_of

        config = weights_of(config.init_from).fit(config, typed(sources))
    vocab = config.vocab_size or open_dataset(config.dataset, config.data_root).vocab_size
    resolved = resolve(config, vocab)
    rules = rules_of(resolved)
    table = [*aligned(tensor_rows(rules), TEXT_COLUMNS), "", in_words(rules), ""]
    lines = [*table, *count_lines(resolved), "", *memory_lines(resolved)]
    say(lines, json_path, listing(rules))
