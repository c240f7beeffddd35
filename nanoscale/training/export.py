"""A run as a model of transformers: a folder that `AutoModelForCausalLM.from_pretrained` opens."""

from __future__ import annotations

import os.path
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nanoscale.data.tokenizer import Tokenizer
from nanoscale.errors import UserError
from nanoscale.spec.architecture import tensors
from nanoscale.spec.config import ResolvedConfig
from nanoscale.spec.families import Family, as_exported, family_of, their_config
from nanoscale.spec.values import Json
from nanoscale.store.files import new_folder, write_json
from nanoscale.store.folder import CONFIG, RunFolder
from nanoscale.training.sample import data_of, open_weights, tokenizer_for

if TYPE_CHECKING:
    from nanoscale.model.pretrained import Pretrained


@dataclass(frozen=True)
class Export:
    """What an export is: of which run and step, as which class, where, with how many parameters."""

    run: str
    step: int | None
    weights: str | None  # the run's file
    architecture: str
    parameters: int
    folder: str
    tokenizer: str | None  # the kind of the one that went along
    warnings: tuple[str, ...] = ()
    grown: str | None = None  # what it has beside the run's parts

    def to_json(self) -> Mapping[str, Json]:
        return asdict(self)

    def lines(self) -> list[str]:
        """As a terminal shows it."""
        tokenizer = "without a tokenizer"
        if self.tokenizer is not None:
            tokenizer = f"with its tokenizer ({self.tokenizer})"
        lines = [
            f"{self.folder}: {self.architecture}, {self.parameters:,} parameters, {tokenizer}",
        ]
        if self.weights is not None:
            lines.append(f"of run {self.run} at step {self.step} ({self.weights})")
        if self.grown:
            lines.append(
                "what it has more parameters than the run are zeros and copies: imported again it "
                f"has {self.grown}, as every {self.architecture} does"
            )
        return lines


def export(run: str, out: Path, data_root: str | None = None) -> Export:
    """Write the weights of a run, the best or else the newest, with config and tokenizer.

    `data_root` is where its data set lies now, if it has moved: without it no tokenizer goes along.

    Raises:
        UserError: no weights there, parts that no model of transformers has, or `out` cannot be.
    """
    found, config = _weights(run)
    family = family_of(config)
    warnings = []
    tokenizer, symbols = None, config.vocab_size
    try:
        tokenizer, symbols = _meaning(found, run, data_root)
    except UserError as e:
        warnings.append(f"no tokenizer goes along: {e}")

    from nanoscale.model.exporting import exported, write_safetensors

    theirs = exported(family, config, found.tensors)
    with new_folder(out) as folder:
        write_safetensors(folder / "model.safetensors", theirs)
        if tokenizer is not None:
            try:
                tokenizer.save(folder, config.block_size)
            except UserError as e:  # GPT-2's merges are not at hand
                tokenizer = None
                warnings.append(f"no tokenizer goes along: {e}")
        for name, record in records(family, config, symbols, tokenizer).items():
            write_json(folder / name, record)
    return Export(
        run=run if found.spec is None else found.spec.id,
        step=found.step,
        weights=found.file,
        architecture=family.architecture,
        parameters=sum(tensor.numel() for tensor in theirs.values()),
        folder=str(out),
        tokenizer=None if tokenizer is None else tokenizer.kind,
        warnings=tuple(warnings),
        grown=grown(family, config),
    )


def _weights(run: str) -> tuple[Pretrained, ResolvedConfig]:
    """The weights to export and their config: a run's best, or what `init_from` would read there.

    Raises:
        UserError: there are none, or no model of transformers has their parts.
    """
    source, spec = run, None
    is_run = os.path.isdir(run) and RunFolder(run).record(CONFIG) is not None
    if is_run or not os.path.exists(run):
        path, spec = open_weights(run, "RUN")
        family_of(spec.config)  # before anything is read
        source = str(path)

    from nanoscale.model.init_from import pretrained

    found = pretrained(source)
    config = found.config if spec is None else spec.config
    shapes = {tensor.name: tensor.shape for tensor in tensors(config)}
    if {name: tuple(tensor.shape) for name, tensor in found.tensors.items()} != shapes:
        raise UserError(f"{source}: its tensors do not fit the model of config.json beside it")
    return found, config


def _meaning(found: Pretrained, run: str, data_root: str | None) -> tuple[Tokenizer | None, int]:
    """What the tokens mean, if anything says it, and how many the data set has."""
    if found.spec is not None:
        dataset = data_of(found.spec, data_root)
        return dataset.tokenizer, dataset.vocab_size
    tokenizer = tokenizer_for(found, run, data_root)
    return tokenizer, min(found.config.vocab_size, tokenizer.vocab_size)


def grown(family: Family, config: ResolvedConfig) -> str | None:
    """What the export has that the run had not: GPT-2 has biases, and a key head per query head."""
    again = as_exported(family, config)
    keys = []
    if family.conv1d and not config.bias:
        keys.append("bias=True")
    if again.n_kv_head != config.n_kv_head:
        keys.append(f"n_kv_head={again.n_kv_head}")
    return ", ".join(keys) or None


def records(
    family: Family,
    config: ResolvedConfig,
    symbols: int,
    tokenizer: Tokenizer | None,
) -> dict[str, Mapping[str, Json]]:
    """The JSON files of an export by their names.

    What pads the vocabulary beyond the data set's is never generated, as in our own samples. Text
    ends where a document does if that is a special token; a character ends nothing.
    """
    end = None
    if tokenizer is not None and tokenizer.end_name is not None:
        end = tokenizer.end
    generation: dict[str, Json] = {
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "suppress_tokens": list(range(symbols, config.vocab_size)) or None,
    }
    return {
        "config.json": their_config(family, config, end),
        "generation_config.json": generation,
    }
