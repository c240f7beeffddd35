"""The GPT against a plain float64 one, against Hugging Face's, and in what it promises."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import VOCAB, flag_combinations, tiny_config
from torch import Tensor

from nanoscale.errors import UserError
from nanoscale.model import kernels
from nanoscale.model.fused_ops import FusedOps
from nanoscale.model.gpt import GPT, KVCache, rotary_tables
from nanoscale.model.initial import normal
from nanoscale.model.ops import Norm, Ops, rotate
from nanoscale.spec.architecture import tensors
from nanoscale.spec.config import ExperimentConfig
from nanoscale.spec.parametrization import rules_of

ALL_FLAGS = pytest.mark.parametrize(
    "flags",
    flag_combinations(),
    ids=lambda f: "".join("01"[value not in (None, False)] for value in f.values()),
)
NO_KERNELS = pytest.mark.skipif(kernels.library() is None, reason="no compiler for the kernels")
OPS = pytest.mark.parametrize("ops", [Ops, pytest.param(FusedOps, marks=NO_KERNELS)])
# eps, theta and sizes at which a mistake in any of them shows in the logits
TELLING = {"norm_eps": 0.05, "rope_theta": 50.0}


def tokens(batch: int = 2, length: int = 8, seed: int = 0) -> Tensor:
    return torch.randint(VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def shaken(config: ExperimentConfig, seed: int = 1) -> GPT:
    """A model in evaluation mode, every parameter (gains, biases) moved at random."""
    model, generator = GPT(config).eval(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.3)
    return model


# --- a second GPT ------------------------------------------------------------------------------


class PlainGPT:
    """GPT-2's or LLaMA's forward pass, one head and one query at a time, from the weights alone."""

    def __init__(self, model: GPT) -> None:
        self.c = model.config
        self.p = {name: value.double() for name, value in model.state_dict().items()}

    def linear(self, x: Tensor, name: str) -> Tensor:
        y = x @ self.p[f"{name}.weight"].T
        return y + self.p[f"{name}.bias"] if f"{name}.bias" in self.p else y

    def norm(self, x: Tensor, name: str, rms: bool) -> Tensor:
        if not rms:
            x = x - x.mean(-1, keepdim=True)
        y = x / (x.pow(2).mean(-1, keepdim=True) + self.c.norm_eps).sqrt()
        y = y * self.p[f"{name}.weight"]
        return y + self.p[f"{name}.bias"] if f"{name}.bias" in self.p else y

    def turned(self, x: Tensor) -> Tensor:
        """Pairs (x_i, x_{i + h/2}) of one head, (T, h), as complex numbers turned by position."""
        half = x.size(1) // 2
        i, t = torch.arange(half).double(), torch.arange(len(x)).double()
        angle = torch.outer(t, self.c.rope_theta ** (-i / half))
        z = torch.complex(x[:, :half], x[:, half:]) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat([z.real, z.imag], 1)

    def head(self, x: Tensor, at: str, j: int) -> Tensor:
        """Head j's weighted values, (T, h)."""
        h = self.c.n_embd // self.c.n_head
        kv = j // (self.c.n_head // (self.c.n_kv_head or self.c.n_head))
        q = self.linear(x, f"{at}.c_q")[:, j * h : j * h + h]
        k, v = (self.linear(x, f"{at}.{name}")[:, kv * h : kv * h + h] for name in ("c_k", "c_v"))
        if self.c.use_qk_norm:
            q, k = self.norm(q, f"{at}.q_norm", True), self.norm(k, f"{at}.k_norm", True)
        if self.c.use_rope:
            q, k = self.turned(q), self.turned(k)
        scale = 1 / math.sqrt(h)
        if self.c.parametrization.mode != "SP":
            scale = math.sqrt(self.c.parametrization.base_head_dim) / h
        rows = [(k[: t + 1] @ q[t] * scale).exp() for t in range(len(x))]
        return torch.stack([w @ v[: t + 1] / w.sum() for t, w in enumerate(rows)])

    def mlp(self, x: Tensor, at: str) -> Tensor:
        if self.c.use_swiglu:
            gate = self.linear(x, f"{at}.c_gate")
            hidden = gate / (1 + (-gate).exp()) * self.linear(x, f"{at}.c_up")
        else:
            y = self.linear(x, f"{at}.c_fc")
            hidden = y * 0.5 * (1 + torch.erf(y / math.sqrt(2)))
        return self.linear(hidden, f"{at}.c_proj")

    def logits(self, idx: Tensor) -> Tensor:
        """Logits of one sequence, (T, V)."""
        p, rms = self.c.parametrization, self.c.use_rmsnorm
        x = self.p["transformer.wte.weight"][idx]
        if not self.c.use_rope:
            x = x + self.p["transformer.wpe.weight"][: len(idx)]
        x = x * (1 if p.mode == "SP" else p.input_mult)
        m = (self.c.n_layer / p.base_n_layer) ** -p.alpha if p.mode == "CompleteP" else 1
        for i in range(self.c.n_layer):
            at = f"transformer.h.{i}"
            a = self.norm(x, f"{at}.ln_1", rms)
            heads = [self.head(a, f"{at}.attn", j) for j in range(self.c.n_head)]
            x = x + m * self.linear(torch.cat(heads, 1), f"{at}.attn.c_proj")
            x = x + m * self.mlp(self.norm(x, f"{at}.ln_2", rms), f"{at}.mlp")
        head = self.p.get("lm_head.weight", self.p["transformer.wte.weight"])
        y = self.norm(x, "transformer.ln_f", rms) @ head.T
        return y * (1 if p.mode == "SP" else p.output_mult * p.base_n_embd / self.c.n_embd)


def check_against_plain(config: ExperimentConfig) -> None:
    model, idx = shaken(config), tokens(length=6)
    with torch.no_grad():
        found = model(idx)[0]
    expected = torch.stack([PlainGPT(model).logits(row) for row in idx])
    assert expected.std() > 0.05
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@ALL_FLAGS
def test_the_logits_equal_a_plain_float64_model(flags):
    check_against_plain(tiny_config(**flags, **TELLING))


@pytest.mark.parametrize("mode", ["muP", "CompleteP"])
@pytest.mark.parametrize("llama", [False, True])
def test_the_forward_multipliers_equal_a_plain_float64_model(mode, llama):
    check_against_plain(
        tiny_config(
            mode=mode,
            base_n_embd=64,
            base_n_layer=5,
            base_head_dim=9,
            alpha=0.7,
            input_mult=1.7,
            output_mult=0.6,
            use_rope=llama,
            use_rmsnorm=llama,
            use_swiglu=llama,
            **TELLING,
        )
    )


# --- Hugging Face's ----------------------------------------------------------------------------


def state_for_gpt2(model: GPT) -> dict[str, Tensor]:
    """Our weights under GPT-2's names: q, k and v joined, matrices (in, out)."""
    ours = dict(model.state_dict())
    for i in range(model.config.n_layer):
        at = f"transformer.h.{i}.attn"
        for kind in ("weight", "bias"):
            ours[f"{at}.c_attn.{kind}"] = torch.cat(
                [ours.pop(f"{at}.c_{part}.{kind}") for part in "qkv"]
            )
    matrices = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    ours = {name: v.T.contiguous() if name.endswith(matrices) else v for name, v in ours.items()}
    return ours | {"lm_head.weight": ours["transformer.wte.weight"]}


def state_for_llama(model: GPT) -> dict[str, Tensor]:
    """Our weights under LLaMA's names."""
    names = {
        "transformer.wte": "model.embed_tokens",
        "transformer.ln_f": "model.norm",
        "transformer.h": "model.layers",
        "ln_1": "input_layernorm",
        "ln_2": "post_attention_layernorm",
        "attn.c_proj": "self_attn.o_proj",
        "attn.c_q": "self_attn.q_proj",
        "attn.c_k": "self_attn.k_proj",
        "attn.c_v": "self_attn.v_proj",
        "mlp.c_gate": "mlp.gate_proj",
        "mlp.c_up": "mlp.up_proj",
        "mlp.c_proj": "mlp.down_proj",
    }
    theirs = {}
    for name, value in model.state_dict().items():
        for mine, other in names.items():
            name = name.replace(mine, other)
        theirs[name] = value
    return theirs


@pytest.mark.filterwarnings("ignore")
def test_the_logits_equal_hugging_faces_gpt2():
    hf = pytest.importorskip("transformers")
    model = shaken(tiny_config(bias=True, norm_eps=1e-3))
    theirs = hf.GPT2LMHeadModel(
        hf.GPT2Config(
            vocab_size=VOCAB,
            n_positions=8,
            n_embd=16,
            n_layer=2,
            n_head=4,
            layer_norm_epsilon=1e-3,
            activation_function="gelu",
        )
    ).eval()
    theirs.load_state_dict(state_for_gpt2(model))
    torch.testing.assert_close(model(tokens())[0], theirs(tokens()).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_the_logits_equal_hugging_faces_llama():
    hf = pytest.importorskip("transformers")
    model = shaken(
        tiny_config(
            use_rmsnorm=True,
            use_rope=True,
            use_swiglu=True,
            n_kv_head=2,
            tie_embeddings=False,
            norm_eps=1e-3,
        )
    )
    theirs = hf.LlamaForCausalLM(
        hf.LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=16,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            rms_norm_eps=1e-3,
            max_position_embeddings=8,
        )
    ).eval()
    theirs.load_state_dict(state_for_llama(model))
    torch.testing.assert_close(model(tokens())[0], theirs(tokens()).logits, rtol=1e-5, atol=1e-5)


# --- what every combination of flags keeps -----------------------------------------------------


@pytest.mark.slow
@ALL_FLAGS
@torch.no_grad()
def test_no_token_sees_its_future(flags):
    model, idx = shaken(tiny_config(**flags)), tokens()
    changed = idx.clone()
    changed[:, 5] = (idx[:, 5] + 1) % VOCAB
    before, after = model(idx)[0], model(changed)[0]
    torch.testing.assert_close(before[:, :5], after[:, :5], rtol=0, atol=1e-6)
    assert ((before - after)[:, 5:].abs().amax(dim=(0, 2)) > 1e-4).all()


@pytest.mark.slow
@ALL_FLAGS
@torch.no_grad()
def test_logits_do_not_depend_on_targets(flags):
    model = shaken(tiny_config(**flags, mode="CompleteP", base_n_embd=64))
    logits, none = model(tokens())
    with_targets, loss = model(tokens(), tokens(seed=9))
    assert none is None
    assert torch.equal(logits, with_targets)
    picked = logits.double().log_softmax(-1).gather(-1, tokens(seed=9)[..., None])
    torch.testing.assert_close(loss.double(), -picked.mean(), rtol=1e-5, atol=0)


@pytest.mark.slow
def test_a_config_that_is_not_resolved_is_refused():
    with pytest.raises(UserError, match="needs a resolved config"):
        GPT(ExperimentConfig(n_layer=1, n_head=2, n_embd=16, vocab_size=65))


@ALL_FLAGS
@torch.no_grad()
def test_token_by_token_with_the_cache_equals_all_at_once(flags):
    model, idx = shaken(tiny_config(**flags, **TELLING)), tokens(length=8)
    whole = model(idx)[0]
    cache = KVCache(model.config, batch=2, device=torch.device("cpu"))
    parts = [model(idx[:, :3], cache=cache)[0]]
    parts += [model(idx[:, t : t + 1], cache=cache)[0] for t in range(3, 8)]
    assert cache.length == 8
    # float32 rounds in units of the largest logit; a wrong position or mask moves them by tenths.
    worst = (torch.cat(parts, 1) - whole).abs().max()
    assert worst < 1e-5 * whole.abs().max()


@pytest.mark.slow
@ALL_FLAGS
def test_the_probe_sees_every_part_and_changes_nothing(flags):
    model, idx = shaken(tiny_config(**flags, mode="CompleteP", base_n_layer=1)), tokens()
    seen: dict[str, Tensor] = {}
    logits, loss = model(idx, idx, probe=lambda name, x: seen.setdefault(name, x))
    assert torch.equal(logits, model(idx)[0])
    grads = torch.autograd.grad(loss, list(model.parameters()))
    plain = torch.autograd.grad(model(idx, idx)[1], list(model.parameters()))
    assert all(map(torch.equal, grads, plain))
    parts = [f"h.{i}.{part}" for i in range(2) for part in ("attn.scores", "attn", "mlp", "out")]
    assert list(seen) == ["embedding", *parts, "logits"]
    assert seen["logits"] is logits
    x = seen["embedding"]
    for i, block in enumerate(model.transformer.h):
        scores = seen[f"h.{i}.attn.scores"]  # (B, H, T, T)
        assert scores.isneginf().equal(torch.ones(8, 8).triu(1).bool().expand(2, 4, 8, 8))
        v = block.attn.c_v(block.ln_1(x)).view(2, 8, -1, 4).transpose(1, 2)
        y = scores.softmax(-1) @ v.repeat_interleave(4 // v.size(1), 1)
        attn = block.attn.c_proj(y.transpose(1, 2).flatten(2))
        torch.testing.assert_close(attn, seen[f"h.{i}.attn"], rtol=1e-4, atol=1e-5)
        x = x + 0.5 * (seen[f"h.{i}.attn"] + seen[f"h.{i}.mlp"])
        torch.testing.assert_close(x, seen[f"h.{i}.out"], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@ALL_FLAGS
def test_parameters_are_the_architectures_in_its_order(flags):
    config = tiny_config(**flags)
    model = GPT(config)
    assert [(name, tuple(p.shape)) for name, p in model.named_parameters()] == [
        (s.name, s.shape) for s in tensors(config)
    ]
    assert model.state_dict().keys() == dict(model.named_parameters()).keys()


@pytest.mark.parametrize("flags", [{}, {"use_rope": True}], ids=["learned", "rope"])
@OPS
def test_more_tokens_than_the_block_are_refused(ops, flags):
    model = GPT(tiny_config(**flags), ops())
    assert model(tokens(length=8))[0].isfinite().all()
    for targets in (None, tokens(length=9)):
        with pytest.raises(ValueError, match="9 tokens do not fit into block_size=8"):
            model(tokens(length=9), targets)
    cache = KVCache(model.config, batch=2, device=torch.device("cpu"))
    with torch.no_grad():
        model(tokens(length=8), cache=cache)
        with pytest.raises(ValueError, match="9 tokens do not fit into block_size=8"):
            model(tokens(length=1), cache=cache)
    assert cache.length == 8


@pytest.mark.parametrize("token", [-100, -1, VOCAB])
@pytest.mark.parametrize("chunk", [None, 3])
@OPS
def test_what_is_not_in_the_vocabulary_is_refused_alike(ops, chunk, token):
    """-100 too, which torch's own loss would leave out."""
    model = GPT(tiny_config(loss_chunk=chunk, z_loss=0.01), ops()).train()
    bad = tokens().clone()
    bad[1, 3] = token
    for idx, targets in ((bad, tokens()), (tokens(), bad)):
        with pytest.raises(IndexError, match=f"token {token} is not in the vocabulary of {VOCAB}"):
            model(idx, targets)


# --- rotary ------------------------------------------------------------------------------------


def test_rotary_products_depend_on_distance_alone():
    cos, sin = rotary_tables(16, 64, 10000.0)
    q, k = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(0))

    def product(m: int, n: int) -> float:
        at = [rotate(x, cos[i : i + 1], sin[i : i + 1]) for x, i in ((q, m), (k, n))]
        return float((at[0] * at[1]).sum())

    for m, n in ((0, 0), (3, 0), (40, 7), (7, 40)):
        shifted = [product(m + s, n + s) for s in (0, 1, 20)]
        assert shifted == pytest.approx([product(m, n)] * 3, abs=1e-4)
    assert abs(product(9, 0) - product(0, 0)) > 0.05
    assert float(rotate(q, cos[63:], sin[63:]).norm()) == pytest.approx(float(q.norm()), rel=1e-5)


def test_learned_positions_break_the_symmetry_that_rope_keeps():
    same = torch.full((1, 8), 3)
    with torch.no_grad():
        learned = shaken(tiny_config())(same)[0][0]
        rotary = shaken(tiny_config(use_rope=True))(same)[0][0]
    assert (learned[1] - learned[7]).abs().max() > 1e-3
    torch.testing.assert_close(rotary[1], rotary[7], rtol=1e-4, atol=1e-5)


# --- initial values ----------------------------------------------------------------------------


def test_a_tensors_initial_values_depend_on_seed_and_name_alone():
    state = GPT(tiny_config(tie_embeddings=False)).state_dict()
    deeper = GPT(
        tiny_config(
            tie_embeddings=False,
            n_layer=4,
            use_rmsnorm=True,
            dropout=0.5,
            n_kv_head=2,
            batch_size=1,
            data_seed=5,
            seed=1337,
        )
    ).state_dict()
    for name, value in state.items():
        if "c_proj" not in name and value.shape == deeper[name].shape:
            assert torch.equal(value, deeper[name])
    ratio = deeper["transformer.h.0.mlp.c_proj.weight"] / state["transformer.h.0.mlp.c_proj.weight"]
    torch.testing.assert_close(ratio, torch.full_like(ratio, math.sqrt(0.5)))
    starts = [value.flatten()[:4] for value in state.values() if value.dim() == 2]
    shapes = {tuple((start / start[0]).round(decimals=3).tolist()) for start in starts}
    assert len(shapes) == len(starts) == 15  # no two tensors are one stream, scaled


def test_initial_values_follow_init_seed_and_not_seed_or_global_state():
    config = tiny_config(seed=1, init_seed=7)
    torch.manual_seed(0)
    first = GPT(config).state_dict()
    torch.manual_seed(99)
    second = GPT(replace(config, seed=2, data_seed=3)).state_dict()
    other = GPT(replace(config, init_seed=8)).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["transformer.wte.weight"], other["transformer.wte.weight"])


def test_the_normal_values_are_philoxs_with_the_whole_key():
    name, seed = "transformer.wte.weight", 2**63 - 1
    hashed = np.frombuffer(hashlib.sha256(name.encode()).digest()[:8], "<u8")[0]
    assert hashed > 2**53  # a float on the way would lose its last bits
    philox = np.random.Philox(key=np.array([seed, hashed], np.uint64))
    expected = np.random.Generator(philox).standard_normal((3, 5), np.float32)
    assert torch.equal(normal(seed, name, (3, 5)), torch.from_numpy(expected))
    assert not torch.equal(normal(seed - 1, name, (3, 5)), torch.from_numpy(expected))


@pytest.mark.parametrize("mode", ["SP", "muP", "CompleteP"])
def test_initial_values_have_their_rules_mean_and_spread(mode):
    config = tiny_config(
        mode=mode,
        n_layer=3,
        n_embd=64,
        bias=True,
        use_swiglu=True,
        tie_embeddings=False,
        use_qk_norm=True,
        base_n_embd=16,
    )
    state = GPT(config).state_dict()
    for spec in tensors(config):
        values, target = state[spec.name].double(), rules_of(config).rule(spec).init_std
        if spec.role == "bias" or "norm" in spec.role:
            assert (values == (0 if spec.role == "bias" else 1)).all()
            continue
        assert abs(values.std() / target - 1) < 4 / math.sqrt(2 * spec.numel), spec.name
        assert abs(values.mean()) < 4 * target / math.sqrt(spec.numel), spec.name


# --- training-time parts -----------------------------------------------------------------------


@torch.no_grad()
def test_the_z_loss_is_its_formula_and_only_in_training():
    model = shaken(tiny_config(z_loss=0.25))
    logits, plain = model(tokens(), tokens(seed=1))
    loss = model.train()(tokens(), tokens(seed=1))[1]
    z = logits.double().exp().sum(-1).log().square().mean()
    assert z > 0.1
    torch.testing.assert_close(loss - plain, (0.25 * z).float(), rtol=1e-5, atol=1e-6)
    assert torch.equal(shaken(tiny_config()).train()(tokens(), tokens(seed=1))[1], plain)


@pytest.mark.parametrize("rms", [False, True])
def test_norms_are_computed_in_float32_under_a_narrower_type(rms):
    norm = Norm(64, 1e-5, rms=rms, bias=not rms)
    with torch.no_grad():
        norm.weight.normal_(1, 0.1, generator=torch.Generator().manual_seed(0))
        if not rms:
            norm.bias.fill_(0.5)
    x = (torch.randn(3, 64, generator=torch.Generator().manual_seed(1)) + 200).bfloat16()
    assert norm(x).dtype == torch.bfloat16
    assert torch.equal(norm(x), norm(x.float()).bfloat16())


def test_a_tied_head_is_one_tensor_and_gets_both_gradients():
    tied, untied = GPT(tiny_config()), GPT(tiny_config(tie_embeddings=False))
    assert tied.lm_head is None
    with torch.no_grad():
        untied.lm_head.weight.copy_(tied.transformer.wte.weight)
    for model in (tied, untied):
        model(tokens(), tokens(seed=1))[1].backward()
    both = untied.transformer.wte.weight.grad + untied.lm_head.weight.grad
    torch.testing.assert_close(tied.transformer.wte.weight.grad, both, rtol=1e-5, atol=1e-7)


def test_a_model_on_the_meta_device_has_shapes_and_no_values():
    with torch.device("meta"):
        model = GPT(tiny_config(use_rope=True, n_embd=4096, n_layer=2))
    assert all(p.is_meta for p in model.parameters())
    assert model(torch.zeros(1, 8, dtype=torch.long, device="meta"))[0].shape == (1, 8, VOCAB)
