"""Ablations: what a change is worth in FLOPs at equal loss, and whether that moves with size."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import fake_worker
import numpy as np
import pytest
from fake_worker import SURFACE, TINY

import nanoscale as ns
from nanoscale.__main__ import main
from nanoscale.checks.worth import FADES, GROWS, STAYS, UNDECIDED, SizeLosses, Worth, worth
from nanoscale.errors import DONE, UserError

KEYS = {"n_layer": 2, "batch_size": 4, "beta1": SURFACE, "eval_interval": 0, "tokens_per_param": 1}
BASE = {key: value for key, value in (TINY | KEYS).items() if key != "max_iters"}
SIZES = "".join(f"\n[[ablation.sizes]]\nn_embd = {width}" for width in (32, 40, 48, 56, 64))
MIDDLE = 4e12  # FLOPs, of a planted world
ARMS = '\n[[ablation.arms]]\nname = "a fifth"\ndropout = 0.2'
MORE = '\n[[ablation.arms]]\nname = "a half"\ndropout = 0.5'


# -- the statistic --------------------------------------------------------------------------------
def world(
    seed: int, log_worth: float, exponent: float, sizes: int = 6, seeds: int = 2, sd: float = 0.005
) -> list[SizeLosses]:
    """Losses of a base with a floor, and of a change that needs so many times its FLOPs.

    exponent: of the worth, over the geometric mean of both FLOPs; log_worth: where that is MIDDLE.
    """
    rng = np.random.default_rng(seed)
    flops = np.geomspace(MIDDLE / 4, MIDDLE * 4, sizes)
    logs = (log_worth + exponent * np.log(flops / MIDDLE)) / (1 + exponent / 2)

    def losses(C: float) -> dict[str, float]:
        noise = np.exp(sd * rng.standard_normal(seeds))
        loss = 0.7 + 0.6 * (C / 1e12) ** -0.17
        return {str(k): float(loss * factor) for k, factor in enumerate(noise)}

    found = []
    for C, log in zip(flops, logs, strict=True):
        found.append(SizeLosses(C, losses(C), C, losses(C / math.exp(log))))
    return found


def planted(found: Worth, log_worth: float, exponent: float) -> float:
    """The logarithm of the worth where it was found."""
    places = np.log([at.flops / MIDDLE for at in found.at])
    return log_worth + exponent * float(places.mean())


def test_without_noise_the_worth_is_the_planted_one():
    found = worth(world(0, 0.4, -0.1, sd=1e-7))
    assert math.log(found.value) == pytest.approx(planted(found, 0.4, -0.1), abs=0.01)
    assert found.exponent == pytest.approx(-0.1, abs=0.01)
    assert found.verdict == FADES
    assert worth(world(0, 0.4, 0.1, sd=1e-7)).verdict == GROWS
    assert worth(world(0, -0.4, 0.1, sd=1e-7)).verdict == FADES
    assert worth(world(0, 0.4, 0.01, sd=1e-7)).verdict == STAYS
    assert worth(world(0, 0.4, 0.0, sd=0.01)).verdict == UNDECIDED


def test_a_better_arms_own_curve_says_what_it_saves():
    for exponent in (0.0, 0.15):
        found = worth(world(0, -0.6, exponent, sd=1e-7))
        assert math.log(found.value) == pytest.approx(planted(found, -0.6, exponent), abs=0.01)
        assert found.exponent == pytest.approx(exponent, abs=0.02)  # by a line through shifts


def test_which_arm_is_the_base_does_not_matter():
    for log_worth, exponent in ((0.6, -0.15), (-0.6, 0.15)):
        sizes = world(0, log_worth, exponent, sd=1e-7)
        there = worth(sizes)
        back = worth([SizeLosses(s.flops, s.losses, s.base_flops, s.base) for s in sizes])
        assert back.exponent == pytest.approx(-there.exponent, abs=0.025)
        apart = math.log(
            np.mean([at.flops for at in back.at]) / np.mean([at.flops for at in there.at])
        )
        assert math.log(back.value) == pytest.approx(
            -math.log(there.value) - exponent * apart, abs=0.02
        )


def test_flops_of_the_changes_own_runs_count():
    sizes = world(0, 0.4, 0.0, sd=1e-7)
    dearer = [SizeLosses(s.base_flops, s.base, 2 * s.flops, s.losses) for s in sizes]
    assert worth(dearer).value == pytest.approx(2 * worth(sizes).value)


def test_seeds_that_are_shared_are_paired():
    """A noise that both arms have of a seed leaves the difference as it is."""
    sizes = world(0, 0.4, 0.0, sd=1e-7)
    shaken = []
    for k, size in enumerate(sizes):
        factor = {"0": 1.02 - 0.002 * k, "1": 0.98 + 0.002 * k}
        base = {seed: loss * factor[seed] for seed, loss in size.base.items()}
        losses = {seed: loss * factor[seed] for seed, loss in size.losses.items()}
        shaken.append(SizeLosses(size.base_flops, base, size.flops, losses))
    found = worth(shaken)
    assert found.noise < 1e-3
    apart = [replace(s, losses=dict(zip("10", s.losses.values(), strict=True))) for s in shaken]
    assert worth(apart).noise > 1e-2


@pytest.mark.parametrize(("log_worth", "exponent"), [(0.0, -0.1), (0.5, -0.1), (-0.6, 0.15)])
def test_intervals_hold_what_is_planted(log_worth, exponent):
    held = np.zeros(2)
    for seed in range(200):
        found = worth(world(seed, log_worth, exponent))
        low, high = np.log(found.ci95)
        off = abs(found.exponent - exponent)
        held += [
            low <= planted(found, log_worth, exponent) <= high,
            off <= _half(found.exponent_ci95),
        ]
    assert held.min() >= 0.93 * 200


def _half(ends: tuple[float, float]) -> float:
    return (ends[1] - ends[0]) / 2


def test_a_gain_that_fades_is_called_fading_and_one_that_holds_is_not():
    fading = [worth(world(seed, 0.5, -0.2)).verdict for seed in range(200)]
    assert fading.count(FADES) >= 180
    holding = [worth(world(seed, 0.5, 0.0)).verdict for seed in range(200)]
    assert holding.count(FADES) <= 10


def test_too_few_sizes_and_losses_that_do_not_fall_are_refused():
    with pytest.raises(UserError, match="3 sizes in both arms; 4 are needed"):
        worth(world(0, 0.4, 0.0)[:3])
    flat = [replace(size, base={"0": 1.0, "1": 1.01}) for size in world(0, 0.4, 0.0)]
    with pytest.raises(UserError, match="do not fall beyond their noise"):
        worth(flat)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: replace(s, losses={"0": 200.0, "1": 201.0}), "more than a million times"),
        (lambda s: replace(s, losses={"0": 0.0, "1": 1.0}), "has no logarithm"),
        (lambda s: replace(s, base={k: 3 - 1e-4 * math.log(s.flops) for k in "01"},
                           losses={k: 6 - 1e-4 * math.log(s.flops) for k in "01"}), "times"),
    ],
)  # fmt: skip
def test_losses_that_no_flops_bring_together_are_refused(change, said):
    with pytest.raises(UserError, match=said):
        worth([change(size) for size in world(0, 0.4, 0.0)])


def test_a_worth_that_more_than_doubles_does_not_hold():
    assert worth(world(0, 4.0, 0.35, sd=1e-7)).verdict == GROWS
    assert worth(world(0, 4.0, 0.2, sd=1e-7)).verdict == STAYS


def test_what_is_read_below_the_smallest_run_is_counted():
    sizes, times = worth(world(0, 1.5, 0.0, sd=1e-7)).beyond
    assert sizes == 3
    assert times == pytest.approx(math.exp(1.5), rel=0.02)
    assert worth(world(0, 0.1, 0.0, sd=1e-7)).beyond == (0, 1.0)


# -- the recipe -----------------------------------------------------------------------------------
@pytest.fixture
def place(tmp_path, monkeypatch):
    fake_worker.stand_in(tmp_path, monkeypatch)


def study_of(arms: str = ARMS, table: str = "seeds = [1, 2]", sizes: str = SIZES) -> str:
    """The file of a study."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in BASE.items()]
    head = '[study]\nname = "worth"\nrecipe = "ablation"\n[base]\n'
    Path("s.toml").write_text(head + "\n".join(lines) + f"\n[ablation]\n{table}{sizes}{arms}\n")
    return "s.toml"


@pytest.mark.slow
def test_arms_are_worth_what_is_planted_the_dearest_first(place, capsys):
    lrs = "seeds = [1, 2]\nlrs = [3e-4, 6e-4]"
    assert main(["study", study_of(ARMS + MORE, lrs)]) == DONE
    said = capsys.readouterr().out
    study = Path("experiments_out/worth")
    found = json.loads((study / "ablation.json").read_text())
    assert [*found] == ["a half", "a fifth"]
    assert ns.answer("worth").numbers == found
    for name, share in (("a half", 0.5), ("a fifth", 0.2)):
        low, high = found[name]["ci95"]
        assert low < 1 / (1 - share) < high < 1.25 * low
        assert f"[worth] {name} needs {found[name]['value']:.3g} [" in said
    assert "60 runs" in said
    assert "warning: a half: the best learning_rate is at an end of those tried at 5 sizes" in said
    page = (study / "report.html").read_text()
    assert "times the FLOPs for the same loss" in page
    assert "FLOPs of every arm over the base" in page
    assert (study / "figures" / "worth.png").is_file()

    assert main(["report", "--json=index.json"]) == DONE
    (line,) = json.loads(Path("index.json").read_text())["studies"]
    assert line["name"] == "worth"
    assert line["answer"].startswith("a half needs ")
    index = Path("experiments_out/index.html").read_text()
    for words in ('<a href="worth/report.html">worth</a>', line["answer"], "60 COMPLETE"):
        assert words in index


def test_an_index_of_no_studies_is_refused(place, capsys):
    assert main(["report"]) == 2
    assert (
        "no studies in experiments_out; nanoscale study FILE makes one" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("arms", "table", "sizes", "words"),
    [
        ("", "", SIZES, "give at least one, each with a name of its own"),
        (ARMS + ARMS, "", SIZES, "each with a name of its own"),
        (ARMS.replace("a fifth", "base"), "", SIZES, "none 'base'"),
        ('\n[[ablation.arms]]\nname = "x"', "", SIZES, "x: it changes nothing"),
        ('\n[[ablation.arms]]\nname = "x"\nn_layer = 2', "", SIZES, "n_layer=2 is [base]'s"),
        ("\n[[ablation.arms]]\ndropout = 0.1", "", SIZES, "every arm has a name"),
        (ARMS + "\nlrs = [0]", "", SIZES, "a fifth: lrs=[0]: expected learning rates"),
        (ARMS + "\nlr = 'lr'", "", SIZES, "a fifth: lr='lr': choose 'muon_lr' or 'learning_rate'"),
        (ARMS, "lrs = 1e-3", SIZES, "lrs=0.001: expected learning rates"),
        (ARMS, "", "", "0 sizes say nothing of how a worth moves; give at least 4"),
        (ARMS, "", SIZES.replace("40", "32"), "n_embd=32 is given twice"),
        (ARMS, "seed = [1]", SIZES, "did you mean 'seeds'"),
    ],
)
def test_a_table_that_compares_nothing_is_refused(arms, table, sizes, words, place, capsys):
    assert main(["study", study_of(arms, table, sizes)]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.splitlines()) == 1
    assert not Path("experiments_out").exists()
