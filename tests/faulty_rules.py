"""muP and CompleteP with one rule missing each: what a check of rules has to catch.

    nanoscale coord-check --parametrization.rules=tests/faulty_rules.py \\
        --parametrization.mode=muP-no-lr --widths 64,128,256
"""

from dataclasses import replace

from nanoscale.spec.architecture import MATRIX_ROLES, ROLES
from nanoscale.spec.parametrization import COMPLETEP, MUP, ONE, Power, register


def lacking(scheme, roles, **multipliers):
    """`scheme` with these multipliers in the rows of `roles`."""
    rows = {role: replace(scheme.rows[role], **multipliers) for role in roles}
    return replace(scheme, rows=scheme.rows | rows)


register("muP-no-init", lacking(MUP, MATRIX_ROLES, init=ONE))
register("muP-no-init-hidden", lacking(MUP, ["hidden"], init=ONE))
register("muP-no-init-out", lacking(MUP, ["residual_out"], init=ONE))
register("muP-no-lr", lacking(MUP, MATRIX_ROLES, lr=ONE))
register("muP-embedding-lr", lacking(MUP, ["embedding"], lr=Power(m_N=-1)))
register("muP-no-eps", lacking(MUP, ROLES, eps=ONE))
register("muP-no-attention", replace(MUP, attention=ONE))
register("muP-no-output", replace(MUP, logits=ONE))
register("CompleteP-no-residual", replace(COMPLETEP, residual=ONE))
