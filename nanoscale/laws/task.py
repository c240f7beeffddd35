"""What is minimised, of many data sets at once, and where rows of coordinates are in it.

Shapes: R data sets, B rows at work, n points, p coordinates theta.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from nanoscale.laws.arrays import Array, ArrayPair, Chosen, Index, put
from nanoscale.laws.objectives import Objective
from nanoscale.laws.problem import Problem, State

ROUNDING = 1e-30  # what rounding alone leaves of one squared residual of ln L


@dataclass(frozen=True)
class Task:
    """What R data sets minimise: `rule` of losses (R or 1, n) over the problem's scale, with
    weights w (R or 1, n)."""

    problem: Problem
    rule: Objective
    loss: Array
    w: Array

    @cached_property
    def y(self) -> Array:
        """Losses as the objective reads them."""
        return self.rule.read(self.loss)

    @property
    def rounding(self) -> float:
        """What rounding alone leaves of an objective whose weights are 1."""
        return ROUNDING * len(self.loss[0])

    def __len__(self) -> int:
        return max(len(self.loss), len(self.w))

    def on(self, loss: Array, w: Array) -> Task:
        """The same of other data."""
        return Task(self.problem, self.rule, loss, w)

    def take(self, rows: Chosen) -> Task:
        """That of some data sets; losses or weights that all share stay as they are."""
        loss = self.loss if len(self.loss) == 1 else self.loss[rows]
        w = self.w if len(self.w) == 1 else self.w[rows]
        return self.on(loss, w)

    def at(self, theta: Array) -> Place:
        """Where rows theta (R, p) are."""
        state = self.problem.at(theta)
        r = self.rule.residual(self.y, state.m)
        return Place(state, r, self.rule.value(r, self.w))

    def derivatives(self, place: Place, damping: Array) -> ArrayPair:
        """The objective's there, as `Objective.derivatives` has them."""
        return self.rule.derivatives(place.r, place.state.m, self.w, damping)


@dataclass
class Place:
    """Where B rows are: the law there, residuals r (B, n), the objective f (B,)."""

    state: State
    r: Array
    f: Array

    def take(self, rows: Chosen) -> Place:
        return Place(self.state.take(rows), self.r[rows], self.f[rows])

    def put(self, rows: Index, other: Place) -> None:
        self.state.put(rows, other.state)
        put(rows, [self.r, self.f], [other.r, other.f])
