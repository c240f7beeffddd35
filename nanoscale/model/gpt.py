"""The GPT: GPT-2's parts by default, LLaMA's behind flags, in every combination.

Names, roles and shapes of its tensors come from `spec/architecture.py`, the spread of their initial
values and the forward multipliers from `spec/parametrization.py`. Shapes: B sequences, T tokens,
S tokens so far, H heads, K key-value heads, h head size, d = n_embd, V symbols.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nanoscale.errors import UserError
from nanoscale.model.initial import normal
from nanoscale.model.masks import (
    ATTENTION_BRANCH,
    ATTENTION_WEIGHTS,
    EMBEDDING,
    MLP_BRANCH,
    Dropped,
    at_site,
    drawn_keys,
)
from nanoscale.model.ops import Linear, Norm, Ops, Rotary, attention_scores, product_dtype
from nanoscale.spec.architecture import ffn_width
from nanoscale.spec.config import ExperimentConfig, ResolvedConfig
from nanoscale.spec.parametrization import Multipliers, Rules, rules_of

Probe = Callable[[str, Tensor], None]  # sees named activations: statistics, coordinate checks


class KVCache:
    """Keys and values of the tokens so far, one pair of buffers per block."""

    def __init__(self, config: ResolvedConfig, batch: int, device: torch.device) -> None:
        shape = (config.n_layer, 2, batch, config.block_size, config.kv_heads, config.head_dim)
        self.buffers = torch.empty(shape, device=device, dtype=product_dtype(device.type))
        self.length = 0

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new tokens' k and v, (B, T, K, h); return all so far, (B, S, K, h)."""
        assert self.length == 0 or k.size(1) == 1, "the causal mask knows these two cases"
        end = self.length + k.size(1)
        new = slice(self.length, end)
        keys, values = self.buffers[layer]
        keys[:, new] = k
        values[:, new] = v
        return keys[:, :end], values[:, :end]


def rotary_tables(head_dim: int, length: int, theta: float) -> Rotary:
    """cos and sin of RoPE's angles, (length, head_dim) each (Su et al. 2021, LLaMA's halves)."""
    pairs = torch.arange(0, head_dim, 2, dtype=torch.float64)
    frequencies = theta ** (-pairs / head_dim)  # (h / 2,)
    positions = torch.arange(length, dtype=torch.float64)
    angles = torch.outer(positions, frequencies)
    angles = torch.cat([angles, angles], dim=1)  # (length, h)
    return angles.cos().float(), angles.sin().float()


def residual_norm(config: ResolvedConfig) -> Norm:
    """A norm of the residual stream."""
    return Norm(config.n_embd, config.norm_eps, config.use_rmsnorm, config.bias)


def head_norm(config: ResolvedConfig) -> Norm | None:
    """A norm of each head's queries or keys, shared by the heads, if there is to be one."""
    if not config.use_qk_norm:
        return None
    return Norm(config.head_dim, config.norm_eps, rms=True, bias=False)


class Attention(nn.Module):
    """Causal self-attention with separate q, k and v, grouped heads and optional QK-norm."""

    def __init__(self, config: ResolvedConfig, layer: int, scale: float) -> None:
        super().__init__()
        d = config.n_embd
        kv = config.kv_heads * config.head_dim
        bias = config.bias
        self.c_q = nn.Linear(d, d, bias)
        self.c_k = nn.Linear(d, kv, bias)
        self.c_v = nn.Linear(d, kv, bias)
        self.q_norm = head_norm(config)
        self.k_norm = head_norm(config)
        self.c_proj = nn.Linear(d, d, bias)

        self.layer = layer
        self.head_dim = config.head_dim
        self.scale = scale  # of q k^T

    def forward(
        self,
        x: Tensor,
        ops: Ops,
        rotary: Rotary | None,
        dropped: Dropped | None = None,
        cache: KVCache | None = None,
        probe: Probe | None = None,
    ) -> Tensor:
        projections = ops.linear(x, self.c_q, self.c_k, self.c_v)
        q, k, v = map(self.heads, projections)
        q = ops.norm_rope(q, self.q_norm, rotary)  # (B, T, H, h)
        k = ops.norm_rope(k, self.k_norm, rotary)  # (B, T, K, h), as v
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)  # (B, S, K, h)
        if probe is not None:
            probe(f"h.{self.layer}.attn.scores", attention_scores(q, k, self.scale))

        y = ops.attention(q, k, v, self.scale, dropped)  # (B, T, d)
        return ops.linear(y, self.c_proj)[0]

    def heads(self, x: Tensor) -> Tensor:
        """(B, T, n h) as (B, T, n, h)."""
        return x.view(*x.shape[:-1], -1, self.head_dim)


class MLP(nn.Module):
    """GELU of width 4 d, or SwiGLU (Shazeer 2020) of width 8/3 d."""

    def __init__(self, config: ResolvedConfig) -> None:
        super().__init__()
        d = config.n_embd
        width = ffn_width(config, d)
        bias = config.bias
        self.swiglu = config.use_swiglu
        if self.swiglu:
            self.c_gate = nn.Linear(d, width, bias)
            self.c_up = nn.Linear(d, width, bias)
        else:
            self.c_fc = nn.Linear(d, width, bias)
        self.c_proj = nn.Linear(width, d, bias)

    def forward(self, x: Tensor, ops: Ops) -> Tensor:
        if self.swiglu:
            gate, up = ops.linear(x, self.c_gate, self.c_up)  # (B, T, width) each
            hidden = ops.swiglu(gate, up)
        else:
            (hidden,) = ops.linear(x, self.c_fc)
            hidden = ops.gelu(hidden)
        return ops.linear(hidden, self.c_proj)[0]  # (B, T, d)


class Block(nn.Module):
    """x + m attn(norm(x)), then x + m mlp(norm(x)); m is CompleteP's residual multiplier.

    Adding to the residual stream and taking its norm is one step, so a block takes the branch
    before it and leaves its last one to the next.
    """

    def __init__(self, config: ResolvedConfig, layer: int, multiplier: Multipliers) -> None:
        super().__init__()
        self.ln_1 = residual_norm(config)
        self.attn = Attention(config, layer, multiplier.attention)
        self.ln_2 = residual_norm(config)
        self.mlp = MLP(config)

        self.layer = layer
        self.dropout = config.dropout
        self.multiplier = multiplier.residual

    def forward(
        self,
        x: Tensor,
        branch: Tensor | None,
        ops: Ops,
        rotary: Rotary | None,
        masks: Tensor | None = None,
        cache: KVCache | None = None,
        probe: Probe | None = None,
    ) -> tuple[Tensor, Tensor]:
        x, y = ops.add_norm(x, branch, self.multiplier, self.ln_1)  # (B, T, d) each
        if probe is not None and branch is not None:
            probe(f"h.{self.layer - 1}.out", x)
        weights = self.dropped(masks, ATTENTION_WEIGHTS)
        attn = self.attn(y, ops, rotary, weights, cache, probe)
        attn = ops.dropout(attn, self.dropped(masks, ATTENTION_BRANCH))

        x, y = ops.add_norm(x, attn, self.multiplier, self.ln_2)
        mlp = ops.dropout(self.mlp(y, ops), self.dropped(masks, MLP_BRANCH))
        if probe is not None:
            probe(f"h.{self.layer}.attn", attn)
            probe(f"h.{self.layer}.mlp", mlp)
        return x, mlp

    def dropped(self, masks: Tensor | None, place: int) -> Dropped | None:
        """What is dropped at a place of this block."""
        return at_site(masks, self.dropout, place, self.layer)


class Transformer(nn.Module):
    """The tables, the blocks and the last norm, under GPT-2's names."""

    def __init__(self, config: ResolvedConfig, multiplier: Multipliers) -> None:
        super().__init__()
        self.wte = table(config.vocab_size, config.n_embd)
        self.wpe = None
        if not config.use_rope:
            self.wpe = table(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config, i, multiplier) for i in range(config.n_layer))
        self.ln_f = residual_norm(config)


def table(rows: int, d: int) -> nn.Embedding:
    """An embedding whose values are given later."""
    return nn.Embedding(rows, d, _weight=torch.empty(rows, d))


class GPT(nn.Module):
    """A decoder-only language model.

    `ops` are the operations that it is made of, torch's if none are given; `rules` those of the
    config's parametrization, if they have been looked up already; `values` its tensors by name,
    which become its own, in place of initial ones.

    >>> import torch
    >>> import nanoscale as ns
    >>> from nanoscale.spec.resolve import resolve
    >>> config = ns.ExperimentConfig(n_layer=2, n_head=2, n_embd=32, block_size=8)
    >>> model = ns.GPT(resolve(config, vocab_size=65))
    >>> logits, loss = model(torch.zeros(1, 8, dtype=torch.long))
    >>> logits.shape
    torch.Size([1, 8, 65])
    """

    cos: Tensor  # (block_size, h), as sin; with RoPE alone
    sin: Tensor

    def __init__(
        self,
        config: ExperimentConfig,
        ops: Ops | None = None,
        rules: Rules | None = None,
        values: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(config, ResolvedConfig):
            raise UserError("a GPT needs a resolved config: give it resolve(config, vocab_size)")
        self.config = config
        self.ops = ops or Ops()
        self.rules = rules or rules_of(config)
        self.multipliers = self.rules.multipliers
        with nullcontext() if values is None else torch.device("meta"):  # no numbers drawn in vain
            self.transformer = Transformer(config, self.multipliers)
            self.lm_head = None
            if not config.tie_embeddings:
                self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.use_rope:
            cos, sin = rotary_tables(config.head_dim, config.block_size, config.rope_theta)
            self.register_buffer("cos", cos, persistent=False)
            self.register_buffer("sin", sin, persistent=False)
        if values is None:
            self.initialise(config.init_seed)
        else:
            self.load_state_dict(values, assign=True)

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Give every tensor its initial value, a function of (seed, name) alone."""
        parameters = dict(self.named_parameters())
        tensors = self.rules.tensors
        assert list(parameters) == [tensor.name for tensor in tensors]
        for tensor in tensors:
            parameter = parameters[tensor.name]
            assert parameter.shape == tensor.shape
            rule = self.rules.rule(tensor)
            if rule.init_std == 0:
                parameter.fill_(rule.init_mean)
            elif not parameter.is_meta:
                values = normal(seed, tensor.name, tensor.shape)
                parameter.copy_(values * rule.init_std)

    @property
    def head(self) -> Linear:
        """The unembedding: `weight` (V, d) and no bias."""
        return self.transformer.wte if self.lm_head is None else self.lm_head

    def hidden(
        self,
        idx: Tensor,
        cache: KVCache | None = None,
        probe: Probe | None = None,
        masks: Tensor | None = None,
    ) -> Tensor:
        """The final normed states of tokens `idx` (B, T), scaled for the head, (B, T, d).

        Raises:
            ValueError: `idx`, with what the cache holds, is longer than block_size.
            IndexError: a token is not in the vocabulary.
        """
        start = 0 if cache is None else cache.length
        end = start + idx.size(1)
        if end > self.config.block_size:
            raise ValueError(f"{end} tokens do not fit into block_size={self.config.block_size}")

        masks = self.masks(idx, masks) if cache is None else None
        x = self.embed(idx, start, end)
        x = self.ops.dropout(x, at_site(masks, self.config.dropout, EMBEDDING))
        if probe is not None:
            probe("embedding", x)
        rotary = None
        if self.config.use_rope:
            rotary = self.cos[start:end], self.sin[start:end]  # (T, h) each

        branch = None
        recompute = self.config.recompute and self.learning and cache is None and probe is None
        for block in self.transformer.h:
            if recompute:
                x, branch = checkpoint(
                    block, x, branch, self.ops, rotary, masks, use_reentrant=False
                )
            else:
                x, branch = block(x, branch, self.ops, rotary, masks, cache, probe)
        if cache is not None:
            cache.length = end

        last = self.transformer.ln_f
        x, y = self.ops.add_norm(x, branch, self.multipliers.residual, last)
        if probe is not None:
            probe(f"h.{self.config.n_layer - 1}.out", x)
        return y if self.multipliers.logits == 1 else y * self.multipliers.logits

    def embed(self, idx: Tensor, start: int, end: int) -> Tensor:
        """The embeddings of `idx`, which stands at positions `start` to `end`, (B, T, d)."""
        tokens = self.transformer.wte.weight  # (V, d)
        positions = None
        if self.transformer.wpe is not None:
            positions = self.transformer.wpe.weight[start:end]  # (T, d)
        return self.ops.embed(idx, tokens, positions, self.multipliers.embedding)

    def masks(self, idx: Tensor, given: Tensor | None) -> Tensor | None:
        """The key of each sequence's masks, (B,): those given, or drawn; None without dropout."""
        if not self.training or not self.config.dropout:
            return None
        return drawn_keys(len(idx), idx.device) if given is None else given

    @property
    def learning(self) -> bool:
        """Whether what is computed now will be differentiated in training."""
        return self.training and torch.is_grad_enabled()

    def forward(
        self,
        idx: Tensor,
        targets: Tensor | None = None,
        *,
        cache: KVCache | None = None,
        probe: Probe | None = None,
        by_token: bool = False,
        masks: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Logits (B, T, V) and, given targets (B, T), the mean loss in nats per token.

        In training the loss includes `z_loss` (PaLM, section 5). Targets never change the logits.
        With `loss_chunk`, or where the operations make a whole step at once, a loss that is to be
        differentiated comes alone, the logits None: they never exist all at once. With a cache,
        `idx` is the whole prompt at first and one token afterwards. `by_token`: the loss of every
        token (B, T) comes alone, without z_loss. `masks` are the keys of the sequences' dropout
        masks (`masks.sample_keys`), without which they are drawn from torch's generator.

        Raises:
            ValueError, IndexError: as `hidden`; or a target is not in the vocabulary.
        """
        if targets is not None and probe is None and cache is None:
            masks = self.masks(idx, masks)
            loss = self.at_once(idx, targets, masks, by_token)
            if loss is not None:
                return None, loss
        x = self.hidden(idx, cache, probe, masks)  # (B, T, d)
        if by_token and targets is not None:
            return None, self.losses(x, targets)
        z_loss = self.config.z_loss if self.training else 0.0
        chunk = self.config.loss_chunk
        if targets is not None and chunk and self.learning and probe is None:
            weight = self.head.weight
            return None, self.ops.chunked_cross_entropy(x, weight, targets, z_loss, chunk)

        (logits,) = self.ops.linear(x, self.head)  # (B, T, V)
        if probe is not None:
            probe("logits", logits)
        if targets is None:
            return logits, None
        return logits, self.ops.cross_entropy(logits, targets, z_loss)

    def at_once(
        self, idx: Tensor, targets: Tensor, masks: Tensor | None, by_token: bool
    ) -> Tensor | None:
        """The loss in one call, where the operations have one for what is asked."""
        if idx.size(1) > self.config.block_size:  # `hidden` says so
            return None
        if by_token:
            return None if self.training else self.ops.token_losses(self, idx, targets)
        if not self.learning:
            return None
        return self.ops.training_loss(self, idx, targets, masks)

    def losses(self, x: Tensor, targets: Tensor) -> Tensor:
        """Each token's loss from its final state, x (B, T, d), in nats: (B, T) float32.

        With `loss_chunk` the logits of so many tokens exist at once.
        """
        chunk = self.config.loss_chunk
        answers = targets.flatten()
        states: Sequence[Tensor] = [x]
        parts: Sequence[Tensor] = [answers]
        if chunk:
            states = torch.split(x.flatten(0, 1), chunk)
            parts = torch.split(answers, chunk)
        found = []
        for part, those in zip(states, parts, strict=True):
            (logits,) = self.ops.linear(part, self.head)  # (..., V)
            flat = logits.flatten(0, -2).float()
            del logits  # before the next chunk's
            found.append(F.cross_entropy(flat, those, reduction="none"))
            del flat
        return torch.cat(found).view(targets.shape)
