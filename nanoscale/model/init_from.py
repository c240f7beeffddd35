"""What `init_from` names: a run, a checkpoint of nanoGPT's, or a model of Hugging Face's form."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from nanoscale.data.dataset import VAL, open_dataset, tokenizer_named
from nanoscale.data.meta import GPT2_VOCAB_SIZE
from nanoscale.data.tokenizer import (
    GPT2,
    TOKENIZER_FILE,
    Bytes,
    Tokenizer,
    TokenizerFile,
    read_tokenizer,
)
from nanoscale.errors import UserError, did_you_mean
from nanoscale.model.checkpoint_file import FORMAT, check_bytes, opened, verified
from nanoscale.model.hub import OF_OPENAI, downloaded
from nanoscale.model.nanogpt_checkpoint import of_nanogpt
from nanoscale.model.pretrained import Pretrained, in_float32, read_hugging_face
from nanoscale.spec.architecture import tensors
from nanoscale.spec.config import BEGINNINGS
from nanoscale.spec.identity import RunSpec, idle_keys
from nanoscale.spec.weights import TokenTable, Weights, dictated

POSITIONS = "transformer.wpe.weight"
_ELSEWHERE = "name another file or folder"
_FILES = ("config.json", "best.pt", "ckpt.pt")


def pretrained(init_from: str) -> Pretrained:
    """The weights that `init_from` names.

    Raises:
        UserError: there are none there, or none that our parts can hold, or a file is damaged or
            holds code, which is never run; or the hub cannot be reached.
    """
    return _read(located(init_from), init_from)


def weights_of(init_from: str, data_root: str = "data") -> Weights:
    """What a spec knows of the weights that `init_from` names; errors as `pretrained`.

    `data_root` is where the data of a checkpoint may lie, which says what its tokens mean.
    """
    place = located(init_from)
    return _weights(place, init_from, data_root, _signature(place))


@functools.lru_cache(maxsize=8)
def _weights(place: Path, init_from: str, data_root: str, signature: object) -> Weights:
    """The same, while the files stay as their `signature` says: reading them all takes time."""
    return described(_read(place, init_from), init_from, data_root)


def described(found: Pretrained, init_from: str, data_root: str = "data") -> Weights:
    """What a spec knows of weights that have been read."""
    tokens = _token_table(found, init_from, data_root)
    return Weights(init_from, found.digest, found.keys, found.warnings, tokens)


def _signature(place: Path) -> tuple[tuple[str, int, int], ...]:
    files = [place] if place.is_file() else sorted(place.iterdir())
    stats = [(file.name, file.stat()) for file in files if file.is_file()]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def first_values(weights: Weights, block_size: int) -> dict[str, Tensor]:
    """The tensors that a run begins with.

    Raises:
        UserError: they are not what they were when the spec was made, or as `pretrained`.
    """
    found = pretrained(weights.source)
    if found.digest != weights.digest:
        raise UserError(
            f"init_from={weights.source}: its weights have changed since this run was made "
            f"({weights.digest[:8]}, now {found.digest[:8]}); put the old ones back, or start a "
            "new run"
        )
    return cropped(found.tensors, block_size)


def cropped(tensors: Mapping[str, Tensor], block_size: int) -> dict[str, Tensor]:
    """The tensors, with the first `block_size` positions of those that are learned."""
    fewer = {name: tensor.contiguous() for name, tensor in tensors.items()}
    if POSITIONS in fewer:
        fewer[POSITIONS] = fewer[POSITIONS][:block_size].clone()
    return fewer


# -- what the tokens mean -------------------------------------------------------------------------
def meaning_of(found: Pretrained, data_root: str | None) -> Tokenizer | None:
    """What the tokens of weights mean; None where nobody says.

    A tokenizer.json beside them tells, or the data of a run as it was, or the meta of the dataset
    that nanoGPT's checkpoint names; without any, nanoGPT's 50,304 and OpenAI's 50,257 are GPT-2's.

    Raises:
        UserError: that file, or the data, is of no use.
    """
    if found.tokenizer is not None:
        return read_tokenizer(found.tokenizer)
    if found.spec is not None:
        name, root = found.spec.config.dataset, data_root or found.spec.config.data_root
        data = open_dataset(name, root, (VAL,))
        if data.fingerprint != found.spec.tokens_fingerprint:
            raise UserError(f"dataset {name!r} has changed since, so symbols may mean other text")
        return data.tokenizer
    named = tokenizer_named(found.dataset, data_root or "data") if found.dataset else None
    sizes = (GPT2.vocab_size, GPT2_VOCAB_SIZE)
    if named is None and not found.config.use_rope and found.config.vocab_size in sizes:
        return GPT2()
    return named


def _token_table(found: Pretrained, init_from: str, data_root: str) -> TokenTable | None:
    """The same, as a spec knows it; None, too, where it is not at hand."""
    for root in (None, data_root):
        with contextlib.suppress(UserError):
            tokenizer = meaning_of(found, root)
            if tokenizer is not None:
                choice = _choice(tokenizer, init_from)
                return TokenTable(tokenizer.digest, str(tokenizer), choice)
    return None


def _choice(tokenizer: Tokenizer, init_from: str) -> str:
    """What `--tokenizer` takes to make the tokens of weights."""
    if isinstance(tokenizer, GPT2 | Bytes):
        return tokenizer.kind
    if isinstance(tokenizer, TokenizerFile):
        return tokenizer.where
    return f"HF/{TOKENIZER_FILE} after `nanoscale export {init_from} HF`"


# -- what is there --------------------------------------------------------------------------------
def located(init_from: str) -> Path:
    """The file or folder that `init_from` names; a hub name's is brought here first."""
    place = Path(init_from)
    if os.path.exists(place):
        return place
    parts = init_from.split("/")
    if len(parts) > 2 or "" in parts or parts[0] in (".", "..", "~") or "\\" in init_from:
        raise UserError(f"init_from={init_from}: no such file or folder")
    beside = [path.parent.name for path in Path().glob("*/ckpt.pt")]
    near = did_you_mean(init_from, [*OF_OPENAI, *BEGINNINGS, *beside])
    if near and init_from not in OF_OPENAI:
        raise UserError(f"init_from={init_from}: no such file or folder, and no known name{near}")
    return downloaded(init_from)


def _read(place: Path, init_from: str) -> Pretrained:
    found = _found(place, init_from)
    _check_tensors(found, init_from)
    return found


def _found(place: Path, init_from: str) -> Pretrained:
    if place.is_file():
        return _of_checkpoint(place)
    config, best, newest = (place / name for name in _FILES)
    if list(place.glob("*.safetensors")) or _names_a_model(config):
        return _plain(read_hugging_face(place))
    for file in (best, newest):  # as a sample prefers
        if file.is_file():
            return _of_checkpoint(file)
    if config.is_file():
        raise UserError(f"init_from={init_from}: the run there has saved no weights yet")
    raise UserError(
        f"init_from={init_from}: holds no weights; a run folder or nanoGPT's has a ckpt.pt, a "
        "folder of Hugging Face's form a config.json and safetensors"
    )


def _names_a_model(config: Path) -> bool:
    """Whether a config.json is one of Hugging Face's; ours names no model_type."""
    return config.is_file() and b'"model_type"' in config.read_bytes()


def _of_checkpoint(path: Path) -> Pretrained:
    payload = opened(path, _ELSEWHERE)
    if payload.get("format") == FORMAT:
        return _of_run(path, verified(path, payload, _ELSEWHERE))
    if "model_args" in payload:
        check_bytes(path)
        return _plain(of_nanogpt(path, payload))
    raise UserError(f"{path}: neither a checkpoint of nanoscale nor of nanoGPT; {_ELSEWHERE}")


def _of_run(path: Path, content: Mapping[str, Any]) -> Pretrained:
    """The weights of a run of ours, which have their meaning under its parametrization."""
    spec: RunSpec = content["spec"]
    step = content.get("step")
    idle = idle_keys(spec.config)
    keys = {key: value for key, value in dictated(spec.config).items() if key not in idle}
    model: Mapping[str, Tensor] = content["model"]
    tensors = {name: in_float32(tensor, name, path) for name, tensor in model.items()}
    dataset = spec.config.dataset
    return Pretrained(keys, tensors, dataset=dataset, spec=spec, step=step, file=path.name)


def _plain(found: Pretrained) -> Pretrained:
    """Weights that mean what they are: under SP, which multiplies by nothing."""
    heads = found.keys.get("n_kv_head") or found.keys["n_head"]
    plain = {"n_kv_head": heads, "parametrization.mode": "SP", "parametrization.rules": None}
    return replace(found, keys={**found.keys, **plain})


def _check_tensors(found: Pretrained, init_from: str) -> None:
    """Refuse tensors that are not those of the model that the keys describe."""
    try:
        wanted = {tensor.name: tensor.shape for tensor in tensors(found.config)}
    except UserError as e:
        raise UserError(f"init_from={init_from}: its weights make no model: {e}") from e
    for name in sorted(wanted.keys() | found.tensors.keys()):
        shape = wanted.get(name)
        there = tuple(found.tensors[name].shape) if name in found.tensors else None
        if shape != there:
            raise UserError(
                f"init_from={init_from}: {name} is {there or 'missing'} there, and its config "
                f"says {shape or 'none'}; the file is damaged, or of another program"
            )
        if not found.tensors[name].isfinite().all():
            raise UserError(f"init_from={init_from}: {name} is not finite: its run has diverged")
