"""The transfer verdict against planted optima, a delta method, Student's t, and known noise."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from tiny import run_nanoscale, run_python, tiny_spec

from nanoscale.checks.lr_transfer import transfer_verdict
from nanoscale.checks.optimum import window
from nanoscale.commands.options import parse
from nanoscale.errors import DONE, FAILED, INCONCLUSIVE, UserError
from nanoscale.report.transfer import transfer_figure
from nanoscale.store.files import write_json
from nanoscale.store.folder import COMPLETE, DIVERGED, METRICS, WAITING, RunFolder
from nanoscale.studies.transfer import OPTIONS, lines, main

FEW = 500  # resamples, where the interval itself is not judged
OCTAVES = np.array([-3, -2, -1, -0.5, 0, 0.5, 1, 2, 3])


def valley(d):
    """Loss over log2(LR / optimum): 0.03 nats/octave^2 at its floor, a slope and a steep wall."""
    return 0.06 * (np.exp(d) - 1 - d)


def quadratic(d):
    return 0.03 * d**2


def cliff(d):
    return quadratic(d) + 9 * (d > 1.2) + 4 * (d < -2.2)


def grid(optima, *, lrs=OCTAVES, seeds=3, reach=1.3, sd=0.0, shift=0.0, curve=quadratic, rng=None):
    """(n, 4): size, LR, loss, seed. All seeds within `reach` octaves of the optimum, else one."""
    rng, rows = rng or np.random.default_rng(0), []
    for k, optimum in enumerate(optima):
        shifts = shift * rng.standard_normal(seeds)
        for x in np.asarray(lrs) + (round(optimum) if lrs is OCTAVES else 0):
            for s in range(seeds if abs(x - optimum) < reach else 1):
                loss = 3 - 0.1 * k + curve(x - optimum) + shifts[s] + sd * rng.standard_normal()
                rows.append((64 * 2**k, 2.0 ** (x - 7), loss, s))
    return np.array(rows)


def judge(table, **kwargs):
    return transfer_verdict(*table.T[:3], table.T[3], **{"resamples": FEW, **kwargs})


# -- what is measured ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    "lrs", [OCTAVES, np.arange(-4, 5), np.arange(-4, 4.5, 0.5), np.arange(-3, 3, 1 / 3)]
)
def test_a_parabola_without_noise_is_recovered_exactly(lrs):
    optima = np.array([0.1, 0.05, 0.0, -0.05])
    record = judge(grid(optima, lrs=lrs))
    sizes = record["sizes"]
    assert [s["log2_optimum"] for s in sizes] == pytest.approx(optima - 7, abs=1e-9)
    assert [s["min_loss"] for s in sizes] == pytest.approx([3, 2.9, 2.8, 2.7], abs=1e-9)
    assert [s["regret"] for s in sizes] == pytest.approx(0.03 * (optima - 0.1) ** 2, abs=1e-9)
    assert record["drift"]["value"] == pytest.approx(-0.05, abs=1e-9)
    assert record["drift"]["ci95"] == pytest.approx([-0.05, -0.05], abs=1e-5)
    assert record["largest_shift"]["value"] == pytest.approx(0.15, abs=1e-9)
    assert (record["verdict"], record["larger_is_never_worse"]) == ("pass", True)


def test_drift_is_per_doubling_whatever_the_sizes_are():
    table = grid([0.0, -0.3, -0.6])
    table[:, 0] = table[:, 0] ** 2  # 64, 128, 256 -> two doublings a step
    assert judge(table)["drift"]["value"] == pytest.approx(-0.15, abs=1e-9)


def test_what_a_seed_does_to_a_whole_curve_moves_no_optimum():
    still = judge(grid([0.2, 0.1, 0.3]))
    moved = judge(grid([0.2, 0.1, 0.3], reach=0.75, shift=0.02))  # one seed at some of the five
    for a, b in zip(still["sizes"], moved["sizes"], strict=True):
        assert b["log2_optimum"] == pytest.approx(a["log2_optimum"], abs=1e-9)
        assert b["transferred_se"] > 0.005 > 1e-9 > a["transferred_se"]
    assert moved["noise"]["sd"] == pytest.approx(0, abs=1e-9)
    assert 0.01 < moved["noise"]["shift_sd"] < 0.04


def test_points_far_from_the_optimum_do_not_move_it():
    for lrs in (OCTAVES, np.arange(-4, 5)):
        record = judge(grid([0.1, 0.1, 0.1], lrs=lrs, curve=cliff))
        assert [s["log2_optimum"] for s in record["sizes"]] == pytest.approx([-6.9] * 3, abs=1e-9)


def test_a_loss_beyond_the_window_is_read_off_the_lrs_that_were_run():
    record = judge(grid([0, -2, -4], lrs=np.arange(-6, 2), curve=cliff))
    lost = [s["transferred_loss"] for s in record["sizes"]]
    assert lost == pytest.approx([3, 2.9 + 0.03 * 4 + 9, 2.8 + 0.03 * 16 + 9], abs=1e-9)
    assert record["sizes"][2]["regret"] == pytest.approx(9.48, abs=1e-9)


def test_an_optimums_interval_is_the_delta_methods():
    rng = np.random.default_rng(5)
    near, sd = np.arange(-1, 1.5, 0.5), 0.001
    table = grid([0.0] * 12, lrs=near, sd=sd, shift=0.05, rng=rng, seeds=4)
    record = judge(table, resamples=4000)
    x = np.stack([np.ones(5), near, near**2], 1)
    for size in record["sizes"]:
        slope_sd = math.sqrt(np.linalg.inv(x.T @ x)[1, 1] * size["noise_sd"] ** 2 / 4)
        width = np.diff(np.log2(size["ci95"]))[0] / (2 * 1.96)
        assert width == pytest.approx(slope_sd / (2 * 0.03), rel=0.15)
    assert record["noise"]["sd"] == pytest.approx(sd, rel=0.15)
    assert record["noise"]["shift_sd"] == pytest.approx(0.05, rel=0.35)
    assert record["noise"]["dof"] == 12 * (20 - 5 - 3)


def test_a_noisy_size_does_not_blur_the_others():
    rng, near = np.random.default_rng(2), np.arange(-1, 1.5, 0.5)
    calm = grid([0.0] * 3, lrs=near, sd=0.001, rng=rng)
    wild = grid([0.0] * 4, lrs=near, sd=0.02, rng=rng)
    sizes = judge(np.concatenate([calm, wild[wild[:, 0] == 512]]))["sizes"]
    width = [np.diff(np.log2(size["ci95"]))[0] for size in sizes]
    assert max(width[:3]) < width[3] / 1.5
    alone = [np.diff(np.log2(size["ci95"]))[0] for size in judge(calm)["sizes"]]
    assert sizes[3]["noise_sd"] == pytest.approx(0.02, rel=0.5)
    assert sizes[0]["noise_sd"] < 0.6 * sizes[3]["noise_sd"]
    assert max(width[:3]) > max(alone)  # pooled, so not quite undisturbed


def test_an_interval_may_reach_beyond_the_lrs_that_were_run():
    lrs = np.arange(-1.0, 3)
    sizes = judge(noisy([-0.5, -0.5, -0.5], lrs=lrs, seeds=1, sd=0.01))["sizes"]
    low = [size["ci95"][0] for size in sizes if size["bracketed"]]
    assert low
    assert min(low) < 2**-8.4  # the lowest LR is 2^-8


def test_sizes_that_scatter_widen_the_drift_to_students_t():
    optima = np.array([0.3, -0.3, 0.35, -0.25])
    record = judge(grid(optima), resamples=40_000)
    k = np.arange(4) - 1.5
    slope = k @ optima / (k @ k)
    left = optima - optima.mean() - slope * k
    half = 4.3027 * math.sqrt(left @ left / 2 / (k @ k))  # Student's t, 2 degrees of freedom
    assert record["drift"]["value"] == pytest.approx(slope, abs=1e-9)
    assert record["drift"]["ci95"] == pytest.approx([slope - half, slope + half], rel=0.05)
    assert record["scatter"] == pytest.approx(math.sqrt(left @ left / 2), rel=1e-6)
    assert "scatter" in " ".join(record["warnings"])


@pytest.mark.parametrize(
    ("seeds", "drift", "widest"), [(3, -0.2, 0.10), (3, -0.7, 0.10), (1, 0.0, 0.30)]
)
def test_the_95_percent_interval_of_the_drift_covers(seeds, drift, widest):
    rng, worlds, held, halves = np.random.default_rng(1), 200, 0, []
    for _ in range(worlds):
        optima = rng.uniform(-0.5, 0.5) + drift * np.arange(4)
        table = grid(optima, seeds=seeds, sd=0.006, shift=0.006, curve=valley, rng=rng)
        low, high = judge(table)["drift"]["ci95"]
        held += low <= drift <= high
        halves.append((high - low) / 2)
    print(f"{seeds} seeds, drift {drift}: {held / worlds:.3f} covered, {np.median(halves):.3f}")
    assert held >= 0.9 * worlds
    assert np.median(halves) < widest


@pytest.mark.parametrize(
    ("mean", "taken"),
    [
        (lambda x: 0.1 * x**2, (-1, 1)),
        (lambda x: 0.01 * x**2, (-2, 2)),
        (lambda x: 0.02 * x**2, (-1.5, 1.5)),
        (lambda x: np.where(x > 0, 0.1, 0.011) * x**2, (-2, 1)),
        (lambda x: 0.01 * x**2 + 0.1 * (x == -1.5), (-1, 2)),
    ],
)
def test_a_flat_valley_is_fitted_over_up_to_two_octaves_on_either_side(mean, taken):
    x = np.arange(-3, 3.5, 0.5)
    inside = x[window(x, mean(x))]
    assert (inside[0], inside[-1]) == taken
    assert len(inside) == 2 * (taken[1] - taken[0]) + 1


# -- verdicts -----------------------------------------------------------------------------------
def noisy(optima, seed=0, **kwargs):
    return grid(optima, rng=np.random.default_rng(seed), **{"sd": 0.004, "shift": 0.006, **kwargs})


@pytest.mark.parametrize(
    ("table", "verdict", "words"),
    [
        (noisy([0, 0, 0, 0]), "pass", ["drift", "is within 0.25", "nats is within 0.02"]),
        (
            noisy([0, -0.7, -1.4, -2.1]),
            "fail",
            ["drift -0.69 [", "is beyond 0.25", "follow size^-0.69,"],
        ),
        (noisy([0, 0, 0], seed=1), "pass", []),
        (noisy([0, 0]), "inconclusive", ["needs 3 sizes, the runs have 2: run more"]),
        (
            noisy([0, 0, 0, -4], lrs=np.arange(-4.0, 4)),
            "inconclusive",
            ["size 512 is not bracketed", "lowest LR, 0.000488", "run size 512 at LR 0.000122 and"],
        ),
        (
            noisy([0, 0, 3.2, 0], lrs=np.arange(-4.0, 4)),
            "inconclusive",
            ["size 256 is not bracketed", "highest LR, 0.0625", "at LR 0.125 and 0.25"],
        ),
        (noisy([0, 0, 0, 0], sd=0.03), "inconclusive", ["does not decide about 0.25", "run"]),
        (
            noisy([0, -1.5, -3.0, -4], lrs=np.arange(-4.0, 4)),
            "inconclusive",
            ["size 512 is not bracketed", "what is known would fail: drift -1.5"],
        ),
        (grid([0, 0, 0], lrs=[-1, 0, 1], seeds=1), "inconclusive", ["run 3 seeds", "[?, ?]"]),
    ],
)
def test_the_verdict_names_its_numbers_and_the_remedy(table, verdict, words):
    record = judge(table)
    assert record["verdict"] == verdict
    assert "\n" not in record["reason"]
    for word in words:
        assert word in record["reason"]


def test_the_interval_decides_and_not_the_point():
    table = noisy([0, -0.2, -0.4, -0.6])
    drift = judge(table)["drift"]
    low, high = drift["ci95"]
    assert judge(table, tolerance=0.99 * -drift["value"])["drift"]["verdict"] == "inconclusive"
    assert judge(table, tolerance=1.01 * -low)["drift"]["verdict"] == "pass"
    assert judge(table, tolerance=0.99 * -low)["drift"]["verdict"] == "inconclusive"
    assert judge(table, tolerance=0.99 * -high)["drift"]["verdict"] == "fail"


def test_the_base_is_the_size_that_is_asked_for():
    table = grid([0.4, 0.2, 0.0])
    for base, shifts in ((64, [0, 0.2, 0.4]), (128, [0.2, 0, 0.2])):
        record = judge(table, base=base)
        assert [s["shift"] for s in record["sizes"]] == pytest.approx(shifts, abs=1e-9)
        assert record["base"] == base


def test_larger_is_worse_only_beyond_two_standard_errors():
    table = noisy([0, 0, 0])
    table[table[:, 0] == 256, 2] += 0.5
    record = judge(table)
    assert record["larger_is_never_worse"] is False
    assert "size 256 is worse than 128" in " ".join(record["warnings"])
    table[table[:, 0] == 256, 2] -= 0.395  # now worse by some 0.005, which is noise
    assert judge(table)["larger_is_never_worse"] is True


# -- runs that diverged or are not there --------------------------------------------------------
def diverging(table, size, above):
    """The table with inf for one size's LRs (log2, as in `grid`) from `above` on."""
    table = table.copy()
    table[(table[:, 0] == size) & (np.log2(table[:, 1]) + 7 >= above), 2] = math.inf
    return table


def test_a_diverged_lr_bounds_a_curve_and_is_no_optimum():
    table = grid([0.1, 0.1, 0.1], lrs=np.arange(-4, 1.5, 0.5))
    record = judge(diverging(table, 256, 0.5))
    size = record["sizes"][2]
    assert size["bracketed"]
    assert size["log2_optimum"] == pytest.approx(-6.9, abs=1e-9)
    assert size["diverged_lrs"] == [2**-6.5, 2**-6]
    assert "diverged at size 256: LR 0.011, 0.0156" in record["warnings"]
    assert not judge(table[(table[:, 0] < 256) | (table[:, 1] < 2**-6.6)])["sizes"][2]["bracketed"]


def test_one_diverged_seed_is_enough():
    table = grid([0, 0, 0])
    best = (table[:, 0] == 64) & (table[:, 1] == 2.0**-7)
    table[np.flatnonzero(best)[0], 2] = math.inf
    cells = judge(table)["sizes"][0]["cells"]
    assert all(abs(math.log2(c["lr"]) + 7) > 0.4 for c in cells)


def test_a_base_lr_that_diverges_or_was_not_run_is_told_apart():
    optima = [0, -1, -2]
    record = judge(diverging(grid(optima, lrs=np.arange(-5.0, 3)), 256, -0.5))
    assert record["sizes"][2]["transferred_diverges"]
    assert record["max_regret"]["verdict"] == "fail"
    assert record["max_regret"]["value"] is None
    assert "as the base's optimum LR diverges" in record["reason"]
    table = grid(optima, lrs=np.arange(-5.0, 3))
    unrun = judge(
        table[(table[:, 0] < 256) | (table[:, 1] < 2**-7.1)], tolerance=2, max_shift=3, max_regret=1
    )
    assert unrun["sizes"][2]["regret"] is None
    assert unrun["verdict"] == "inconclusive"
    assert "run size 256 at LR 0.00781, beyond those" in unrun["reason"]


def test_every_lr_diverged_and_runs_without_result_are_said():
    table = grid([0, 0, 0, 0])
    table[table[:, 0] == 512, 2] = math.inf
    table[0, 2] = math.nan
    record = judge(table)
    assert "size 512 is not bracketed, every LR diverged: run size 512 at LR" in record["reason"]
    assert "1 run(s) without a result are left out" in record["warnings"]
    assert record["sizes"][3]["optimum_lr"] is None


def test_a_parabola_whose_minimum_lies_where_none_of_its_lrs_are_brackets_nothing():
    table = grid([0, 0, 0], lrs=np.arange(-3, 4), seeds=1)
    table[table[:, 0] == 256, 2] = [0.29, 0.0, 0.26, 0.03, 0.09, 0.01, 0.29]
    reason = judge(table)["reason"]
    assert "size 256 is not bracketed, its parabola has no minimum between 0.000977 and" in reason


# -- invariance ---------------------------------------------------------------------------------
def test_the_order_of_rows_does_not_matter_nor_does_the_unit_of_the_lr():
    table = noisy([0, -0.1, 0.1, 0], curve=valley)
    record = judge(table)
    turned = np.random.default_rng(3).permutation(table)
    assert judge(turned) == record
    scaled = judge(table * [1, 1000, 1, 1])
    assert scaled["drift"]["ci95"] == pytest.approx(record["drift"]["ci95"], abs=1e-9)
    assert scaled["max_regret"]["ci95"] == pytest.approx(record["max_regret"]["ci95"], abs=1e-9)
    assert scaled["base_lr"] == pytest.approx(1000 * record["base_lr"])
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_lrs_that_differ_by_rounding_are_one():
    table = noisy([0, 0, 0])
    rounded = table * [1, 1 + 1e-12, 1, 1]
    mixed = np.where((np.arange(len(table)) % 2 == 0)[:, None], table, rounded)
    assert judge(mixed)["drift"]["value"] == pytest.approx(judge(table)["drift"]["value"], abs=1e-9)


# -- the command --------------------------------------------------------------------------------
def write(path, table, header="width,lr,loss,seed"):
    rows = [",".join(f"{v:.17g}" for v in row) for row in table]
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


def run(*arguments):
    names, options = parse(arguments, main, OPTIONS)
    return main(names, options)


NAMED = ("--size", "width", "--lr=lr", "--loss", "loss")


@pytest.mark.parametrize(
    ("optima", "code"),
    [([0, 0, 0, 0], DONE), ([0, -0.7, -1.4, -2.1], FAILED), ([0, 0], INCONCLUSIVE)],
)
def test_the_exit_code_is_the_verdict_and_the_record_is_printed(tmp_path, capsys, optima, code):
    path = write(tmp_path / "t.csv", noisy(optima))
    assert run(path, *NAMED, f"--json={tmp_path / 'v.json'}") == code
    record = json.loads((tmp_path / "v.json").read_text())
    printed = capsys.readouterr().out.splitlines()
    assert printed == lines(record)
    assert printed[-1] == f"{record['verdict']}: {record['reason']}"
    assert (record["schema"], record["size"], record["seed"]) == (1, "width", "seed")


def test_a_blank_is_a_run_that_is_missing_and_inf_or_nan_one_that_diverged(tmp_path):
    table = grid([0.1, 0.1, 0.1], lrs=np.arange(-4, 1.5, 0.5))
    last = diverging(table, 256, 0.5)
    path = tmp_path / "t.csv"
    for text, bracketed in (("inf", True), ("nan", True), ("", False)):
        write(path, last)
        path.write_text(path.read_text().replace(",inf,", f",{text},"))
        run(str(path), *NAMED, f"--json={tmp_path / 'v.json'}")
        sizes = json.loads((tmp_path / "v.json").read_text())["sizes"]
        assert sizes[2]["bracketed"] is bracketed
    keys = ("width", "lr", "loss", "seed")
    rows = [dict(zip(keys, row, strict=True)) for row in last.tolist()]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run(str(tmp_path / "t.jsonl"), *NAMED, f"--json={tmp_path / 'v.json'}")
    assert json.loads((tmp_path / "v.json").read_text())["sizes"][2]["bracketed"]


def test_every_value_of_by_is_judged_by_itself_and_the_worst_counts(tmp_path, capsys):
    good, bad = noisy([0, 0, 0, 0]), noisy([0, -0.7, -1.4, -2.1])
    both = [(*row, mode) for mode, rows in ((0, good), (1, bad)) for row in rows]
    path = write(tmp_path / "t.csv", both, "width,lr,loss,seed,mode")
    with pytest.raises(UserError, match="differ in mode: judge each by itself, as in --by=mode"):
        run(path, *NAMED)
    assert run(path, *NAMED, "--by=mode", f"--json={tmp_path / 'v.json'}") == FAILED
    verdicts = json.loads((tmp_path / "v.json").read_text())["verdicts"]
    assert [v["verdict"] for v in verdicts.values()] == ["pass", "fail"]
    assert run(path, *NAMED, "--by=mode", "--only=0") == DONE


def folders(root, optima):
    """(spec, run folder) as runs leave them, a WAITING and a DIVERGED one of each size."""
    made = []
    for k, optimum in enumerate(optima):
        for x in np.arange(-3.0, 4):
            spec = tiny_spec(n_embd=16 * 2**k, learning_rate=2.0 ** (x - 7), seed=1)
            folder = RunFolder(root / spec.name)
            folder.path.parent.mkdir(parents=True, exist_ok=True)
            folder.create(spec)
            state = {2.0: DIVERGED, 3.0: WAITING}.get(x, COMPLETE)
            loss = 3 + 0.03 * (x - optimum) ** 2 if state == COMPLETE else None
            folder.set_status(state=state)
            if state != WAITING:
                write_json(folder / METRICS, {"val_loss": loss, "iter_num": 10, "tokens_seen": 160})
            made.append((spec, folder))
    return made


def test_run_folders_and_studies_need_no_columns_named(tmp_path, capsys):
    made = folders(tmp_path / "runs", [0.1, 0.0, -0.1])
    paths = [str(folder.path) for _, folder in made]
    assert run(*paths) == DONE
    printed = capsys.readouterr().out
    assert "size n_embd, LR learning_rate, loss val_loss, seed seed" in printed
    assert "warning: 3 run(s) without a result" in printed
    assert "warning: diverged at n_embd 64: LR 0.0312" in printed
    assert "the runs have 10 updates" in printed
    entries = [
        {
            "id": s.id,
            "folder": s.name,
            "flops": 1,
            "values": {
                "optimizer": "adamw",
                "n_embd": s.config.n_embd,
                "learning_rate": s.config.learning_rate,
            },
        }
        for s, _ in made
    ]
    arms = [
        {"name": name, "lr": "learning_rate", "values": values}
        for name, values in (("any", {}), ("mine", {"optimizer": "adamw"}))
    ]
    (tmp_path / "width").mkdir()
    write_json(
        tmp_path / "width" / "study.json",
        {"name": "width", "runs": entries, "asked": {"arms": arms}},
    )
    assert run("width", f"--output_root={tmp_path}") == DONE
    by_name = capsys.readouterr().out
    assert by_name.splitlines()[0] == "== mine"
    assert by_name.splitlines()[2:] == printed.replace(", seed seed", "").splitlines()[1:]
    assert run(str(tmp_path / "width")) == DONE
    assert capsys.readouterr().out == by_name
    with pytest.raises(UserError, match=r"no study 'with' in .*did you mean 'width'"):
        run("with", f"--output_root={tmp_path}")


def edit(text, old, new):
    assert old in text
    return text.replace(old, new, 1)


GOOD = "width,lr,loss,seed\n" + "".join(
    f"{w},{lr},{2 + (i - 2) ** 2 / 30},1\n"
    for w in (8, 16, 32)
    for i, lr in enumerate((0.001, 0.002, 0.004, 0.008, 0.016))
)


@pytest.mark.parametrize(("text", "options", "message"), [
    (None, NAMED, r"t\.csv: no such table"),
    ("", NAMED, "empty; a table has a line of column names"),
    ("width,lr,loss,seed\n", NAMED, "the table has no rows"),
    (GOOD, ("--size=widht", *NAMED[2:]), "--size=widht: the table has no such column; did you"),
    (GOOD, NAMED[2:], "which column is the size?.*--size=total_params"),
    (GOOD, NAMED[:3], "which column is the loss?.*--loss="),
    (edit(GOOD, "2.0333", "x2.0333"), NAMED, r"row 2: loss='x2.0333\d*' is not a number"),
    (edit(GOOD, "8,0.001", "0,0.001"), NAMED, "row 1: width=0: expected a number above 0"),
    (edit(GOOD, "8,0.002", "8,-0.002"), NAMED, "row 2: lr=-0.002: expected a number above 0"),
    (edit(GOOD, "8,0.002", "8,"), NAMED, "row 2: lr=None"),
    (edit(GOOD, "8,0.002", "8,0.001"), NAMED, "width 8, lr 0.001, seed 1 is there twice"),
    (GOOD, (*NAMED, "--base=9"), "base=9: no run of that width; there are 8, 16, 32"),
    (GOOD, (*NAMED, "--tolerance=0"), "tolerance 0.0 of drift: expected a number above 0"),
    (GOOD, (*NAMED, "--max-regret=x"), "--max-regret=x: expected a number"),
    (GOOD, (*NAMED, "--only=3"), "--only=3: say of which column"),
    (GOOD, (*NAMED, "--by=widt"), "--by=widt: the table has no such column; did you mean 'width'"),
    (GOOD, (*NAMED, "--json=no/v.json"), "--json=no/v.json: there is no folder no"),
    (GOOD, (*NAMED, "--figure=v.gif"), "--figure=v.gif: end the name in '.png'"),
    (GOOD, (*NAMED, "--sizes=3"), "--sizes=3: unknown option; did you mean 'size'"),
    ("width,lr,loss\n1,2,3\n1,2,3,4,5\n", NAMED, "cannot be read as a table"),
])  # fmt: skip
def test_bad_input_is_refused_in_one_line(tmp_path, text, options, message):
    path = tmp_path / "t.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        run(str(path), *options)
    assert "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ([] if text is None else ["t.csv"])


def test_the_verb_is_there_and_loads_no_torch(tmp_path):
    done = run_nanoscale("transfer", "none.csv", *NAMED, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: none.csv: no such table\n"
    script = (
        "import sys, nanoscale.studies.transfer\n"
        "print({'torch', 'pandas', 'matplotlib', 'scipy'} & set(sys.modules))"
    )
    assert run_python("-c", script).stdout == "set()\n"


# -- the figure ---------------------------------------------------------------------------------
def test_the_figure_marks_every_optimum_and_the_bases_lr():
    table = diverging(noisy([0, 0.1, -0.1, 0], curve=valley), 512, 2)
    record = judge(table, names={"size": "width", "lr": "lr", "loss": "loss", "seed": "seed"})
    runs = pd.DataFrame(table, columns=["width", "lr", "loss", "seed"])
    figure = transfer_figure([("one", record, runs), ("two", record, runs)])
    one, two = figure.axes
    assert one.get_ylim() == two.get_ylim()
    at = {(x, y) for line in one.lines if line.get_marker() == "D"
          for x, y in zip(*line.get_data(), strict=True)}  # fmt: skip
    assert at == {(s["optimum_lr"], s["min_loss"]) for s in record["sizes"]}
    assert any(list(line.get_xdata()) == [record["base_lr"]] * 2 for line in one.lines)
    crosses = [x for line in one.lines if line.get_marker() == "x" for x in line.get_xdata()]
    assert crosses == record["sizes"][3]["diverged_lrs"]
    texts = [t.get_text() for t in one.texts]
    assert {"64", "128", "256", "512", "one", "diverged", "best LR at\nwidth 64"} <= set(texts)
    assert {record["verdict"], "two"} <= {t.get_text() for t in two.texts}
    assert [t for t in texts if t.startswith("drift")]
    low, high = one.get_ylim()
    assert all(low < s["min_loss"] < high for s in record["sizes"])


def test_the_figure_bears_what_is_not_known():
    table = grid([0, 0, 0, -9], lrs=[-1, 0, 1], seeds=1)
    table[table[:, 0] == 128, 2] = math.inf
    record = judge(table)
    runs = [dict(zip(("size", "LR", "loss"), row, strict=True)) for row in table[:, :3]]
    axes = transfer_figure([("", record, runs)]).axes[0]
    assert len([line for line in axes.lines if line.get_marker() == "D"]) == 2
