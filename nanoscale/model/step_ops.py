"""A training step's loss and gradients in one call of the kernels; an evaluation's losses too.

What Python, dispatch and autograd cost per operation is paid once per step, and a few sequences at
a time go forward and backward while what lies between two operations is in the cache (step.h).
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from nanoscale.model.fused_ops import FusedOps, rule_of
from nanoscale.model.gpt import GPT
from nanoscale.model.kernels import call
from nanoscale.model.masks import EMBEDDING, PLACES, Dropped, at_site
from nanoscale.model.ops import Gradients, apply, check_tokens, product_dtype
from nanoscale.spec.architecture import ffn_width, kv_width
from nanoscale.spec.config import ResolvedConfig

ALIGNED = 16  # floats: each gradient begins on a cache line

# The tensors of a model and of each block that step.h knows, in its order; {} is the MLP's first.
SLOTS = (
    "transformer.wte.weight",
    "transformer.wpe.weight",
    "transformer.ln_f.weight",
    "transformer.ln_f.bias",
    "lm_head.weight",
)
BLOCK_SLOTS = (
    "ln_1.weight",
    "ln_1.bias",
    "attn.c_q.weight",
    "attn.c_q.bias",
    "attn.c_k.weight",
    "attn.c_k.bias",
    "attn.c_v.weight",
    "attn.c_v.bias",
    "attn.q_norm.weight",
    "attn.k_norm.weight",
    "attn.c_proj.weight",
    "attn.c_proj.bias",
    "ln_2.weight",
    "ln_2.bias",
    "mlp.{}.weight",
    "mlp.{}.bias",
    "mlp.c_up.weight",
    "mlp.c_up.bias",
    "mlp.c_proj.weight",
    "mlp.c_proj.bias",
)


class ModelRecord(ctypes.Structure):
    """A model, as step.h reads it."""

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


class BatchRecord(ctypes.Structure):
    """A batch, as step.h reads it."""

    _fields_ = (
        ("sequences", c_int64),
        ("length", c_int64),
        ("idx", c_void_p),
        ("targets", c_void_p),
        ("keys", c_void_p),
        ("loss", c_void_p),
        ("room", c_void_p),
        ("foreign", c_int64),
    )


def slots(config: ResolvedConfig) -> list[str]:
    """The names of all tensors that a model can have, in step.h's order."""
    first = "c_gate" if config.use_swiglu else "c_fc"
    blocks = [
        f"transformer.h.{layer}.{name.format(first)}"
        for layer in range(config.n_layer)
        for name in BLOCK_SLOTS
    ]
    return [*SLOTS, *blocks]


def site_keys(masks: Tensor, config: ResolvedConfig) -> Tensor:
    """The key of each site and sequence, (1 + 3 n_layer, B), from the sequences' own, (B,)."""
    places = [(EMBEDDING, 0)]
    places += [(place, layer) for layer in range(config.n_layer) for place in PLACES]
    sites = [at_site(masks, config.dropout, place, layer) for place, layer in places]
    return torch.stack([keys for _, keys in filter(None, sites)])


class Step:
    """A model's calls of the kernel, its layout looked up once; they share one piece of memory.

    It holds the model's parts alone: the model holds its operations, and both go together.
    """

    def __init__(self, model: GPT) -> None:
        self.config = model.config
        self.rotary = (model.cos, model.sin) if model.config.use_rope else None
        named = dict(model.named_parameters())
        self.parameters = list(named.values())
        names = slots(model.config)
        self.slots = [names.index(name) for name in named]
        self.offsets = []  # of each gradient in one tensor of all, in floats
        self.size = 0
        for p in self.parameters:
            self.offsets.append(self.size)
            self.size += -(-p.numel() // ALIGNED) * ALIGNED
        self.tensors = (c_void_p * len(names))()
        self.gradients = (c_void_p * len(names))()
        self.record = record_of(model)
        self.record.tensors = ctypes.addressof(self.tensors)
        self.record.parameters = self.size
        self.room = torch.empty(0, dtype=torch.uint8)
        self.room_is_for: tuple[object, ...] = ()  # the last call's shape

    def is_of(self, model: GPT) -> bool:
        return self.parameters[0] is model.transformer.wte.weight

    def run(
        self,
        idx: Tensor,
        targets: Tensor,
        loss: Tensor,
        gradients: Tensor | None = None,
        keys: Tensor | None = None,
    ) -> None:
        """The mean loss of idx (B, T) and the gradients of all parameters, (size,).

        Without `gradients` the loss of each token, (B, T), and no z-loss. `keys` are those of the
        sites' masks.

        Raises:
            IndexError: a token or a target is not in the vocabulary.
        """
        idx, targets = idx.contiguous(), targets.contiguous()
        batch = self.prepared(idx, targets, loss, gradients, keys)
        call("step", product_dtype("cpu"), *self.addresses(batch))
        self.check(batch, idx, targets)

    def prepared(
        self,
        idx: Tensor,
        targets: Tensor,
        loss: Tensor,
        gradients: Tensor | None,
        keys: Tensor | None,
    ) -> BatchRecord:
        """What the kernel is told of a batch; the tensors have to stay until it has been called.

        Raises:
            ValueError: idx and targets are not (B, T) int64, of at most block_size tokens.
        """
        self.check_shapes(idx, targets)
        self.place(gradients, keys)
        batch = BatchRecord(
            sequences=idx.size(0),
            length=idx.size(1),
            idx=idx.data_ptr(),
            targets=targets.data_ptr(),
            keys=None if keys is None else keys.data_ptr(),
            loss=loss.data_ptr(),
        )
        batch.room = self.room_for(batch, idx.shape, gradients is None)
        return batch

    def room_for(self, batch: BatchRecord, shape: torch.Size, evaluates: bool) -> int:
        """The address of as much memory as the batch needs."""
        dtype = product_dtype("cpu")
        known = shape, evaluates, dtype, torch.get_num_threads()
        if known != self.room_is_for:
            needed = c_int64()
            call("step_room", dtype, *self.addresses(batch), ctypes.addressof(needed))
            if needed.value > len(self.room):
                del self.room  # before there is a larger one
                # Zeros: what lies between rows is computed with, and thrown away. Integers that lay
                # there before, an epoch's order say, are denormal floats: 5 times as slow.
                self.room = torch.zeros(needed.value, dtype=torch.uint8)
            self.room_is_for = known
        return self.room.data_ptr()

    def check_shapes(self, idx: Tensor, targets: Tensor) -> None:
        """Refuse what would be read beyond its end."""
        for tokens in (idx, targets):
            if tokens.shape != idx.shape or tokens.dtype != torch.int64 or not tokens.numel():
                raise ValueError(f"tokens are (B, T) int64; got {tokens.shape} {tokens.dtype}")
        if idx.size(1) > self.config.block_size:
            raise ValueError(f"{idx.size(1)} tokens are more than block_size")

    def addresses(self, batch: BatchRecord) -> tuple[int, int]:
        return ctypes.addressof(self.record), ctypes.addressof(batch)

    def check(self, batch: BatchRecord, idx: Tensor, targets: Tensor) -> None:
        """Refuse a token that the kernel found to be foreign."""
        if batch.foreign:
            check_tokens(idx, self.record.vocab)
            check_tokens(targets, self.record.vocab)

    def place(self, gradients: Tensor | None, keys: Tensor | None) -> None:
        """Say in the record where everything lies now, and what this call drops."""
        record = self.record
        config = self.config
        for slot, p in zip(self.slots, self.parameters, strict=True):
            self.tensors[slot] = p.data_ptr()
        record.gradients = None
        record.z_loss = 0.0
        if gradients is not None:
            for slot, address in zip(self.slots, self.places(gradients), strict=True):
                self.gradients[slot] = address
            record.gradients = ctypes.addressof(self.gradients)
            record.z_loss = config.z_loss
        if self.rotary is not None:
            record.cos, record.sin = (table.data_ptr() for table in self.rotary)
        dropped: Dropped | None = None if keys is None else (config.dropout, keys)
        _, record.threshold, record.rest = rule_of(dropped)

    def places(self, gradients: Tensor) -> list[int]:
        """Where each parameter's gradient lies in one tensor of all."""
        begin, each = gradients.data_ptr(), gradients.element_size()
        return [begin + offset * each for offset in self.offsets]


def record_of(model: GPT) -> ModelRecord:
    """A model's shape and multipliers."""
    config = model.config
    multipliers = model.multipliers
    return ModelRecord(
        layers=config.n_layer,
        vocab=config.vocab_size,
        d=config.n_embd,
        heads=config.n_head,
        kv_heads=config.kv_heads,
        head=config.head_dim,
        ffn=ffn_width(config, config.n_embd),
        rms=config.use_rmsnorm,
        swiglu=config.use_swiglu,
        eps=config.norm_eps,
        attention=multipliers.attention,
        residual=multipliers.residual,
        embedding=multipliers.embedding,
        logits=multipliers.logits,
    )


class StepLoss(Function):
    """The mean loss; its gradients come with it, as a loss is where the way back begins."""

    @staticmethod
    def forward(
        ctx: Any,
        step: Step,
        idx: Tensor,
        targets: Tensor,
        keys: Tensor | None,
        *parameters: Tensor,
    ) -> Tensor:
        loss = torch.empty(())
        gradients = torch.empty(step.size)
        step.run(idx, targets, loss, gradients, keys)
        ctx.save_for_backward(gradients)
        ctx.offsets = step.offsets
        ctx.shapes = [p.shape for p in parameters]
        return loss

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Gradients:
        (gradients,) = ctx.saved_tensors  # overwritten: autograd refuses a second backward pass
        if g != 1:
            gradients.mul_(g)
        parts = [
            gradients[at : at + shape.numel()].view(shape)
            for at, shape in zip(ctx.offsets, ctx.shapes, strict=True)
        ]
        return None, None, None, None, *parts


class StepOps(FusedOps):
    """`FusedOps`, but losses that need no look inside are made in one call.

    `trains`: those of training too, not of evaluations alone.
    """

    name = "step"

    def __init__(self, trains: bool = True) -> None:
        super().__init__()
        self.trains = trains
        self.step: Step | None = None

    def step_of(self, model: GPT) -> Step | None:
        """The model's calls; None where a product in bfloat16 would take half a pair."""
        config = model.config
        sizes = config.n_embd, kv_width(config), ffn_width(config, config.n_embd)
        if product_dtype("cpu") == torch.bfloat16 and any(size % 2 for size in sizes):
            return None
        if self.step is None or not self.step.is_of(model):
            self.step = Step(model)
        return self.step

    def training_loss(
        self, model: GPT, idx: Tensor, targets: Tensor, masks: Tensor | None
    ) -> Tensor | None:
        step = self.step_of(model) if self.trains else None
        if step is None:
            return None
        keys = None if masks is None else site_keys(masks, model.config)
        return apply(StepLoss, step, idx, targets, keys, *step.parameters)

    def token_losses(self, model: GPT, idx: Tensor, targets: Tensor) -> Tensor | None:
        step = self.step_of(model)
        if step is None:
            return None
        losses = torch.empty(targets.shape)
        step.run(idx, targets, losses)
        return losses
