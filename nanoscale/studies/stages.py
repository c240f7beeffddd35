"""A study from its file to its report: data, runs, table, fit, report.

Each stage reads what the one before left in folders, so a study that is run again costs nothing but
its report. This module alone ties experiments, laws and report together.
"""

from __future__ import annotations

import math
import os
import shlex
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanoscale.errors import UserError, disk_errors
from nanoscale.experiments import ExperimentRunner, Study
from nanoscale.experiments.records import Asked, describe
from nanoscale.spec.config import ExperimentConfig, flatten
from nanoscale.spec.sources import FIELDS, Source, apply
from nanoscale.store.files import write_json
from nanoscale.store.folder import BEST, CHECKPOINT, COMPLETE
from nanoscale.studies.study_file import Arm, StudyFile, read_study
from nanoscale.studies.transfer import Judged, joint_record, study_verdicts

if TYPE_CHECKING:
    from pandas import DataFrame

    from nanoscale.laws import Fit

OUTPUT_ROOT = "experiments_out"
DEFAULTS = {
    "data_order": "epoch",
    "min_lr_frac": 0.1,
    "warmup_frac": 0.05,
    "lr_decay_iters": None,
    "compile": False,
}
MOST_REFINEMENTS = 8
C_CONVENTION = "C: training FLOPs, exact (matrix products, forward and backward)"


# -- stages -------------------------------------------------------------------------------------
def run_study(
    path: Path | str, output_root: Path | str = OUTPUT_ROOT, *, dry_run: bool = False, **how: Any
) -> Study:
    """Every stage of a study file: data, runs, table, fit, report.

    `how` it runs: the arguments of `ExperimentRunner` (workers, budget, backend, ...), before those
    of the file's [run].
    """
    path = Path(path)
    design = read_study(path)
    if not dry_run:
        prepare_missing(design.base)
        # a second, spent while the workers load torch
        threading.Thread(target=import_module, args=("nanoscale.report",), daemon=True).start()
    runner = ExperimentRunner(output_root=output_root, **{**design.how, **how})
    root = "" if str(output_root) == OUTPUT_ROOT else f" --output_root={output_root}"
    extras: dict[str, Any] = {}
    if design.arms:
        arms = [{"name": arm.name, "lr": arm.lr, "values": dict(arm.values)} for arm in design.arms]
        extras = {"size": design.size, "arms": arms}
    asked = Asked(
        recipe=design.recipe,
        question=design.question,
        min_sizes=design.min_sizes,
        command=f"nanoscale study {shlex.quote(str(path))}{root}",
        file=path.read_text(encoding="utf-8"),
        extras=extras,
    )

    def run(rows: Sequence[Mapping[str, Any]]) -> Study:
        if design.search:
            return runner.run_search(
                design.name,
                Source(f"{path}, [base]", design.base),
                design.search,
                design.where,
                defaults=DEFAULTS,
                dry_run=dry_run,
                asked=asked,
            )
        return runner.run_rows(
            design.name,
            Source(f"{path}, [base]", design.base),
            rows,
            design.where,
            defaults=DEFAULTS,
            dry_run=dry_run,
            asked=asked,
        )

    study = run(design.rows)
    if not dry_run:
        study = refined(study, design, run)
        for line in conclude(study):
            print(f"[{study.name}] {line}")
    return study


def refined(
    study: Study, design: StudyFile, run: Callable[[Sequence[Mapping[str, Any]]], Study]
) -> Study:
    """Add LRs around each size's optimum until none is new (see `recipes.Arm`)."""
    rows = list(design.rows)
    for _ in range(MOST_REFINEMENTS):
        frame, before = study.frame(), len(rows)
        for arm in design.arms:
            for size in arm.sizes:
                losses = mean_losses(frame, arm, size)
                if any(math.isfinite(loss) for loss in losses.values()):
                    rows += [row for row in arm.finer_rows(size, losses) if row not in rows]
        if len(rows) == before or not study.ok:
            break
        study = run(rows)
    return study


def mean_losses(frame: DataFrame, arm: Arm, size: Mapping[str, Any]) -> dict[float, float]:
    """LR -> mean loss over seeds of one arm's size; infinite where a run diverged."""
    ours = frame
    for key, value in {**arm.values, **size}.items():
        ours = ours[ours[key] == value]
    losses = ours["val_loss"].astype(float).where(ours["state"] == COMPLETE, math.inf)
    return losses.groupby(ours[arm.lr].astype(float)).mean().to_dict()


def prepare_missing(base: Mapping[str, Any]) -> None:
    """Make pysource, which needs no download, if it is asked for and not there."""
    from nanoscale.data.dataset import dataset_folder
    from nanoscale.data.prepare import prepare

    name, root = base.get("dataset"), base.get("data_root", FIELDS["data_root"].default)
    if name != "pysource":
        return
    try:
        dataset_folder(name, root)
    except UserError:
        print(f"{name}: preparing the Python files of this installation in {Path(root) / name}")
        prepare(name, out=Path(root) / name)


def conclude(study: Study) -> list[str]:
    """Fit and report from the run folders; the lines that a user reads at the end."""
    frame = study.frame()
    fit, verdicts, answer = None, [], best_line(study)
    recipe = study.asked.recipe
    if recipe == "ladder":
        frame["size"] = size_labels(frame, study)
        fit, answer = fit_ladder(study, frame)
    elif recipe == "transfer" and (frame["state"] == COMPLETE).any():
        verdicts, answer = judge_arms(study)
    report = write_study_report(study, frame, fit, answer, verdicts)
    return [*answer, f"report: {report}", *next_command(frame)]


def size_labels(frame: DataFrame, study: Study) -> list[str]:
    """How each run's size is called: its total N, or its shape where two shapes share that."""
    shapes = [
        describe({k: v for k, v in entry.values.items() if k != "seed"})
        for entry, _ in study.runs()
    ]
    counts = [short(n) for n in frame["total_params"]]
    unique = len(set(counts)) == len(set(shapes))
    return counts if unique else shapes


def fit_ladder(study: Study, frame: DataFrame) -> tuple[Fit | None, list[str]]:
    """The power law through the finished runs, kept in fits/power.json, and what it says."""
    from nanoscale.laws import fit_power_law

    done = frame[frame["state"] == COMPLETE]
    least, there = study.asked.min_sizes, done["size"].nunique()
    if there < least:
        return None, [f"no law: {there} sizes have finished, {least} are needed"]
    fit = fit_power_law(done["flops"], done["val_loss"], size=done["size"], seed=done["seed"])
    ratio = study.asked.base_params["tokens_per_param"]
    conventions = [
        C_CONVENTION,
        f"one ladder at {ratio:g} training tokens per parameter, N: all parameters (total)",
    ]
    folder = study.folder / "fits"
    with disk_errors(folder):
        folder.mkdir(exist_ok=True)
    write_json(
        folder / "power.json",
        fit.to_json() | {"conventions": conventions, "runs": done["run"].tolist()},
    )
    return fit, [*fit.summary(), *conventions]


def judge_arms(study: Study) -> tuple[list[Judged], list[str]]:
    """Whether the LR transfers under each arm, kept in transfer.json, and what to say of it."""
    try:
        verdicts = study_verdicts(study)
    except UserError as e:
        return [], [f"no verdict: {e}"]
    write_json(study.folder / "transfer.json", joint_record(verdicts))
    return verdicts, [
        f"{name}: {record['verdict']}: {record['reason']}" for name, record, _ in verdicts
    ]


def best_line(study: Study) -> list[str]:
    """The best run of a grid or a search, in one line; what became of it at a search's target."""
    best, target = study.best, study.target
    if best is None:
        return ["no run has finished with a loss"]
    where = describe(best.values) or best.folder
    line = f"lowest val_loss {best.val_loss:.4f} at {where}"
    return [line] if target is None else [line, str(target)]


def next_command(frame: DataFrame) -> list[str]:
    """Sampling from the best run, with the Python that made it, where a run kept its weights."""
    done = frame[frame["val_loss"].notna()]
    done = done[
        [
            any((Path(folder) / name).is_file() for name in (BEST, CHECKPOINT))
            for folder in done["folder"]
        ]
    ]
    if done.empty:
        return []
    here = os.path.relpath(sys.executable)
    python = "python" if here.startswith("..") else here
    best = done.loc[done["val_loss"].astype(float).idxmin(), "folder"]
    return [f"next: {python} -m nanoscale sample --out_dir={shlex.quote(os.path.relpath(best))}"]


def short(n: float) -> str:
    """`0.213M`: a parameter count for a label; `?` where a run has none yet."""
    return "?" if n != n else f"{n / 1e6:.3g}M"


# -- the report ---------------------------------------------------------------------------------
def write_study_report(
    study: Study,
    frame: DataFrame,
    fit: Fit | None,
    answer: Sequence[str],
    verdicts: Sequence[Judged] = (),
) -> Path:
    """report.html and figures/*.png from the run folders."""
    from nanoscale.report import save, write_report

    figures = verdict_figures(verdicts) or search_figures(study) or figures_of(study, frame, fit)
    with disk_errors(study.folder / "figures"):
        (study.folder / "figures").mkdir(exist_ok=True)
    for name, _, figure in figures:
        save(figure, study.folder / "figures" / f"{name}.png")
    left_out = [
        f"{entry} is {state} and in no figure"
        for (entry, _), state in zip(study.runs(), frame["state"], strict=True)
        if state != COMPLETE
    ]
    return write_report(
        study.folder / "report.html",
        title=study.name,
        question=study.asked.question,
        summary_lines=answer,
        figures=[(caption, figure) for _, caption, figure in figures],
        tables=[("The runs.", runs_table(study, frame))],
        settings=settings_of(study),
        command=study.asked.command or f"nanoscale report {study.name}",
        warnings=[*study.warnings, *left_out, *(fit.warnings if fit else ())],
    )


def settings_of(study: Study) -> dict[str, Any]:
    """What the runs share and nanoGPT's defaults do not say, their data and their numerics."""
    asked = study.asked
    defaults = values = flatten(ExperimentConfig())
    for source in (DEFAULTS if asked.recipe else {}, asked.base_params):
        values = apply(values, Source("study.json", source))
    settings = {k: v for k, v in values.items() if v is not None and v != defaults[k]}
    if asked.base_config:
        settings["base config"] = ", ".join(asked.base_config)
    metrics = next((m for _, folder in study.runs() if (m := folder.metrics())), None)
    if metrics is None:
        return settings
    data = (metrics.get("provenance") or {}).get("data") or {}
    return settings | {"data": data, "numerics": metrics.get("numerics") or {}}


def verdict_figures(verdicts: Sequence[Judged]) -> list[tuple[str, str, Any]]:
    """(name, caption, figure) of a transfer study."""
    from nanoscale.report import transfer_figure

    return (
        [
            (
                "transfer",
                "Final validation loss against the learning rate, a curve per size; the "
                "broken line is the smallest size's best.",
                transfer_figure(verdicts),
            )
        ]
        if verdicts
        else []
    )


def search_figures(study: Study) -> list[tuple[str, str, Any]]:
    """(name, caption, figure) of a search."""
    from nanoscale.report import contour_figure, search_figure

    outcome = study.outcome
    plan = study.asked.search
    if plan is None or outcome is None or not any(t.losses[-1] is not None for t in outcome.trials):
        return []
    trials = [trial.to_json() for trial in outcome.trials]
    data = trials, plan["space"], outcome.importance
    figures = [
        (
            "search",
            "Validation loss of every trial against each key, the most important "
            "first; the diamond is the best trial.",
            search_figure(*data),
        )
    ]
    contour = contour_figure(*data)
    return (
        figures
        if contour is None
        else [
            *figures,
            (
                "contour",
                "Validation loss over the two most important ranges, smoothed, at the first "
                "length; points are trials.",
                contour,
            ),
        ]
    )


def figures_of(study: Study, frame: DataFrame, fit: Fit | None) -> list[tuple[str, str, Any]]:
    """(name, caption, figure): the ladder's law, or the loss over a grid's knobs; the curves."""
    from nanoscale.report import heatmap_figure, law_figure, lines_figure, loss_curves_figure

    done = frame[frame["state"] == COMPLETE]
    if done.empty:
        return []
    figures = []
    knobs = [k for k in varied(study) if k != "seed" and numeric(frame[k])]
    if "size" in frame:
        points = done.rename(columns={"flops": "x", "val_loss": "loss"})
        figures.append(
            (
                "law",
                "Final validation loss of every run against its training compute, "
                "and below it the distance from the law.",
                law_figure(points, fit.to_json() if fit else None),
            )
        )
    elif len(knobs) == 1 and (frame[knobs[0]] > 0).all():
        figures.append(
            (
                "grid",
                f"Final validation loss against {knobs[0]}.",
                lines_figure(done, x=knobs[0], y={"val_loss": "validation loss"}),
            )
        )
    elif len(knobs) == 2:
        figures.append(
            (
                "grid",
                f"Final validation loss over {knobs[0]} and {knobs[1]}.",
                heatmap_figure(frame, knobs[0], knobs[1], "val_loss"),
            )
        )
    curves = curve_rows(study, done)
    if len(curves) > len({row["run"] for row in curves}):  # a point alone is no curve
        figures.append(
            (
                "curves",
                "Validation loss of every run while it trained.",
                loss_curves_figure(curves, y_label="validation loss (nats per token)"),
            )
        )
    return figures


def curve_rows(study: Study, done: DataFrame) -> list[dict[str, Any]]:
    """One row per evaluation of the finished runs, with the run and its size or cell."""
    finished = dict(zip(done["run"], done.get("size", done["run"]), strict=True))
    rows = []
    for entry, folder in study.runs():
        if entry.id in finished:
            size = finished[entry.id] if "size" in done else describe(entry.values)
            rows += [
                {
                    "run": entry.id,
                    "size": size,
                    "tokens_seen": row["tokens_seen"],
                    "val_loss": row["val_loss"],
                }
                for row in folder.rows()
                if row.get("val_loss") is not None
            ]
    return rows


def runs_table(study: Study, frame: DataFrame) -> DataFrame:
    """The columns that a reader wants, under readable names."""
    names = {
        "state": "state",
        "total_params": "N (total)",
        "flops": "C (FLOPs)",
        "tokens_seen": "D (tokens)",
        "val_loss": "val loss",
        "val_bits_per_byte": "bits per byte",
        "tokens_per_second": "tokens/s",
        "run": "run",
    }
    return frame[[*varied(study), *names]].rename(columns=names)


def varied(study: Study) -> list[str]:
    """The config keys in which the study's runs differ, in the order they were asked."""
    return list(dict.fromkeys(key for entry in study.entries for key in entry.values))


def numeric(column: Any) -> bool:
    """Whether a column of a frame holds numbers (and not truth values)."""
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    return is_numeric_dtype(column) and not is_bool_dtype(column)
