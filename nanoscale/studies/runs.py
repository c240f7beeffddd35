"""Views of a study's runs: what varies among them, their curves, the table of a report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from nanoscale.errors import disk_errors, program
from nanoscale.experiments.records import describe
from nanoscale.paths import from_here, in_a_shell
from nanoscale.spec.values import Json
from nanoscale.store.folder import RunFolder
from nanoscale.studies.recipe import Picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame, Series

    from nanoscale.experiments import Study
    from nanoscale.spec.values import Json

BRANCH = "branch_from"

# The columns that a reader wants, under readable names.
READABLE = {
    "state": "state",
    "total_params": "N (total)",
    "flops": "C (FLOPs)",
    "tokens_seen": "D (tokens)",
    "val_loss": "val loss",
    "val_bits_per_byte": "bits per byte",
    "tokens_per_second": "tokens/s",
    "run": "run",
}


def numeric(column: Series) -> bool:
    """Whether a column of a frame holds numbers (and not truth values)."""
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    return is_numeric_dtype(column) and not is_bool_dtype(column)


def runs_table(study: Study, frame: DataFrame) -> DataFrame:
    """The runs as a page has them: their stage, the keys of which some has a value, results; the
    index is their ids."""
    keys = [key for key in ("stage", *study.varied) if key in frame and frame[key].notna().any()]
    table = frame[[*keys, *READABLE]].rename(columns=READABLE)
    if BRANCH in table:  # of a path RUNS/NAME-ID@STEP, what the column of runs has
        table[BRANCH] = table[BRANCH].str.rpartition("-")[2]
    return table.set_index("run", drop=False)


def curves(study: Study, done: DataFrame) -> list[Picture]:
    """The picture of every finished run's validation loss; none where each is a point alone."""
    from nanoscale.report import loss_curves_figure

    rows = curve_rows(study, done)
    if len(rows) <= len({row["run"] for row in rows}):
        return []
    caption = "Validation loss of every run while it trained."
    return [Picture("curves", caption, loss_curves_figure(rows))]


def curve_rows(study: Study, done: DataFrame) -> list[dict[str, Json]]:
    """One row per evaluation of the finished runs, with the run and its size or cell."""
    sizes = dict(zip(done["run"], done["size"], strict=True)) if "size" in done else {}
    finished = set(done["run"])
    rows: list[dict[str, Json]] = []
    for entry, folder in study.runs():
        if entry.id in finished:
            label = {"run": entry.id, "size": sizes.get(entry.id, describe(entry.values))}
            for row in [] if folder.lost_rows() else folder.rows():
                if row.get("val_loss") is not None:
                    point = {"tokens_seen": row.get("tokens_seen"), "val_loss": row["val_loss"]}
                    rows.append(label | point)
    return rows


def write_figures(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Write every figure as NAME.png, each whole or not at all."""
    from nanoscale.report import save

    with disk_errors(folder):
        folder.mkdir(exist_ok=True)
    return [save(figure, folder / f"{name}.png") for name, figure in figures.items()]


def best_with_weights(study: Study, frame: DataFrame) -> Path | None:
    """The folder of the best run that kept its weights; None where none did."""
    done = frame[frame["val_loss"].notna()]
    kept = done["folder"].map(lambda folder: RunFolder(folder).weights() is not None)
    done = done[kept.astype(bool)]
    if done.empty:
        return None
    done = done.sort_values("val_loss", kind="stable")
    best = study.best
    if best is not None:  # the lowest of all may be the luckiest run of another setting
        of_best = done["folder"].map(lambda folder: Path(folder).name == best.folder)
        done = done[of_best] if of_best.any() else done
    return Path(done["folder"].iloc[0])


def sample_command(best: Path) -> str:
    """What samples from a run."""
    return f"{program()} sample --out_dir={in_a_shell(from_here(best))}"
