"""The memory of one update, from the config alone: which tensors live at its fullest moments.

It follows what `ops.Ops` and `kernels.FusedOps` keep for the backward pass, tensor by tensor,
without compilation (which needs less). N tokens are in a micro-batch; sizes are in bytes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from nanoscale.spec.architecture import MATRIX_ROLES, TensorSpec, kv_width, tensors, widths
from nanoscale.spec.config import ResolvedConfig

F4 = 4  # bytes of a float32: weights, their gradients, the residual stream, norms, losses
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
PARTS = ("parameters", "gradients", "optimizer", "casts", "activations", "logits", "workspace")
JOINED = (".c_q.", ".c_k.", ".c_v.", ".c_gate.", ".c_up.")  # of which a kernel takes several as one


@dataclass(frozen=True)
class StepNumerics:
    """How a step is computed: whose operations, on what device, in which type."""

    kernels: str
    device: str
    dtype: str

    @property
    def fused(self) -> bool:
        return self.kernels == "fused"

    @property
    def cuda(self) -> bool:
        return self.device == "cuda"

    @property
    def size(self) -> int:
        """Of one number between products."""
        return DTYPE_BYTES[self.dtype]

    @property
    def narrow(self) -> bool:
        return self.size < F4


def assumed(config: ResolvedConfig) -> StepNumerics:
    """The config's own choices; where it says auto, a CPU in float32 or a GPU in bfloat16."""
    device = "cpu" if config.device == "auto" else config.device.split(":")[0]
    kernels, dtype = config.kernels, config.dtype
    if kernels == "auto":
        kernels = "fused" if device == "cpu" and dtype != "float16" else "torch"
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" else "float32"
    return StepNumerics(kernels, device, dtype)


def memory_estimate(config: ResolvedConfig, step: StepNumerics | None = None) -> dict[str, int]:
    """Bytes by part at the fullest moment of an update, and their `total`.

    Of one process; the second update and later ones, as the optimizer's state exists from then on.
    """
    moments = Moments(config, step or assumed(config))
    fullest = max(
        moments.loss(),
        moments.loss_backward(),
        moments.top(),
        moments.bottom(),
        moments.optimizer(),
        key=Counter.total,
    )
    return {part: fullest[part] for part in PARTS} | {"total": fullest.total()}


# -- what a block keeps for its backward pass, in bytes per token ---------------------------------
def kept_by_attention(config: ResolvedConfig, step: StepNumerics) -> int:
    """Kept by a block's first half."""
    d, kv, s = config.n_embd, kv_width(config), step.size
    kept = kept_by_norm(config, step) + kept_by_dropout(config, step)
    kept += s * d if step.fused or not step.narrow else 3 * s * d  # torch's products cast x anew

    if config.dropout and not step.cuda:  # torch's own, in float32 and for each head:
        kept += F4 * 3 * d  # q, k and v,
        kept += F4 * 3 * config.n_head * config.block_size  # the softmax, its mask, their product
    else:
        kept += s * (d + 2 * kv)  # q, k and v,
        kept += F4 * config.n_head  # and the logs of the softmax's sums
        if step.fused and (config.use_rope or config.use_qk_norm):
            kept += s * (d + kv)  # q and k turned; what they were stays, with v in one piece
    if config.use_qk_norm and not step.fused:
        kept += F4 * (d + kv)  # normed, in float32
        if not step.cuda:
            kept += F4 * (d + kv)  # and what came in
    return kept + s * d  # the heads' outputs


def kept_by_mlp(config: ResolvedConfig, step: StepNumerics) -> int:
    """Kept by a block's second half."""
    inputs, hidden = 1, 2  # before and after the GELU
    if config.use_swiglu:
        hidden = 3 if step.fused else 4  # gate, up and the product; silu(gate)
        if step.narrow and not step.fused:
            inputs = 2  # as each of torch's products casts x anew
    size = inputs * config.n_embd + hidden * widths(config).ffn
    return kept_by_norm(config, step) + kept_by_dropout(config, step) + step.size * size


def kept_by_norm(config: ResolvedConfig, step: StepNumerics) -> int:
    """Kept by a norm: the residual stream, two statistics, RMSNorm's steps on torch's CPU."""
    stream = F4 * config.n_embd
    if config.use_rmsnorm and not step.fused and not step.cuda:
        stream *= 2
    return stream + 2 * F4


def kept_by_dropout(config: ResolvedConfig, step: StepNumerics) -> int:
    """Kept by a branch's dropout: its mask."""
    if not config.dropout:
        return 0
    return config.n_embd if step.cuda else step.size * config.n_embd


# -- the moments ----------------------------------------------------------------------------------
class Moments:
    """Bytes by part at the moments of an update that can be its fullest."""

    def __init__(self, config: ResolvedConfig, step: StepNumerics) -> None:
        self.config = config
        self.step = step
        self.size = step.size
        self.width = config.n_embd
        self.ffn = widths(config).ffn
        self.attention = kept_by_attention(config, step)
        self.mlp = kept_by_mlp(config, step)
        sequences = min(config.micro_batch_size or config.batch_size, config.sequences_per_iter)
        self.tokens = sequences * config.block_size

        self.tensors = tensors(config)
        self.matrices = sum(t.numel for t in self.tensors if t.role in MATRIX_ROLES)
        self.head = config.vocab_size * config.n_embd
        self.weights = F4 * sum(t.numel for t in self.tensors)
        self.earlier = 0  # gradients of the micro-batches before
        if sequences < config.sequences_per_iter:
            self.earlier = self.weights

    def moment(self, **parts: int) -> Counter[str]:
        """A moment's parts beside those of every moment."""
        states = sum(t.numel * (1 if self.by_muon(t) else 2) for t in self.tensors)
        total = Counter(parts)
        total["parameters"] += self.weights
        total["optimizer"] += F4 * states
        total["activations"] += 2 * 8 * self.config.tokens_per_iter  # tokens and targets, int64
        if self.step.fused:  # they stay
            total["casts"] = self.casts()
        return total

    def by_muon(self, tensor: TensorSpec) -> bool:
        return self.config.optimizer == "muon" and tensor.role in MATRIX_ROLES

    def casts(self) -> int:
        """Copies of weights in the products' type: kept by the kernels, by autocast for a step.

        In float32 the kernels still need q, k and v, and gate and up, as one matrix each.
        """
        if self.step.narrow:
            return self.size * (self.matrices + self.head)
        if not self.step.fused:
            return 0
        return F4 * sum(t.numel for t in self.tensors if any(name in t.name for name in JOINED))

    def graph_casts(self) -> int:
        """Weights of blocks that torch's graph holds in the narrow type, backward."""
        if self.step.fused or not self.step.narrow:
            return 0
        blocks = 1 if self.config.recompute else self.config.n_layer
        return self.size * (self.matrices // self.config.n_layer) * blocks

    def kept(self) -> int:
        """Kept by all blocks after the forward pass, and of the embedding its dropout mask."""
        layers = self.config.n_layer
        mask = 0
        if self.config.dropout:
            mask = self.width if self.step.cuda else F4 * self.width
        if self.config.recompute:  # each block's input: the residual stream and a branch
            inputs = layers * F4 * self.width + (layers - 1) * self.size * self.width
            return self.tokens * (inputs + mask)
        return self.tokens * (layers * (self.attention + self.mlp) + mask)

    def kept_to_the_end(self) -> int:
        """Kept by all blocks, the final norm and the head."""
        norm = kept_by_norm(self.config, self.step)
        return self.kept() + self.tokens * (norm + self.size * self.width)

    def loss(self) -> Counter[str]:
        """At the end of the forward pass: all activations, all casts, and the loss's own."""
        if self.config.loss_chunk:
            return self.chunked_loss(min(self.config.loss_chunk, self.tokens))
        # the kernels: logits and gradient
        per_symbol = 2 * self.size
        if not self.step.fused:  # logits, in float32, log-probabilities; z takes one more
            per_symbol = (3 if self.config.z_loss else 2) * F4
            if self.step.narrow:
                per_symbol += self.size
        return self.moment(
            activations=self.kept_to_the_end(),
            gradients=self.earlier,
            casts=self.casts(),
            logits=self.tokens * self.config.vocab_size * per_symbol,
        )

    def chunked_loss(self, chunk: int) -> Counter[str]:
        """The same with the logits of `chunk` tokens at a time, whose gradients come with them."""
        states = F4 * self.tokens * self.width  # their gradient
        per_symbol = 2 * F4  # logits, in float32, and logsumexp's exponentials
        product = 0  # of the head's gradient
        if self.step.fused:  # logits and their gradient
            states = self.size * self.tokens * self.width
            per_symbol = 2 * self.size
        elif self.step.narrow:
            per_symbol += self.size
        if self.step.narrow:
            product = self.head * (self.size if self.step.cuda else self.size + F4)
        symbols = chunk * self.config.vocab_size
        return self.moment(
            activations=self.kept_to_the_end(),
            casts=self.casts(),
            workspace=states,
            gradients=self.earlier + F4 * self.head,
            logits=max(symbols * per_symbol, symbols * self.size + product),
        )

    def loss_backward(self) -> Counter[str]:
        """Where the backward pass begins; with chunks its first step was made with the loss."""
        symbols = self.tokens * self.config.vocab_size
        narrow_head = self.size * self.head if self.step.narrow else 0
        if self.config.loss_chunk:
            return Counter()
        if self.step.fused:  # the gradients of the logits, the final states and the head
            return self.moment(
                activations=self.kept_to_the_end(),
                logits=self.size * symbols,
                gradients=self.earlier + F4 * self.head,
                workspace=self.size * self.tokens * self.width + narrow_head,
            )
        # log-probabilities, their gradient and the logits'; for z_loss the logits, and a gradient
        # that waits for the other
        copies = 5 if self.config.z_loss else 3
        return self.moment(
            activations=self.kept_to_the_end(),
            gradients=self.earlier,
            casts=self.graph_casts() + narrow_head,
            logits=copies * F4 * symbols,
        )

    def top(self) -> Counter[str]:
        """In the last block, backward: the head's gradient and all activations are there."""
        stream = F4 * self.tokens * self.width
        activations = self.kept()
        if self.config.recompute:
            activations += self.tokens * (self.attention + self.mlp)
            if self.config.n_layer == 1:  # in the first block the residual stream is its input
                activations -= stream
        return self.moment(
            activations=activations,
            gradients=self.earlier + F4 * self.head,
            casts=self.graph_casts(),
            workspace=stream + max(self.in_mlp(), self.in_attention()),
        )

    def in_mlp(self) -> int:
        """The most that the last MLP's backward pass needs beside what was kept."""
        hidden = self.tokens * self.ffn
        matrix = F4 * self.width * self.ffn
        matrices = 2 if self.config.use_swiglu else 1  # before the nonlinearity
        branch = 0
        if self.step.fused or self.step.narrow:  # torch in float32: the stream's own
            branch = self.size * self.tokens * self.width

        in_c_proj = branch + self.size * hidden + matrix
        if self.step.narrow:
            in_c_proj += matrix // 2
        most = max(in_c_proj, matrices * self.size * hidden + matrix)  # or in the nonlinearity
        if self.step.fused and self.step.narrow and self.config.bias:  # summed in float32
            summed = (F4 * matrices - self.size) * hidden
            most = max(most, summed + branch + matrices * matrix)
        return most

    def in_attention(self) -> int:
        """The same of torch's own attention under dropout, when the MLP is done."""
        if self.step.cuda or not self.config.dropout:
            return 0
        square = F4 * self.config.n_head * self.config.block_size
        return self.tokens * (square + F4 * self.width - self.mlp)

    def bottom(self) -> Counter[str]:
        """At the embedding, backward: all gradients; a tied head's was made apart."""
        apart = 2 if self.config.tie_embeddings else 0  # with the sum
        if self.earlier:
            apart += 1  # and the new one
        return self.moment(
            gradients=self.weights + apart * F4 * self.head,
            workspace=F4 * self.tokens * self.width,
        )

    def optimizer(self) -> Counter[str]:
        """In the optimizer's step: Muon orthogonalises all matrices of a shape at once."""
        stacks = Counter((t.role, t.shape) for t in self.tensors if self.by_muon(t))
        size = 2 if self.step.cuda else F4
        most = 0
        for (_, shape), count in stacks.items():
            rows, columns = shape
            numel = count * rows * columns
            square = count * min(rows, columns) ** 2
            # the Nesterov average by matrix and stacked; then X, the new X, and two squares
            most = max(most, 2 * F4 * numel + 2 * size * (numel + square))
        return self.moment(gradients=self.weights, workspace=most)
