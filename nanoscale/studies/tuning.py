"""The learning rate of a ladder: found at two lengths of a small model, tried at a middle one.

The one idea: a rule is a power of D, from the small model's optima at two lengths, and of N, which
is 0 wherever the parametrization carries the LR over sizes; a middle size says whether it does. A
power that its own noise could have made is taken for 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nanoscale.checks.optimum import LrCurve, Parabolas, curve_of
from nanoscale.errors import UserError, one_of
from nanoscale.laws.record import Record
from nanoscale.spec.sources import flatten_keys
from nanoscale.spec.values import Overrides
from nanoscale.store.files import read_json
from nanoscale.studies.branches import PER_PARAM, is_positive, ladder_ratio
from nanoscale.studies.recipe import FileTable
from nanoscale.studies.row_runs import loss_of_row, scale_of_row
from nanoscale.studies.transfer_table import LR_KEYS, usual_lr

if TYPE_CHECKING:
    from nanoscale.experiments import Study

FOUND = "stages.json"  # what the stages before the ladder found, beside study.json
NOISE, TUNE = "noise", "tune"  # of them
LEAST_LRS = 4
TRIED = (-1.0, 0.0, 1.0)  # octaves about the LR that a middle size is foreseen to have
NOISE_DRAWS = 2000
SEED_NOISE = 0.003  # sd of ln L over seeds, where none were asked for


@dataclass(frozen=True)
class LrRule(Record):
    """LR = lr (D / tokens)^of_tokens (N / params)^of_params."""

    lr: float
    tokens: float
    params: float
    of_tokens: float
    of_params: float

    def at(self, N: float, D: float) -> float:
        """To three digits, which name a run."""
        lr = self.lr * (D / self.tokens) ** self.of_tokens * (N / self.params) ** self.of_params
        return float(f"{lr:.3g}")


@dataclass(frozen=True, kw_only=True)
class TunedLr(Record):
    """What the tuning runs say."""

    key: str
    rule: LrRule
    optima: dict[str, float]  # where -> the best LR there
    exponent: float  # of D, with its interval over the noise of a run
    exponent_ci95: list[float]
    transfers: bool | None  # None: no middle size was tried
    says: str
    doubts: list[str]

    def lines(self) -> list[str]:
        """What a user reads."""
        optima = ", ".join(f"{lr:.3g} at {where}" for where, lr in self.optima.items())
        low, high = self.exponent_ci95
        return [
            f"best {self.key}: {optima}; as D^{self.exponent:.2f} [{low:.2f}, {high:.2f}]",
            f"{self.key} over sizes: {self.says}",
        ]


@dataclass(frozen=True)
class Tuning:
    """The table [forecast.tune]: which LRs, of which sizes, at which lengths."""

    key: str
    lrs: Sequence[float]
    proxy: Overrides
    ratios: tuple[float, float]  # tokens per parameter, the last that of the ladder
    middle: Overrides | None

    @classmethod
    def of(cls, table: FileTable, sizes: Sequence[Overrides]) -> Tuning:
        """Read and check; `sizes` are the ladder's."""
        values = table.part(TUNE, ("lr", "lrs", "shorter", "proxy", "middle")) or {}
        where = f"{table.path}, [{table.name}.{TUNE}]"
        key = values.get("lr", usual_lr(table.base))
        if key not in LR_KEYS:
            raise UserError(f"{where}: lr={key!r}: choose {one_of(LR_KEYS)}")
        middle = values.get("middle", sizes[len(sizes) // 2])
        return cls(
            key=key,
            lrs=read_lrs(where, values.get("lrs", [])),
            proxy=read_size(where, "proxy", values.get("proxy", sizes[0])),
            ratios=read_lengths(where, values, ladder_ratio(table)),
            middle=None if middle is False else read_size(where, "middle", middle),
        )

    # -- rows -----------------------------------------------------------------------------------
    def first_rows(self) -> list[Overrides]:
        """The small model at both lengths with every LR."""
        return [self.row(self.proxy, lr, ratio) for ratio in self.ratios for lr in self.lrs]

    def row(self, size: Overrides, lr: float, ratio: float) -> Overrides:
        """One run; the ladder's own length is the base's."""
        of_length = {} if ratio == self.ratios[-1] else {PER_PARAM: ratio}
        return {**size, **of_length, self.key: float(f"{lr:.3g}")}

    def foreseen(self, study: Study, noise: float | None) -> list[Overrides]:
        """Those and, until the small model's best LR is known, the middle one of `lrs` for it."""
        middle = self.middle_rows(study, noise)
        if self.middle is not None and not middle:
            middle = self.about(self.middle, self.lrs[len(self.lrs) // 2])
        return self.small_rows(study) + middle

    def rows(self, study: Study, noise: float | None) -> list[Overrides]:
        """Those wanted now: until each curve has its lowest loss between others."""
        return self.small_rows(study) + self.middle_rows(study, noise)

    def small_rows(self, study: Study) -> list[Overrides]:
        """The small model at both lengths."""
        rows = self.first_rows()
        for ratio in self.ratios:
            rows += self.further(self.curve(study, self.proxy, ratio), self.proxy, ratio)
        return rows

    def middle_rows(self, study: Study, noise: float | None) -> list[Overrides]:
        """The middle size, once the small model's curves say about which LR."""
        curves = [self.curve(study, self.proxy, ratio) for ratio in self.ratios]
        if self.middle is None or not all(bracketed(curve) for curve in curves):
            return []
        long = self.ratios[-1]
        rule = self.of_small(study, noise or SEED_NOISE).rule
        expected = rule.at(*scale_of_row(study, self.middle))
        tried = self.curve(study, self.middle, long)
        return self.about(self.middle, expected) + self.further(tried, self.middle, long)

    def about(self, size: Overrides, lr: float) -> list[Overrides]:
        """A size at the ladder's length, with LRs on both sides of that."""
        return [self.row(size, lr * 2**step, self.ratios[-1]) for step in TRIED]

    def further(self, curve: LrCurve | None, size: Overrides, ratio: float) -> list[Overrides]:
        """What would bracket a curve's lowest loss."""
        if curve is None:
            return []
        return [self.row(size, 2**x, ratio) for x in curve.wanted]

    # -- what they say --------------------------------------------------------------------------
    def curve(self, study: Study, size: Overrides, ratio: float) -> LrCurve | None:
        """The losses of one size and length by LR; None while there are none."""
        known: set[Any] = {entry.values.get(self.key) for entry in study.entries} - {None}
        x, y = [], []
        for lr in sorted(known | {*self.lrs}):
            loss = loss_of_row(study, self.row(size, lr, ratio))
            if loss is not None:
                x.append(math.log2(lr))
                y.append(loss)
        if not x:
            return None
        return curve_of(ratio, np.array(x), np.array(y), np.zeros(len(x)))

    def found(self, study: Study, noise: float | None) -> TunedLr:
        """The rule by all tuning runs so far; noise: sd of ln L over seeds."""
        sd = noise or SEED_NOISE
        found = self.of_small(study, sd)
        tried = None if self.middle is None else self.curve(study, self.middle, self.ratios[-1])
        return found if tried is None else self.with_middle(study, found, tried, sd)

    def of_small(self, study: Study, sd: float) -> TunedLr:
        """The rule by the small model alone."""
        short, long = (self.curve(study, self.proxy, ratio) for ratio in self.ratios)
        if short is None or long is None:
            raise UserError("no run of the tuning has a result, and the ladder waits for it")
        N, D = scale_of_row(study, self.proxy)
        doublings = math.log2(self.ratios[1] / self.ratios[0])
        rng = np.random.default_rng(0)
        drawn = (optima(long, sd, rng) - optima(short, sd, rng)) / doublings
        low, high = np.quantile(drawn, [0.025, 0.975]).tolist()
        exponent = (best_of(long) - best_of(short)) / doublings
        of_tokens = 0.0 if low <= 0 <= high else exponent
        rule = LrRule(2 ** best_of(long), D, N, of_tokens, 0.0)

        best = {}
        for ratio, curve in zip(self.ratios, (short, long), strict=True):
            best[f"{ratio:g} tokens per parameter"] = 2 ** best_of(curve)
        return TunedLr(
            key=self.key,
            rule=rule,
            optima=best,
            exponent=exponent,
            exponent_ci95=[low, high],
            transfers=None,
            says="no middle size was tried",
            doubts=[curve.problem for curve in (short, long) if curve.problem],
        )

    def with_middle(self, study: Study, found: TunedLr, tried: LrCurve, noise: float) -> TunedLr:
        """The same, with what the middle size says of it."""
        assert self.middle is not None
        rule = found.rule
        N, D = scale_of_row(study, self.middle)
        best = found.optima | {f"the middle size, {N:.3g} parameters": 2 ** best_of(tried)}
        expected = math.log2(rule.at(N, D))
        if rule.params == N:
            says = "the middle size is as large as the small one, and says nothing of sizes"
            return replace(found, optima=best, says=says)
        if stays(tried, expected, noise):
            says = f"the same rule holds at {N:.3g} parameters"
            return replace(found, optima=best, transfers=True, says=says)
        moved = (best_of(tried) - expected) / math.log2(N / rule.params)
        says = (
            f"the best one moves by {moved:+.2f} octaves per doubling of N, so the parametrization "
            "does not carry it, and the ladder follows"
        )
        rule = replace(rule, of_params=moved)
        return replace(found, rule=rule, optima=best, transfers=False, says=says)


# -- what the stages before a ladder found -----------------------------------------------------
def found_in(folder: Path) -> tuple[float | None, TunedLr | None]:
    """The noise of seeds and the tuned LR that a study's stages left in its folder.

    Raises:
        UserError: the file is not what they write.
    """
    path = folder / FOUND
    if not path.is_file():
        return None, None
    record: Any = read_json(path)
    try:
        noise = float(record[NOISE]["sd"]) if NOISE in record else None
        if TUNE not in record:
            return noise, None
        tuned = {key: value for key, value in record[TUNE].items() if key != "summary"}
        return noise, TunedLr(**tuned | {"rule": LrRule(**tuned["rule"])})
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        raise UserError(
            f"{path}: not what the stages leave ({type(e).__name__}: {e}); the study's command "
            "writes it anew"
        ) from e


# -- reading --------------------------------------------------------------------------------------
def read_lrs(where: str, lrs: Any) -> list[float]:
    """The LRs to begin with, ascending."""
    numbers = isinstance(lrs, list) and all(map(is_positive, lrs))
    if not numbers or len({*lrs}) < LEAST_LRS:
        raise UserError(
            f"{where}: lrs={lrs!r}: give at least {LEAST_LRS} learning rates, as in "
            "lrs = [1e-3, 2e-3, 4e-3, 8e-3]"
        )
    return sorted({*map(float, lrs)})


def read_lengths(where: str, values: Mapping[str, Any], ladder: float) -> tuple[float, float]:
    """Tokens per parameter: the shorter, and the ladder's."""
    short = values.get("shorter", ladder / 4)
    if not is_positive(short) or short >= ladder:
        raise UserError(
            f"{where}: shorter={short!r}: expected tokens per parameter below the ladder's "
            f"{ladder:g}"
        )
    shorter = float(short)
    return shorter, ladder


def read_size(where: str, name: str, size: Any) -> Overrides:
    """The keys of a size."""
    if not isinstance(size, Mapping):
        raise UserError(f"{where}: {name}={size!r}: expected a size, as {{ n_embd = 64 }}")
    return flatten_keys(size)


# -- curves ---------------------------------------------------------------------------------------
def bracketed(curve: LrCurve | None) -> bool:
    """Whether nothing more is wanted of it."""
    return curve is not None and not curve.wanted


def best_of(curve: LrCurve) -> float:
    """log2 of the best LR: the vertex, or the lowest where there is none."""
    if curve.fit is None or curve.problem:
        return float(curve.x[curve.mean.argmin()]) if len(curve.x) else math.nan
    return float(curve.fit.lowest()[0])


def optima(curve: LrCurve, noise: float, rng: np.random.Generator) -> np.ndarray:
    """(NOISE_DRAWS,) of it over the noise of a run."""
    if curve.fit is None:
        return np.full(NOISE_DRAWS, best_of(curve))
    sd = noise * curve.mean[:, None] / np.sqrt(curve.runs)[:, None]
    means = curve.mean[:, None] + sd * rng.standard_normal((len(curve.x), NOISE_DRAWS))
    return Parabolas.of(curve.x, curve.runs, means, curve.below, curve.above).lowest()


def stays(curve: LrCurve, expected: float, noise: float) -> bool:
    """Whether the LR that was expected is the best, or worse by no more than a run's noise."""
    lowest = int(curve.mean.argmin())
    nearest = int(np.abs(curve.x - expected).argmin())
    if lowest == nearest:
        return True
    worse = curve.mean[nearest] / curve.mean[lowest] - 1
    return bool(worse < 2 * math.sqrt(2) * noise)
