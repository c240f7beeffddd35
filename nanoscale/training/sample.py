"""Text from a trained run: nanoGPT's sample.py flags, a key-value cache, counted randomness.

Token t of sample s is a function of (seed, s, t) and the logits alone: the Gumbel-max trick on
Philox words. So a sample depends neither on how many are drawn beside it nor on the cache, and
rounding in the logits hardly ever changes a token. torch is imported after all that was typed is
checked.
"""

from __future__ import annotations

import os.path
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from nanoscale.data.dataset import VAL, Dataset, open_dataset, philox_words
from nanoscale.data.tokenizer import GPT2, Tokenizer
from nanoscale.errors import UserError, program
from nanoscale.spec.config import ResolvedConfig
from nanoscale.spec.identity import RunSpec
from nanoscale.store.folder import CHECKPOINT, CONFIG, FINISHED, RunFolder
from nanoscale.training.sample_options import SampleOptions

if TYPE_CHECKING:
    from torch import Tensor

    from nanoscale.model.gpt import GPT, KVCache
    from nanoscale.model.pretrained import Pretrained

SAMPLING = 4  # second word of the Philox key; data/dataset.py uses 1 to 3
Logits = npt.NDArray[np.float64]


# -- the run and the prompt -----------------------------------------------------------------------
def open_run(out_dir: str, data_root: str | None = None) -> tuple[Path, ResolvedConfig, Dataset]:
    """The weights to load (the best, else the newest), the run's config, and its dataset.

    `data_root` is where that lies now, if it has moved.
    """
    weights, spec = open_weights(out_dir)
    try:
        return weights, spec.config, data_of(spec, data_root)
    except UserError as e:
        raise UserError(f"out_dir={out_dir}: its text needs its dataset: {e}") from e


def open_weights(out_dir: str, key: str = "out_dir") -> tuple[Path, RunSpec]:
    """A run's weights, the best, else the newest, and its spec; `key` is how it was named."""
    folder = RunFolder(out_dir)
    if not folder.exists():
        raise UserError(
            f"{key}={out_dir}: no run there; train one first with "
            f"`{program()} train --out_dir={out_dir}`, or name its folder"
        )
    spec = folder.spec()
    weights = folder.weights()
    if weights is not None:
        return weights, spec
    state, keep = folder.state(), spec.config.keep
    why = f"the run has saved no weights yet (it is {state}); train it further"
    if state in FINISHED and keep != "all":
        why = f"keep={keep} left no weights; train it again with keep=all, into another folder"
    elif state in FINISHED:
        why = f"the run is {state} and its weights are gone; train it again, into another folder"
    raise UserError(f"{key}={out_dir}: {why}")


def data_of(spec: RunSpec, data_root: str | None = None) -> Dataset:
    """The tokens that a run was trained on, as they were; `data_root` is where they lie now.

    Its further validation sets do not matter here.

    Raises:
        UserError: it is not there, or has changed since.
    """
    name = spec.config.dataset
    if data_root and Path(name).is_absolute():
        name = Path(name).name
    try:
        dataset = open_dataset(name, data_root or spec.config.data_root, (VAL,))
    except UserError as e:
        moved = "" if data_root else "; has it moved, add --data_root=FOLDER"
        raise UserError(f"{e}{moved}") from e
    if dataset.fingerprint != spec.tokens_fingerprint:
        raise UserError(
            f"dataset {spec.config.dataset!r} has changed since "
            f"({spec.tokens_fingerprint[:8]}, now {dataset.fingerprint[:8]}), so symbols "
            "may mean other text; restore it"
        )
    return dataset


def prompt(start: str) -> str:
    """The text to continue: `start` itself, or the UTF-8 file that FILE:PATH names."""
    if start.startswith("FILE:"):
        path = Path(os.path.expanduser(start.removeprefix("FILE:")))
        try:
            start = path.read_text(encoding="utf-8-sig")
        except OSError as e:
            raise UserError(f"start=FILE:{path}: cannot be read ({e.strerror})") from e
        except UnicodeDecodeError as e:
            raise UserError(f"start=FILE:{path}: not UTF-8 text") from e
        if not start:
            raise UserError(f"start=FILE:{path}: the file is empty; a sample needs a beginning")
    if not start:
        raise UserError("start is empty; give at least one character, as in --start='\"\\n\"'")
    return start


def beginning(tokenizer: Tokenizer | Dataset, text: str) -> list[int]:
    """The ids of a prompt; of the default, an end of line, the first symbol if there is none."""
    try:
        return tokenizer.encode(text)
    except UserError:
        mute = isinstance(tokenizer, Dataset) and tokenizer.tokenizer is None
        if text != SampleOptions.start or mute:
            raise
        return [0]


def load_model(path: Path, config: ResolvedConfig) -> GPT:
    """The model of `config` with the weights in `path`."""
    from nanoscale.model.gpt import GPT
    from nanoscale.model.init_from import cropped
    from nanoscale.training import checkpoint

    weights = checkpoint.load(path)["model"]
    try:
        return GPT(config, values=cropped(weights, config.block_size))
    except RuntimeError as e:
        raise UserError(f"{path}: its tensors do not fit the model of config.json beside it") from e


# -- whose text -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Author:
    """A model to sample from, not yet made, and what its tokens mean."""

    config: ResolvedConfig
    tokenizer: Tokenizer | Dataset
    symbols: int  # of its vocabulary, which may be padded beyond them
    model: Callable[[ResolvedConfig], GPT]  # in a config with another device, dtype or block


def author_of(options: SampleOptions) -> Author:
    """Whose text is asked for: a run's, or that of weights from elsewhere.

    Raises:
        UserError: no weights there, or nothing says what their tokens mean.
    """
    resume = options.init_from == "resume"
    named = options.out_dir if resume else options.init_from
    folder = RunFolder(named)
    is_run = folder.exists() and (resume or folder.record(CONFIG) is not None)
    if is_run or (resume and not (folder / CHECKPOINT).is_file()):
        path, config, dataset = open_run(named, options.data_root)
        symbols = dataset.vocabulary(config.vocab_size)
        return Author(config, dataset, symbols, partial(load_model, path))

    from nanoscale.model.gpt import GPT
    from nanoscale.model.init_from import cropped, pretrained

    def made(config: ResolvedConfig) -> GPT:
        return GPT(config, values=cropped(found.tensors, config.block_size))

    found = pretrained(named)
    tokenizer = tokenizer_for(found, named, options.data_root)
    symbols = min(found.config.vocab_size, tokenizer.vocab_size)
    return Author(found.config, tokenizer, symbols, made)


def tokenizer_for(found: Pretrained, named: str, data_root: str | None) -> Tokenizer:
    """What the tokens of weights from elsewhere mean: by the file beside them, else by the meta of
    the dataset that a checkpoint names, else GPT-2's, as nanoGPT takes them to be.
    """
    from nanoscale.model.init_from import meaning_of

    tokenizer = meaning_of(found, data_root)
    if tokenizer is not None:
        return tokenizer
    symbols = found.config.vocab_size
    if symbols >= GPT2.vocab_size:
        return GPT2()
    remedy = "put their tokenizer.json beside them"
    if found.dataset is not None:
        remedy = f"no meta of dataset {found.dataset!r} is here; add --data_root=FOLDER"
    raise UserError(f"{named}: nothing says what its {symbols} tokens mean; {remedy}")


# -- generation -----------------------------------------------------------------------------------
def uniforms(seed: int, samples: int, t: int, symbols: int) -> Logits:
    """One number in (0, 1) per sample and symbol for step t, (samples, symbols)."""
    words = [philox_words(seed, SAMPLING, s, t * symbols, symbols) for s in range(samples)]
    bits = np.stack(words) >> np.uint64(12)
    return (bits.astype(np.float64) + 0.5) * 2.0**-52  # the ends excluded, exactly


def choose(
    logits: Logits, temperature: float, top_k: int | None, seed: int, t: int
) -> npt.NDArray[np.intp]:
    """The next token of each sample, (B,), from its logits (B, V).

    argmax(logits / temperature + Gumbel noise) has the softmax distribution (Gumbel 1954; Maddison
    et al. 2014).
    """
    scores = logits
    if temperature > 0:
        kept = likeliest(logits, top_k)
        noise = -np.log(-np.log(uniforms(seed, len(logits), t, logits.shape[1])[kept]))
        relative = logits - logits.max(axis=1, keepdims=True)
        scores = np.full(logits.shape, -np.inf)
        with np.errstate(over="ignore"):  # a tiny temperature: the likeliest is 0, others -inf
            scores[kept] = (relative / temperature)[kept] + noise
    tokens: npt.NDArray[np.intp] = scores.argmax(axis=1)
    return tokens


def likeliest(logits: Logits, top_k: int | None) -> npt.NDArray[np.bool_]:
    """Which symbols may be drawn: none below the k-th largest logit, as in nanoGPT."""
    if top_k is None or top_k >= logits.shape[1]:
        return np.ones(logits.shape, bool)
    return logits >= np.partition(logits, -top_k, axis=1)[:, -top_k, None]


def last_logits(model: GPT, idx: Tensor, cache: KVCache | None) -> Tensor:
    """The logits after the last of tokens `idx` (B, T), (B, V)."""
    return model.hidden(idx, cache)[:, -1] @ model.head.weight.T


def generate(
    model: GPT,
    idx: Tensor,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    use_cache: bool = True,
    seed: int = 1337,
    *,
    symbols: int | None = None,
    compile: bool = False,
) -> Tensor:
    """Tokens `idx` (B, T) continued, (B, T + max_new_tokens); row s is sample s.

    The model sees the last block_size tokens. Once there are more, every position shifts with each
    token, no cached key is valid, and each step is computed anew. `symbols`: draw only tokens below
    it (a vocabulary may be padded beyond its dataset's).
    """
    import torch

    from nanoscale.model.gpt import KVCache

    block_size = model.config.block_size
    logits_of = torch.compile(last_logits) if compile else last_logits
    cache = KVCache(model.config, idx.size(0), idx.device) if use_cache else None
    with torch.no_grad():
        for t in range(max_new_tokens):
            if cache is not None and idx.size(1) <= block_size:
                logits = logits_of(model, idx[:, cache.length :], cache)
            else:
                logits = logits_of(model, idx[:, -block_size:], None)
            seen = logits[:, :symbols].cpu().double().numpy()
            tokens = torch.from_numpy(choose(seen, temperature, top_k, seed, t))
            idx = torch.cat([idx, tokens.to(idx.device)[:, None]], dim=1)
    return idx


# -- as people call it ----------------------------------------------------------------------------
def sample(options: SampleOptions) -> list[str]:
    """`num_samples` continuations of `start`, each with it, drawn in one batch.

    Raises:
        UserError: no run, no weights, another dataset, or a prompt that the run's vocabulary cannot
            spell.
    """
    text = prompt(options.start)
    author = author_of(options)
    ids = beginning(author.tokenizer, text)
    if max(ids) >= author.config.vocab_size:
        raise UserError(
            f"start: token {max(ids)} of it is beyond the {author.config.vocab_size} that the "
            "weights know; their tokenizer is another"
        )

    import torch

    from nanoscale.training.hardware import pick_device
    from nanoscale.training.numerics import apply, decide

    # torch's operations: one token at a time is no work for the kernels, and a CPU then samples
    # in float32, what the weights say
    config = replace(
        author.config,
        block_size=min(author.config.block_size, len(ids) + options.max_new_tokens),
        device=options.device,
        dtype=options.dtype,
        compile=options.compile,
        kernels="torch",
    )
    device = pick_device(config)
    numerics = decide(config, device, asked=["compile"])
    apply(numerics)
    model = author.model(config).to(device).eval()
    idx = torch.tensor([list(ids)] * options.num_samples, device=device)
    with numerics.autocast():
        tokens = generate(
            model,
            idx,
            options.max_new_tokens,
            options.temperature,
            options.top_k,
            options.use_cache,
            options.seed,
            symbols=author.symbols,
            compile=numerics.compile,
        )
    return [author.tokenizer.decode(row) for row in tokens.tolist()]
