"""A run as a model of transformers: a folder that `AutoModelForCausalLM.from_pretrained` opens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from nanoscale.data.dataset import Dataset
from nanoscale.errors import UserError
from nanoscale.spec.architecture import tensors
from nanoscale.spec.config import ResolvedConfig
from nanoscale.spec.families import Family, family_of, their_config
from nanoscale.spec.identity import RunSpec
from nanoscale.spec.values import Json
from nanoscale.store.files import new_folder
from nanoscale.training.sample import data_of, open_weights


@dataclass(frozen=True)
class Export:
    """What an export is: of which run and step, as which class, where, with how many parameters."""

    run: str
    step: int
    weights: str  # the run's file
    architecture: str
    parameters: int
    folder: str
    tokenizer: bool  # whether one went along
    warnings: tuple[str, ...] = ()

    def to_json(self) -> Mapping[str, Json]:
        return asdict(self)

    def lines(self) -> list[str]:
        """As a terminal shows it."""
        tokenizer = "with its tokenizer" if self.tokenizer else "without a tokenizer"
        return [
            f"{self.folder}: {self.architecture}, {self.parameters:,} parameters, {tokenizer}",
            f"of run {self.run} at step {self.step} ({self.weights})",
        ]


def export(run: str, out: Path, data_root: str | None = None) -> Export:
    """Write the weights of a run, the best or else the newest, with config and tokenizer.

    `data_root` is where its data set lies now, if it has moved: without it no tokenizer goes along.

    Raises:
        UserError: no weights there, parts that no model of transformers has, or `out` cannot be.
    """
    path, spec = open_weights(run, "RUN")
    family = family_of(spec.config)
    dataset, warnings = dataset_or_why(spec, data_root)

    from nanoscale.model.exporting import exported, write_safetensors
    from nanoscale.training import checkpoint

    saved = checkpoint.load(path)
    weights = saved["model"]
    shapes = {tensor.name: tensor.shape for tensor in tensors(spec.config)}
    if {name: tuple(tensor.shape) for name, tensor in weights.items()} != shapes:
        raise UserError(f"{path}: its tensors do not fit the model of config.json beside it")
    theirs = exported(family, spec.config, weights)
    with new_folder(out) as folder:
        write_safetensors(folder / "model.safetensors", theirs)
        for name, record in records(family, spec.config, dataset).items():
            text = json.dumps(record, indent=2) + "\n"
            (folder / name).write_text(text, encoding="utf-8")
    return Export(
        run=spec.id,
        step=saved["step"],
        weights=path.name,
        architecture=family.architecture,
        parameters=sum(tensor.numel() for tensor in theirs.values()),
        folder=str(out),
        tokenizer=False,
        warnings=tuple(warnings),
    )


def dataset_or_why(spec: RunSpec, data_root: str | None) -> tuple[Dataset | None, list[str]]:
    """The data set of a run, or a warning that it cannot be opened."""
    try:
        return data_of(spec, data_root), []
    except UserError as e:
        return None, [f"no tokenizer goes along: {e}"]


def records(
    family: Family, config: ResolvedConfig, dataset: Dataset | None
) -> dict[str, Mapping[str, Json]]:
    """The JSON files of an export by their names.

    What pads the vocabulary beyond the data set's is never generated, as in our own samples.
    """
    end = None
    symbols = config.vocab_size if dataset is None else dataset.vocab_size
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
