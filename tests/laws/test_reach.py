"""What runs do not reach is not identified: a predictor's span, and resamples at a bound."""

from __future__ import annotations

import numpy as np
import pytest
from planted import LAW, TRUTH

from nanoscale.laws import fit_law
from nanoscale.laws.points import Points
from nanoscale.laws.problem import problem_of
from nanoscale.laws.reach import not_reached


@pytest.mark.parametrize(("span", "reached"), [(1.9, False), (2.1, True)])
def test_a_predictor_that_hardly_varies_has_no_exponent(span, reached):
    N, D = np.meshgrid(np.geomspace(1e8, span * 1e8, 5), np.geomspace(1e9, 1e11, 5))
    loss = LAW.loss(TRUTH, N.ravel(), D.ravel())
    found = fit_law({"N": N.ravel(), "D": D.ravel()}, loss, resamples=0)
    assert (found.status == "converged") == reached
    if not reached:
        reason = "N spans a factor of 1.9, and an exponent needs 2"
        assert found.not_identified == {"A": reason, "alpha": reason}


@pytest.mark.parametrize(("at_end", "unknown"), [(2, set()), (3, {"A", "alpha"})])
def test_resamples_at_a_bound_identify_nothing(at_end, unknown):
    N, D = np.meshgrid(np.geomspace(1e7, 1e9, 4), np.geomspace(1e9, 1e11, 4))
    x = np.array([N.ravel(), D.ravel()])
    points = Points.of(LAW, {"N": x[0], "D": x[1]}, LAW.loss(TRUTH, *x))
    draws = np.repeat(TRUTH[None], 100, axis=0)
    draws[:, 1] = 400 * 1e8 ** (4.5 - 0.31)  # as large a term
    draws[:, 3] = 4.5
    draws[:at_end, 3] = 5.0
    assert set(not_reached(problem_of(LAW, x, points.loss), draws, points)) == unknown
