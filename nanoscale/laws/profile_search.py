"""The search for one parameter's profile interval, in the solver's coordinates.

The one idea: S grows from 0 at the optimum, so its values are tried near the optimum first, on a
side without an end further out, and between the two values that hold an end.

Shapes: K held values of the coordinate, n points, p coordinates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from nanoscale.errors import UserError
from nanoscale.laws import solver
from nanoscale.laws.arrays import Array, ArrayPair, Index
from nanoscale.laws.calibration import bend_of, psi_of, spread_of, unit_of
from nanoscale.laws.certified import Certified
from nanoscale.laws.fit import STARTS, LawFit
from nanoscale.laws.forms import Law, Parameter, Starts
from nanoscale.laws.linear import root
from nanoscale.laws.objectives import LAD_DELTA, Objective
from nanoscale.laws.points import Points
from nanoscale.laws.problem import SumProblem, problem_of

OPEN = "not identified on this side"
_PAIRS = (("alpha", "beta"), ("aN", "aD"))  # a = second / (first + second)
BALANCE = Parameter("a", "real", range=(1e-3, 1 - 1e-3))
BALANCES = (0.2, 0.35, 0.5, 0.65, 0.8)  # from which starts are made
NEAR, _REACH = (0.5, 1, 1.5, 2, 3, 5), (8, 13, 25, 50, 100, 200)  # half-widths, either side
_FAR = math.log(1e12)  # of a logarithm without bounds: beyond this factor nothing is asked
PASSES, ROUNDS, INSIDE = 6, 2, 5  # over neighbours; of closing in on an end, at so many values
MANY_STARTS, SOME_STARTS = 16, 3
LAD_SHARE = 0.01  # of the residuals' sd: the delta of the Huber that stands for lad
CHUNK = 500


@dataclass(frozen=True)
class ProfileSide:
    """One end of an interval; None: open, and why."""

    end: float | None
    reason: str = ""


@dataclass(frozen=True)
class Profile:
    """One parameter's interval, and the curve it comes from."""

    name: str
    value: float
    low: ProfileSide
    high: ProfileSide
    held: list[float]  # values, ascending
    ratio: list[float]  # S at each

    @property
    def ends(self) -> list[float | None]:
        """[low, high], None where open."""
        return [self.low.end, self.high.end]


@dataclass(frozen=True)
class Refits:
    """The law fitted anew with the coordinate held."""

    at: Array  # (K,) where it is held, ascending
    ratio: Array  # (K,) S there
    theta: Array  # (K, p)


@dataclass
class ProfileSearch:
    """The search for one parameter's ends, where S first reaches the threshold."""

    best: Certified
    index: int  # of the coordinate
    starts: Array  # (s, p)
    groups: Index  # (n,) of points that share their noise
    threshold: float
    wide: float = 1.0  # what S is over the square of
    lost: int = 0  # refits that did not converge

    def __post_init__(self) -> None:
        best = self.best
        self.rule = best.rule
        self.problem = best.problem.holding(self.index)
        self.name = best.problem.law.names[self.index]
        self.theta = best.theta
        self.middle = float(self.theta[self.index])  # where the optimum is
        self.r = best.residual
        self.unit = unit_of(self.rule, self.r, len(self.theta))
        self.lowest = float(self.rule.value(self.r[None], best.w)[0])
        self.slopes, self.size = self._unit_slopes()
        self.widening = self._widening()

    @classmethod
    def of(
        cls, fit: LawFit, name: str, points: Points, groups: Index, threshold: float
    ) -> ProfileSearch:
        """For a parameter of the fit, or its exponent a."""
        form = fit.form
        if name == "a" and "a" not in form.names:
            form = _by_balance(form)
        index = form.names.index(name)
        problem = problem_of(form, points.x, points.loss)
        if form.terms and form.parameters[index].kind == "coefficient":
            problem = SumProblem(form, points.x, problem.scale, centred=False)

        rule = Objective(fit.objective_name, fit.delta or 1e-3)
        best = Certified.of(problem, points.loss, rule, STARTS)
        if rule.name == "lad":
            spread = spread_of(best.residual, len(form.names))
            rule = Objective("log-huber", max(LAD_SHARE * spread, LAD_DELTA))
            best = Certified.of(problem, points.loss, rule, best.theta[None, None])
        starts = problem.starts(best.loss, best.w, MANY_STARTS)[0]
        some = starts[:: MANY_STARTS // SOME_STARTS]
        return cls(best, index, some, groups, threshold)

    # -- the noise --
    def _unit_slopes(self) -> ArrayPair:
        """(p, n) derivatives of what residuals are of, each row of length 1, and lengths (p,)."""
        n = len(self.r)
        parts = []
        for rows in np.array_split(np.arange(n), n // CHUNK + 1):
            pick = np.eye(n)[rows]
            state = self.problem.at(np.repeat(self.theta[None], len(rows), 0))
            nothing = np.zeros(pick.shape)
            parts.append(self.problem.sums(state, pick, nothing, nothing).gradient)
        slopes = np.concatenate(parts, axis=1)
        if not self.rule.raw:
            slopes = slopes / self.best.fitted
        size = root((slopes**2).sum(1))
        return slopes / size[:, None], size

    def _widening(self) -> float:
        """How many times wider own noise makes the interval locally."""
        n, p = len(self.r), len(self.theta)
        bend = bend_of(self.rule, self.r, p)
        matrix = (self.slopes * bend) @ self.slopes.T
        row = np.linalg.pinv(matrix)[self.index]
        influence = (row @ self.slopes) * psi_of(self.rule, self.r)

        scores = np.bincount(self.groups, influence)
        count = len(scores)
        fitted = p if count == n else 1
        own = (scores @ scores) * count / max(count - fitted, 1)
        equal = self.unit * 2 * row[self.index]
        if equal > 0 and own > 0:
            return math.sqrt(own / equal)
        return 1.0

    def local_error(self) -> float:
        """The coordinate's standard error by the slopes; at most a share of it."""
        i = self.index
        inverse = np.linalg.pinv(self.slopes @ self.slopes.T)
        error = math.sqrt(max(inverse[i, i], 0.0))
        spread = spread_of(self.r, len(self.theta))
        sd = spread / float(self.size[i]) * error
        sd *= self.wide
        most = 0.2 * max(abs(self.middle), 0.1)
        return min(sd, most) if sd > 0 else most

    # -- the search --
    @np.errstate(all="ignore")
    def interval(self) -> Profile:
        """Both ends, on either side of the optimum."""
        low, high = self._range()
        step = self.local_error() * math.sqrt(self.threshold) / 2
        near = step * np.array(NEAR)
        far = step * np.array(_REACH)
        held = np.concatenate([[self.middle], self.middle - near, self.middle + near])
        refits = self._settled(np.unique(np.clip(held, low, high)))

        more = []
        if self._crossing(refits, -1) is None:
            more += [self.middle - far, [low]]
        if self._crossing(refits, 1) is None:
            more += [self.middle + far, [high]]
        if more:
            held = np.clip(np.concatenate([refits.at, *more]), low, high)
            refits = self._settled(np.unique(held), refits.theta)
        return Profile(
            name=self.name,
            value=self._value(self.middle),
            low=self._side(refits, -1),
            high=self._side(refits, 1),
            held=[self._value(coordinate) for coordinate in refits.at],
            ratio=refits.ratio.tolist(),
        )

    def _range(self) -> tuple[float, float]:
        problem, index = self.problem, self.index
        low = problem.lower[index]
        high = problem.upper[index]
        if problem.law.parameters[index].kind == "floor":
            high = 2 * self.best.loss.max()  # the law is above every loss
        return max(low, self.middle - _FAR), min(high, self.middle + _FAR)

    def _crossing(self, refits: Refits, step: int) -> list[int] | None:
        """On a side, step -1 or 1: the last held value within the threshold, the first beyond."""
        at = int(np.abs(refits.at - self.middle).argmin())
        beyond = np.flatnonzero(refits.ratio[at::step] > self.threshold)
        if not len(beyond):
            return None
        first = at + step * int(beyond[0])
        return [first - step, first]

    def _side(self, refits: Refits, step: int) -> ProfileSide:
        pair = self._crossing(refits, step)
        if pair is not None:
            return ProfileSide(self._end(refits, pair))
        last = self._value(refits.at[::step][-1])
        return ProfileSide(None, f"{OPEN}: {self.name} = {last:.3g} fits within the noise")

    def _value(self, coordinate: float) -> float:
        """The parameter itself."""
        theta = self.theta.copy()
        theta[self.index] = coordinate
        return float(self.problem.params(theta)[self.index])

    def _settled(self, at: Array, near: Array | None = None) -> Refits:
        """Refits at (K,): from the optimum, starts and what is near, then from neighbours."""
        starts = np.concatenate([self.theta[None], self.starts])
        if near is not None:
            starts = np.concatenate([starts, near])
        solution = self._solved(at, starts, project=True)
        theta = solution.theta
        value = solution.objective
        converged = solution.converged
        for _ in range(PASSES):
            neighbours = np.stack([np.roll(theta, 1, 0), np.roll(theta, -1, 0)], axis=1)
            again = self._solved(at, neighbours)
            better = again.objective < value - 1e-9 * abs(value)
            converged |= again.converged & (again.objective <= value)
            theta[better] = again.theta[better]
            value[better] = again.objective[better]
            if not better.any():
                break
        self.lost += int((~converged).sum())
        return Refits(at, self._ratio(value), theta)

    def _ratio(self, objective: Array) -> Array:
        """S (K,) of objectives."""
        lost = np.maximum(objective - self.lowest, 0)
        return lost / (self.unit * self.wide**2)

    def _solved(self, at: Array, starts: Array, project: bool = False) -> solver.Solution:
        """The solutions held at `at` (K,).

        starts: (s, p), or (K, s, p) each its own; projected: their linear coefficients anew.
        """
        loss = self.best.loss
        K = len(at)
        shape = K, *starts.shape[-2:]
        starts = np.array(np.broadcast_to(starts, shape))
        starts[..., self.index] = at[:, None]
        if project:
            flat = starts.reshape(-1, shape[2])
            projected = self.problem.projected(flat, 1 / loss**2, loss)
            starts = projected.reshape(shape)
        ones = np.repeat(self.best.w, K, axis=0)
        task = solver.Task(self.problem, self.rule, loss, ones)
        return solver.solve(task, starts)

    def _end(self, refits: Refits, pair: list[int]) -> float:
        """Where S is the threshold between two of the held values."""
        ends = refits.at[pair]
        ratio = refits.ratio[pair]
        starts = refits.theta[pair]
        for _ in range(ROUNDS):
            values = np.linspace(ends[0], ends[1], INSIDE + 2)
            solution = self._solved(values, starts)
            inside = self._ratio(solution.objective)
            inside[0], inside[-1] = ratio

            first = int(np.argmax(inside > self.threshold))
            between = [first - 1, first]
            ends = values[between]
            ratio = inside[between]
            starts = solution.theta[between]
        below, above = np.sqrt(ratio)
        share = (math.sqrt(self.threshold) - below) / (above - below)
        return self._value(ends[0] + share * (ends[1] - ends[0]))


def _by_balance(law: Law) -> Law:
    """The law with a = second / (first + second) as a parameter, in place of the second."""
    pair = next((p for p in _PAIRS if set(p) <= set(law.names)), None)
    if pair is None:
        raise UserError(f"law {law.name} has no pair of exponents that a is made of")
    first, second = pair
    places = [law.names.index(name) for name in pair]

    def function(a: Array, **named: Array) -> Array:
        return law.function(**named, **{second: named[first] * a / (1 - a)})

    balance = BALANCE if law.starts else replace(BALANCE, grid=BALANCES)
    return replace(
        law,
        parameters=tuple(balance if p.name == second else p for p in law.parameters),
        function=function,
        terms=(),
        balance=None,
        starts=law.starts and partial(_balanced_starts, law.starts, places),
    )


def _balanced_starts(starts: Starts, places: list[int], loss: Array, x: Array) -> Array:
    """Those of a law, with a in place of the second of two exponents."""
    params = starts(loss, x)
    first, second = params[:, places].T
    params[:, places[1]] = second / (first + second)
    return params
