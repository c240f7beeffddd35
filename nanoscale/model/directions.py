"""What Muon makes of a matrix of momentum, by rule (`spec/muon_rules.py` has forms and sources).

Every function takes stacks (n, fan_out, fan_in) and returns one, each matrix by itself, so that
over ranks each can do a share of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

# Quintic whose iteration sends singular values from (0, 1] to about [0.7, 1.2] in 5 steps.
NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
# From there to 1, with an error that is cubed by each (Higham 2008, Functions of Matrices, ch. 8).
POLISH_COEFFICIENTS = (15 / 8, -10 / 8, 3 / 8)
LIFTS, POLISHES = 9, 4  # of either, to the polar factor
NS_EPS = 1e-7
NSR_WEIGHT, NSR_EPS = 10.0, 1e-8  # the authors'
BISECTIONS = 20

Quintic = tuple[float, float, float]  # a x + b x^3 + c x^5


def quintics(steps: int) -> list[Quintic]:
    """Muon's Newton-Schulz iteration."""
    return [NS_COEFFICIENTS] * steps


def polar_quintics() -> list[Quintic]:
    """To the polar factor: lift what is small, then polish."""
    return [NS_COEFFICIENTS] * LIFTS + [POLISH_COEFFICIENTS] * POLISHES


def orthogonalize(
    G: Tensor,
    steps: int = 5,
    dtype: torch.dtype | None = None,
    polynomials: list[Quintic] | None = None,
) -> Tensor:
    """U V^T of G = U S V^T approximately, by Newton-Schulz; G is (..., fan_out, fan_in).

    Singular values end in about [0.7, 1.2]; an all-zero matrix stays zero. The products are in
    bfloat16 on CUDA, in float32 elsewhere, unless `dtype` says so; returned in G's dtype.
    `polynomials` are others than `steps` of Muon's.
    """
    X = G.to(dtype or (torch.bfloat16 if G.is_cuda else torch.float32))
    X = X.reshape(-1, *G.shape[-2:])
    tall = X.size(-2) > X.size(-1)
    if tall:  # the products are of the smaller side squared
        X = X.mT

    X = X / X.norm(dim=(-2, -1), keepdim=True).clamp(min=NS_EPS)
    for a, b, c in polynomials or quintics(steps):
        A = torch.bmm(X, X.mT)
        B = torch.baddbmm(A, A, A, beta=b, alpha=c)  # b A + c A^2
        X = torch.baddbmm(X, B, X, beta=a)  # a X + B X

    if tall:
        X = X.mT
    return X.reshape(G.shape).to(G.dtype)


def polar(G: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """U V^T of G = U S V^T, in float32 unless `dtype` says so; G is (..., fan_out, fan_in).

    To 1e-4 where a singular value is above 1e-4 of Frobenius' norm; what is far smaller ends below.
    """
    return orthogonalize(G, dtype=dtype or torch.float32, polynomials=polar_quintics())


# -- functions of singular values -----------------------------------------------------------------
def spectral(G: Tensor, over_value: Callable[[Tensor], Tensor]) -> Tensor:
    """U f(S) V^T of G = U S V^T, for f(S) / S = `over_value(S)`, S (n, k) ascending.

    By the smaller side's Gram matrix, in float64 where there is any: G G^T = U S^2 U^T.
    """
    wide = G.size(-2) <= G.size(-1)
    exact = torch.float32 if G.device.type == "mps" else torch.float64
    X = (G if wide else G.mT).to(exact)
    squares, U = torch.linalg.eigh(X @ X.mT)
    weights = over_value(squares.clamp(min=0).sqrt())
    done: Tensor = (U * weights[..., None, :]) @ (U.mT @ X)
    return (done if wide else done.mT).to(G.dtype)


def power(G: Tensor, p: float) -> Tensor:
    """U (S / max S)^p V^T of G = U S V^T."""

    def over_value(S: Tensor) -> Tensor:
        largest = S[..., -1:].clamp(min=torch.finfo(G.dtype).tiny)
        weights: Tensor = (S / largest).clamp(min=NS_EPS) ** (p - 1) / largest
        return weights

    return spectral(G, over_value)


def clip(G: Tensor, most: float) -> Tensor:
    """U min(S / t, 1) V^T of G = U S V^T, t = `most` times the root mean square of S."""

    def over_value(S: Tensor) -> Tensor:
        t = most * S.square().mean(-1, keepdim=True).sqrt().clamp(min=torch.finfo(G.dtype).tiny)
        weights: Tensor = 1 / torch.maximum(S, t)
        return weights

    return spectral(G, over_value)


def row_normalized(G: Tensor) -> Tensor:
    """Every row over its norm; a row of zeros stays."""
    size: Tensor = torch.linalg.vector_norm(G, dim=-1, keepdim=True)
    return G / size.clamp(min=torch.finfo(G.dtype).tiny)


# -- steps that look at the weights ---------------------------------------------------------------
def on_hyperball(W: Tensor, direction: Tensor, lr: float) -> Tensor:
    """W after a step as long as lr |W| along `direction`, back at its norm |W|."""
    held = norms(W)
    moved: Tensor = W - lr * held / norms(direction).clamp(min=NS_EPS) * direction
    return moved * (held / norms(moved).clamp(min=NS_EPS))


def norms(X: Tensor) -> Tensor:
    """Frobenius' norm of each matrix, (n, 1, 1)."""
    norm: Tensor = torch.linalg.matrix_norm(X, keepdim=True)
    return norm


def on_sphere(W: Tensor, u: Tensor, lr: float) -> Tensor:
    """W on the sphere of largest singular value R = sqrt(out / in), then a step of lr R along it.

    The step is the steepest of those that leave that value as it is, to first order.
    """
    R = (W.size(-2) / W.size(-1)) ** 0.5
    x, largest, y = torch.linalg.svd(W, full_matrices=False)
    T = x[..., :, :1] * y[..., :1, :]
    held = W * (R / largest[..., :1, None].clamp(min=NS_EPS))
    towards = u / norms(u).clamp(min=NS_EPS)
    moved: Tensor = held - lr * R * tangent(towards, T)
    return moved


def tangent(u: Tensor, T: Tensor) -> Tensor:
    """polar(u + l T) for the l at which <T, polar(u + l T)> = 0, which grows with l."""

    def along(weight: Tensor) -> Tensor:
        return (T * polar(u + weight * T)).sum((-2, -1), keepdim=True)

    far = 2 * norms(u)  # |l| beyond which T outweighs u
    low, high = -far, far
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        above = along(middle) > 0
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return polar(u + (low + high) / 2 * T)


# -- by rule --------------------------------------------------------------------------------------
GroupSettings = Mapping[str, Any]  # of torch.optim: lr, ns_steps, power, ...


def _orthogonal(group: GroupSettings, dtype: torch.dtype | None, u: Tensor) -> Tensor:
    return orthogonalize(u, group["ns_steps"], dtype)


# The direction of u; of a rule of weights, what W becomes.
STEPS_OF_RULES: dict[str, Callable[..., Tensor]] = {
    "muon": _orthogonal,
    "polar": lambda group, dtype, u: polar(u, dtype),
    "power": lambda group, dtype, u: power(u, group["power"]),
    "hyperball": lambda group, dtype, u, W: on_hyperball(
        W, _orthogonal(group, dtype, u), group["lr"]
    ),
    "variance": _orthogonal,
    "row_norm": lambda group, dtype, u: _orthogonal(group, dtype, row_normalized(u)),
    "clip": lambda group, dtype, u: clip(u, group["clip"]),
    "sphere": lambda group, dtype, u, W: on_sphere(W, u, group["lr"]),
}
