"""What a tracker is: it is given a run, told its rows, and told what the run came to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from nanoscale.spec.counting import parameter_counts
from nanoscale.spec.identity import RunSpec, data_label, label
from nanoscale.spec.values import Json
from nanoscale.store.folder import CELL, RunFolder

LONGEST_NAME, LONGEST_TAG = 128, 64  # that W&B takes


@dataclass(frozen=True)
class TrackedRun:
    """A run to show, and which cell of which study it is, if it is one's."""

    folder: RunFolder
    spec: RunSpec
    study: str | None = None
    cell: str | None = None

    @classmethod
    def of(cls, folder: RunFolder, spec: RunSpec) -> TrackedRun:
        """The run in a folder, as a cell of the study that last asked for it."""
        cell = folder.record(CELL) or {}
        return cls(folder, spec, cell.get("study"), cell.get("cell"))

    @property
    def project(self) -> str:
        """As typed, else the name of the data."""
        if "wandb_project" in self.spec.typed:
            return self.spec.config.wandb_project
        return data_label(self.spec.config)

    @property
    def name(self) -> str:
        """As typed, else the study's for it, else the run's label."""
        if "wandb_run_name" in self.spec.typed:
            return self.spec.config.wandb_run_name
        return (self.cell or label(self.spec.config))[:LONGEST_NAME]

    @property
    def tags(self) -> list[str]:
        config = self.spec.config
        sizes = [f"L{config.n_layer}", f"d{config.n_embd}"]
        return [self.project[:LONGEST_TAG], config.optimizer, config.parametrization.mode, *sizes]

    def place(self) -> dict[str, str]:
        """The keys that say where the run is and how it is called, as they are: a config has them
        as its template does."""
        return {
            "out_dir": str(self.folder.path),
            "wandb_project": self.project,
            "wandb_run_name": self.name,
        }

    def config(self) -> dict[str, Any]:
        """The resolved config, and what names and sizes the run."""
        return self.spec.config.to_dict() | {
            **self.place(),
            "run_id": self.spec.id,
            "study": self.study,
            "cell": self.cell,
            "data_fingerprint": self.spec.data_fingerprint,
            "branched_from": self.spec.parent,
            "parameters": parameter_counts(self.spec.config),
        }


class Tracker(Protocol):
    """Shows one run. Numbers have the names of `metrics.jsonl`, nested ones with slashes."""

    def row(self, step: int, numbers: Mapping[str, float]) -> None:
        """A row: every one of the run since its beginning, by ascending step."""

    def final(self, results: Mapping[str, Json]) -> None:
        """What the run came to: `final/val_loss`, `final/status` and so on."""

    def close(self) -> None:
        """No more comes from this process; without `final` the run has not ended."""


MakeTracker = Callable[[TrackedRun], Tracker]


def flat_numbers(row: Mapping[str, Json], prefix: str = "") -> dict[str, float]:
    """The numbers of a row under slash-separated names."""
    flat: dict[str, float] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            flat |= flat_numbers(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            flat[prefix + key] = value
    return flat
