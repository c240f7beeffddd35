"""Student's t against printed tables, closed forms and scipy's own distribution."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from nanoscale.checks.t_distribution import p_value, t_quantile


@pytest.mark.parametrize(
    ("level", "dof", "t"),
    [  # Fisher and Yates, Table III, to more digits
        (0.95, 1, 12.70620474),
        (0.95, 2, 4.30265273),
        (0.95, 4, 2.77644511),
        (0.99, 7, 3.49948330),
        (0.95, 30, 2.04227246),
        (0.5, 1, 1.0),
        (0.95, 1e7, 1.95996399),
    ],
)
def test_quantiles_of_t_are_the_tables(level, dof, t):
    assert t_quantile(level, dof) == pytest.approx(t, rel=2e-7)
    assert p_value(-t, dof) == pytest.approx(1 - level, rel=1e-6)


def test_p_values_have_their_closed_forms_far_into_the_tail():
    for t in (1e-9, 0.3, 1.0, 7.0, 1e3):  # dof 1: Cauchy; dof 2: 1 - t / sqrt(2 + t^2)
        assert p_value(t, 1) == pytest.approx(2 / math.pi * math.atan2(1, t), rel=1e-12)
        root = math.sqrt(2 + t * t)
        assert p_value(t, 2) == pytest.approx(2 / (root * (root + t)), rel=1e-12)
    assert p_value(0, 3) == 1


def test_t_is_scipys_at_every_degree_of_freedom():
    for dof in (1.3, 2.7, 5, 11.9, 60, 3000):
        for x in (0.1, 1.5, 4, 20):
            assert p_value(x, dof) == pytest.approx(2 * stats.t.sf(x, dof), rel=1e-9)
        assert t_quantile(0.95, dof) == pytest.approx(stats.t.ppf(0.975, dof), rel=1e-9)
