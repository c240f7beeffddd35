"""A run as a model of transformers: a folder that `AutoModelForCausalLM.from_pretrained` opens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from nanoscale.data.dataset import Dataset
from nanoscale.data.tokenizer import Tokenizer
from nanoscale.errors import UserError
from nanoscale.spec.architecture import tensors
from nanoscale.spec.config import ResolvedConfig
from nanoscale.spec.families import Family, family_of, their_config
from nanoscale.spec.values import Json
from nanoscale.store.files import new_folder, write_json
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
    tokenizer: str | None  # the kind of the one that went along
    warnings: tuple[str, ...] = ()

    def to_json(self) -> Mapping[str, Json]:
        return asdict(self)

    def lines(self) -> list[str]:
        """As a terminal shows it."""
        tokenizer = "without a tokenizer"
        if self.tokenizer is not None:
            tokenizer = f"with its tokenizer ({self.tokenizer})"
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
    warnings = []
    dataset = tokenizer = None
    try:
        dataset = data_of(spec, data_root)
        tokenizer = dataset.tokenizer
    except UserError as e:
        warnings.append(f"no tokenizer goes along: {e}")

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
        if tokenizer is not None:
            try:
                tokenizer.save(folder)
            except UserError as e:  # GPT-2's merges are not at hand
                tokenizer = None
                warnings.append(f"no tokenizer goes along: {e}")
        for name, record in records(family, spec.config, dataset, tokenizer).items():
            write_json(folder / name, record)
    return Export(
        run=spec.id,
        step=saved["step"],
        weights=path.name,
        architecture=family.architecture,
        parameters=sum(tensor.numel() for tensor in theirs.values()),
        folder=str(out),
        tokenizer=None if tokenizer is None else tokenizer.kind,
        warnings=tuple(warnings),
    )


def records(
    family: Family,
    config: ResolvedConfig,
    dataset: Dataset | None,
    tokenizer: Tokenizer | None,
) -> dict[str, Mapping[str, Json]]:
    """The JSON files of an export by their names.

    What pads the vocabulary beyond the data set's is never generated, as in our own samples. Text
    ends where a document does if that is a special token; a character ends nothing.
    """
    end = None
    if tokenizer is not None and tokenizer.end_name is not None:
        end = tokenizer.end
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
