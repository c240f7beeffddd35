"""The multiverse: the published drop-k row, a convention's planted exponents."""

from __future__ import annotations

import numpy as np
import pytest
from planted import LAW, grid

from nanoscale.errors import UserError
from nanoscale.laws import multiverse


@pytest.mark.slow
def test_the_published_rows_of_outliers_and_objectives(epoch):
    N, C, L = epoch
    found = multiverse.multiverse(
        {"C = 6ND": {"N": N, "C": C}},
        L,
        approaches=["3"],
        objectives=["log-huber"],
        deltas=[1e-3],
        dropped=range(11),
    )
    assert [round(row.a, 4) for row in found.rows] == [
        0.5646,
        0.5441,
        0.5380,
        0.5241,
        0.5164,
        0.5139,
        0.5150,
        0.5117,
        0.5089,
        0.5085,
        0.5086,
    ]
    assert found.spread["dropped"] == pytest.approx(0.5646 - 0.5085, abs=1e-4)
    assert found.spread["delta"] is None
    found = multiverse.multiverse({"C = 6ND": {"N": N, "C": C}}, L, approaches=["3"], dropped=[5])
    a = {(row.objective, row.delta): round(row.a, 4) for row in found.rows}
    assert (a["lad", None], a["log-huber", 1e-3], a["mse", None]) == (0.5126, 0.5139, 0.5446)
    assert (a["log-huber", 1e-2], a["log-huber", 1e-4]) == (0.5184, 0.5126)
    found = multiverse.multiverse(
        {"C = 6ND": {"N": N, "C": C}},
        L,
        approaches=["3"],
        dropped=[5],
        objectives=["log-huber", "lad"],
    )
    assert found.spread["objective"] == pytest.approx(0.5184 - 0.5126, abs=1.1e-4)


@pytest.mark.slow
def test_a_convention_that_bends_n_is_what_decides_and_all_approaches_agree():
    N, D, loss = grid()
    bent = N**1.25 * 1e-2  # alpha becomes 0.31 / 1.25, so a = 1.25 / 2.25
    found = multiverse.multiverse(
        {"total": {"N": N, "D": D}, "bent": {"N": bent, "D": D}}, loss, dropped=[0]
    )
    rows = {(r.convention, r.approach, r.objective, r.delta): r for r in found.rows}
    assert len(rows) == 2 * (3 + 5)
    total = [r.a for key, r in rows.items() if key[0] == "total"]
    assert total == pytest.approx([0.5] * 8, abs=1e-6)
    assert rows["bent", "3", "lad", None].a == pytest.approx(1.25 / 2.25, abs=1e-6)
    assert "budgets have a minimum" in rows["bent", "2", None, None].status  # no equal C of it
    assert found.spread["convention"] > 0.03 > 1e-3 > found.spread["delta"]
    assert found.a["lowest"] <= 0.5 + 1e-6 < found.a["highest"]
    with pytest.raises(UserError, match="approach '4': choose of 1, 2, 2 cubic, 3"):
        multiverse.multiverse({"total": {"N": N, "D": D}}, loss, approaches=["4"])


def test_a_drifting_grid_bends_the_parabolas_exponent_more_than_the_cubics():
    truth = np.array([1.69, 406.4, 410.7, 0.34, 0.28])
    N, D, _ = grid(truth=truth)
    drift = np.repeat(2.5 ** np.linspace(0, 1, 5), 9)
    loss = LAW.loss(truth, N * drift, D / drift)
    found = multiverse.multiverse(
        {"total": {"N": N * drift, "D": D / drift}},
        loss,
        dropped=[0],
        approaches=["2", "2 cubic", "3"],
        objectives=["mse"],
    )
    parabola, cubic, exact = (row.a for row in found.rows)
    assert exact == pytest.approx(0.28 / 0.62, abs=1e-6)
    assert abs(parabola - exact) > 2 * abs(cubic - exact)
    assert found.spread["approach"] >= abs(parabola - exact)
