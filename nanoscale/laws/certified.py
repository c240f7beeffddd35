"""The certified optimum of one law through one table: where intervals and refits begin."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nanoscale.laws import solver
from nanoscale.laws.arrays import Array
from nanoscale.laws.objectives import Objective
from nanoscale.laws.problem import Problem


@dataclass(frozen=True)
class Certified(solver.Task):
    """The best of many starts for one data set whose points count alike, and what it leaves."""

    solution: solver.Solution

    @classmethod
    def of(cls, problem: Problem, loss: Array, rule: Objective, starts: Array | int) -> Certified:
        """Solve for losses (n,); starts as `solver.solve` takes them."""
        scaled = loss[None] / problem.scale
        ones = np.ones(scaled.shape)
        task = solver.Task(problem, rule, scaled, ones)
        solution = solver.solve(task, starts)
        return cls(problem, rule, scaled, ones, solution)

    @property
    def converged(self) -> bool:
        """Whether this is an optimum at all."""
        return bool(self.solution.converged[0])

    @property
    def agreement(self) -> float:
        """Share of starts that ended here."""
        return float(self.solution.agreeing[0] / self.solution.starts)

    @property
    def theta(self) -> Array:
        """(p,) in the solver's coordinates."""
        return np.asarray(self.solution.theta[0])

    @property
    def params(self) -> Array:
        """(p,) of the law."""
        return self.problem.params(self.theta)

    @property
    def fitted(self) -> Array:
        """(n,) the law's losses over the problem's scale."""
        return np.asarray(self.problem.at(self.solution.theta).m[0])

    @property
    def residual(self) -> Array:
        """(n,) as the objective reads losses: of ln L, or of L over the problem's scale."""
        return self.rule.residual(self.y[0], self.fitted)
