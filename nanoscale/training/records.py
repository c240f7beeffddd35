"""What a run records, as values: a row of `metrics.jsonl`, and `metrics.json`. No torch.

Three training and validation losses, each under its own name here. `batch_loss` is what an update
minimised on its batch, z-loss included: a row's `train_loss`. `val_loss` and `eval_train_loss` are
an evaluation's, on fixed windows of either split, without z-loss. `metrics.json` has no batch: its
`train_loss` is the last evaluation's `eval_train_loss`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from nanoscale.spec.counting import (
    flops_per_iter,
    flops_per_token,
    parameter_counts,
    parameters_by_role,
)
from nanoscale.spec.identity import RECORD_SCHEMA, RunSpec
from nanoscale.spec.values import Json
from nanoscale.store.folder import RunFolder
from nanoscale.store.run_records import further_key

StatisticsRecord = Mapping[str, Mapping[str, float] | float]  # by name, some of them by role


# -- a row ----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class UpdateRecord:
    """One update: the batch's loss, z-loss included, and its gradient's norm before clipping."""

    batch_loss: float
    grad_norm: float
    lr: float
    statistics: StatisticsRecord | None = None

    def to_json(self) -> dict[str, Json]:
        record: dict[str, Json] = {
            "train_loss": self.batch_loss,
            "grad_norm": self.grad_norm,
            "lr": self.lr,
        }
        if self.statistics is not None:
            record["statistics"] = self.statistics
        return record


@dataclass(frozen=True)
class Evaluation:
    """Mean losses in nats per token on fixed windows of both splits."""

    val_loss: float
    val_bits_per_byte: float | None  # None where the text's bytes are unknown
    eval_train_loss: float
    further: Mapping[str, float] = field(default_factory=dict)  # by further validation set

    def to_json(self) -> dict[str, Json]:
        record = asdict(self)
        for name, loss in record.pop("further").items():
            record[further_key(name)] = loss
        return record


@dataclass(frozen=True)
class Timing:
    """How fast the updates were; what cannot be known is None."""

    time_ms: float | None  # per update
    mfu: float | None  # FLOP/s over the device's peak
    tokens_per_second: float | None
    wall_seconds: float  # since the run's beginning, over all its processes


@dataclass(frozen=True)
class MetricsRow:
    """Where a run stands after `step` updates, with the last of them and an evaluation if due."""

    step: int
    tokens_seen: int
    flops: int
    timing: Timing  # of the updates since the row before
    update: UpdateRecord | None = None
    evaluation: Evaluation | None = None

    def to_json(self) -> dict[str, Json]:
        record: dict[str, Json] = {
            "step": self.step,
            "tokens_seen": self.tokens_seen,
            "flops": self.flops,
            "lr": None,
            "train_loss": None,
            "val_loss": None,
            "grad_norm": None,
        }
        if self.update is not None:
            record |= self.update.to_json()
        if self.evaluation is not None:
            record |= self.evaluation.to_json()
        return record | asdict(self.timing)


# -- metrics.json ---------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run came to: `metrics.json`, in its order, and the folder that holds it.

    Losses are None where the run did not get there; `status` says how it ended.
    """

    folder: RunFolder
    schema: int
    status: str  # COMPLETE, DIVERGED, PRUNED or, if it can go on, WAITING
    id: str
    best_val_loss: float | None = None  # of the evaluations on the way
    val_loss: float | None = None  # of the final evaluation, in nats per token
    val_set: str | None = None  # the first of several, whose loss that is; None: val alone
    val_bits_per_byte: float | None = None
    val_sets: Mapping[str, Mapping[str, Json]] | None = None  # each one's, where there are several
    train_loss: float | None = None  # of the last evaluation on the way, on training windows
    iter_num: int
    tokens_seen: int
    total_params: int
    params: Mapping[str, Mapping[str, int]]  # by role, and under each convention
    flops: int
    flops_per_token: Mapping[str, float]  # under each convention
    mfu: float | None = None
    tokens_per_second: float | None = None
    wall_seconds: float | None = None
    config: Mapping[str, Json]
    numerics: Mapping[str, Json] | None = None
    numerics_history: Sequence[Mapping[str, Json]] | None = None  # {step, numerics}, if it changed
    provenance: Mapping[str, Json] | None = None

    def to_json(self) -> dict[str, Json]:
        """As `metrics.json` holds it."""
        record = dict(vars(self))
        del record["folder"]
        for key in ("numerics_history", "val_set", "val_sets"):
            if record[key] is None:
                del record[key]
        return record

    @classmethod
    def read(cls, folder: RunFolder) -> RunResult:
        """What a folder says of its run; where it has no `metrics.json`, how far the run got."""
        metrics = folder.metrics()
        if metrics is None:
            return so_far(folder, folder.spec(), folder.state(), folder.status().step)
        known: dict[str, Any] = {f.name: metrics.get(f.name) for f in fields(cls)}
        known |= {"folder": folder, "status": folder.state()}
        return cls(**known)


def so_far(folder: RunFolder, spec: RunSpec, status: str, step: int) -> RunResult:
    """What follows from the number of updates alone."""
    config = spec.config
    counts = parameter_counts(config)
    return RunResult(
        folder=folder,
        schema=RECORD_SCHEMA,
        status=status,
        id=spec.id,
        iter_num=step,
        tokens_seen=step * config.tokens_per_iter,
        total_params=counts["total"],
        params={"by_role": parameters_by_role(config), "by_convention": counts},
        flops=step * flops_per_iter(config),
        flops_per_token=flops_per_token(config),
        config=config.to_dict(),
    )
