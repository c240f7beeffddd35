"""Student's t: what small samples say of a mean. scipy is loaded when a number is wanted."""

from __future__ import annotations


def t_quantile(level: float, dof: float) -> float:
    """t with P(|T| <= t) = level: 12.706 for 0.95 and one degree of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(dof, (1 + level) / 2))


def p_value(t: float, dof: float) -> float:
    """Two-sided: P(|T| >= |t|) = I_x(dof / 2, 1 / 2), x = dof / (dof + t^2) (DLMF 8.17)."""
    from scipy.special import betainc

    square = t * t
    if square < 1:  # of x, so near 1, little is left to tell values of t apart: take 1 - x
        return float(1 - betainc(0.5, dof / 2, square / (dof + square)))
    return float(betainc(dof / 2, 0.5, dof / (dof + square)))
