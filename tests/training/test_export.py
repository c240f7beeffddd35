"""Weights out and in: transformers is the oracle of both, offline, on models of a few thousand."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_config

from nanoscale.model import exporting
from nanoscale.model.gpt import GPT
from nanoscale.model.pretrained import read_hugging_face
from nanoscale.spec.config import ResolvedConfig, from_flat
from nanoscale.spec.families import FAMILIES, family_of, lacking, their_config
from nanoscale.spec.resolve import resolve

V, T = 11, 8
SCHEMES = ("SP", "muP", "CompleteP")
BASES = {"base_n_embd": 8, "base_n_layer": 1, "base_head_dim": 16, "alpha": 0.7}
TUNED = {"input_mult": 1.7, "output_mult": 2.3}


@pytest.fixture(scope="module")
def hf() -> Iterator[Any]:
    """transformers, which never asks the hub."""
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    os.environ.update(HF_HUB_DISABLE_PROGRESS_BARS="1")
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def config_of(family: Any, mode: str, **flags: Any) -> ResolvedConfig:
    """A config of a family's parts in which no multiplier is 1, but under SP."""
    sizes = BASES | (TUNED if mode != "SP" else {})
    return tiny_config(**family.parts, mode=mode, init_std=0.3, **sizes, **flags)


def lively(config: ResolvedConfig, seed: int = 0) -> GPT:
    """A model in which no gain is 1 and no bias 0."""
    model = GPT(config).eval()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=random), alpha=0.25)
    return model


def write(folder: Path, model: GPT) -> Path:
    """An export's config and weights."""
    family = family_of(model.config)
    folder.mkdir()
    record = json.dumps(their_config(family, model.config, None))
    (folder / "config.json").write_text(record)
    tensors = exporting.exported(family, model.config, model.state_dict())
    exporting.write_safetensors(folder / "model.safetensors", tensors)
    return folder


def opened(hf: Any, folder: Path) -> Any:
    """What transformers makes of a folder, every tensor of which it must know and need."""
    model, found = hf.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(found.values()), found
    return model.eval()


def imported(folder: Path) -> GPT:
    pretrained = read_hugging_face(folder)
    vocab_size = pretrained.keys["vocab_size"]
    assert isinstance(vocab_size, int)
    model = GPT(resolve(from_flat(pretrained.keys), vocab_size)).eval()
    model.load_state_dict(dict(pretrained.tensors))
    return model


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference of logits, relative to the largest logit."""
    return float((ours - theirs).abs().max() / ours.abs().max())


@torch.no_grad()
def logits_of(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    out = model(tokens)
    logits: torch.Tensor = out[0] if isinstance(out, tuple) else out.logits
    return logits


def tokens(seed: int = 1, length: int = T) -> torch.Tensor:
    return torch.randint(V, (3, length), generator=torch.Generator().manual_seed(seed))


# -- the same function ----------------------------------------------------------------------------
def matrix() -> list[Any]:
    """Families x schemes x tied x groups of heads x biases; a tenth of them in `make test`."""
    cases = []
    for k, family in enumerate(FAMILIES):
        for mode, tied, kv, bias in itertools.product(range(3), (0, 1), (4, 2), (0, 1)):
            flags = {"tie_embeddings": bool(tied), "n_kv_head": kv, "bias": bool(bias)}
            if lacking(family, tiny_config(**family.parts, **flags)):
                continue
            sampled = mode == (k + tied + 1) % 3 and kv == 2 + 2 * tied
            sampled &= bias == tied or family.model_type in ("qwen3", "stablelm")
            marks = () if sampled else pytest.mark.soak
            name = f"{family.model_type}-{SCHEMES[mode]}-tied{tied}-kv{kv}-bias{bias}"
            cases.append(pytest.param(family, SCHEMES[mode], flags, marks=marks, id=name))
    return cases


@pytest.mark.parametrize(("family", "mode", "flags"), matrix())
def test_logits_are_ours_there_and_back(hf, tmp_path, family, mode, flags):
    model = lively(config_of(family, mode, **flags))
    folder = write(tmp_path / "hf", model)
    ours = logits_of(model, tokens())
    assert apart(ours, logits_of(opened(hf, folder), tokens())) < 1e-5
    again = imported(folder)
    assert apart(ours, logits_of(again, tokens())) < 1e-5
    if family.model_type != "gpt2":  # whose biases and key heads are all there are
        assert again.config.bias == model.config.bias
        assert again.config.n_kv_head == model.config.n_kv_head


@pytest.mark.parametrize("layer", ["wte", "c_q", "q_norm", "c_proj", "ln_f"])
def test_no_multiplier_is_idle(hf, tmp_path, monkeypatch, layer):
    """What the test above would not see, were a fold left out."""
    family = next(f for f in FAMILIES if f.parts["use_qk_norm"] == (layer == "q_norm") and f.biases)
    model = lively(config_of(family, "CompleteP"))
    whole = exporting.folded_into
    monkeypatch.setattr(
        exporting,
        "folded_into",
        lambda name, *given: 1.0 if f".{layer}." in name else whole(name, *given),
    )
    folder = write(tmp_path / "hf", model)
    assert apart(logits_of(model, tokens()), logits_of(imported(folder), tokens())) > 1e-3


def made_by(hf: Any, architecture: str, **changes: Any) -> Any:
    """A random model of transformers, no gain of which is 1 and no bias 0."""
    torch.manual_seed(0)
    family = next(f for f in FAMILIES if f.architecture == architecture)
    base = tiny_config(**family.parts, n_kv_head=2 if "n_kv_head" in family.sizes else 4)
    record = dict(their_config(family, base, None)) | changes
    config = hf.AutoConfig.for_model(**record)
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.25)
    return model


THEIRS = {
    "GPT-2": ("GPT2LMHeadModel", {}),
    "GPT-2 with a head of its own": ("GPT2LMHeadModel", {"tie_word_embeddings": False}),
    "Llama": ("LlamaForCausalLM", {"intermediate_size": 56}),
    "tied Llama": ("LlamaForCausalLM", {"tie_word_embeddings": True}),
    "Llama with some biases": ("LlamaForCausalLM", {"attention_bias": True}),
    "Qwen3": ("Qwen3ForCausalLM", {"rms_norm_eps": 1e-6}),
    "Qwen3 with biases": ("Qwen3ForCausalLM", {"attention_bias": True}),
    "StableLm with biases": ("StableLmForCausalLM", {"use_qkv_bias": True}),
}


@pytest.mark.parametrize("case", THEIRS)
def test_a_random_model_of_theirs_comes_in(hf, tmp_path, case):
    architecture, changes = THEIRS[case]
    model = made_by(hf, architecture, **changes)
    model.save_pretrained(tmp_path, max_shard_size="6KB" if "Qwen3" in case else "1GB")
    assert apart(logits_of(model, tokens()), logits_of(imported(tmp_path), tokens())) < 1e-5


def test_a_gpt2_of_openai_comes_in_with_a_warning(hf, tmp_path):
    """Its GELU is an approximation by tanh; ours and nanoGPT's are exact."""
    model = made_by(hf, "GPT2LMHeadModel", activation_function="gelu_new")
    model.save_pretrained(tmp_path)
    (line,) = read_hugging_face(tmp_path).warnings
    assert "gelu_new" in line
    assert 1e-6 < apart(logits_of(model, tokens()), logits_of(imported(tmp_path), tokens())) < 1e-2


def test_a_base_models_file_and_narrow_floats_come_in(hf, tmp_path):
    """As the hub's gpt2 has it: names without their root, with the masks of old."""
    from safetensors.torch import load_file, save_file

    model = made_by(hf, "GPT2LMHeadModel").to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in held.items()}
    bare |= {"h.0.attn.bias": torch.ones(1, 1, 8, 8), "lm_head.weight": bare["wte.weight"] + 0}
    save_file(bare, tmp_path / "model.safetensors")
    ours = imported(tmp_path)
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}
    assert apart(logits_of(model.float(), tokens()), logits_of(ours, tokens())) < 1e-5
