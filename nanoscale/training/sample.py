"""Text from a trained run: nanoGPT's sample.py flags, a key-value cache, counted randomness.

Token t of sample s is a function of (seed, s, t) and the logits alone: the Gumbel-max trick on
Philox words. So a sample depends neither on how many are drawn beside it nor on the cache, and
rounding in the logits hardly ever changes a token. torch is imported after all that was typed is
checked.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nanoscale.data.dataset import Dataset, open_dataset, philox_words
from nanoscale.errors import DONE, UserError, did_you_mean
from nanoscale.spec.config import ResolvedConfig
from nanoscale.spec.options import keys_of, option
from nanoscale.spec.sources import coerce, read_file
from nanoscale.store.folder import BEST, CHECKPOINT, RunFolder

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from nanoscale.model.gpt import GPT, KVCache

SAMPLING = 4  # second word of the Philox key; data.py uses 1 to 3


# -- what was typed -------------------------------------------------------------------------------
@dataclass(frozen=True)
class SampleOptions:
    """nanoGPT's keys and defaults, but that device, dtype and the cache look after themselves."""

    init_from: str = option("resume", "from the run in out_dir", choices=("resume",))
    out_dir: str = option("out", "any run folder")
    start: str = option("\n", "the prompt, or FILE:PATH to read it from")
    num_samples: int = option(10, "samples to draw", least=1)
    max_new_tokens: int = option(500, "tokens generated in each", least=0)
    temperature: float = option(0.8, "divides the logits; 0: always the likeliest token", least=0)
    top_k: int | None = option(200, "draw among the k likeliest only; None: all", least=1)
    seed: int = option(1337, "of the draws", least=0, below=2**63)
    device: str = option("auto", "auto: cuda, mps or cpu")
    dtype: str = option(
        "auto",
        "of the products: bfloat16 or float16 on CUDA, else float32",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    compile: bool = option(False, "torch.compile the step")
    use_cache: bool = option(True, "keep keys and values; the tokens are the same without")


FIELDS = keys_of(SampleOptions)


def parse(arguments: Sequence[str]) -> SampleOptions:
    """`[config.py ...] [--key=value ...]`, left to right over the defaults."""
    values = {key: f.default for key, f in FIELDS.items()}
    for argument in arguments:
        if argument.startswith("-"):
            key, equals, value = argument.lstrip("-").partition("=")
            check_key(key, f"--{key}")
            if not (argument.startswith("--") and equals):
                raise UserError(
                    f"{argument}: flags are written --key=value, as in --{key}="
                    f"{FIELDS[key].default!r}"
                )
            typed, place = {key: unquoted(value) if key == "start" else value}, "--"
        else:
            typed, place = read_file(argument, values).values, f"{argument}: "
        for key, value in typed.items():
            check_key(key, place + key)
            verbatim = key == "start" and isinstance(value, str)
            values[key] = value if verbatim else coerce(place + key, value, FIELDS[key].kind)
            FIELDS[key].check(values[key], place + key)
    return SampleOptions(**values)


def check_key(key: str, spelled: str) -> None:
    """Refuse a key that sampling does not have."""
    if key not in FIELDS:
        raise UserError(f"{spelled}: unknown key{did_you_mean(key, FIELDS) or '; see --help'}")


def unquoted(text: str) -> str:
    """A Python string literal, as in --start='"\\n"', as what it spells; else the text itself."""
    if text[:1] not in ("'", '"'):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, str) else text


def help_text() -> str:
    """Every key with its default and one line of meaning."""
    lines = [f"  --{key}={f.default!r}".ljust(28) + f" {f.doc}" for key, f in FIELDS.items()]
    return "\n".join(["usage: sample [config.py ...] [--key=value ...], left to right", "", *lines])


def prompt(start: str) -> str:
    """The text to continue: `start` itself, or the UTF-8 file that FILE:PATH names."""
    if start.startswith("FILE:"):
        path = Path(start.removeprefix("FILE:"))
        try:
            start = path.read_text(encoding="utf-8")
        except OSError as e:
            raise UserError(f"start=FILE:{path}: cannot be read ({e.strerror})") from e
        except UnicodeDecodeError as e:
            raise UserError(f"start=FILE:{path}: not UTF-8 text") from e
        if not start:
            raise UserError(f"start=FILE:{path}: the file is empty; a sample needs a beginning")
    if not start:
        raise UserError("start is empty; give at least one character, as in --start='\"\\n\"'")
    return start


# -- the run --------------------------------------------------------------------------------------
def open_run(out_dir: str) -> tuple[Path, ResolvedConfig, Dataset]:
    """The weights to load (the best, else the newest), the run's config, and its dataset."""
    folder = RunFolder(out_dir)
    if not folder.exists():
        raise UserError(
            f"out_dir={out_dir}: no run there; train one first with "
            f"`python train.py --out_dir={out_dir}`, or name its folder"
        )
    spec = folder.spec()
    found = [folder / name for name in (BEST, CHECKPOINT) if (folder / name).is_file()]
    if not found:
        raise UserError(
            f"out_dir={out_dir}: the run has saved no weights yet (it is "
            f"{folder.state()}); train it further"
        )
    try:
        dataset = open_dataset(spec.config.dataset, spec.config.data_root)
    except UserError as e:
        raise UserError(f"out_dir={out_dir}: its text needs its dataset: {e}") from e
    if dataset.fingerprint != spec.data_fingerprint:
        raise UserError(
            f"out_dir={out_dir}: dataset {spec.config.dataset!r} has changed since "
            f"({spec.data_fingerprint[:8]}, now {dataset.fingerprint[:8]}), so symbols "
            "may mean other text; restore it"
        )
    return found[0], spec.config, dataset


def load_model(path: Path, config: ResolvedConfig, device: torch.device) -> GPT:
    """The model of `config` with the weights in `path`, ready to generate."""
    from nanoscale.model.gpt import GPT
    from nanoscale.training import checkpoint

    weights = checkpoint.load(path)["model"]
    model = GPT(config)
    try:
        model.load_state_dict(weights)
    except RuntimeError as e:
        raise UserError(f"{path}: its tensors do not fit the model of config.json beside it") from e
    return model.to(device).eval()


# -- generation -----------------------------------------------------------------------------------
def uniforms(seed: int, samples: int, t: int, symbols: int) -> np.ndarray:
    """One number in (0, 1) per sample and symbol for step t, (samples, symbols) float64."""
    words = np.stack(
        [philox_words(seed, SAMPLING, s, t * symbols, symbols) for s in range(samples)]
    )
    return ((words >> np.uint64(12)) + 0.5) * 2.0**-52  # the ends excluded, exactly


def choose(
    logits: np.ndarray, temperature: float, top_k: int | None, seed: int, t: int
) -> np.ndarray:
    """The next token of each sample, (B,), from its logits (B, V) float64.

    argmax(logits / temperature + Gumbel noise) has the softmax distribution (Gumbel 1954; Maddison
    et al. 2014); symbols below the k-th largest logit never win, as in nanoGPT.
    """
    if temperature == 0:
        return logits.argmax(axis=1)
    kept = np.ones(logits.shape, bool)
    if top_k is not None and top_k < logits.shape[1]:
        kept = logits >= np.partition(logits, -top_k, axis=1)[:, -top_k, None]
    noise = -np.log(-np.log(uniforms(seed, len(logits), t, logits.shape[1])[kept]))
    scores = np.full(logits.shape, -np.inf)
    with np.errstate(over="ignore"):  # a tiny temperature: the likeliest stays at 0, others -inf
        scores[kept] = ((logits - logits.max(axis=1, keepdims=True)) / temperature)[kept] + noise
    return scores.argmax(axis=1)


def last_logits(model: GPT, idx: Tensor, cache: KVCache | None) -> Tensor:
    """The logits after the last of tokens `idx` (B, T), (B, V)."""
    head = model.transformer.wte if model.lm_head is None else model.lm_head
    return model.hidden(idx, cache)[:, -1] @ head.weight.T


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

    block_size, kind = model.config.block_size, idx.device.type
    logits_of = torch.compile(last_logits) if compile else last_logits
    half = torch.is_autocast_enabled(kind)
    like = torch.empty(
        0, device=idx.device, dtype=torch.get_autocast_dtype(kind) if half else torch.float32
    )
    cache = KVCache(model.config, idx.size(0), like) if use_cache else None
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


def main(arguments: Sequence[str]) -> int:
    """Print `num_samples` continuations of `start`, a line of dashes after each.

    Raises:
        UserError: an unknown or impossible flag, no run, no weights, another dataset, or a prompt
            that the run's vocabulary cannot spell.
    """
    if any(a in ("--help", "-h") for a in arguments):
        print(help_text())
        return DONE
    options = parse(arguments)
    text = prompt(options.start)
    path, config, dataset = open_run(options.out_dir)
    ids = dataset.encode(text)
    for sample in draw(path, config, dataset, ids, options):
        print(dataset.decode(sample))
        print("---------------")
    return DONE


def draw(
    path: Path,
    config: ResolvedConfig,
    dataset: Dataset,
    ids: Sequence[int],
    options: SampleOptions,
) -> list[list[int]]:
    """The samples, each the prompt's tokens `ids` and what follows, drawn in one batch."""
    import torch

    from nanoscale.model.distributed import pick_device
    from nanoscale.training.numerics import DTYPES, decide

    # torch's operations: one token at a time is no work for the kernels, and a CPU then samples
    # in float32, what the weights say
    config = replace(
        config, device=options.device, dtype=options.dtype, compile=options.compile, kernels="torch"
    )
    device = pick_device(config)
    numerics = decide(config, device, asked=frozenset(["compile"]))
    dtype = DTYPES[numerics["dtype"]]
    model = load_model(path, config, device)
    idx = torch.tensor([list(ids)] * options.num_samples, device=device)
    full = dtype == torch.float32
    with nullcontext() if full else torch.autocast(device.type, dtype=dtype):
        found = generate(
            model,
            idx,
            options.max_new_tokens,
            options.temperature,
            options.top_k,
            options.use_cache,
            options.seed,
            symbols=dataset.vocab_size,
            compile=numerics["compile"],
        )
    return found.tolist()
