"""What was found of a planned study, as a record and as the lines a user sees."""

from __future__ import annotations

from dataclasses import dataclass, field

from nanoscale.laws.design import DesignAnswer
from nanoscale.laws.record import Record
from nanoscale.spec.values import Json


@dataclass(frozen=True)
class AddedRun(Record):
    """One run more: N and D (or C), and what it leaves of the first question's width."""

    at: dict[str, float] = field(repr=False)
    flops: float
    left: float
    per_flop: float

    def to_json(self) -> dict[str, Json]:
        """N and D before the others."""
        return {**self.at, **super().to_json()}

    def place(self) -> str:
        """`N=1e+09, D=2e+10 (C=1.2e+20)`."""
        where = [f"{key}={value:.3g}" for key, value in self.at.items() if key != "C"]
        if not where:
            return f"C={self.flops:.3g}"
        return f"{', '.join(where)} (C={self.flops:.2g})"

    def narrower(self) -> str:
        """`12 % narrower`."""
        return f"{100 * (1 - self.left):.2g} % narrower"


@dataclass(frozen=True)
class ConfirmedRun(Record):
    """A run, and what worlds with it say of the first question."""

    run: AddedRun = field(repr=False)
    then: DesignAnswer

    def to_json(self) -> dict[str, Json]:
        """The run, and `then`."""
        return self.run.to_json() | super().to_json()


@dataclass(frozen=True)
class TiedDelta(Record):
    """Another delta, and what worlds that are fitted with it say of the first question."""

    delta: float
    then: DesignAnswer


@dataclass(frozen=True, kw_only=True)
class DesignRecord(Record):
    """An answer per question, the run that narrows the first most, and another delta."""

    schema: int = 1
    plan: str
    status: str  # identified, or not_identified: of what was asked
    law: str
    truth: dict[str, float]  # the first, of parameters
    noise: float
    points: int
    cells: int
    flops: float
    worlds: int
    rng_seed: int
    resamples: int
    resampling: str
    objective: str
    delta: float
    answers: dict[str, DesignAnswer]
    next_run: ConfirmedRun
    next_run_per_flop: AddedRun
    tied_delta: TiedDelta | None
    warnings: list[str]

    def to_json(self) -> dict[str, Json]:
        """Plain types, and the lines."""
        return super().to_json() | {"summary": self.summary()}

    def summary(self) -> list[str]:
        """The lines a user sees."""
        lines = [
            f"{self.points} runs at {self.cells} sizes and lengths, "
            f"{self.flops:.3g} FLOPs; noise {100 * self.noise:.2g} % of the loss; "
            f"{self.worlds} worlds of {self.law} x {self.resamples} {self.resampling} resamples"
        ]
        lines += [f"  {name}: {_answer(answer)}" for name, answer in self.answers.items()]
        run, then = self.next_run.run, self.next_run.then
        lines.append(
            f"the run that narrows {then.question} most: {run.place()}; then {_width(then)} "
            f"(simulated; expected information: {run.narrower()})"
        )
        cheap = self.next_run_per_flop
        if cheap.place() != run.place():
            lines.append(f"most per FLOP: {cheap.place()}; {cheap.narrower()}")
        if self.tied_delta is not None:
            tied = self.tied_delta.then
            factor = "a factor " if tied.ratio else ""
            lines.append(
                f"without any run: --delta={self.tied_delta.delta:g} (1.345 times the noise) "
                f"leaves {factor}{tied.width:.3g}, coverage {tied.coverage:.2f}"
            )
        return lines


def _answer(answer: DesignAnswer) -> str:
    wide = f"{_width(answer)} wide"
    if not answer.identified:
        percent = 100 * answer.not_identified
        return f"not identified in {percent:.0f} % of worlds; its interval is typically {wide}"
    low, high = answer.ends
    verdict = "" if answer.verdict == "nominal" else f" ({answer.verdict})"
    return (
        f"{wide} (95 %), coverage {share(answer)}{verdict}; cannot tell {low:.3g} from {high:.3g}"
    )


def _width(answer: DesignAnswer) -> str:
    return f"a factor {answer.width:.3g}" if answer.ratio else f"{answer.width:.2g}"


def share(answer: DesignAnswer) -> str:
    """Of worlds whose interval holds the truth, `0.95 [0.91, 0.97]`."""
    low, high = answer.coverage_ci95
    return f"{answer.coverage:.2f} [{low:.2f}, {high:.2f}]"
