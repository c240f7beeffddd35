"""A training step's loss and gradients in one call of the kernels, and losses for an evaluation.

What autograd, dispatch and Python cost per operation is paid once per step, and a few sequences at
a time go forward and backward while what lies between the operations is in the cache (step.h).
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_float, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from nanoscale.model.fused_ops import FusedOps
from nanoscale.model.gpt import GPT
from nanoscale.model.kernels import call
from nanoscale.model.masks import (
    ATTENTION_BRANCH,
    EMBEDDING,
    MLP_BRANCH,
    PLACES,
    at_site,
    compensation,
    threshold,
)
from nanoscale.model.ops import Gradients, apply, check_tokens, product_dtype

# In the order of step.h's two lists.
SLOTS = ("transformer.wte", "transformer.wpe", "transformer.ln_f", "lm_head")


class Model(ctypes.Structure):
    """A model as step.h reads it."""

    _fields_ = (
        ("layers", c_int64),
        ("vocab", c_int64),
        ("d", c_int64),
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("head", c_int64),
        ("ffn", c_int64),
        ("rms", c_int64),
        ("swiglu", c_int64),
        ("eps", c_float),
        ("attention", c_float),
        ("residual", c_float),
        ("embedding", c_float),
        ("logits", c_float),
        ("z_loss", c_float),
        ("rest", c_float),
        ("threshold", c_int64),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("tensors", c_void_p),
        ("gradients", c_void_p),
        ("parameters", c_int64),
    )


class Batch(ctypes.Structure):
    """A batch as step.h reads it."""

    _fields_ = (
        ("sequences", c_int64),
        ("length", c_int64),
        ("idx", c_void_p),
        ("targets", c_void_p),
        ("keys", c_void_p),
        ("loss", c_void_p),
    )


def slots(model: GPT) -> list[str]:
    """The names of all tensors that a model could have, in step.h's order."""
    swiglu = model.config.use_swiglu
    block = (
        "ln_1.weight ln_1.bias attn.c_q.weight attn.c_q.bias attn.c_k.weight attn.c_k.bias "
        "attn.c_v.weight attn.c_v.bias attn.q_norm.weight attn.k_norm.weight attn.c_proj.weight "
        "attn.c_proj.bias ln_2.weight ln_2.bias "
        f"mlp.{'c_gate' if swiglu else 'c_fc'}.weight mlp.{'c_gate' if swiglu else 'c_fc'}.bias "
        "mlp.c_up.weight mlp.c_up.bias mlp.c_proj.weight mlp.c_proj.bias"
    ).split()
    names = [
        "transformer.wte.weight",
        "transformer.wpe.weight",
        "transformer.ln_f.weight",
        "transformer.ln_f.bias",
        "lm_head.weight",
    ]
    for layer in range(model.config.n_layer):
        names += [f"transformer.h.{layer}.{name}" for name in block]
    return names


class Step:
    """A model's calls, its addresses looked up once."""

    def __init__(self, model: GPT) -> None:
        self.model = model
        named = dict(model.named_parameters())
        self.parameters = list(named.values())
        names = slots(model)
        assert set(named) <= set(names)
        place = {name: i for i, name in enumerate(names)}
        self.slots = [place[name] for name in named]
        offsets = []
        at = 0
        for p in self.parameters:
            offsets.append(at)
            at += -(-p.numel() // 16) * 16
        self.offsets = offsets
        self.total = at
        self.pointers = (c_void_p * len(names))()
        self.gradients = (c_void_p * len(names))()

    def model_struct(self, training: bool, dropout: bool, flat: Tensor | None) -> Model:
        model = self.model
        config = model.config
        for slot, p in zip(self.slots, self.parameters, strict=True):
            self.pointers[slot] = p.data_ptr()
        if flat is not None:
            base = flat.data_ptr()
            for slot, offset in zip(self.slots, self.offsets, strict=True):
                self.gradients[slot] = base + 4 * offset
        m = model.multipliers
        p = config.dropout
        return Model(
            layers=config.n_layer,
            vocab=config.vocab_size,
            d=config.n_embd,
            heads=config.n_head,
            kv_heads=config.kv_heads,
            head=config.head_dim,
            ffn=model.transformer.h[0].mlp.c_proj.weight.size(1),
            rms=config.use_rmsnorm,
            swiglu=config.use_swiglu,
            eps=config.norm_eps,
            attention=m.attention,
            residual=m.residual,
            embedding=m.embedding,
            logits=m.logits,
            z_loss=config.z_loss if training else 0.0,
            rest=compensation(p) if dropout else 1.0,
            threshold=threshold(p) if dropout else 0,
            cos=model.cos.data_ptr() if config.use_rope else None,
            sin=model.sin.data_ptr() if config.use_rope else None,
            tensors=ctypes.cast(self.pointers, c_void_p),
            gradients=None if flat is None else ctypes.cast(self.gradients, c_void_p),
            parameters=self.total,
        )

    def keys(self, masks: Tensor | None) -> Tensor | None:
        """The key of each site and sequence, (sites, B)."""
        if masks is None:
            return None
        sites = [at_site(masks, 1.0, EMBEDDING)]
        for layer in range(self.model.config.n_layer):
            sites += [at_site(masks, 1.0, place, layer) for place in PLACES]
        return torch.stack([site[1] for site in sites if site])


class Whole(Function):
    """The mean loss; its gradients are known with it, as a loss is where the way back begins."""

    @staticmethod
    def forward(
        ctx: Any, step: Step, idx: Tensor, targets: Tensor, masks: Tensor | None, *parameters: Tensor
    ) -> Tensor:
        loss = torch.empty(())
        flat = torch.empty(step.total)
        keys = step.keys(masks)
        run(step, idx, targets, keys, loss, flat)
        ctx.step = step
        ctx.flat = flat
        return loss

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Gradients:
        step, flat = ctx.step, ctx.flat
        del ctx.flat
        if g != 1:
            flat *= g
        grads = [
            flat[at : at + p.numel()].view(p.shape)
            for at, p in zip(step.offsets, step.parameters, strict=True)
        ]
        return None, None, None, None, *grads


def run(
    step: Step,
    idx: Tensor,
    targets: Tensor,
    keys: Tensor | None,
    loss: Tensor,
    flat: Tensor | None,
) -> None:
    idx = idx.contiguous()
    targets = targets.contiguous()
    struct = step.model_struct(flat is not None, keys is not None, flat)
    batch = Batch(
        idx.size(0),
        idx.size(1),
        idx.data_ptr(),
        targets.data_ptr(),
        None if keys is None else keys.data_ptr(),
        loss.data_ptr(),
    )
    call("whole_step", product_dtype("cpu"), ctypes.addressof(struct), ctypes.addressof(batch))


class StepOps(FusedOps):
    """`FusedOps`, and a whole training step at once."""

    name = "step"

    def __init__(self) -> None:
        super().__init__()
        self.step: Step | None = None

    def whole_loss(self, model: GPT, idx: Tensor, targets: Tensor, masks: Tensor | None) -> Tensor:
        if self.step is None:
            self.step = Step(model)
        check_tokens(idx, model.transformer.wte.num_embeddings)
        check_tokens(targets, model.transformer.wte.num_embeddings)
        return apply(Whole, self.step, idx, targets, masks, *self.step.parameters)
