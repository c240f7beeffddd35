"""Every number that a page prints is what its results file holds, or what its command prints.

The claims are built from the files, and looked for in the pages; what a quick test can make anew
(laws, verdicts, comparisons) is made from its table.
"""

from __future__ import annotations

import csv
import importlib.util
import itertools
import json
import math
import re
import statistics
import tomllib
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tiny import ROOT, run_python

from nanoscale.__main__ import main
from nanoscale.checks.comparison import TOKENS
from nanoscale.checks.lr_transfer import TransferLimits
from nanoscale.commands.compare import lines
from nanoscale.laws.forecast import USUAL_DRIFT
from nanoscale.spec.sources import FIELDS
from nanoscale.store.folder import RunFolder
from nanoscale.studies.arms import KEYS, Arm, ArmRun
from nanoscale.studies.compare_arms import compare

RESULTS = ROOT / "docs" / "results"
MODES = ("SP", "muP", "CompleteP")


def page(name: str) -> str:
    """A page's text, of one line."""
    return " ".join((ROOT / name).read_text(encoding="utf-8").split())


def says(name: str, *claims: str) -> None:
    text = page(name)
    missing = [claim for claim in claims if claim not in text]
    assert not missing, f"{name} does not say: {missing}"


def record(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def table(name: str) -> list[dict[str, str]]:
    with (RESULTS / name).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def ends(interval: Iterable[float], form: str = ".3f") -> str:
    return "[" + ", ".join(format(end, form) for end in interval) + "]"


def percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


# -- what the commands print ----------------------------------------------------------------------
def test_the_verdicts_of_the_pages_are_the_commands(tmp_path, capsys):
    out = tmp_path / "verdict.json"
    file = RESULTS / "transfer" / "width_muon.csv"
    assert main(["transfer", str(file), "--by=parametrization.mode", f"--json={out}"]) == 3
    assert rounded(json.loads(out.read_text())) == rounded(record("transfer/width_muon.json"))


def rounded(found: Any) -> Any:
    """A record's numbers to ten digits: the last ones are those of the CPU that made them."""
    return json.loads(json.dumps(found), parse_float=lambda text: f"{float(text):.10g}")


def test_the_law_of_the_points_is_the_commands(epoch_table, capsys):
    options = ["--n", "Model Size", "--c", "Training FLOP", "--loss", "loss", "--seed", "42"]
    assert main(["fit", str(epoch_table), *options, "--drop-worst", "5"]) == 0
    printed = capsys.readouterr().out.splitlines()
    stored = record("laws/chinchilla.json")
    assert printed[: len(stored["summary"])] == stored["summary"]


def test_the_law_of_the_points_is_what_the_pages_say():
    fit = record("laws/chinchilla.json")
    speed = record("laws/speed.json")
    lines = fit["summary"]
    shown = [next(line for line in lines if line.split()[0] == key) for key in ("E", "alpha")]
    shown += [next(line for line in lines if line.split()[0] == key) for key in ("beta", "a")]
    block = "\n".join([fit["equation"], *shown])
    assert f"```\n{block}\n```" in (ROOT / "docs" / "reference" / "laws.md").read_text(
        encoding="utf-8"
    )
    says(
        "docs/reference/laws.md",
        f"objective {fit['objective']:.14f}, all {fit['n_starts']} starts",
        f"the usual loop takes {speed['times']['autograd']:.0f} times as long",
    )
    ci95 = fit["ci95"]
    says(
        "docs/results/laws/README.md",
        fit["equation"].replace("L(N, D)", "L"),
        f"E {ends(ci95['E'])}, alpha {ends(ci95['alpha'])}, beta {ends(ci95['beta'])}, "
        f"a {fit['exponents']['a']:.3f} {ends(ci95['a'])} (N* ~ C^a)",
        f"log-Huber objective {fit['objective']:.8f} at delta 1e-3; 64 of {fit['n_starts']} starts",
        f"take {speed['seconds']['ours']:.2f} s on one thread",
        f"{speed['times']['autograd']:.0f} times faster than the usual loop",
        f"gradients by the `autograd` package: {speed['seconds']['autograd']:.0f} s",
        f"{speed['times']['hand']:.0f} times faster than that loop with a gradient written by hand",
        f"({speed['seconds']['hand']:.1f} s), medians",
    )
    assert fit["agreement_of_starts"] == 1
    assert speed["objective"] == pytest.approx(fit["objective"], rel=1e-12)


def test_the_approaches_hold_outs_and_choices_of_the_pages():
    fit = record("laws/chinchilla.json")
    isoflop = fit["isoflop"]
    envelope, surface = isoflop["envelope"], isoflop["surface"]
    rows = [
        f"| 1, envelope of {len(envelope['runs'])} runs | {envelope['exponents']['a']:.3f} "
        f"{ends(envelope['ci95']['a'])} | | |",
        f"| 3, surface | {surface['exponents']['a']:.3f} {ends(surface['ci95']['a'])} | | |",
    ]
    for name in ("parabola", "cubic"):
        found = isoflop[name]
        used = sum(valley["used"] for valley in found["valleys"])
        errs = found["bias"]["bias"]
        rows.append(
            f"| 2, {name}s, {used} of {len(found['valleys'])} budgets | "
            f"{found['exponents']['a']:.3f} {ends(found['ci95']['a'])} | {errs['a']:+.3f} in a, "
            f"{100 * errs['N']:+.1f} %"
        )
        rows.append(f"| {found['bias']['corrected']['a']:.3f} |")
    lost = [isoflop[name]["lost"] for name in ("parabola", "cubic")]
    rows.append(f"In {lost[0]} of 1,000 resamples ({lost[1]} with cubics)")

    for held in fit["rollout"]:
        bias = ", ".join(f"{100 * end:+.2f}" for end in held["bias_ci95"])
        distance = held["distance"]
        times = f"{float(f'{distance:.3g}'):,.0f}" if distance > 10 else f"{distance:.1f}"
        rows.append(
            f"| {held['threshold']:.1e} | {held['n_fitted']} | {held['n_held_out']} | {times} | "
            f"{100 * held['bias']:+.2f} % [{bias}] | {percent(held['mean_abs_error'], 2)} | "
            f"{percent(held['in_sample_error'], 2)} |".replace("e+", "e")
        )
    rows.append(f"At 3e20, {percent(fit['holdout']['covered'])} of them lie within")

    choice = fit["multiverse"]
    a, spread = choice["a"], choice["spread"]
    rows += [
        f"{len(choice['rows'])} analyses give a from {a['lowest']:.3f} to {a['highest']:.3f} "
        f"(median {a['median']:.3f})",
        f"moves by {spread['approach']:.3f} with the approach, {spread['objective']:.3f} with the "
        f"objective, {spread['dropped']:.3f} with",
        f"and {spread['delta']:.3f} with delta",
    ]
    says("docs/results/laws/README.md", *rows)


def test_the_law_of_shakespeare_is_what_the_results_say():
    law = record("shakespeare/power.json")
    runs = table("shakespeare/table.csv")
    sizes = [int(row["total_params"]) for row in runs]
    far = law["summary"][1]
    times, loss = re.fullmatch(r"at (\S+), 10 times the largest C: loss (.*)", far).groups()
    without = [f"{found['params']['g']:.2f}" for found in law["dropped"]]
    says(
        "docs/results/README.md",
        f"{law['summary'][0]}; at {times.replace('e+', 'e')} FLOPs, ten times the largest, {loss}",
        f"{len(runs)} runs, {law['n_sizes']} sizes from {min(sizes):,} to {max(sizes):,} parameter",
        f"noise of a seed {percent(law['noise']['seed_sd'], 2)} of the loss",
        f"fit has E = {law['params']['E']:.2f} and g = {law['params']['g']:.3f}",
        f"without the smallest 1, 2, 3 sizes {', '.join(without)},",
    )


def test_the_compute_that_one_arm_needs_is_what_compare_prints():
    sides = [arm_of("width_adamw", mode) for mode in MODES[:2]]
    printed = lines(compare(*sides))
    block = "\n".join(line for line in printed if line.startswith(("compute: ", "better: ")))
    assert f"```\n{block}\n```" in (ROOT / "README.md").read_text(encoding="utf-8")


def arm_of(study: str, mode: str) -> Arm:
    """An arm of a transfer study, from its table."""
    runs = []
    for row in table(f"transfer/{study}.csv"):
        if row["parametrization.mode"] == mode:
            values: dict[str, Any] = dict.fromkeys(KEYS) | {TOKENS: int(row["tokens_seen"])}
            values |= {key: int(row[key]) for key in ("n_embd", "n_head")}
            values |= {"parametrization.mode": mode, "learning_rate": float(row["learning_rate"])}
            folder = RunFolder(Path("nowhere") / row["folder"])
            loss, flops = float(row["val_loss"] or math.nan), float(row["flops"])
            runs.append(ArmRun(folder, values, row["seed"], row["state"], loss, flops, "data", {}))
    done = [run for run in runs if math.isfinite(run.loss)]
    return Arm(f"{study}:{mode}", done, [run for run in runs if run not in done])


# -- learning rates -------------------------------------------------------------------------------
def verdict(study: str, mode: str) -> dict[str, Any]:
    found = record(f"transfer/{study}.json")
    return found["verdicts"][mode] if "verdicts" in found else found


def test_the_verdicts_on_learning_rates_are_those_of_their_files():
    rows = []
    for over in ("width", "depth"):
        for optimizer in ("AdamW", "Muon"):
            study = f"{over}_{optimizer.lower()}"
            study += "_small_batch" * (study == "width_muon")
            rows += [row_of(verdict(study, mode), f"{mode}, {optimizer}") for mode in MODES]
    rows.append(row_of(verdict("width_muon", "muP"), "muP, Muon, 2,048 tokens per update"))
    text = page("docs/results/README.md")
    plain = text.replace(" octaves |", " |").replace(" nats |", " |")
    assert not [row for row in rows if row not in plain]


def row_of(found: dict[str, Any], name: str) -> str:
    drift = found["drift"]
    return (
        f"| {name} | {drift['value']:+.2f} {ends(drift['ci95'], '+.2f')} | "
        f"{found['largest_shift']['value']:.2f} | {found['max_regret']['value']:.3f} | "
        f"{found['verdict']} |"
    )


def test_the_losses_at_a_transferred_rate_are_those_of_their_files():
    sp, mup = (verdict("width_adamw", mode) for mode in MODES[:2])
    wide = {name: found["sizes"][-1] for name, found in (("SP", sp), ("muP", mup))}
    low, high = sorted(-end for end in mup["drift"]["ci95"])
    says(
        "README.md",
        f"SP falls by {-sp['drift']['value']:.2f} octaves per doubling of the width",
        f"muP's by {-mup['drift']['value']:.2f} [{low:.2f}, {high:.2f}]",
        f"ends at {wide['muP']['transferred_loss']:.3f} nats; SP tuned at 256, at "
        f"{wide['SP']['min_loss']:.3f}",
    )
    muon = {mode: verdict("width_muon_small_batch", mode)["sizes"][-1] for mode in MODES[:2]}
    batch = [size["log2_optimum"] for size in verdict("width_muon", "muP")["sizes"]]
    steps = [f"{b - a:.2f}" for a, b in itertools.pairwise(batch)]
    says(
        "docs/results/README.md",
        f"there width 256 ends at {wide['SP']['transferred_loss']:.2f} with it",
        f"LR ends at {wide['muP']['transferred_loss']:.3f} and SP tuned there at "
        f"{wide['SP']['min_loss']:.3f} (AdamW); under Muon "
        f"{muon['muP']['transferred_loss']:.3f} (muP, that LR), {muon['muP']['min_loss']:.3f} "
        f"(muP tuned) and {muon['SP']['min_loss']:.3f} (SP tuned)",
        f"({steps[0]}, {steps[1]} and {steps[2]} from one width to the next)",
        f"{verdict('width_muon', 'muP')['max_regret']['value']:.3f} nats to lose",
    )


# -- searches, speed ------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "key"), [("hpo", "rows"), ("engine", "")])
def test_a_page_that_a_script_writes_is_of_its_numbers(name, key):
    found = record(f"{name}/{name}.json")
    written = (RESULTS / name / f"{name}.md").read_text(encoding="utf-8")
    assert measure_of(name).page(found[key] if key else found) == written


@pytest.mark.slow  # its script loads torch
def test_the_page_of_speed_is_of_every_machines_record():
    measure = measure_of("speed")
    written = (RESULTS / "speed" / "speed.md").read_text(encoding="utf-8")
    assert measure.page(measure.records()) == written


def measure_of(name: str) -> Any:
    """The script that wrote a page."""
    script = RESULTS / name / "measure.py"
    spec = importlib.util.spec_from_file_location(f"measure_{name}", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_searches_and_the_speed_of_the_pages():
    rows = record("hpo/hpo.json")["rows"]
    median, search = rows[-1], rows[2]
    grid = [f"{end:+.3f}" for end in (median["minus_grid"]["mean"], *median["minus_grid"]["ci95"])]
    direct = median["minus_direct"]
    wide = [f"{end:+.3f}" for end in (direct["mean"], *direct["ci95"])]
    says(
        "docs/results/README.md",
        f"each at {search['of_grid']:.3f} of the FLOPs of a grid of 240",
        f"end {grid[0]} nats [{grid[1]}, {grid[2]}] from the grid's",
        f"ends {wide[0]} [{wide[1]}, {wide[2]}] from what was tuned there, at "
        f"{search['of_direct']:.3f} of that search's FLOPs",
    )
    one, other = speed_of("amd-epyc-avx512_bf16"), speed_of("intel-xeon-processor-avx512f")
    says(
        "README.md",
        f"in {one.ours} seconds on two cores",
        f"nanoGPT takes {one.peer}",
        f"takes {one.ratios} of nanoGPT's in its fastest mode",
        f"it takes {other.ours} seconds, nanoGPT {other.peer}, and a step {other.ratios} of",
    )


class Speed(NamedTuple):
    """A machine's record, in README's words."""

    ours: str
    peer: int
    ratios: str


def speed_of(machine: str) -> Speed:
    speed = record(f"speed/{machine}.json")
    ours = [run["seconds"] for run in speed["time_to_loss"]["ours"]]
    runs = speed["time_to_loss"]["peer"]
    (peer,) = [run["seconds"] for run in runs if run["learning_rate"] == 1e-3]
    ratios = []
    for step in speed["steps"]:
        beside = step.get("beside_ms", {}).values()
        if beside:
            fastest = min(beside, key=lambda mode: mode["peer"])
            ratios.append(fastest["ours"] / fastest["peer"])
    return Speed(
        f"{min(ours):.0f} to {max(ours):.0f}",
        int(peer),
        f"{min(ratios):.2f} to {max(ratios):.2f}",
    )


def test_the_tables_of_precision_and_of_a_recipes_rates():
    losses: dict[str, dict[str, float]] = defaultdict(dict)
    for row in table("speed/precision.csv"):
        losses[row["seed"]][row["dtype"]] = float(row["val_loss"])
    low = [pair["bfloat16"] - pair["float32"] for pair in losses.values()]
    mean = statistics.fmean(low)
    half = 2.200985 * statistics.stdev(low) / math.sqrt(len(low))  # Student's t, 11 degrees
    assert len(low) == 12
    says(
        "docs/results/README.md",
        f"the difference is {mean:.5f} nats, 95 % interval [{mean - half:.4f}, {mean + half:.4f}]",
    )
    cells: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in table("speed/cpu_fast.csv"):
        cells[row["muon_lr"], row["learning_rate"]].append(float(row["val_loss"]))
    means = {cell: f"{statistics.fmean(found):.4f}" for cell, found in cells.items()}
    plain = page("docs/results/README.md").replace("**", "")
    rates = sorted({rate for _, rate in cells}, key=float)
    for muon in {muon for muon, _ in cells}:
        assert f"| {muon} | " + " | ".join(means[muon, rate] for rate in rates) + " |" in plain


# -- simulations ----------------------------------------------------------------------------------
def test_the_tables_of_designs_are_those_of_their_files():
    rows = []
    by_method = {(r["method"], r["world"], r["drift"]): r for r in table("design/transfer.csv")}
    for (method, world, drift), now in by_method.items():
        if method == "a window per resample":
            was = by_method["one window", world, drift]
            rows.append(
                f"| {world} | {drift} | {was['coverage']} | {now['coverage']} | "
                f"{was['median_width']} | {now['median_width']} | {was['fails']} | {now['fails']} |"
            )
    for found in table("design/ladders.csv"):
        keys = ("floor", "loss", "warned", "floor_if_silent", "loss_if_silent")
        numbers = [f"{float(found[key]):.2f}" for key in keys]
        widths = [f"{float(found[key]):.3f}" for key in ("floor_width", "loss_width")]
        world = found["world"]
        line = next(
            line for line in page_lines("design/design.md") if line.startswith(f"| {world}")
        )
        told = [cell.strip() for cell in line.strip("| ").split("|")]
        assert told[3:8] == numbers, world
        assert [cell.split(", ")[0] for cell in told[8:]] == widths, world
    found = {row["question"]: row for row in table("design/checkpoints.csv")}
    shares = [found[key]["coverage"] for key in ("alpha", "beta", "a", "E")]
    rows.append(f"wild-cluster | {' | '.join(shares)} | {found['a']['width']} |")
    says("docs/results/design/design.md", *rows)


def page_lines(name: str) -> list[str]:
    return (RESULTS / name).read_text(encoding="utf-8").splitlines()


def test_the_coverage_of_seven_designs_is_that_of_its_file():
    groups: dict[tuple[str, ...], dict[str, dict[str, str]]] = defaultdict(dict)
    for row in table("design/table.csv"):
        tied = "tied" if float(row["delta"]) > 1e-3 else ""
        groups[row["design"], row["noise"], row["resampling"], tied][row["question"]] = row
    for design, noise in {key[:2] for key in groups}:
        name = "Epoch's" if design == "epoch" else design.replace("x", " x ")
        said = noise if noise == "residuals" else f"{100 * float(noise):g} %"
        line = next(
            line
            for line in page_lines("design/design.md")
            if line.startswith(f"| {name} | {said} |")
        )
        told = [cell.strip() for cell in line.strip("| ").split("|")]
        columns = {2: ("pairs", ""), 5: ("parametric", ""), 7: ("wild", "")}
        columns |= {8: ("pairs", "tied"), 10: ("parametric", "tied")}
        for place, method in columns.items():
            found = groups.get((design, noise, *method))
            if found is None:
                continue
            least = min(float(row["coverage"]) for row in found.values())
            assert told[place] == f"{least:.2f}" or told[place] == f"{least:.3f}", (line, method)
            width = float(found["a"]["width"])
            assert place == 7 or float(told[place + 1]) == pytest.approx(width, rel=0.02)


# -- the main job ---------------------------------------------------------------------------------
def seal_of(study: str) -> Path:
    """The published seal of a study."""
    folder = RESULTS / study / "predictions"
    (seal,) = (path for path in folder.glob("*.json") if path.name != "score.json")
    return seal


def judged(study: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What `verify` says of a published seal and what was observed."""
    observed = record(f"{study}/predictions/score.json")["observed"]
    assert main(["verify", str(seal_of(study)), f"--observed={observed}"]) == 0
    return capsys.readouterr().out.splitlines()[-1]


def test_the_main_job_in_small_is_what_its_seal_says(capsys):
    says("README.md", judged("quick", capsys))
    seal = seal_of("quick")
    made = json.loads(seal.read_text())
    says(
        "docs/results/README.md",
        seal.name,
        f"{made['forecast']['distance']:.3g} times the largest one's FLOPs",
        f"{len(made['table']['columns']['run'])} runs of a ladder",
    )


def test_the_tutorials_study_is_what_its_seal_and_its_fit_say(capsys):
    observed = record("starter/predictions/score.json")["observed"]
    says("docs/tutorial.md", judged("starter", capsys), f"- `observed {observed:.4g}` is the loss")
    says("docs/tutorial.md", f"one in {math.exp(observed):.2g}", f"e^-{observed:.4g}")
    ladder = "--where=stage=ladder"
    assert main(["fit", str(RESULTS / "starter" / "table.csv"), ladder]) == 3  # letters
    says("docs/tutorial.md", " ".join(capsys.readouterr().out.splitlines()[:5]))


@pytest.mark.parametrize("study", ["first", "first/wheel", "starter"])
def test_what_a_newcomer_sees_is_what_its_seal_says(study, capsys):
    line = judged(study, capsys)
    where = {"first": "README.md", "starter": "docs/tutorial.md"}
    if study in where:
        says(where[study], line)
    for words in line.replace(":", ",").lower().partition(";")[0].split(" inside "):
        says("docs/results/README.md", words.replace(", outside", " and outside").strip(", "))


def test_the_main_job_on_a_laptop_is_what_its_seal_says(capsys):
    (run,) = (row for row in table("laptop/table.csv") if row["stage"] == "confirm")
    assert float(run["val_loss"]) == record("laptop/predictions/score.json")["observed"]
    seal = seal_of("laptop")
    line = judged("laptop", capsys)
    says("README.md", line)
    says("docs/results/laptop/README.md", line, seal.name[:12])
    made = json.loads(seal.read_text())
    says(
        "docs/results/README.md",
        f"{made['forecast']['distance']:.3g} times the largest one's FLOPs",
        f"{len(made['table']['columns']['run'])} runs of a ladder",
    )
    began = record(f"laptop/{run['folder']}/status.json")["began"]
    assert made["sealed"] < datetime.fromtimestamp(began, UTC).isoformat()
    before = sum(float(r["flops"]) for r in table("laptop/table.csv") if r["stage"] != "confirm")
    says("docs/results/laptop/README.md", f"{before:.2g}".replace("+", ""))


def test_the_best_size_and_its_planted_grids_are_their_files():
    page = "docs/results/isoflop/README.md"
    fit = record("isoflop/isoflop.json")
    best = fit["best"]
    low, high = best["N_ci95"]
    answer = f"N* = {best['N']:.3g} [{low:.3g}, {high:.3g}]"
    low, high = fit["ci95"]["a"]
    exponent = f"a = {fit['exponents']['a']:.3f} [{low:.3f}, {high:.3f}]"
    says(page, answer, f"D* = {best['D']:.3g} tokens", exponent)
    says("docs/results/README.md", answer, exponent)
    says(page, f"by {percent(fit['noise']['used'], 1)} of the loss", "which is identified")
    assert fit["status"] == "converged"
    updates = sorted(int(row["iter_num"]) for row in table("isoflop/table.csv"))
    says(page, f"runs of {updates[0]} to {updates[-1]:,} updates")
    a = fit["multiverse"]["a"]
    says(page, f"a from {a['lowest']:.3f} to {a['highest']:.3f}")

    for row in table("isoflop/worlds.csv"):
        held = f"| {row['holds_at_largest']} | {row['holds_at_ten_times']} |"
        says(page, f"{held} {row['factor_at_ten_times']} |")
        assert int(row["holds_at_ten_times"]) >= 0.93 * int(row["worlds"])
    ratios = sorted(float(row["ratio"]) for row in table("isoflop/next.csv"))
    middle = statistics.median(ratios)
    says(page, f"takes {ratios[0]:.2f} to {ratios[-1]:.2f} of the FLOPs", f"kinds {middle:.2f} (")


def test_what_parts_are_worth_is_their_file():
    page = "docs/results/ablation/README.md"

    def text(value: float, ends: list[float]) -> str:
        three = [f"{number:#.3g}".rstrip(".") for number in (value, *ends)]
        return f"{three[0]} [{three[1]}, {three[2]}]"

    found = record("ablation/ablation.json")
    for name, one in found.items():
        moves = text(10 ** one["exponent"], [10**end for end in one["exponent_ci95"]])
        says(page, f"| {name} | {text(one['value'], one['ci95'])} | {moves} | {one['verdict']} |")
    dearest = found["AdamW in place of Muon"]
    says("docs/results/README.md", f"needs {text(dearest['value'], dearest['ci95'])} times")
    rows = table("ablation/table.csv")
    updates = sorted(int(row["iter_num"]) for row in rows)
    says(page, f"make {updates[0]} to {updates[-1]:,} updates")


def test_what_the_horizon_moves_is_its_file():
    page = "docs/results/horizon/README.md"
    verdicts = record("horizon/transfer.json")["verdicts"]
    rows: dict[float, list[str]] = {}
    for name, verdict in verdicts.items():
        drift = verdict["drift"]
        low, high = drift["ci95"]
        says(page, f"{drift['value']:+.2f} [{low:.2f}, {high:.2f}]")
        says("docs/results/README.md", f"{drift['value']:+.2f} [{low:.2f}, {high:.2f}]")
        says(page, f"{verdict['seed_sd']:.3f}")
        assert verdict["verdict"] == "inconclusive"
        assert f"{name}: best LR" in (ROOT / page).read_text(encoding="utf-8")
        for size in verdict["sizes"]:
            best = ", ".join(f"{end:.4f}" for end in size["ci95"])
            ends = ", ".join(f"{end:.3f}" for end in size["regret_ci95"])
            lost = f"{size['regret']:.3f} [{ends}]" if size["regret"] else ""
            cells = rows.setdefault(size["size"], [])
            cells += [f"{size['optimum_lr']:.4f} [{best}]", lost]
    for updates, cells in rows.items():
        says(page, f"| {updates:g} | {' | '.join(cells)} |".replace("|  |", "| |"))
    runs = table("horizon/table.csv")
    minutes = sum(float(run["wall_seconds"]) for run in runs) / 60 / 2
    says(page, f"{minutes:.0f} minutes", f"{len(runs)} runs")


def test_how_the_chinchilla_points_are_coupled_is_its_file():
    found = record("laws/skaling.json")
    said = []
    for name in ("alpha", "beta", "k", "E", "a"):
        value = (found["params"] | found["exponents"])[name]
        low, high = found["ci95"][name]
        said.append(f"{name} {value:.3f} [{low:.3f}, {high:.3f}]")
    says("docs/results/laws/README.md", *said, f"objective {found['objective']:.6g}")
    assert found["ci95"]["k"][1] < 1


def test_step_laws_exponents_are_their_file():
    page = "docs/results/laws/README.md"
    joint = record("laws/steplaw.json")["joint"]
    ways = {"laws": "by the quadratics", "lowest": "by the lowest run of each"}
    for which, way in ways.items():
        for name, swept in (("lr", "LR*"), ("batch", "batch*")):
            law = joint[which][name]
            cells = []
            for key in ("N", "D"):
                low, high = law["ci95"][key]
                cells.append(f"{law['exponents'][key]:.3f} [{low:.3f}, {high:.3f}]")
            says(page, f"| {swept}, {way} | {' | '.join(cells)} |")
    scatters = [percent(joint[which]["lr"]["scatter"], 1) for which in ways]
    says(page, f"by {scatters[0]} (of the lowest runs by {scatters[1]})", "of 17 scales")
    exponents = joint["laws"]
    lr, batch = exponents["lr"]["exponents"], exponents["batch"]["exponents"]
    says("docs/reference/laws.md", f"LR* ~ N^{lr['N']:.3f} D^{lr['D']:.3f}")
    says("docs/reference/laws.md", f"B* ~ N^{batch['N']:.3f} D^{batch['D']:.3f}")


def test_what_branches_cost_and_lose_is_their_files():
    rows = table("branches/branches.csv")
    share = sum(int(r["flops"]) for r in rows) / sum(int(r["separate_flops"]) for r in rows)
    of_size, cosine = {}, {}
    for row in rows:
        place = (row["n_embd"], row["learning_rate"])
        of_size.setdefault(place, {})[row["tokens_per_param"]] = float(row["loss"])
        cell = (row["n_embd"], row["tokens_per_param"])
        cosine[cell] = min(float(row["cosine_loss"]), cosine.get(cell, math.inf))
    over = {}
    for size in {size for size, _ in of_size}:
        curves = [losses for (of, _), losses in of_size.items() if of == size]
        best = min(curves, key=lambda losses: statistics.mean(losses.values()))
        for ratio, loss in best.items():
            over.setdefault(ratio, []).append(loss - cosine[size, ratio])
    every = [value for values in over.values() for value in values]
    error = statistics.stdev(every) / len(every) ** 0.5
    page = "docs/results/branches/README.md"
    says(page, f"**{percent(share, 1)} of the FLOPs**")
    says(page, f"**{-statistics.mean(every):.3f} +- {error:.3f} nats below cosine's losses**")
    for ratio, values in over.items():
        says(page, f"| {ratio} | {statistics.mean(values):+.4f} |")


def test_the_floors_that_hold_the_entropy_are_those_of_their_file():
    rows = table("floors/floors.csv")
    for sizes in ("5", "6", "7"):
        part = [row for row in rows if row["sizes"] == sizes]
        above, holds, width = [], 0, []
        for row in part:
            entropy, low, high = (float(row[key]) for key in ("entropy", "low", "high"))
            above.append(100 * (float(row["largest_run"]) / entropy - 1))
            holds += low <= entropy <= high
            width.append(100 * (high - low) / entropy)
        far, wide = statistics.median(above), statistics.median(width)
        line = f"| {sizes} | {far:.2g} % | {holds} of {len(part)} | {wide:.2g} % of H |"
        says("docs/results/floors/README.md", line)


def test_the_share_of_forecasts_that_hold_is_the_tables():
    rows = table("laws/forecasts.csv")
    runs = sum(int(row["runs"]) for row in rows)
    shares, halves = {}, {}
    for key in ("forecast", "law"):
        held = sum(int(row[f"{key}_holds"]) for row in rows)
        shares[key] = percent(held / runs, 1)
        halves[key] = statistics.median(float(row[f"{key}_half_width"]) for row in rows)
    says(
        "docs/reference/laws.md",
        f"{shares['forecast']} of {runs} runs at a half-width of {halves['forecast']:.1f} %",
        f"those of the law alone {shares['law']} at {halves['law']:.1f} %",
    )
    says(
        "docs/results/laws/README.md",
        f"| all | {len(rows)} | {runs} | {shares['forecast']} | {halves['forecast']:.1f} % |",
    )


# -- the pages that explain -----------------------------------------------------------------------
EXPLANATION = "docs/explanation"
COORDINATES = {
    "size of attention's output, step 1": ("size: attn", "step 1"),
    "change of the last block by an update": ("change: last_block", "first updates"),
    "size of the logits, step 1": ("size: logits", "step 1"),
}


def shown(name: str) -> list[tuple[str, str]]:
    """Every command of a page that is followed by what it prints, or by a part of that."""
    text = (ROOT / EXPLANATION / name).read_text(encoding="utf-8")
    return re.findall(r"```sh\n(nanoscale .*)\n```\n\n```\n((?:.+\n)+)```", text)


def test_the_pages_that_explain_show_what_their_commands_print():
    """`test_docs` runs each, and finds there what the page shows."""
    assert [len(shown(name)) for name in ("fits.md", "intervals.md")] == [7, 2]


def test_the_page_on_fits_is_of_its_results():
    fit, runs = record("laws/chinchilla.json"), table("isoflop/table.csv")
    approaches, choice = fit["isoflop"], fit["multiverse"]["a"]
    order = ("envelope", "parabola", "cubic", "surface")
    answers = [f"{approaches[name]['exponents']['a']:.3f}" for name in order]
    low, high = fit["ci95"]["a"]
    a = record("isoflop/isoflop.json")["exponents"]["a"]
    says(
        f"{EXPLANATION}/fits.md",
        f"{len(runs)} small GPTs",
        f"four answers are {', '.join(answers[:3])} and {answers[3]}",
        f"{len(fit['multiverse']['rows'])} analyses of the Chinchilla points reach from "
        f"{choice['lowest']:.3f} to {choice['highest']:.3f}",
        f"where the fit's interval is {low:.3f} to {high:.3f}",
        f"a model about {10**a:.0f} times as large",
        f"here {len(record('isoflop/isoflop.json')['isoflop']['envelope']['runs'])}, hence",
    )
    ladder = record("shakespeare/power.json")["ci95"]["E"]
    shows = (ROOT / EXPLANATION / "fits.md").read_text(encoding="utf-8")
    far = [
        re.search(rf"^  {law} .* (\S+)$", shows, re.M).group(1) for law in ("chinchilla", "kaplan")
    ]
    says(
        f"{EXPLANATION}/fits.md",
        f"or of {ladder[1]:.2f} with a fast one",
        f"ten times further out: {far[0]} or {far[1]}.",
    )
    outside = [held["mean_abs_error"] / held["in_sample_error"] for held in fit["rollout"]]
    assert min(outside) > 2
    says(f"{EXPLANATION}/fits.md", "held out are off by at least twice as much as those")


def test_the_page_on_transfer_is_of_its_results():
    rows = []
    for over, study, optimizer in (
        ("width", "width_adamw", "AdamW"),
        ("width", "width_muon_small_batch", "Muon"),
        ("width", "width_muon", "Muon, 2,048 tokens per update"),
        ("depth", "depth_adamw", "AdamW"),
    ):
        modes = {"Muon": MODES[:2], "AdamW": MODES}.get(optimizer, ("muP",))
        rows += [
            verdict_row(verdict(study, mode), f"{over}: {mode}, {optimizer}") for mode in modes
        ]
    muon = [verdict("width_muon_small_batch", mode) for mode in MODES]
    falls = [-found["drift"]["value"] for found in (*muon, verdict("width_muon", "muP"))]
    sp, mup = (verdict("width_adamw", mode) for mode in MODES[:2])
    proxy = verdict_of_horizon("proxy")["drift"]
    tuned = record("quick/stages.json")["tune"]
    direct = record("hpo/hpo.json")["rows"][-1]["minus_direct"]
    cost = [f"{end:+.3f}" for end in (direct["mean"], *direct["ci95"])]
    allowed = TransferLimits()
    says(
        f"{EXPLANATION}/transfer.md",
        f"the optima of all sizes. Allowed is {allowed.tolerance}.",
        f"the base's. Allowed is {allowed.max_shift:g}.",
        f"own. Allowed is {allowed.max_regret}.",
        *rows,
        f"We measured {-sp['drift']['value']:.2f}",
        f"At width 256 it ends at {mup['sizes'][-1]['transferred_loss']:.3f} with the rate of "
        f"width 32, and SP tuned at 256 at {sp['sizes'][-1]['min_loss']:.3f}",
        f"falls by {min(falls):.2f} to {max(falls):.2f} octaves per doubling of width",
        f"moved by {proxy['value']:+.2f} {ends(proxy['ci95'], '.2f')} octaves",
        f"Muon's fell as D^{tuned['exponent']:.2f} {ends(tuned['exponent_ci95'], '.2f')}",
        f"cost {cost[0]} [{cost[1]}, {cost[2]}] nats against tuning there, for "
        f"{record('hpo/hpo.json')['rows'][2]['of_direct']:.3f} of",
    )


def test_the_runs_of_the_page_on_transfer_are_those_of_its_studies():
    width, depth, horizon = (
        tomllib.loads((ROOT / "studies" / f"{name}.toml").read_text(encoding="utf-8"))
        for name in ("transfer_width_adamw", "transfer_depth_adamw", "horizon")
    )
    base = width["base"]
    widths = [size["n_embd"] for size in width["transfer"]["sizes"]]
    depths = [size["n_layer"] for size in depth["transfer"]["sizes"]]
    lengths = [size["max_iters"] for size in horizon["transfer"]["sizes"]]
    says(
        f"{EXPLANATION}/transfer.md",
        f"models of {base['n_layer']} layers, {base['max_iters']:,} updates of "
        f"{base['batch_size'] * base['block_size']} tokens of Shakespeare",
        f"widths {widths[0]} to {widths[-1]}; depths {depths[0]} to {depths[-1]} at width "
        f"{depth['base']['n_embd']}",
        f"Over {lengths[0]} to {lengths[-1]:,} updates",
    )


def verdict_of_horizon(arm: str) -> dict[str, Any]:
    return record("horizon/transfer.json")["verdicts"][arm]


def verdict_row(found: dict[str, Any], name: str) -> str:
    drift = found["drift"]
    return (
        f"| {name} | {drift['value']:+.2f} {ends(drift['ci95'], '+.2f')} | "
        f"{found['max_regret']['value']:.3f} | {found['verdict']} |"
    )


def test_the_slopes_of_the_page_on_transfer_are_those_of_the_check():
    check = record("laptop/check.json")
    assert check["verdict"] == "pass"
    assert check["sizes"] == [56, 112, 224]
    found = {(each["quantity"], each["window"]): each for each in check["findings"]}
    for name, key in COORDINATES.items():
        slope = found[key]
        low, high = slope["allowed"]
        says(
            f"{EXPLANATION}/transfer.md",
            f"| {name} | {slope['slope']:+.2f} {ends(slope['ci95'], '+.2f')} | "
            f"{low:+.2f} to {high:+.2f} |",
        )


def test_the_page_on_intervals_is_of_its_results():
    score = record("laptop/predictions/score.json")
    (seal,) = (RESULTS / "laptop" / "predictions").glob("7deb*.json")
    forecast = json.loads(seal.read_text())["forecast"]
    low, high = forecast["ci95"]
    half = (high - low) / 2 / forecast["loss"]
    laptop = record("laptop/fits/power.json")
    without = [f"{dropped['params']['g']:.2f}" for dropped in laptop["dropped"]]
    rates = [row for row in table("design/transfer.csv") if row["method"] != "one window"]
    held = sorted(float(row["coverage"]) for row in rates)
    best = sorted(int(row["holds_at_ten_times"]) for row in table("isoflop/worlds.csv"))
    runs = [float(row["coverage"]) for row in table("design/checkpoints.csv")]
    design = table("design/table.csv")
    wild = [float(row["coverage"]) for row in design if row["resampling"] == "wild"]
    default = [row for row in design if row["resampling"] == "pairs" and row["delta"] == "0.001"]
    pairs = [float(row["coverage"]) for row in default]
    says(
        f"{EXPLANATION}/intervals.md",
        f"a run of {forecast['distance']:.3g} times the compute of any before it would end between "
        f"{low:.4f} and {high:.4f}",
        f"It ended at {score['observed']:.4f}",
        f"The forecast was good to {percent(abs(score['observed'] / forecast['loss'] - 1), 2)}",
        f"The bar reaches {percent(half)} to either side",
        f"the exponent is {laptop['params']['g']:.2f} with all six sizes, {' and '.join(without)}",
        f"`pairs` | at least {percent(min(pairs), 1)} |",
        f"| {100 * min(wild):.0f} to {percent(max(wild))} |",
        f"{len(rates)} worlds | {100 * held[0]:.1f} to {percent(held[-1])} |",
        f"{best[0]} to {best[-1]} of 200 |",
        f"{100 * min(runs):.1f} to {percent(max(runs), 1)} |",
        f"was {percent(abs(score['rivals']['pure-power']), 2)} too low",
    )


def test_the_coverage_of_the_page_on_intervals_is_that_of_the_designs():
    """Ladders since two powers are drawn too, floors of known entropy, forecasts of public runs."""
    written = (RESULTS / "design" / "design.md").read_text(encoding="utf-8")
    later = written.split("**Since then**")[1].split("## ")[0]
    worlds = {
        "independent noise": "a ladder's E, and its loss at ten times: the law is right",
        "sizes not tuned alike, 1 %": "sizes not tuned alike",
        "the two smallest sizes off by 3 % and 1.5 %": "the two smallest sizes off the law",
        "the exponent steepens by .06 past 1e12": "the exponent steepens",
        "a second power": "a second power",
    }
    for world, name in worlds.items():
        (line,) = (line for line in later.splitlines() if line.startswith(f"| {world} |"))
        floor, loss = line.split("|")[2:4]
        says(f"{EXPLANATION}/intervals.md", f"| {name} | {floor.strip()}, {loss.strip()} |")

    held, widths = {}, []
    for row in table("floors/floors.csv"):
        entropy, low, high = (float(row[key]) for key in ("entropy", "low", "high"))
        held[row["sizes"]] = held.get(row["sizes"], 0) + (low <= entropy <= high)
        if row["sizes"] == "6":
            widths.append((high - low) / entropy)
    says(
        f"{EXPLANATION}/intervals.md",
        f"for {held['6']} of 10 chains with six sizes, at a width of "
        f"{percent(statistics.median(widths), 1)} of it",
        f"for {held['5']} and {held['7']} of 10 with five and seven",
        f"half of all tables drift less than {percent(USUAL_DRIFT, 1)} per e-fold",
    )
    rows = [line for line in page_lines("laws/README.md") if line.startswith("| marin-comma")]
    rows += [line for line in page_lines("laws/README.md") if line.startswith("| all")]
    worst, every = ([cell.strip() for cell in line.strip("| ").split("|")] for line in rows)
    says(
        f"{EXPLANATION}/intervals.md",
        f"{every[2]} in all",
        f"| {every[5]} | {every[6]} |",
        f"| with drift | {every[3]} | {every[4]} |",
        f"| with drift, the worst table | {worst[3]} | {worst[4]} |",
    )


def test_the_noise_of_seeds_is_on_every_page_what_the_study_measured():
    says("docs/results/laptop/README.md", "0.66 to 0.83 % of the loss")
    says("docs/results/laptop/README.md", "0.42 % by the initial values, 0.65 % by the order")
    says(f"{EXPLANATION}/intervals.md", "here by 0.66 to 0.83 % of the loss")
    says(f"{EXPLANATION}/conventions.md", "0.42 % of the loss by the initial values and 0.65 % by")


def test_the_example_of_the_conventions_is_its_record():
    (row,) = (
        row
        for row in table("laptop/table.csv")
        if (row["stage"], row["n_embd"], row["n_layer"], row["seed"]) == ("ladder", "56", "2", "1")
    )
    found = record(f"laptop/{row['folder']}/metrics.json")
    counts, n = found["params"]["by_convention"], found["total_params"]
    usual = 6 * n * found["tokens_seen"]
    per_byte = found["val_bits_per_byte"]
    assert per_byte == pytest.approx(found["val_loss"] / math.log(2))  # its tokens are bytes
    assert counts["total"] == n
    each = [f"{counts[name]:,}" for name in counts]
    moves = record("isoflop/isoflop.json")["multiverse"]["spread"]["convention"]
    said = [
        f"| `val_loss` | {found['val_loss']:.4f} nats per token |",
        f"| `val_bits_per_byte` | {per_byte:.4f} bits |",
        f"`total_params` | {n:,} |",
        f"`non_embedding` | {counts['non_embedding']:,} |",
        f"`tokens_seen` | {found['tokens_seen']:,} |",
        f"`flops` | {found['flops']:.4g} |",
        f"| {usual:.4g} |",
        f"`mfu` | {found['mfu']:.3f} |",
        f"its {found['val_loss']:.4f} nats are {per_byte:.4f} bits",
        f"The example has {', '.join(each[:3])} and {each[3]}",
        f"exact is {found['flops'] / usual:.2f} times 6 N D",
        f"A nat is {1 / math.log(2):.3f} bits",
        f"moves by {moves:.3f} with it",
        f"2^-1.04 = {2**-1.04:.3f}",
        f"10^-0.54 = {10**-0.54:.3f}",
    ]
    says(f"{EXPLANATION}/conventions.md", *said)


def test_what_the_conventions_say_is_hashed_is_hashed():
    text = (ROOT / EXPLANATION / "conventions.md").read_text(encoding="utf-8")
    lines = text.split("| hashed | not hashed |", 1)[1].split("\n\n")[0].splitlines()[2:]
    cells = [line.strip("| ").split(" | ") for line in lines]
    for column, hashed in enumerate((True, False)):
        keys = {key for cell in cells for key in re.findall(r"`(\w+)`", cell[column])}
        assert len(keys) >= 5 - hashed
        assert all(FIELDS[key].hashed is hashed for key in keys), keys


def test_the_recipe_on_the_page_for_nanogpt_is_that_of_the_results():
    rows = [line for line in page_lines("README.md") if line.startswith("| nano")]
    theirs, ours = (line.strip("| ").split("|")[2].strip() for line in rows[:2])
    says(
        "docs/migration/nanogpt.md",
        f"ends at a validation loss of {ours} nats",
        f"measured the same way, at {theirs}",
    )


def test_the_rules_of_muon_are_listed_with_tables_that_are_there():
    keys = ["rule", "corpus", "tokens_per_update", "size", "table", "arguments"]
    entries = record("transfer/muon_rules.json")
    rows = rules_rows()
    assert len(rows) == len(entries)
    for entry, row in zip(entries, rows, strict=True):
        assert list(entry) == keys
        assert table(f"transfer/{entry['table']}")
        tokens = f"{entry['tokens_per_update']:,}"
        assert row.startswith(f"| `{entry['rule']}` | {entry['corpus']} | {tokens} |")


@pytest.mark.soak
def test_the_drifts_of_muons_rules_are_the_commands():
    """rules.py makes the same page again; it takes a verdict per rule."""
    file = RESULTS / "transfer" / "muon_rules.md"
    before = file.read_text(encoding="utf-8")
    found = run_python(str(RESULTS / "transfer" / "rules.py"))
    assert found.returncode == 0, found.stderr
    after = file.read_text(encoding="utf-8")
    file.write_text(before, encoding="utf-8", newline="\n")
    assert after == before


def test_the_signal_of_muons_directions_is_what_was_measured():
    measured = record("transfer/noise_512.json")
    slopes = {name: over["slope"] for name, over in measured["signal"].items()}
    said = {name: f"{-found['slope']:.2f}" for name, found in slopes.items()}
    low, high = slopes["Newton-Schulz"]["ci95"]
    assert (measured["tokens"], measured["seeds"]) == (512, [1, 2, 3])
    drifts = {}
    for row in rules_rows():
        rule, _, tokens, _, drift, *_ = row.strip("| ").split(" | ")
        if tokens == "512":
            drifts[rule.strip("`")] = drift
    says(
        f"{EXPLANATION}/muon.md",
        f"falls by {said['Newton-Schulz']} [{-high:.2f}, {-low:.2f}] octaves per doubling of width "
        f"for Newton-Schulz, {said['polar factor']} for the exact polar factor, "
        f"{said['power 1/2']} with the roots of the singular values, {said['momentum']} for",
        f"fell by {drifts['power'][1:5]} with the roots and by {drifts['polar'][1:5]} with",
        f"Muon's stayed: {drifts['width power']}.",
        f"the rate fell by {drifts['hyperball'][1:5]}",
    )


def rules_rows() -> list[str]:
    return [line for line in page_lines("transfer/muon_rules.md") if line.startswith("| `")]
