"""The memory of a run, from its config alone: which tensors live at its fullest moments.

It follows what `Ops` and `FusedOps` keep for the backward pass, tensor by tensor, without
compilation (which needs less), and what one call of the kernels asks for (`layout` and `plan` in
step.h): those of kernels=step, and evaluations with any kernels of ours. Sizes are in bytes.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass

from nanoscale.spec.architecture import MATRIX_ROLES, TensorSpec, ffn_width, kv_width, tensors
from nanoscale.spec.config import ResolvedConfig
from nanoscale.spec.muon_rules import MUON_RULES

F4 = 4  # bytes of a float32: weights, their gradients, the residual stream, norms, losses
I8 = 8  # of an int64
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
PARTS = ("parameters", "gradients", "optimizer", "casts", "activations", "logits", "workspace")
TOKENS_AT_ONCE = 256  # tokens that pass together in one call of the kernels
AT_ONCE = 4096  # tokens evaluated, if a batch is smaller: without a backward pass there is room
JOINED = (".c_q.", ".c_k.", ".c_v.", ".c_gate.", ".c_up.")  # of which a kernel takes several as one


@dataclass(frozen=True)
class StepNumerics:
    """How a step is computed: whose operations, on what device, in which type."""

    kernels: str
    device: str
    dtype: str
    threads: int = 1  # of one call of the kernels


def assumed(config: ResolvedConfig) -> StepNumerics:
    """The config's own choices; where it says auto, a CPU in float32 or a GPU in bfloat16."""
    device = "cpu" if config.device == "auto" else config.device.split(":")[0]
    threads = config.threads or os.cpu_count() or 1
    kernels, dtype = config.kernels, config.dtype
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" else "float32"
    if kernels == "auto":
        whole = dtype == "float32" and threads <= sequences_at_once(config)
        kernels = "step" if whole else "fused"
        if device != "cpu" or dtype == "float16":
            kernels = "torch"
    return StepNumerics(kernels, device, dtype, threads)


def sequences_at_once(config: ResolvedConfig) -> int:
    """Sequences of a micro-batch."""
    return min(config.micro_batch_size or config.batch_size, config.sequences_per_iter)


def evaluated_at_once(config: ResolvedConfig) -> int:
    """Sequences of one pass of an evaluation; less than a batch is what there is room for."""
    micro = config.micro_batch_size or config.batch_size
    if micro < config.batch_size:
        return micro
    return max(micro, AT_ONCE // config.block_size)


def memory_estimate(config: ResolvedConfig, step: StepNumerics | None = None) -> dict[str, int]:
    """Bytes by part at the fullest moment of an update or an evaluation, and their `total`.

    Of one process; the second update and later ones, as the optimizer's state exists from then on.
    """
    update = Moments(config, step or assumed(config))
    moments = [update.optimizer(), *update.evaluations()]
    if update.whole:
        moments.append(update.whole_step())
    else:
        moments += [update.loss(), update.top(), update.bottom()]
        if config.dropout and not update.fused:
            moments.append(update.masking())
        if not config.loss_chunk:  # with chunks its first step was made with the loss
            moments.append(update.loss_backward())
    fullest = max(moments, key=Counter.total)
    return {part: fullest[part] for part in PARTS} | {"total": fullest.total()}


class Moments:
    """Bytes by part at the moments of an update, or an evaluation, that can be the fullest."""

    def __init__(self, config: ResolvedConfig, step: StepNumerics) -> None:
        self.config = config
        self.fused = step.kernels == "fused"
        self.whole = step.kernels == "step"
        self.ours = self.whole or self.fused
        self.threads = step.threads
        self.cuda = step.device == "cuda"
        self.size = DTYPE_BYTES[step.dtype]  # of one number between products
        self.narrow = self.size < F4
        sequences = sequences_at_once(config)
        self.tokens = sequences * config.block_size
        self.symbols = self.tokens * config.vocab_size

        self.width, self.layers = config.n_embd, config.n_layer
        self.ffn = ffn_width(config, self.width)
        self.stream = F4 * self.tokens * self.width
        self.states = self.size * self.tokens * self.width

        self.tensors = tensors(config)
        self.matrices = sum(t.numel for t in self.tensors if t.role in MATRIX_ROLES)
        self.head = config.vocab_size * self.width
        self.head_gradient = F4 * self.head
        self.weights = F4 * sum(t.numel for t in self.tensors)
        self.earlier = 0  # gradients of the micro-batches before
        if sequences < config.sequences_per_iter:
            self.earlier = self.weights
        self.between = 0  # gradients of whole updates, which keep their place
        if self.whole and not self.earlier and (config.optimizer == "adamw" or not self.narrow):
            self.between = self.weights

        self.room = self.room_that_stays(sequences)

    # -- what a block keeps for its backward pass, in bytes per token -----------------------------
    def kept_by_attention(self) -> int:
        """Kept by a block's first half."""
        config, d, kv, s = self.config, self.width, kv_width(self.config), self.size
        kept = self.kept_by_norm() + self.kept_by_dropout()
        copies = 3 if self.narrow and not self.fused else 1  # torch's products cast x anew
        kept += copies * s * d

        if config.dropout and not self.fused:  # laid out for each head:
            kept += s * 3 * d  # q, k and v,
            kept += (F4 + 1 + s) * self.square()  # softmax, its mask, their product
        else:
            kept += s * (d + 2 * kv)  # q, k and v,
            kept += F4 * config.n_head  # and the logs of the softmax's sums
            if self.fused and (config.use_rope or config.use_qk_norm):
                kept += s * (d + kv)  # q and k turned; what they were stays, with v in one piece
        if config.use_qk_norm and not self.fused:
            kept += F4 * (d + kv)  # normed, in float32
            if not self.cuda:
                kept += F4 * (d + kv)  # and what came in
        return kept + s * d  # the heads' outputs

    def kept_by_mlp(self) -> int:
        """Kept by a block's second half."""
        inputs, hidden = 1, 2  # before and after the GELU
        if self.config.use_swiglu:
            hidden = 3 if self.fused else 4  # gate, up and the product; silu(gate)
            if self.narrow and not self.fused:
                inputs = 2  # as each of torch's products casts x anew
        size = inputs * self.width + hidden * self.ffn
        return self.kept_by_norm() + self.kept_by_dropout() + self.size * size

    def kept_by_norm(self) -> int:
        """Kept by a norm: the residual stream, two statistics, RMSNorm's steps on torch's CPU."""
        stream = F4 * self.width
        if self.config.use_rmsnorm and not self.fused and not self.cuda:
            stream *= 2
        return stream + 2 * F4

    def kept_by_dropout(self) -> int:
        """Kept by a branch's dropout: torch's mask; a kernel makes it again."""
        return self.width if self.config.dropout and not self.fused else 0

    def square(self) -> int:
        """Attention's weights, in numbers per token."""
        return self.config.n_head * self.config.block_size

    def kept_by_block(self) -> int:
        """Kept by both halves of a block, for all tokens."""
        return self.tokens * (self.kept_by_attention() + self.kept_by_mlp())

    # -- the moments ------------------------------------------------------------------------------
    def moment(self, **parts: int) -> Counter[str]:
        """A moment's parts beside those of every moment."""
        states = sum(t.numel * self.buffers(t) for t in self.tensors)
        total = Counter(parts)
        total["parameters"] += self.weights
        total["optimizer"] += F4 * states
        total["activations"] += 2 * 8 * self.config.tokens_per_iter  # tokens and targets, int64
        if self.fused:  # they stay
            total["casts"] = self.casts()
        total["workspace"] += self.room
        return total

    def buffers(self, tensor: TensorSpec) -> int:
        """What the optimizer keeps per element, and what statistics keep beside it."""
        own = MUON_RULES[self.config.muon_rule].buffers if self.by_muon(tensor) else 2
        return own + (2 if self.config.stats_interval else 0)  # momentum and gradient of a half

    def by_muon(self, tensor: TensorSpec) -> bool:
        return self.config.optimizer == "muon" and tensor.role in MATRIX_ROLES

    def casts(self) -> int:
        """Copies of weights in the products' type: kept by the kernels, by autocast for a step.

        In float32 the kernels still need q, k and v, and gate and up, as one matrix each.
        """
        if self.narrow:
            return self.size * (self.matrices + self.head)
        if not self.fused:
            return 0
        return self.joined()

    def joined(self) -> int:
        """Weights that the kernels take several as one, in float32."""
        return F4 * sum(t.numel for t in self.tensors if any(name in t.name for name in JOINED))

    def graph_casts(self) -> int:
        """Weights of blocks that torch's graph holds in the narrow type, backward."""
        if self.fused or not self.narrow:
            return 0
        blocks = 1 if self.config.recompute else self.layers
        return self.size * (self.matrices // self.layers) * blocks

    def kept(self) -> int:
        """Kept by all blocks after the forward pass, and of the embedding its dropout mask."""
        mask = self.tokens * self.kept_by_dropout()
        if self.config.recompute:  # each block's input: the residual stream and a branch
            return self.layers * self.stream + (self.layers - 1) * self.states + mask
        return self.layers * self.kept_by_block() + mask

    def kept_to_the_end(self) -> int:
        """Kept by all blocks, the final norm and the head."""
        return self.kept() + self.tokens * self.kept_by_norm() + self.states

    def loss(self) -> Counter[str]:
        """At the end of the forward pass: all activations, all casts, and the loss's own."""
        if self.config.loss_chunk:
            return self.chunked_loss(min(self.config.loss_chunk, self.tokens))
        copies = 3 if self.config.z_loss else 2  # logits and log-probabilities; z takes one more
        return self.moment(
            activations=self.kept_to_the_end(),
            gradients=self.earlier,
            casts=self.casts(),
            logits=self.symbols * self.per_symbol(copies),
        )

    def per_symbol(self, copies: int) -> int:
        """Of one symbol of one token: the kernels' logit and its gradient; or `copies` in float32.

        Torch's come beside the logit in the products' type.
        """
        if self.fused:
            return 2 * self.size
        narrow = self.size if self.narrow else 0
        return copies * F4 + narrow

    def chunked_loss(self, chunk: int) -> Counter[str]:
        """The same with the logits of `chunk` tokens at a time, whose gradients come with them."""
        product = 0  # of the head's gradient
        if self.narrow:
            product = self.head * (self.size if self.cuda else self.size + F4)
        symbols = chunk * self.config.vocab_size
        logits = symbols * self.per_symbol(2)  # torch's in float32, and logsumexp's exponentials
        return self.moment(
            activations=self.kept_to_the_end(),
            casts=self.casts(),
            workspace=self.states if self.fused else self.stream,  # their gradient
            gradients=self.earlier + self.head_gradient,
            logits=max(logits, symbols * self.size + product),
        )

    def loss_backward(self) -> Counter[str]:
        """Where the backward pass begins."""
        narrow_head = self.size * self.head if self.narrow else 0
        if self.fused:  # the gradients of the logits, the final states and the head
            return self.moment(
                activations=self.kept_to_the_end(),
                logits=self.size * self.symbols,
                gradients=self.earlier + self.head_gradient,
                workspace=self.states + narrow_head,
            )
        # log-probabilities, their gradient and the logits'; for z_loss the logits, and a gradient
        # that waits for the other
        copies = 5 if self.config.z_loss else 3
        return self.moment(
            activations=self.kept_to_the_end(),
            gradients=self.earlier,
            casts=self.graph_casts() + narrow_head,
            logits=copies * F4 * self.symbols,
        )

    def top(self) -> Counter[str]:
        """In the last block, backward: the head's gradient and all activations are there."""
        activations = self.kept()
        if self.config.recompute:
            activations += self.kept_by_block()
            if self.layers == 1:  # in the first block the residual stream is its input
                activations -= self.stream
        return self.moment(
            activations=activations,
            gradients=self.earlier + self.head_gradient,
            casts=self.graph_casts(),
            workspace=self.stream + max(self.in_mlp(), self.in_attention()),
        )

    def in_mlp(self) -> int:
        """The most that the last MLP's backward pass needs beside what was kept."""
        hidden = self.tokens * self.ffn
        matrix = F4 * self.width * self.ffn
        matrices = 2 if self.config.use_swiglu else 1  # before the nonlinearity
        branch = 0
        if self.fused or self.narrow:  # torch in float32: the stream's own
            branch = self.states

        in_c_proj = branch + self.size * hidden + matrix
        if self.narrow:
            in_c_proj += matrix // 2
        most = max(in_c_proj, matrices * self.size * hidden + matrix)  # or in the nonlinearity
        if self.fused and self.narrow and self.config.bias:  # summed in float32
            summed = (F4 * matrices - self.size) * hidden
            most = max(most, summed + branch + matrices * matrix)
        return most

    def in_attention(self) -> int:
        """The same of torch's attention under dropout, when the MLP is done."""
        if self.fused or not self.config.dropout:
            return 0
        return self.tokens * (F4 * self.square() - self.kept_by_mlp()) + self.stream

    def masking(self) -> Counter[str]:
        """In the last block, forward, where torch hashes a mask of attention's weights."""
        d = self.width
        block = self.kept_by_norm() + self.size * (5 * d + 2 * kv_width(self.config))
        block += (F4 + 2 * I8) * self.square()  # softmax, and what is hashed, twice
        kept = self.kept()
        gradients = self.earlier
        if self.config.recompute:  # it is done again in the backward pass
            gradients += self.head_gradient
        else:
            kept -= self.kept_by_block()
        return self.moment(
            activations=kept + self.stream + self.tokens * block,
            gradients=gradients,
            casts=self.casts(),
            workspace=I8 * self.square() * self.config.block_size,  # the elements' numbers
        )

    def bottom(self) -> Counter[str]:
        """At the embedding, backward: all gradients; a tied head's was made apart."""
        apart = 2 if self.config.tie_embeddings else 0  # with the sum
        if self.earlier:
            apart += 1  # and the new one
        gradients = self.weights + apart * self.head_gradient
        return self.moment(gradients=gradients, workspace=self.stream)

    def whole_step(self) -> Counter[str]:
        """In the call that makes loss and gradients."""
        return self.moment(gradients=self.earlier + self.weights)

    def room_of(self, sequences: int, size: int, learns: bool) -> int:
        """Memory of one call: weights in the products' layout, and what each thread works in.

        Its sequences pass a few at a time. `learns`: with the gradients and what they need.
        """
        config, d, kv = self.config, self.width, kv_width(self.config)
        threads = min(self.threads, sequences)
        share = -(-sequences // threads)
        pieces = max(1, (share * config.block_size + TOKENS_AT_ONCE // 2) // TOKENS_AT_ONCE)
        rows = -(-share // pieces) * config.block_size

        first = 2 * self.ffn if config.use_swiglu else self.ffn
        turned = d + kv if config.use_rope or config.use_qk_norm else 0
        block = size * (4 * d + 2 * kv + turned + first + self.ffn)
        block += F4 * (2 * d + 4 + config.n_head)
        token = F4 * d + size * (2 * d + config.vocab_size)
        packed = size * (self.matrices + self.head)
        if not learns:
            return packed + threads * rows * (block + token)

        widest = max(d + 2 * kv, first)
        token += 2 * F4 * d + size * (widest + max(d, self.ffn))
        token += F4 * max(widest, config.vocab_size)  # of a weight's gradient
        own = rows * (self.layers * block + token)
        return 2 * packed + threads * own + (threads - 1) * self.weights

    def room_that_stays(self, sequences: int) -> int:
        """What the calls of updates and of interval evaluations share."""
        rooms = [0]
        if self.whole:
            rooms.append(self.room_of(sequences, self.size, learns=True))
        if self.ours and self.config.eval_interval:
            rooms.append(self.room_of(self.evaluated(final=False), self.size, learns=False))
        return max(rooms)

    def optimizer(self) -> Counter[str]:
        """In the optimizer's step: torch's Muon orthogonalises all matrices of a shape at once."""
        if self.ours and not self.narrow:  # one at a time
            return self.moment(gradients=self.weights)
        stacks = Counter((t.role, t.shape) for t in self.tensors if self.by_muon(t))
        size = 2 if self.cuda or self.narrow else F4
        most = 0
        for (_, shape), count in stacks.items():
            rows, columns = shape
            numel = count * rows * columns
            square = count * min(rows, columns) ** 2
            # the Nesterov average by matrix and stacked; then X, the new X, and two squares
            most = max(most, 2 * F4 * numel + 2 * size * (numel + square))
        return self.moment(gradients=self.weights, workspace=most)

    # -- evaluation -------------------------------------------------------------------------------
    def evaluations(self) -> list[Counter[str]]:
        """The fullest moments of the final evaluation, in float32, and of those of intervals."""
        moments = self.evaluation(self.evaluated(final=True), F4)
        if self.config.eval_interval:
            moments += self.evaluation(self.evaluated(final=False), self.size)
        return moments

    def evaluated(self, final: bool) -> int:
        """Sequences of one pass of an evaluation."""
        config = self.config
        limit = config.eval_iters * config.batch_size
        if final:
            limit = max(1, config.final_eval_tokens // config.block_size)
        return min(evaluated_at_once(config), limit)

    def evaluation(self, sequences: int, size: int) -> list[Counter[str]]:
        """In a block, and at the loss, of one pass; in the one call of kernels of ours."""
        config = self.config
        tokens = sequences * config.block_size
        held = 2 * 8 * tokens
        if self.ours:
            room = self.room_of(sequences, size, learns=False)
            beyond = max(0, room - self.room)
            return [self.moment(activations=held, workspace=beyond, gradients=self.between)]

        stream = F4 * tokens * self.width
        states = size * tokens * self.width
        hidden = size * tokens * self.ffn

        matrices = 3 if config.use_swiglu else 2
        in_block = self.moment(
            activations=held + 2 * stream + 3 * states + matrices * hidden,
        )
        copies, casts = 2 * F4, 0  # logits and log-probabilities
        if size < F4:
            copies += size
            casts = size * self.head
        chunk = min(config.loss_chunk or tokens, tokens)
        at_loss = self.moment(
            activations=held + states,
            casts=casts,
            logits=chunk * config.vocab_size * copies,
        )
        return [in_block, at_loss]
