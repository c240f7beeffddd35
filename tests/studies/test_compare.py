"""Comparisons of two arms: which runs an arm is, what is paired with what, and what is said."""

from __future__ import annotations

import json
import math
import ntpath
import statistics
from dataclasses import replace

import numpy as np
import pytest
from drawn import diamonds, marks
from tiny import run_nanoscale, run_python, tiny_spec

from nanoscale.commands.compare import lines
from nanoscale.commands.main import dispatch
from nanoscale.errors import DONE, INCONCLUSIVE, UserError
from nanoscale.report import compare_figure
from nanoscale.store.files import plain, write_json
from nanoscale.store.folder import COMPLETE, DIVERGED, METRICS, WAITING, WINDOWS, RunFolder
from nanoscale.studies.arms import read_arm
from nanoscale.studies.compare_arms import compare

# -- the command --------------------------------------------------------------------------------
FLAT = (0.001, -0.001, 0.0)


def run_at(root, loss, *, state=COMPLETE, windows=None, flops=1e9, device="cpu", parts=(), **keys):
    """A run folder as a run leaves it; its spec."""
    spec = replace(tiny_spec(**keys), parts=dict(parts))
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
    code = dispatch(["compare", *arguments, f"--output_root={root}", f"--json={root / 'c.json'}"])
    return code, json.loads((root / "c.json").read_text())


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
    comparison = compare(SP, MUP, output_root=tmp_path)
    assert printed == lines(comparison)
    assert record == plain(comparison.to_json())
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


def test_the_colon_of_a_drive_divides_no_arm(tmp_path, monkeypatch):
    """On Windows `C:/s:key=value` is a study on a drive; here C: is a folder."""
    (tmp_path / "C:").mkdir()
    modes(tmp_path / "C:", 0.05)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        read_arm(f"C:/{SP}", tmp_path, "val_loss")
    monkeypatch.setattr("os.path.splitdrive", ntpath.splitdrive)
    assert len(read_arm(f"C:/{SP}", tmp_path, "val_loss").runs) == 3


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
    for loss in ("val_loss", "val_bits_per_byte"):
        code, record = run(tmp_path, SP, MUP, f"--loss={loss}")
        assert (code, record["verdict"], record["seeds_needed"]) == (
            INCONCLUSIVE,
            "inconclusive",
            None,
        )
        assert record["windows"]["reason"].endswith("on different windows")
        assert "train one arm with the final_eval_tokens of the other" in record["reason"]
    (tmp_path / "runs" / specs[0].name / WINDOWS).unlink()
    assert "a run of A has no windows.npy" in run(tmp_path, SP, MUP)[1]["windows"]["reason"]
    reason = run(tmp_path, SP, MUP, "--loss=val_bits_per_byte")[1]["windows"]["reason"]
    assert reason == "windows.npy holds the val_loss, not the val_bits_per_byte"


def test_blocks_of_other_lengths_cut_the_same_text_otherwise(tmp_path):
    """100 tokens make 12 windows of 8, or 6 of 16; 50 make 3 of 16."""
    for name, n, verdict in (("same", 6, "better"), ("other", 3, "inconclusive")):
        root = tmp_path / name
        specs = []
        for block, windows in ((8, 12), (16, n)):
            for seed in (1, 2, 3):
                loss = 2 + 0.1 * seed - block / 100 + 0.001 * (seed == block % 3)
                text = np.arange(float(windows))
                specs.append(run_at(root, loss, block_size=block, seed=seed, windows=text))
        study(root, "s", specs, ["block_size", "seed"])
        record = run(root, "s:block_size=8", "s:block_size=16")[1]
        assert record["verdict"] == verdict
        assert record["windows"]["n"] == 0


def test_the_best_of_many_learning_rates_is_paid_for(tmp_path, capsys):
    """Five LRs of muP that differ by luck: the best one's mean is lower than SP's at every seed."""
    luck = np.array([[-3, 1, 1], [1, -3, 1], [1, 1, -3], [-2, -2, -1], [0, 0, 0]]) / 100
    specs = [run_at(tmp_path, 2 + 0.1 * s + 0.001 * s, mode="SP", seed=s) for s in (1, 2, 3)]
    for k, losses in enumerate(luck.tolist()):
        for s, loss in enumerate(losses, 1):
            rate = 2.0 ** (k - 9)
            specs.append(
                run_at(tmp_path, 2 + 0.1 * s + loss, mode="muP", seed=s, learning_rate=rate)
            )
    study(tmp_path, "s", specs, ["parametrization.mode", "learning_rate", "seed"])
    record = run(tmp_path, SP, MUP)[1]
    assert record["cells"][0]["b"]["chosen_of"] == 5
    assert record["difference"]["at_chosen"] == pytest.approx(-0.05 / 3 - 0.002)
    choices = [luck.sum(1) - luck[:, s] for s in range(3)]
    held_out = [luck[sums.argmin(), s] - 0.001 * (s + 1) for s, sums in enumerate(choices)]
    assert record["difference"]["value"] == pytest.approx(statistics.mean(held_out))
    assert record["arms"][1]["mean"] - record["arms"][0]["mean"] == pytest.approx(
        record["difference"]["value"]
    )
    assert "each seed counts at the setting that the others choose" in capsys.readouterr().out


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
    """A study of 2 modes x 3 widths x 3 LRs x 2 seeds on the law 3 (C / 1e9)^-0.05; muP's losses
    are those of 1.5 times its FLOPs."""
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


@pytest.mark.slow
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
    ((SP,), "nanoscale compare: B is missing; see nanoscale compare --help"),
    ((SP, SP, MUP), "one argument too many; see nanoscale compare --help"),
    ((SP, "t"), "no study 't' in .*; there are: s"),
    ((SP, "s:parametrization.mod=muP"), "'parametrization.mod=muP' names no config key; did you"),
    ((SP, "s:parametrization.mode=MP"), "no run has parametrization.mode=MP; there are SP, muP"),
    ((f"{SP},seed=9", MUP), "no run has seed=9; there are 1, 2, 3"),
    ((SP, "a,b"), "a: no run folder .*an arm is run folders, a study, or STUDY:key=value"),
    ((SP, "s"), "both arms hold .*-SP-.* and 2 more: name arms that share no run"),
    ((SP, MUP, "--loss=val_los"), "--loss=val_los: not known; did you mean 'val_loss'"),
    ((SP, MUP, "--loss=train_loss"), "none of its 3 runs has a train_loss .COMPLETE."),
    ((SP, MUP, "--rope=-1"), "--rope=-1: must be at least 0"),
    ((SP, MUP, "--rope=x"), "--rope=x: expected a number"),
    ((SP, MUP, "--figure=c.gif"), "--figure=c.gif: end the name in '.png'"),
    ((SP, MUP, "--ropes=1"), "--ropes=1: unknown option; did you mean '--rope'"),
])  # fmt: skip
def test_bad_input_is_refused_in_one_line(tmp_path, arguments, message):
    modes(tmp_path, 0.1)
    with pytest.raises(UserError, match=message) as error:
        run(tmp_path, *arguments)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "c.json").exists()


def test_arms_that_were_read_are_compared_as_their_texts_are(tmp_path):
    modes(tmp_path, -0.05)
    arms = [read_arm(text, tmp_path, "val_loss") for text in (SP, MUP)]
    assert repr(compare(*arms)) == repr(compare(SP, MUP, output_root=tmp_path))  # NaN is not NaN
    assert compare(*arms).verdict == "better"
    with pytest.raises(UserError, match="loss='val_los': choose 'val_loss'"):
        compare(*arms, loss="val_los")
    with pytest.raises(UserError, match="rope=-1: expected a number of nats, 0 or more"):
        compare(*arms, rope=-1)


def test_runs_compare_by_the_validation_set_that_judges_them(tmp_path):
    modes(tmp_path, 0.1)
    further = {"more": "a" * 64}
    for first, compared in (({"val": "d" * 64}, True), ({}, False)):
        parts = {**first, **further, "val": "d" * 64}
        other = run_at(tmp_path, 2.0, mode="muP", seed=len(first), data="e" * 64, parts=parts)
        arm = str(tmp_path / "runs" / other.name)
        if compared:
            assert compare(SP, arm, output_root=tmp_path).loss == "val_loss"
        else:
            with pytest.raises(UserError, match="judged by other validation sets"):
                compare(SP, arm, output_root=tmp_path)


def test_what_cannot_be_compared_is_refused(tmp_path):
    modes(tmp_path, 0.1)
    other = run_at(tmp_path, 2.0, mode="muP", seed=1, data="e" * 64)
    with pytest.raises(UserError, match=r"2 data sets, .*compare --loss=val_bits_per_byte"):
        run(tmp_path, SP, str(tmp_path / "runs" / other.name))
    twins = [run_at(tmp_path, 2.0, mode="muP", seed=1, eval_interval=k) for k in (2, 3)]
    with pytest.raises(UserError, match=r"seed 1 is there twice, .*name one of them"):
        run(tmp_path, SP, ",".join(str(tmp_path / "runs" / t.name) for t in twins))


@pytest.mark.slow
def test_the_verb_is_there_and_loads_nothing_heavy(tmp_path):
    done = run_nanoscale("compare", "a", "b", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: no study 'a' in experiments_out\n"
    script = (
        "import sys, nanoscale.commands.compare\n"
        "print({'torch', 'pandas', 'matplotlib', 'scipy'} & set(sys.modules))"
    )
    assert run_python("-c", script).stdout == "set()\n"


# -- the figure ---------------------------------------------------------------------------------
@pytest.mark.slow
def test_the_figure_joins_the_runs_of_a_seed_and_marks_every_difference(tmp_path):
    ladder(tmp_path)
    _, record = run(tmp_path, SP, MUP, f"--figure={tmp_path / 'c.png'}")
    assert (tmp_path / "c.png").stat().st_size > 10_000
    losses, differences = compare_figure(compare(SP, MUP, output_root=tmp_path)).axes
    joined = {tuple(line.get_ydata()) for line in losses.lines if line.get_linewidth() < 1}
    assert joined == {(row["a"], row["b"]) for cell in record["cells"] for row in cell["seeds"]}
    (mean,) = diamonds(differences)
    assert mean.get_offsets()[:, 1].tolist() == [record["difference"]["value"]]
    single = [mark for mark in marks(differences) if len(mark.get_offsets()) == 1]
    heights = [mark.get_offsets()[0, 1] for mark in single if mark is not mean]
    assert heights == [cell["difference"]["value"] for cell in record["cells"]]
    bars = [list(line.get_ydata()) for line in differences.lines if line.get_linewidth() == 1.8]
    assert bars[-1] == record["difference"]["ci95"]
    texts = {t.get_text() for axes in (losses, differences) for t in axes.texts}
    assert {"SP", "muP", "  against  ", record["verdict"], "muP \u2212 SP (nats)"} <= texts
    assert any("worth 1.5" in text for text in texts)


def test_the_figure_bears_one_seed_and_arms_without_pairs(tmp_path):
    modes(tmp_path, -0.5)
    one = compare(f"{SP},seed=2", f"{MUP},seed=2", output_root=tmp_path)
    texts = [t.get_text() for t in compare_figure(one).axes[1].texts]
    assert "evaluation noise only:\none seed per arm" in texts
    unpaired = compare(f"{SP},seed=2,seed=1", f"{MUP},seed=3", output_root=tmp_path)
    losses, _ = compare_figure(unpaired).axes
    assert not [line for line in losses.lines if line.get_linewidth() < 1]
