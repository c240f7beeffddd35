"""The memory of one update, from the config alone: which tensors live at its fullest moments.

It follows what `ops.Ops` and `kernels.FusedOps` keep for the backward pass, tensor by tensor,
without compilation (which needs less). N tokens are in a micro-batch; sizes are in bytes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from nanoscale.spec.architecture import MATRIX_ROLES, TensorSpec, tensors, widths
from nanoscale.spec.config import ResolvedConfig

F4 = 4  # bytes of a float32: weights, their gradients, the residual stream, norms, losses
SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
PARTS = ("parameters", "gradients", "optimizer", "casts", "activations", "logits", "workspace")


@dataclass(frozen=True)
class Step:
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
        return SIZES[self.dtype]

    @property
    def narrow(self) -> bool:
        return self.size < F4


def assumed(config: ResolvedConfig) -> Step:
    """The config's own choices; where it says auto, a CPU in float32 or a GPU in bfloat16."""
    device = "cpu" if config.device == "auto" else config.device.split(":")[0]
    kernels, dtype = config.kernels, config.dtype
    if kernels == "auto":
        kernels = "fused" if device == "cpu" and dtype != "float16" else "torch"
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" else "float32"
    return Step(kernels, device, dtype)


def memory_estimate(config: ResolvedConfig, step: Step | None = None) -> dict[str, int]:
    """Bytes by part at the fullest moment of an update, and their `total`.

    Of one process; the second update and later ones, as the optimizer's state exists from then on.
    """
    moments = Moments(config, step or assumed(config))
    fullest = max(
        (
            moments.loss(),
            moments.loss_backward(),
            moments.top(),
            moments.bottom(),
            moments.optimizer(),
        ),
        key=lambda moment: moment.total(),
    )
    return {part: fullest[part] for part in PARTS} | {"total": fullest.total()}


def kept_per_token(config: ResolvedConfig, step: Step) -> tuple[int, int]:
    """Bytes per token that a block keeps for its backward pass: attention's half, the MLP's."""
    w, s, H = widths(config), step.size, config.n_head
    d, kv, F = w.embd, w.kv, w.ffn
    mask = 0 if not config.dropout else d if step.cuda else s * d  # of a branch's dropout
    norm = kept_by_norm(config, step) + mask
    inputs = 1 if step.fused or not step.narrow else 3  # each of torch's products casts x anew
    attention = norm + inputs * s * d
    if config.dropout and not step.cuda:  # torch's own: q, k, v for each head in float32, then
        attention += 3 * F4 * d + 3 * F4 * H * config.block_size  # softmax, mask, their product
    else:
        attention += s * (d + 2 * kv) + F4 * H  # q, k and v, and the logs of the softmax's sums
        if step.fused and (config.use_rope or config.use_qk_norm):
            attention += s * (d + kv)  # as turned; what they were stays, with v in one piece
    if config.use_qk_norm and not step.fused:
        attention += (1 if step.cuda else 2) * F4 * (d + kv)  # input and normed, in float32
    attention += s * d  # the heads' outputs
    inputs = 2 if inputs == 3 and config.use_swiglu else 1
    inner = 2 if not config.use_swiglu else 3 if step.fused else 4  # gate, silu(gate), up, product
    return attention, norm + inputs * s * d + inner * s * F


def kept_by_norm(config: ResolvedConfig, step: Step) -> int:
    """Bytes per token: the residual stream, two statistics, and RMSNorm's steps on torch's CPU."""
    steps = config.use_rmsnorm and not step.fused and not step.cuda
    return (1 + steps) * F4 * config.n_embd + 2 * F4


class Moments:
    """Bytes by part at the moments of an update that can be its fullest."""

    def __init__(self, config: ResolvedConfig, step: Step) -> None:
        self.config, self.step, self.specs = config, step, tensors(config)
        w = widths(config)
        self.d, self.ffn, self.V = w.embd, w.ffn, config.vocab_size
        sequences = min(config.micro_batch_size or config.batch_size, config.sequences_per_iter)
        self.tokens = sequences * config.block_size
        self.parameters = F4 * sum(spec.numel for spec in self.specs)
        # gradients of the micro-batches before
        self.earlier = self.parameters if sequences < config.sequences_per_iter else 0
        self.z = bool(config.z_loss)
        self.head = F4 * self.V * self.d
        self.block_matrices = (
            sum(s.numel for s in self.specs if s.role in MATRIX_ROLES) // config.n_layer
        )
        self.block = self.tokens * sum(kept_per_token(config, step))

    def moment(self, **parts: int) -> Counter[str]:
        """A moment's parts beside those of every moment."""
        muon = {spec for spec in self.specs if self.by_muon(spec)}
        states = sum((1 if spec in muon else 2) * F4 * spec.numel for spec in self.specs)
        batch = 2 * 8 * self.config.tokens_per_iter  # token numbers and targets, int64
        found = Counter(parts) + Counter(
            parameters=self.parameters, optimizer=states, activations=batch
        )
        if self.step.fused:  # they stay
            found["casts"] = self.casts()
        return found

    def by_muon(self, spec: TensorSpec) -> bool:
        return self.config.optimizer == "muon" and spec.role in MATRIX_ROLES

    def casts(self) -> int:
        """Copies of weights in the products' type: kept by the kernels, by autocast for a step.

        In float32 the kernels still need q, k and v, and gate and up, as one matrix each.
        """
        if self.step.narrow:
            return self.step.size * (self.config.n_layer * self.block_matrices + self.V * self.d)
        if not self.step.fused:
            return 0
        joined = (".c_q.", ".c_k.", ".c_v.", ".c_gate.", ".c_up.")
        return F4 * sum(s.numel for s in self.specs if any(name in s.name for name in joined))

    # -- activations --------------------------------------------------------------------------
    def kept(self) -> int:
        """Kept by all blocks after the forward pass, and of the embedding its dropout mask."""
        d, s = self.d, self.step.size
        mask = 0 if not self.config.dropout else d if self.step.cuda else F4 * d
        if self.config.recompute:  # each block's input: the residual stream and a branch
            return self.tokens * (self.config.n_layer * (F4 + s) * d - s * d + mask)
        return self.config.n_layer * self.block + self.tokens * mask

    def final(self) -> int:
        """Kept by the final norm and the head."""
        return self.tokens * (kept_by_norm(self.config, self.step) + self.step.size * self.d)

    # -- the moments --------------------------------------------------------------------------
    def loss(self) -> Counter[str]:
        """At the end of the forward pass: all activations, all casts, and the loss's own."""
        n, s, V, casts = self.tokens, self.step.size, self.V, self.casts()
        chunk, narrow = self.config.loss_chunk, self.step.narrow
        if not chunk:
            # the kernels: logits and gradient. torch: logits, in float32, log-probabilities; z
            # takes one more
            each = 2 * s if self.step.fused else (2 + self.z) * F4 + narrow * s
            return self.moment(
                activations=self.kept() + self.final(),
                gradients=self.earlier,
                casts=casts,
                logits=n * V * each,
            )
        n = min(chunk, n)
        # logits and their gradient; torch: logits, in float32, and logsumexp's exponentials
        each = 2 * s if self.step.fused else 2 * F4 + narrow * s
        product = V * self.d * (s + (0 if self.step.cuda else F4)) if narrow else 0
        states = self.tokens * self.d * (s if self.step.fused else F4)  # their gradient
        return self.moment(
            activations=self.kept() + self.final(),
            casts=casts,
            workspace=states,
            gradients=self.earlier + self.head,
            logits=max(n * V * each, n * V * s + product),
        )

    def loss_backward(self) -> Counter[str]:
        """Where the backward pass begins; with chunks its first step was made with the loss."""
        n, s, narrow, activations = self.tokens, self.step.size, self.step.narrow, self.kept()
        if self.config.loss_chunk:
            return Counter()
        activations += self.final()
        if self.step.fused:  # the gradients of the logits, the final states and the head
            return self.moment(
                activations=activations,
                logits=n * self.V * s,
                gradients=self.earlier + self.head,
                workspace=n * s * self.d + narrow * self.head // 2,
            )
        # log-probabilities, their gradient and the logits'; for z_loss the logits, and a gradient
        # that waits for the other
        each = (3 + 2 * self.z) * F4
        return self.moment(
            activations=activations,
            gradients=self.earlier,
            casts=self.graph_casts() + narrow * s * self.V * self.d,
            logits=n * self.V * each,
        )

    def graph_casts(self) -> int:
        """Weights of blocks that torch's graph holds in the narrow type, backward."""
        if self.step.fused or not self.step.narrow:
            return 0
        blocks = 1 if self.config.recompute else self.config.n_layer
        return self.step.size * self.block_matrices * blocks

    def top(self) -> Counter[str]:
        """In the last block, backward: the head's gradient and all activations are there."""
        n, s, d, matrix = self.tokens, self.step.size, self.d, F4 * self.d * self.ffn
        attention, mlp = (n * part for part in kept_per_token(self.config, self.step))
        activations, narrow = self.kept(), self.step.narrow
        if self.config.recompute:  # in the first block the residual stream is its input
            activations += attention + mlp - (n * F4 * d if self.config.n_layer == 1 else 0)
        hidden, inputs = n * s * self.ffn, 2 if self.config.use_swiglu else 1
        branch = n * s * d if self.step.fused or narrow else 0  # torch: the stream's own
        own = max(
            branch + hidden + matrix + narrow * matrix // 2,  # in c_proj
            hidden * inputs + matrix,
        )  # in the nonlinearity
        if self.step.fused and narrow and self.config.bias:  # summed in float32
            own = max(own, n * self.ffn * (F4 * inputs - s) + branch + inputs * matrix)
        if self.config.dropout and not self.step.cuda:  # in attention, torch's own, MLP done
            square = n * F4 * self.config.n_head * self.config.block_size
            own = max(own, square + n * F4 * d - mlp)
        return self.moment(
            activations=activations,
            gradients=self.earlier + self.head,
            casts=self.graph_casts(),
            workspace=n * F4 * d + own,
        )

    def bottom(self) -> Counter[str]:
        """At the embedding, backward: all gradients; a tied head's was made apart."""
        apart = 2 * self.config.tie_embeddings + bool(self.earlier)  # with the sum; and the new
        return self.moment(
            gradients=self.parameters + apart * self.head, workspace=self.tokens * F4 * self.d
        )

    def optimizer(self) -> Counter[str]:
        """In the optimizer's step: Muon orthogonalises all matrices of a shape at once."""
        counts: Counter[tuple[str, tuple[int, ...]]] = Counter(
            (spec.role, spec.shape) for spec in self.specs if self.by_muon(spec)
        )
        size = 2 if self.step.cuda else F4
        most = 0
        for (_, (rows, columns)), count in counts.items():
            whole, square = count * rows * columns, count * min(rows, columns) ** 2
            # the Nesterov average by matrix and stacked; then X, the new X, and two squares
            most = max(most, 2 * F4 * whole + size * (2 * whole + 2 * square))
        return self.moment(gradients=self.parameters, workspace=most)
