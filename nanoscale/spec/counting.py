"""Parameters and FLOPs under named conventions, from the config alone.

N and C never appear bare: every count names its convention. FLOPs count the matrix products
exactly (a multiply and an add are 2), with attention over the full T x T square (no causal
discount) and the backward pass at twice the forward; norms, activations, softmax and look-ups count
nothing. That is what `torch.utils.flop_counter.FlopCounterMode` sees under the math backend.
"""

from __future__ import annotations

from nanoscale.spec.architecture import MATRIX_ROLES, ROLES, tensors
from nanoscale.spec.config import ExperimentConfig


def parameters_by_role(config: ExperimentConfig) -> dict[str, int]:
    """Role -> number of parameters; roles that the model lacks are 0."""
    counts: dict[str, int] = dict.fromkeys(ROLES, 0)
    for spec in tensors(config):
        counts[spec.role] += spec.numel
    return counts


def parameter_counts(config: ExperimentConfig) -> dict[str, int]:
    """N under each convention.

    total: all; non_position: all but learned positions (nanoGPT's "number of parameters");
    non_embedding: all but embeddings, positions and head (Kaplan et al. 2020);
    matrices_and_head: matrices in blocks and the head's V d, tied or not (nanochat).
    """
    by_role = parameters_by_role(config)
    total = sum(by_role.values())
    matrices = sum(by_role[role] for role in MATRIX_ROLES)
    tables = by_role["embedding"] + by_role["position"]
    return {
        "total": total,
        "non_position": total - by_role["position"],
        "non_embedding": total - tables - by_role["readout"],
        "matrices_and_head": matrices + by_role["embedding"],
    }


def forward_flops(config: ExperimentConfig) -> dict[str, int]:
    """Module -> FLOPs of one forward pass over one sequence."""
    T, L, d = config.block_size, config.n_layer, config.n_embd
    counts = {
        "attention_projections": 0,
        "mlp": 0,
        "attention_scores": 2 * L * (2 * T * T * d),  # q k^T and weights v, all heads
        "head": 0,
    }
    for spec in tensors(config):
        products = 2 * T * spec.numel
        if spec.role == "embedding":  # the head's matrix, or as large as that one
            counts["head"] += products
        elif spec.role in MATRIX_ROLES:
            module = "mlp" if ".mlp." in spec.name else "attention_projections"
            counts[module] += products
    return counts


def flops_per_token(config: ExperimentConfig) -> dict[str, float]:
    """Training FLOPs (forward and backward) per token under each convention.

    exact: see the module; 6N and 6N_non_embedding: 6 per parameter (Kaplan et al. 2020);
    6N_12LdT: nanoGPT's, PaLM appendix B: 6 N_non_position + 12 L d T.
    """
    n = parameter_counts(config)
    exact = 3 * sum(forward_flops(config).values())
    attention = 12.0 * config.n_layer * config.n_embd * config.block_size
    return {
        "exact": exact / config.block_size,
        "6N": 6.0 * n["total"],
        "6N_non_embedding": 6.0 * n["non_embedding"],
        "6N_12LdT": 6.0 * n["non_position"] + attention,
    }


def flops_per_iter(config: ExperimentConfig) -> int:
    """Exact training FLOPs of one update."""
    return 3 * sum(forward_flops(config).values()) * config.sequences_per_iter
