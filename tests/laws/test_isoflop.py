"""Approaches 1 and 2: published biases to the printed digit, planted valleys, brute force."""

from __future__ import annotations

import numpy as np
import pytest

from nanoscale.errors import UserError
from nanoscale.laws import LAWS, fit_law, isoflop
from nanoscale.laws.envelope import envelope, hull
from nanoscale.laws.points import by_budget

LAW = LAWS["chinchilla"]
SURFACES = {  # E, A, B, alpha, beta of arXiv 2603.22339
    "symmetric": [1.69, 400.0, 400.0, 0.31, 0.31],
    "chinchilla": [1.69, 406.4, 410.7, 0.34, 0.28],
    "asymmetric": [1.69, 406.4, 410.7, 0.465, 0.155],
}
PRINTED = {  # error of D* at 1e24 in percent, for grids over +-2, 4, 8 and 16 x
    ("symmetric", "centred"): (0, 0, 0, 0),
    ("symmetric", "offset"): (3.974, 3.472, 2.645, 1.510),
    ("symmetric", "drift"): (6.071, 5.171, 3.698, 1.689),
    ("chinchilla", "centred"): (-0.327, -1.301, -2.903, -5.100),
    ("chinchilla", "offset"): (7.110, 5.691, 3.376, 0.238),
    ("chinchilla", "drift"): (11.614, 9.832, 6.939, 3.048),
    ("asymmetric", "centred"): (-1.675, -6.498, -13.910, -23.116),
    ("asymmetric", "offset"): (19.221, 14.414, 6.959, -2.425),
    ("asymmetric", "drift"): (34.575, 30.038, 22.969, 13.997),
}
INTERCEPTS = {"symmetric": -0.389076, "chinchilla": -0.578092, "asymmetric": -1.459957}
WIDTHS = (2, 4, 8, 16)


def cells(surface, width, centres=1.0, points=15):
    """N, D of five budgets; grids of D over +-width x, centred at `centres` times the optimum."""
    C = np.geomspace(1e17, 1e21, 5)
    middle = LAW.optimum(np.array(SURFACES[surface]), C)[1] * centres
    D = (middle[:, None] * np.geomspace(1 / width, width, points)).ravel()
    return np.repeat(C, points) / (6 * D), D


def losses(surface, N, D, sd=0.0, seed=0):
    noise = np.random.default_rng(seed).standard_normal(len(N))
    return LAW.loss(np.array(SURFACES[surface]), N, D) * np.exp(sd * noise)


def approach2(surface, kind, width, **options):
    centres = {"centred": 1.0, "offset": 3.0, "drift": 3 ** np.linspace(0, 1, 5)}[kind]
    N, D = cells(surface, width, centres)
    loss = losses(surface, N, D)
    found = isoflop.isoflop({"N": N, "D": D}, loss, extrapolated=True, resamples=0, **options)
    return found, fit_law({"N": N, "D": D}, loss, resamples=0)


@pytest.mark.slow
@pytest.mark.parametrize(("surface", "kind"), PRINTED)
def test_the_36_published_biases_are_seen_predicted_and_corrected(surface, kind):
    n_true, d_true = LAW.optimum(np.array(SURFACES[surface]), 1e24)
    for width, printed in zip(WIDTHS, PRINTED[surface, kind], strict=True):
        found, fitted = approach2(surface, kind, width, axis="D")
        assert 100 * (found.optimum(1e24).D / d_true - 1) == pytest.approx(printed, abs=5.1e-4)
        told = isoflop.bias(found, fitted, 1e24)
        assert 100 * told.bias["D"] == pytest.approx(printed, abs=5.1e-4)
        assert told.corrected["D"] == pytest.approx(d_true, rel=1e-6)
        assert told.corrected["N"] == pytest.approx(n_true, rel=1e-6)
        exact = LAW.exponents(np.array(SURFACES[surface]))
        assert told.corrected["a"] == pytest.approx(exact["a"], abs=1e-7)
        if (kind, width) == ("centred", 16):
            assert found.intercept == pytest.approx(INTERCEPTS[surface], abs=5.1e-7)


def test_n_and_d_are_one_valley_seen_from_both_sides():
    for degree in (2, 3):
        n, d = (approach2("asymmetric", "drift", 4, axis=axis, degree=degree)[0] for axis in "ND")
        seen, other = ([best.N, best.D] for best in (n.optimum(1e24), d.optimum(1e24)))
        assert seen == pytest.approx(other, rel=1e-9)
        assert n.exponents == pytest.approx(d.exponents, abs=1e-12)
        assert (n.exponents["a"], d.exponents["b"]) == (n.slope, d.slope)


def test_a_cubic_is_found_exactly_and_bends_as_the_surface_does():
    N, D = cells("symmetric", 4, points=6)
    x, c = np.log10(N), np.repeat(np.geomspace(1e17, 1e21, 5), 6)
    u = x - (0.45 * np.log10(c) + 1.2)  # a planted vertex, with a third-order term beside it
    loss = 3 + 0.3 * u**2 - 0.1 * u**3
    found = isoflop.isoflop({"N": N, "D": D}, loss, degree=3, resamples=0, extrapolated=True)
    assert (found.slope, found.intercept) == pytest.approx((0.45, 1.2), abs=1e-9)
    errors = [
        abs(isoflop.bias(*approach2("asymmetric", "centred", 16, degree=degree), 1e24).bias["D"])
        for degree in (2, 3)
    ]
    assert errors[1] < errors[0] / 3


@pytest.mark.slow
def test_intervals_hold_the_planted_line_and_shrink_with_the_noise():
    N, D = cells("symmetric", 4, points=8)  # no bias here: what is left is noise
    truth, held, widths = LAW.optimum(np.array(SURFACES["symmetric"]), 1e22)[0], [], []
    for world in range(120):
        loss = losses("symmetric", N, D, 0.002, seed=1000 + world)
        found = isoflop.isoflop({"N": N, "D": D}, loss, resamples=200)
        ends = [
            found.ci95["a"],
            found.optimum(1e22).N_ci95,
            *(np.array(v.ci95) / np.sqrt(v.C / 6) for v in found.valleys),
        ]
        held.append(
            [
                low < value < high
                for (low, high), value in zip(ends, (0.5, truth, *[1] * 5), strict=True)
            ]
        )
        widths.append(np.ptp(found.ci95["a"]))
    assert (np.mean(held, axis=0) > 0.9).all()
    assert (np.mean(held, axis=0) < 0.99).all()
    quiet = isoflop.isoflop({"N": N, "D": D}, losses("symmetric", N, D, 0.0005, seed=1119))
    assert np.ptp(quiet.ci95["a"]) == pytest.approx(widths[-1] / 4, rel=0.1)


def test_the_bias_has_an_interval_from_the_surfaces_own_resamples():
    N, D = cells("chinchilla", 8, 3 ** np.linspace(0, 1, 5))
    loss = losses("chinchilla", N, D, 0.002)
    surface = fit_law({"N": N, "D": D}, loss, resamples=200)
    told = isoflop.bias(isoflop.isoflop({"N": N, "D": D}, loss), surface, 1e24)
    low, high = told.ci95["D"]
    assert low < 0.06939 < high
    assert 0 < high - low < 0.05


def test_what_is_wrong_with_a_grid_is_flagged_and_a_sound_one_is_silent():
    N, D = cells("symmetric", 4, points=7)
    sound = isoflop.isoflop({"N": N, "D": D}, losses("symmetric", N, D, 5e-4))
    assert sound.warnings == []
    assert all(v.used and not v.flags for v in sound.valleys)
    N, D = cells("symmetric", 4, np.array([1, 2.0, 6.0, 1, 1]), points=7)
    keep = np.ones(35, bool)
    keep[[29, 30, 32, 34]] = False  # three of the last budget are left
    loss = losses("symmetric", N, D, 1e-4)
    found = isoflop.isoflop({"N": N[keep], "D": D[keep]}, loss[keep])
    assert [v.flags for v in found.valleys] == [
        [],
        ["off-centre"],
        ["unbracketed", "off-centre"],
        [],
        ["too few points"],
    ]
    assert [v.used for v in found.valleys] == [True, True, False, True, False]
    assert found.valleys[1].offset == pytest.approx(-np.log10(2), abs=0.02)  # too small N
    assert [w.split(":")[0].split(" (")[0] for w in found.warnings] == [
        "too few points at C = 1e+21",
        "unbracketed at C = 1e+19",
        "off-centre at C = 1e+18",
    ]
    assert found.exponents["a"] == pytest.approx(0.5, abs=0.01)


def test_flat_valleys_say_that_their_intervals_have_no_end():
    N, D = cells("symmetric", 2, points=6)
    found = isoflop.isoflop(
        {"N": N, "D": D}, losses("symmetric", N, D, 0.003, 3), extrapolated=True
    )
    assert any("flat beside the noise" in w for w in found.warnings)
    assert all(v.vertex for v in found.valleys)
    assert [v.ci95 is None for v in found.valleys] == [False, True, False, True, True]


def test_runs_within_a_tenth_share_a_budget():
    C = np.array([1e18, 3e17, 1.02e18, 0.99e18, 3.2e17, 1.2e18])
    assert [sorted(rows.tolist()) for rows in by_budget(C)] == [[1, 4], [0, 2, 3], [5]]


def test_the_envelope_is_that_of_brute_force_and_its_line_is_the_planted_one():
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0, 4, 60), rng.uniform(0, 1, 60)
    y += -0.5 * x
    below = [
        i
        for i in range(60)
        if not any(
            x[j] < x[i] < x[k] and y[j] + (y[k] - y[j]) * (x[i] - x[j]) / (x[k] - x[j]) <= y[i]
            for j in range(60)
            for k in range(60)
        )
    ]
    below = sorted((i for i in below if x[i] <= x[y.argmin()]), key=lambda i: x[i])
    assert hull(x, y).tolist() == below
    N, D = cells("chinchilla", 4, points=31)
    found = envelope({"N": N, "D": D}, losses("chinchilla", N, D))
    assert found.runs == [15, 46, 77, 108, 139]  # the middle of every budget
    exact = LAW.exponents(np.array(SURFACES["chinchilla"]))
    assert found.exponents == pytest.approx(exact, abs=1e-9)
    best = LAW.optimum(np.array(SURFACES["chinchilla"]), 1e24)[1]
    assert float(found.optimum(1e24).D) == pytest.approx(best, rel=1e-6)
    assert found.ci95["a"][0] < exact["a"] < found.ci95["a"][1]


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("axis 'C': choose 'N' or 'D'", {"axis": "C"}),
        ("degree 4: choose 2 (parabola) or 3 (cubic)", {"degree": 4}),
        ("0 of 5 budgets have a minimum inside their grid", {}),
        ("10 resamples are too few", {"resamples": 10, "extrapolated": True}),
    ],
)
def test_bad_input_is_refused_in_one_line(message, change):
    N, D = cells("symmetric", 2, 6.0)
    with pytest.raises(UserError) as error:
        isoflop.isoflop({"N": N, "D": D}, losses("symmetric", N, D), **change)
    assert message in str(error.value)
    with pytest.raises(UserError, match="1 runs are on the envelope"):
        envelope({"N": N[:15], "D": D[:15]}, losses("symmetric", N, D)[:15])
