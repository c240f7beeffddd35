"""Comparisons of two arms against planted differences, closed forms, known coverage and tables."""

from __future__ import annotations

import json
import math
import statistics

import numpy as np
import pytest
from tiny import run_nanoscale, run_python, tiny_spec

from nanoscale.checks import paired
from nanoscale.checks.paired import Difference, Sample, choose, difference_of, judge, multiplier
from nanoscale.commands.options import parse
from nanoscale.errors import DONE, INCONCLUSIVE, UserError
from nanoscale.report.compare import compare_figure
from nanoscale.store.files import write_json
from nanoscale.store.folder import COMPLETE, DIVERGED, METRICS, WAITING, WINDOWS, RunFolder
from nanoscale.studies.compare import OPTIONS, lines, main


# -- Student's t --------------------------------------------------------------------------------
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
    assert paired.t_quantile(level, dof) == pytest.approx(t, rel=2e-7)
    assert paired.p_value(-t, dof) == pytest.approx(1 - level, rel=1e-6)


def test_p_values_have_their_closed_forms_far_into_the_tail():
    for t in (1e-9, 0.3, 1.0, 7.0, 1e3):  # dof 1: Cauchy; dof 2: 1 - t / sqrt(2 + t^2)
        assert paired.p_value(t, 1) == pytest.approx(2 / math.pi * math.atan2(1, t), rel=1e-12)
        root = math.sqrt(2 + t * t)
        assert paired.p_value(t, 2) == pytest.approx(2 / (root * (root + t)), rel=1e-12)
    assert paired.p_value(0, 3) == 1


def test_t_is_scipys_at_every_degree_of_freedom():
    t = pytest.importorskip("scipy.stats").t
    for dof in (1.3, 2.7, 5, 11.9, 60, 3000):
        for x in (0.1, 1.5, 4, 20):
            assert paired.p_value(x, dof) == pytest.approx(2 * t.sf(x, dof), rel=1e-9)
        assert paired.t_quantile(0.95, dof) == pytest.approx(t.ppf(0.975, dof), rel=1e-9)


# -- differences --------------------------------------------------------------------------------
def arms(rng, seeds, *, gap=-0.01, cells=1, shared=0.01, own=0.004, both=0.003):
    """Two arms' {cell: {seed: loss}}: a shift of the seed, one of the seed in B, and the rest."""
    shift, mine = shared * rng.standard_normal(seeds), both * rng.standard_normal(seeds)
    rest = own * rng.standard_normal((2, cells, seeds))
    a = {k: {str(s): 2 - k + shift[s] + rest[0, k, s] for s in range(seeds)} for k in range(cells)}
    b = {
        k: {str(s): 2 - k + gap + shift[s] + mine[s] + rest[1, k, s] for s in range(seeds)}
        for k in range(cells)
    }
    return a, b


@pytest.mark.parametrize(("seeds", "cells"), [(3, 1), (5, 1), (8, 1), (3, 3), (8, 3)])
def test_the_interval_covers_the_planted_difference_in_95_of_100(seeds, cells):
    rng, found = np.random.default_rng(seeds), []
    for _ in range(2000):
        low, high = difference_of(*arms(rng, seeds, cells=cells)).ci95
        found.append(low <= -0.01 <= high)
    assert 0.935 <= np.mean(found) <= 0.965  # its own standard error is 0.005


def test_pairing_sees_what_two_samples_do_not():
    rng, seen = np.random.default_rng(1), []
    for _ in range(400):
        a, b = arms(rng, 5)
        welch = Difference(0.0, (Sample.of(a), Sample.of(b)))
        pairs = difference_of(a, b)
        seen.append((pairs.p < 0.05, paired.p_value(pairs.value / welch.se, welch.dof) < 0.05))
    by_pairs, by_samples = np.mean(seen, axis=0)
    assert by_pairs > 0.65
    assert by_samples < 0.25


def test_a_difference_of_pairs_is_the_textbooks_and_of_several_sizes_that_of_seeds_means():
    a, b = arms(np.random.default_rng(2), 4, cells=3)
    d = [statistics.mean(b[k][s] - a[k][s] for k in a) for s in a[0]]
    found = difference_of(a, b)
    assert found.value == pytest.approx(statistics.mean(d), abs=1e-12)
    assert found.se == pytest.approx(statistics.stdev(d) / 2, rel=1e-9)
    assert (found.dof, found.paired_by, found.parts[0].n) == (pytest.approx(3), "seed", 4)
    half = 3.182446305 * found.se
    assert found.ci95 == pytest.approx((found.value - half, found.value + half), rel=1e-8)
    del b[1]["3"]  # a size lacks a pair: the others keep theirs, the interval its least seeds
    fewer = difference_of(a, b)
    sizes = [statistics.mean(b[k][s] - a[k][s] for s in b[k]) for k in a]
    assert fewer.value == pytest.approx(statistics.mean(sizes), abs=1e-12)
    assert fewer.dof == pytest.approx(2)


def test_other_seeds_in_each_arm_are_welchs_two_samples():
    a, b = {"": {"1": 2.0, "2": 2.2, "3": 2.1}}, {"": {"7": 1.9, "8": 1.5, "9": 1.7, "10": 1.6}}
    x, y = (list(arm[""].values()) for arm in (a, b))
    va, vb = statistics.variance(x) / 3, statistics.variance(y) / 4
    found = difference_of(a, b)
    assert found.paired_by is None
    assert found.value == pytest.approx(statistics.mean(y) - statistics.mean(x))
    assert found.se == pytest.approx(math.sqrt(va + vb))
    assert found.dof == pytest.approx((va + vb) ** 2 / (va**2 / 2 + vb**2 / 3))
    b[""]["1"] = 1.8
    assert difference_of(a, b).paired_by is None  # 1 of A's 3 is shared, no scatter in that
    b[""]["2"] = 1.6  # 2 of them: now there are pairs
    assert (difference_of(a, b).paired_by, difference_of(a, b).parts[0].n) == ("seed", 2)


def test_one_pair_says_nothing_of_the_seeds_and_equal_pairs_everything():
    one = difference_of({"": {"1": 2.0}}, {"": {"1": 1.9}})
    assert (one.known, math.isnan(one.p), paired.seeds_needed(one, 0.01)) == (False, True, 2)
    assert judge(one.ci95, 0.01) == "inconclusive"
    same = difference_of({"": {"1": 2.0, "2": 2.1}}, {"": {"1": 2.0, "2": 2.1}})
    assert (same.ci95, same.p, judge(same.ci95, 0.0)) == ((0, 0), 1, "equal")


@pytest.mark.parametrize(
    ("ends", "verdict"),
    [
        ((-0.03, -0.001), "better"),
        ((0.001, 0.03), "worse"),
        ((-0.01, 0.01), "equal"),
        ((-0.009, -0.001), "equal"),
        ((-0.011, 0.001), "inconclusive"),
        ((0.0, 0.02), "inconclusive"),
        ((math.nan, math.nan), "inconclusive"),
    ],
)
def test_the_verdict_is_the_intervals(ends, verdict):
    assert judge(ends, 0.01) == verdict


@pytest.mark.parametrize(("value", "sd"), [(-0.02, 0.02), (0.001, 0.012), (-0.03, 0.01)])
def test_the_seeds_needed_are_the_fewest_that_decide(value, sd):
    found = Difference(value, (Sample(value, sd, 3),), "seed")
    more = paired.seeds_needed(found, 0.01)
    assert judge(found.with_more(more).ci95, 0.01) != "inconclusive"
    assert more == 0 or judge(found.with_more(more - 1).ci95, 0.01) == "inconclusive"
    n = 3 + more
    half = paired.t_quantile(0.95, n - 1) * sd / math.sqrt(n)
    assert half < max(abs(value), 0.01 - abs(value))
    assert paired.seeds_needed(Difference(0.01, (Sample(0.01, 1.0, 3),), "seed"), 0.01) is None


# -- windows ------------------------------------------------------------------------------------
@pytest.mark.parametrize("near", [0.0, 0.3])
def test_the_noise_of_windows_knows_that_neighbours_are_alike(near):
    rng, n, means, said = np.random.default_rng(3), 600, [], []
    for _ in range(300):
        noise, w = rng.standard_normal(n), np.empty(n)
        w[0] = noise[0] / math.sqrt(1 - near**2)
        for i in range(1, n):
            w[i] = near * w[i - 1] + noise[i]
        means.append(w.mean())
        said.append(paired.windows_noise(w)[0])
    assert np.mean(said) == pytest.approx(np.std(means), rel=0.1)
    assert paired.windows_noise(np.ones(1))[1] == 1


# -- tuned settings -----------------------------------------------------------------------------
def test_the_lowest_mean_of_the_fullest_is_chosen_and_its_luck_is_measured():
    settings = {
        0.1: {"1": 2.0, "2": 2.3, "3": 2.0},
        0.2: {"1": 2.1, "2": 2.0, "3": 2.1},
        0.3: {"1": 1.5},
        0.4: {"1": 2.5},
    }
    found = choose(settings)
    assert (found.setting, found.of, found.doubts) == (0.2, 2, (0.3,))
    # without seed 1 or 3, 0.2 is the lower; without 2, 0.1 is, whose loss at 2 is 2.3
    assert found.held_out == {"1": 2.1, "2": 2.3, "3": 2.1}


# -- compute at equal loss ----------------------------------------------------------------------
def levels(flops, speed=1.0, seeds=3, noise=None):
    """Levels of the law 3 (speed C / 1e9)^-0.05, a seed's relative shift on each."""
    noise = np.zeros((len(flops), seeds)) if noise is None else noise
    return [
        (c, {str(s): 3 * (speed * c / 1e9) ** -0.05 * (1 + noise[i, s]) for s in range(seeds)})
        for i, c in enumerate(flops)
    ]


def test_the_multiplier_of_a_planted_law_is_exact():
    a, b = levels([1e9, 5e9, 2e10]), levels([2e9, 4e9, 8e9], speed=1.5)
    found = multiplier(a, b, True)
    assert found["value"] == pytest.approx(1.5, rel=1e-9)
    assert found["ci95"] == pytest.approx([1.5, 1.5], rel=1e-6)
    # A's 5e9 lies between B's 3e9 and 12e9, and all of B's between A's 1e9 and 2e10
    assert [(k["level_of"], round(k["flops"] / 1e9)) for k in found["at"]] == [
        ("A", 5),
        ("B", 2),
        ("B", 4),
        ("B", 8),
    ]
    assert multiplier(b, a, True)["value"] == pytest.approx(1 / 1.5, rel=1e-9)
    one = multiplier(levels([8e9]), levels([2e9, 8e9], speed=1.5), True)
    assert one["value"] == pytest.approx(1.5, rel=1e-9)
    worse = [*a, (5e9, {"0": 9.0, "1": 9.0})]  # of equal FLOPs the lowest loss is the arm's
    assert multiplier(worse, b, True)["value"] == found["value"]


def test_the_multipliers_interval_covers():
    rng, hits = np.random.default_rng(4), []
    flops = [1e9, 4e9, 16e9]
    for _ in range(400):
        seed = 0.004 * rng.standard_normal(4)
        noise = seed + 0.002 * rng.standard_normal((2, 3, 4))
        low, high = multiplier(
            levels(flops, 1, 4, noise[0]), levels(flops, 1.4, 4, noise[1]), True
        )["ci95"]
        hits.append(low <= 1.4 <= high)
    assert 0.92 <= np.mean(hits) <= 0.98


@pytest.mark.parametrize(
    ("a", "b", "why"),
    [
        (
            levels([1e9]),
            levels([1e9], 2),
            "one compute budget per arm gives no multiplier: run both",
        ),
        (levels([1e9, 2e9]), levels([1e9, 2e9], 9), "every loss of B lies below those of A: run A"),
        (levels([1e9, 2e9], 9), levels([1e9, 2e9]), "every loss of A lies below those of B: run B"),
        ([(1e9, {"0": 2.0}), (2e9, {"0": 2.1})], levels([1e9]), "the loss of A does not fall"),
    ],
)
def test_no_multiplier_is_said_with_its_reason(a, b, why):
    found = multiplier(a, b, True)
    assert (found["value"], found["ci95"]) == (None, [None, None])
    assert found["reason"].startswith(why)


# -- the command --------------------------------------------------------------------------------
FLAT = (0.001, -0.001, 0.0)


def run_at(root, loss, *, state=COMPLETE, windows=None, flops=1e9, device="cpu", **keys):
    """A run folder as a run leaves it; its spec."""
    spec = tiny_spec(**keys)
    folder = RunFolder(root / "runs" / spec.name)
    folder.path.parent.mkdir(parents=True, exist_ok=True)
    folder.create(spec)
    folder.set_status(state=state)
    if state != WAITING:
        write_json(
            folder / METRICS,
            {
                "val_loss": loss,
                "flops": flops,
                "val_bits_per_byte": loss,
                "numerics": {"device": device},
            },
        )
        if windows is not None:
            np.save(folder / WINDOWS, windows - windows.mean() + loss)
    return spec


def study(root, name, specs, keys):
    entries = [
        {
            "id": s.id,
            "folder": s.name,
            "flops": 1,
            "values": {
                key: s.config.parametrization.mode if "." in key else getattr(s.config, key)
                for key in keys
            },
        }
        for s in specs
    ]
    (root / name).mkdir()
    write_json(root / name / "study.json", {"name": name, "runs": entries})


def modes(root, gap, *, scatter=FLAT, seeds=(1, 2, 3), **keys):
    """A study `s` of SP and muP runs that differ by gap + scatter[seed]."""
    rng = np.random.default_rng(0)
    text = rng.standard_normal(64)
    specs = [
        run_at(
            root,
            2 + 0.1 * s + (gap + scatter[i] if mode == "muP" else 0),
            mode=mode,
            seed=s,
            windows=text + 0.01 * rng.standard_normal(64),
            **keys,
        )
        for mode in ("SP", "muP")
        for i, s in enumerate(seeds)
    ]
    study(root, "s", specs, ["parametrization.mode", "seed"])
    return specs


SP, MUP = "s:parametrization.mode=SP", "s:parametrization.mode=muP"


def run(root, *arguments):
    """Exit code and record."""
    names, options = parse(
        [*arguments, f"--output_root={root}", f"--json={root / 'c.json'}"], main, OPTIONS
    )
    return main(names, options), json.loads((root / "c.json").read_text())


@pytest.mark.parametrize(
    ("gap", "scatter", "verdict", "code"),
    [
        (-0.05, FLAT, "better", DONE),
        (0.05, FLAT, "worse", DONE),
        (0.001, FLAT, "equal", DONE),
        (-0.03, (0.02, -0.02, 0.0), "inconclusive", INCONCLUSIVE),
    ],
)
def test_exit_codes_are_the_verdicts_and_what_is_printed_is_the_record(
    tmp_path, capsys, gap, scatter, verdict, code
):
    modes(tmp_path, gap, scatter=scatter)
    found, record = run(tmp_path, SP, MUP)
    assert (found, record["verdict"]) == (code, verdict)
    printed = capsys.readouterr().out.splitlines()
    assert printed == lines(record)
    assert printed[-1] == f"{verdict}: {record['reason']}"
    difference = record["difference"]
    assert difference["value"] == pytest.approx(gap, abs=1e-9)
    assert difference["sd"] == pytest.approx(statistics.stdev(scatter), rel=1e-6)
    assert (record["schema"], record["check"], difference["n_pairs"]) == (1, "compare", 3)
    assert record["differ_in"] == {"parametrization.mode": ["SP", "muP"]}
    assert [(arm["n_runs"], arm["seeds"]) for arm in record["arms"]] == [(3, ["1", "2", "3"])] * 2
    assert record["compute_multiplier"]["value"] is None
    assert "two or more sizes or lengths" in record["compute_multiplier"]["reason"]
    needed = record["seeds_needed"]
    assert (needed == 0) == (code == DONE)
    assert verdict != "inconclusive" or f"about {needed} more seed" in printed[-1]


def test_a_difference_at_the_rope_is_left_open(tmp_path):
    modes(tmp_path, -0.01, scatter=(0.2, -0.2, 0.0))
    _, record = run(tmp_path, SP, MUP)
    assert record["seeds_needed"] is None
    assert "does not decide, nor would 100 more seeds" in record["reason"]


def test_the_rope_is_asked_for(tmp_path):
    modes(tmp_path, -0.03)
    assert run(tmp_path, SP, MUP, "--rope=0.05")[1]["verdict"] == "equal"
    assert run(tmp_path, SP, MUP, "--rope", "0")[1]["verdict"] == "better"


def test_one_seed_per_arm_is_evaluation_noise_and_decides_nothing(tmp_path, capsys):
    modes(tmp_path, -0.5)
    code, record = run(tmp_path, f"{SP},seed=2", f"{MUP},seed=2")
    assert (code, record["verdict"], record["difference"]["interval"]) == (
        INCONCLUSIVE,
        "inconclusive",
        "windows",
    )
    assert record["difference"]["ci95"] == record["windows"]["ci95"]
    assert record["difference"]["ci95"][1] < -0.49  # so sure of the text, and yet
    assert record["difference"]["p_value"] is None
    assert "an interval of evaluation noise only" in record["reason"]
    assert "run 2 more seeds of each arm" in record["reason"]


def test_windows_are_paired_and_reported_beside_the_seeds(tmp_path, capsys):
    specs = modes(tmp_path, -0.05)
    windows = run(tmp_path, SP, MUP)[1]["windows"]
    half = 1.96 * windows["se"]
    assert windows["ci95"] == pytest.approx([-0.05 - half, -0.05 + half], abs=1e-9)
    assert f"give or take: {half:.4f} nats, 64 windows\n" in capsys.readouterr().out
    alone = run_at(tmp_path, 2, mode="SP", seed=9, windows=np.arange(64.0))
    folders = [
        ",".join(str(tmp_path / "runs" / s.name) for s in side)
        for side in ([*specs[:3], alone], specs[3:])
    ]
    assert run(tmp_path, *folders)[1]["windows"] == windows  # a run without a pair has no part
    assert (windows["n"], windows["block"]) == (64, 4)
    # their text is the same but for 0.01 of noise in each of 6 runs: the text's sd 1 has cancelled
    assert windows["se"] == pytest.approx(0.01 * math.sqrt(2 / 3) / 8, rel=0.4)
    np.save(tmp_path / "runs" / specs[0].name / WINDOWS, np.ones(63))
    assert run(tmp_path, SP, MUP)[1]["windows"]["reason"].endswith("on different windows")
    (tmp_path / "runs" / specs[0].name / WINDOWS).unlink()
    assert "a run of A has no windows.npy" in run(tmp_path, SP, MUP)[1]["windows"]["reason"]
    reason = run(tmp_path, SP, MUP, "--loss=val_bits_per_byte")[1]["windows"]["reason"]
    assert reason == "windows.npy holds the val_loss, not the val_bits_per_byte"


def test_diverged_and_missing_runs_are_named_and_their_pairs_counted(tmp_path, capsys):
    specs = [
        run_at(
            tmp_path,
            2 + 0.1 * s - 0.05 * (mode == "muP"),
            mode=mode,
            seed=s,
            state={("muP", 2): DIVERGED, ("SP", 5): WAITING}.get((mode, s), COMPLETE),
        )
        for mode in ("SP", "muP")
        for s in range(1, 6)
    ]
    study(tmp_path, "s", specs, ["parametrization.mode", "seed"])
    code, record = run(tmp_path, SP, MUP)
    assert (code, record["difference"]["n_pairs"]) == (DONE, 3)
    assert {(r["arm"], r["seed"], r["why"]) for r in record["left_out"]} == {
        ("B", "2", "diverged"),
        ("A", "2", "no pair"),
        ("A", "5", "waiting"),
        ("B", "5", "no pair"),
    }
    assert record["reason"].endswith("; 1 diverged run of B not counted")
    a, b = record["arms"]
    assert (a["seeds"], a["n_runs"], b["n_diverged"]) == (["1", "3", "4"], 3, 1)
    assert b["mean"] - a["mean"] == pytest.approx(record["difference"]["value"])
    out = capsys.readouterr().out
    assert "warning: left out of B, diverged: seed 2\n" in out
    assert "warning: left out of A, waiting: seed 5\n" in out


def test_arms_without_common_seeds_are_two_samples_and_say_so(tmp_path, capsys):
    for s in range(1, 7):
        run_at(tmp_path, 2 + 0.01 * s, mode="SP" if s < 4 else "muP", seed=s)
    folders = sorted((tmp_path / "runs").iterdir())
    sides = [",".join(str(f) for f in folders if f"-{mode}-" in f.name) for mode in ("SP", "muP")]
    code, record = run(tmp_path, *sides)
    assert (code, record["difference"]["paired_by"], record["difference"]["n_pairs"]) == (
        DONE,
        None,
        0,
    )
    assert record["difference"]["value"] == pytest.approx(0.03)
    assert record["difference"]["dof"] == pytest.approx(4)
    assert "too few seeds to pair: the interval is Welch's" in capsys.readouterr().out


def ladder(root, gap=-0.05):
    """A study of 2 modes x 3 widths x 3 LRs x 2 seeds on the law of `levels`."""
    specs = []
    for mode in ("SP", "muP"):
        for k, width in enumerate((16, 32, 64)):
            for x in range(3):
                best = k % 2 if mode == "SP" else 1
                for s in (1, 2):
                    loss = 3 * 1.5 ** (-0.05 * (mode == "muP")) * 4 ** (-0.05 * k)
                    specs.append(
                        run_at(
                            root,
                            loss + 0.03 * (x != best) + 0.001 * s,
                            mode=mode,
                            n_embd=width,
                            n_head=2 * 2**k,
                            seed=s,
                            learning_rate=2.0 ** (x - 9),
                            flops=1e9 * 4**k,
                        )
                    )
    study(root, "s", specs, ["parametrization.mode", "n_embd", "n_head", "learning_rate", "seed"])


def test_each_arm_is_tuned_at_each_size_and_sizes_are_paired(tmp_path, capsys):
    ladder(tmp_path)
    _, record = run(tmp_path, SP, MUP)
    assert record["keys"] == ["n_embd"]  # n_head follows it
    assert [cell["cell"] for cell in record["cells"]] == [{"n_embd": w} for w in (16, 32, 64)]
    chosen = [
        [cell[side]["setting"]["learning_rate"] * 512 for cell in record["cells"]] for side in "ab"
    ]
    assert chosen == [[1, 2, 1], [2, 2, 2]]
    assert all(cell["a"]["chosen_of"] == 3 for cell in record["cells"])
    gaps = [cell["difference"]["value"] for cell in record["cells"]]
    planted = [3 * 4 ** (-0.05 * k) * (1.5**-0.05 - 1) for k in range(3)]
    assert gaps == pytest.approx(planted, abs=1e-9)
    assert record["difference"]["value"] == pytest.approx(statistics.mean(planted), abs=1e-9)
    assert record["compute_multiplier"]["value"] == pytest.approx(1.5, rel=2e-3)
    out = capsys.readouterr().out
    assert "chosen for A at n_embd 32: learning_rate 0.00390625 (of 3)" in out
    assert "were chosen on the losses they are judged by" in out
    assert "A is best at the end of what was tried, n_embd 16, learning_rate; n_embd 64" in out
    fixed = run(tmp_path, f"{SP},learning_rate=1.953125e-3", f"{MUP},learning_rate=0.001953125")[1]
    assert all(cell["b"]["chosen_of"] == 1 for cell in fixed["cells"])
    only = run(tmp_path, f"{SP},n_embd=32,n_embd=64", f"{MUP},n_embd=16,n_embd=32")[1]
    assert [cell["cell"] for cell in only["cells"]] == [{"n_embd": 32}]
    assert {r["why"] for r in only["left_out"]} == {"only in this arm"}
    with pytest.raises(UserError, match="share no n_embd: A has n_embd 16, B n_embd 32 or n_embd"):
        run(tmp_path, f"{SP},n_embd=16", f"{MUP},n_embd=32,n_embd=64")


def test_a_careful_reader_is_warned(tmp_path, capsys):
    specs = []
    for mode in ("SP", "muP"):
        for width in (16, 32, 64):
            for s in (1, 2)[: 1 if width == 64 else 2]:
                for x in (0, 1, 2)[: 3 if s == 1 else 2]:
                    loss = 2 + 0.01 * s * width - 0.01 * x - 0.1 * (mode == "muP" and width > 16)
                    specs.append(
                        run_at(
                            tmp_path,
                            loss,
                            mode=mode,
                            n_embd=width,
                            seed=s,
                            flops=width,
                            learning_rate=2.0 ** (x - 9),
                            device="cpu" if mode == "SP" else "cuda",
                        )
                    )
    study(tmp_path, "s", specs, ["parametrization.mode", "n_embd", "learning_rate", "seed"])
    _, record = run(tmp_path, SP, MUP)
    warnings = "\n".join(record["warnings"])
    assert [cell["pooled"] for cell in record["cells"]] == [True, True, False]
    assert record["difference"]["value"] == pytest.approx(-0.05)
    for text in (
        "sizes with one seed are not in the pooled difference",
        "equal to the digit at n_embd 16: what differs does nothing there",
        "different numerics, device cpu against cuda",
        "A at learning_rate 0.00390625 may lose to a setting with fewer seeds",
    ):
        assert text in warnings


def test_batch_sizes_meet_at_equal_tokens(tmp_path, capsys):
    specs = [
        run_at(
            tmp_path,
            2 - 0.1 * (tokens == 320) - 0.02 * (batch == 4) + 0.001 * s * batch,
            batch_size=batch,
            max_iters=tokens // (8 * batch),
            seed=s,
            flops=tokens,
        )
        for batch in (2, 4)
        for tokens in (160, 320)
        for s in (1, 2)
    ]
    study(tmp_path, "s", specs, ["batch_size", "max_iters", "seed"])
    _, record = run(tmp_path, "s:batch_size=2", "s:batch_size=4")
    assert [cell["cell"] for cell in record["cells"]] == [{"tokens": 160}, {"tokens": 320}]
    assert record["labels"] == ["batch_size 2", "batch_size 4"]
    out = capsys.readouterr().out
    assert "retune the LR at each batch size, tokens fixed" in out
    assert "times A's tokens" not in out
    run(tmp_path, "s:batch_size=2,max_iters=10", "s:batch_size=4,max_iters=10")
    out = capsys.readouterr().out
    assert "warning: B has 2 times A's tokens" in out


def test_seeds_of_weights_and_data_are_told_apart(tmp_path):
    specs = [
        run_at(
            tmp_path,
            2 + 0.001 * i * j - 0.1 * (mode == "muP"),
            mode=mode,
            seed=1,
            init_seed=i,
            data_seed=j,
        )
        for mode in ("SP", "muP")
        for i in (1, 2)
        for j in (1, 2)
    ]
    study(tmp_path, "s", specs, ["parametrization.mode", "init_seed", "data_seed"])
    assert run(tmp_path, SP, MUP)[1]["arms"][0]["seeds"] == ["1", "1/1/2", "1/2/1", "1/2/2"]


@pytest.mark.parametrize(("arguments", "message"), [
    ((SP,), "compare s:parametrization.mode=SP: expected two arms; usage: nanoscale compare"),
    ((SP, SP, MUP), "expected two arms"),
    ((SP, "t"), "no study 't' in .*; there are: s"),
    ((SP, "s:parametrization.mod=muP"), "'parametrization.mod=muP' names no config key; did you"),
    ((SP, "s:parametrization.mode=MP"), "no run has parametrization.mode=MP; there are SP, muP"),
    ((f"{SP},seed=9", MUP), "no run has seed=9; there are 1, 2, 3"),
    ((SP, "a,b"), "a: no run folder .*an arm is run folders, a study, or STUDY:key=value"),
    ((SP, "s"), "both arms hold .*-SP-.* and 2 more: name arms that share no run"),
    ((SP, MUP, "--loss=val_los"), "--loss=val_los: choose 'val_loss', "),
    ((SP, MUP, "--loss=train_loss"), "none of its 3 runs has a train_loss .COMPLETE."),
    ((SP, MUP, "--rope=-1"), "--rope=-1: expected a number of nats, 0 or more"),
    ((SP, MUP, "--rope=x"), "--rope=x: expected a number of nats"),
    ((SP, MUP, "--figure=c.gif"), "--figure=c.gif: end the name in '.png'"),
    ((SP, MUP, "--ropes=1"), "--ropes=1: unknown option; did you mean 'rope'"),
])  # fmt: skip
def test_bad_input_is_refused_in_one_line(tmp_path, arguments, message):
    modes(tmp_path, 0.1)
    with pytest.raises(UserError, match=message) as error:
        run(tmp_path, *arguments)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "c.json").exists()


def test_what_cannot_be_compared_is_refused(tmp_path):
    modes(tmp_path, 0.1)
    other = run_at(tmp_path, 2.0, mode="muP", seed=1, data="e" * 64)
    with pytest.raises(UserError, match=r"2 data sets, .*compare --loss=val_bits_per_byte"):
        run(tmp_path, SP, str(tmp_path / "runs" / other.name))
    twins = [run_at(tmp_path, 2.0, mode="muP", seed=1, eval_interval=k) for k in (2, 3)]
    with pytest.raises(UserError, match=r"seed 1 is there twice, .*name one of them"):
        run(tmp_path, SP, ",".join(str(tmp_path / "runs" / t.name) for t in twins))


def test_the_verb_is_there_and_loads_nothing_heavy(tmp_path):
    done = run_nanoscale("compare", "a", "b", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: no study 'a' in experiments_out\n"
    script = (
        "import sys, nanoscale.studies.compare\n"
        "print({'torch', 'pandas', 'matplotlib', 'scipy'} & set(sys.modules))"
    )
    assert run_python("-c", script).stdout == "set()\n"


# -- the figure ---------------------------------------------------------------------------------
def test_the_figure_joins_the_runs_of_a_seed_and_marks_every_difference(tmp_path):
    ladder(tmp_path)
    _, record = run(tmp_path, SP, MUP, f"--figure={tmp_path / 'c.png'}")
    assert (tmp_path / "c.png").stat().st_size > 10_000
    losses, differences = compare_figure(record).axes
    joined = {tuple(line.get_ydata()) for line in losses.lines if line.get_linewidth() < 1}
    assert joined == {(row["a"], row["b"]) for cell in record["cells"] for row in cell["seeds"]}
    marks = {line.get_marker(): [] for line in differences.lines}
    for line in differences.lines:
        marks[line.get_marker()] += list(line.get_ydata())
    assert marks["o"] == [cell["difference"]["value"] for cell in record["cells"]]
    assert marks["D"] == [record["difference"]["value"]]
    bars = [list(line.get_ydata()) for line in differences.lines if line.get_linewidth() == 1.8]
    assert bars[-1] == record["difference"]["ci95"]
    texts = {t.get_text() for axes in (losses, differences) for t in axes.texts}
    assert {"SP", "muP", "  against  ", record["verdict"], "muP \u2212 SP (nats)"} <= texts
    assert any("worth 1.5" in text for text in texts)


def test_the_figure_bears_one_seed_and_arms_without_pairs(tmp_path):
    modes(tmp_path, -0.5)
    _, record = run(tmp_path, f"{SP},seed=2", f"{MUP},seed=2")
    texts = [t.get_text() for t in compare_figure(record).axes[1].texts]
    assert "evaluation noise only:\none seed per arm" in texts
    _, record = run(tmp_path, f"{SP},seed=2,seed=1", f"{MUP},seed=3")
    losses, _ = compare_figure(record).axes
    assert not [line for line in losses.lines if line.get_linewidth() < 1]
