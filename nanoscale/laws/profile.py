"""Profile intervals: how far a parameter can be pushed before the law, fitted anew, is refuted.

The one idea: hold one parameter, refit all others, and see what the objective loses; a side on
which it never loses enough has no end, and is said to have none. Resamples cannot say that, as
each of them has an optimum. Held values are data sets of the batched solver, from the optimum, the
grid of starts and each other's solutions.

The loss is read in units of the fit's own noise. For an objective that is a sum of rho(r),

    S = 2 (F held - F) mean(psi') / mean(psi^2),   psi = rho',

is asymptotically chi-squared of one degree of freedom whatever the residuals' distribution
(Heritier and Ronchetti 1994); for squares it is (RSS held - RSS) / s^2, exactly t^2 where the law
is linear and noise is normal. So S is held against the square of Student's t of n - p degrees of
freedom. That takes points as independent and of one scale of noise. Where they are not, S is too
large by the ratio of the parameter's sandwich variance to the one of equal noise, and `own` noise
divides by it (Chandler and Bate 2007), each point or group having its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from scipy.special import stdtrit

from nanoscale.errors import UserError, did_you_mean, one_of
from nanoscale.laws import solver
from nanoscale.laws.arrays import Array
from nanoscale.laws.calibration import bend_of, psi_of, spread_of, unit_of
from nanoscale.laws.fit import STARTS, LawFit
from nanoscale.laws.forms import Law, Parameter, number
from nanoscale.laws.objectives import LAD_DELTA, Objective
from nanoscale.laws.points import kept, numbers, plain_labels, predictors
from nanoscale.laws.problem import Problem, SumProblem, problem_of
from nanoscale.store.files import plain

LEVEL = 0.95
OPEN = "not identified on this side"
PAIRS = (("alpha", "beta"), ("aN", "aD"))  # a = second / (first + second)
BALANCE = Parameter("a", "real", range=(1e-3, 1 - 1e-3))
NEAR, REACH = (0.5, 1, 1.5, 2, 3, 5), (8, 13, 25, 50, 100, 200)  # half-widths, either side
FAR = math.log(1e12)  # of a logarithm without bounds: beyond this factor nothing is asked
PASSES, ROUNDS, INSIDE = 6, 2, 5  # over neighbours; of closing in on an end, at so many values
MANY_STARTS, SOME_STARTS = 16, 3
LAD_SHARE = 0.01  # of the residuals' sd: the delta of the Huber that stands for lad
NOISES = ("equal", "own")
UNEQUAL = 1.3  # times too narrow an interval that is worth a warning
CHUNK = 500


@dataclass(frozen=True)
class Side:
    """One end of an interval; None: open, and why."""

    end: float | None
    reason: str = ""


@dataclass(frozen=True)
class Profile:
    """One parameter's interval, and the curve it comes from."""

    name: str
    value: float
    low: Side
    high: Side
    held: list[float]  # values, ascending
    ratio: list[float]  # S at each

    @property
    def ends(self) -> list[float | None]:
        """[low, high], None where open."""
        return [self.low.end, self.high.end]


@dataclass(frozen=True)
class Profiles:
    """Every parameter's. `threshold`: of S."""

    law: str
    objective_name: str
    level: float
    threshold: float
    n_points: int
    noise: str  # equal, or own
    profiles: dict[str, Profile]
    warnings: list[str]

    def ci(self) -> dict[str, list[float | None]]:
        """Parameter -> [low, high], None where open."""
        return {name: found.ends for name, found in self.profiles.items()}

    def to_json(self) -> dict[str, object]:
        """Plain types; `ci` and `text` besides the fields."""
        return plain(asdict(self) | {"ci": self.ci(), "text": self.text()})

    def text(self) -> list[str]:
        """A line for each parameter."""
        width = max(map(len, self.profiles))
        lines = []
        for name, one in self.profiles.items():
            low, high = ("open" if end is None else f"{end:.4g}" for end in one.ends)
            why = "; ".join(s.reason for s in (one.low, one.high) if s.reason)
            lines.append(
                f"  {name:{width}}  {number(one.value)} [{low}, {high}]"
                f"{f'  ({why})' if why else ''}"
            )
        return lines


def profile_law(
    fit: LawFit,
    columns: Mapping[str, Iterable[float]],
    loss: Iterable[float],
    *,
    drop_worst: int = 0,
    names: Sequence[str] | None = None,
    level: float = LEVEL,
    noise: str = "equal",
    groups: Iterable[object] | None = None,
) -> Profiles:
    """Profile-likelihood intervals of the parameters and exponents of `fit`.

    columns, loss (n,), drop_worst: as given to `fit_law`. names: which; all by default. noise:
    equal, of one scale, or own, each point its own (each of `groups` (n,), where several points
    are of one run). Raises `UserError` for a name that is not of the fit, a level that is not
    between 0 and 1, or a noise of neither kind.
    """
    if not 0 < level < 1:
        raise UserError(f"level = {level:g}: expected a share such as 0.95")
    if noise not in NOISES:
        raise UserError(f"noise {noise!r}: choose {one_of(NOISES)}")
    loss = numbers(loss, "loss")
    _, x = predictors(fit.form, columns, len(loss))
    keep = kept(loss, drop_worst)
    x, loss = x[:, keep], loss[keep]
    known = [*fit.form.names, *fit.exponents]
    wanted = known if names is None else list(names)
    unknown = next((name for name in wanted if name not in known), None)
    if unknown:
        hint = did_you_mean(unknown, known) or f"; choose {one_of(known)}"
        raise UserError(f"parameter {unknown!r}: not of this fit{hint}")
    index = np.arange(len(loss)) if groups is None else _indices(groups, keep)
    dof = (
        min(len(loss) - len(fit.form.names), index.max())
        if noise == "own"
        else (len(loss) - len(fit.form.names))
    )
    threshold = float(stdtrit(dof, (1 + level) / 2)) ** 2
    found, lost, factors = {}, 0, {}
    for name in dict.fromkeys("a" if name == "b" else name for name in wanted):
        one = _One.of(fit, name, x, loss)
        factors[name] = one.widening(index)
        if noise == "own":
            one.wide = factors[name]
        found[name] = one.interval(threshold)
        lost += one.lost
    if "b" in wanted:
        found["b"] = _mirrored(found["a"])
    return Profiles(
        fit.law,
        fit.objective_name,
        level,
        threshold,
        len(loss),
        noise,
        {name: found[name] for name in wanted},
        _warnings(noise, factors, lost),
    )


def _indices(groups: Iterable[object], keep: np.ndarray) -> np.ndarray:
    labels = np.array([str(g) for g in plain_labels(groups)])
    if len(labels) != len(keep):
        raise UserError(
            f"columns differ in length (groups {len(labels)}, loss {len(keep)}); give "
            "one value per run"
        )
    return np.unique(labels[keep], return_inverse=True)[1]


def _warnings(noise: str, factors: Mapping[str, float], lost: int) -> list[str]:
    found = [f"{lost} refits did not converge: an end may be too near"] if lost else []
    name = max(factors, key=factors.get, default=None)
    if noise == "equal" and name and factors[name] > UNEQUAL:
        found.append(
            f"residuals are not of one size: with noise='own' the interval of {name} is "
            f"{factors[name]:.1f} times as wide"
        )
    return found


def _mirrored(a: Profile) -> Profile:
    ends = [
        Side(None if s.end is None else 1 - s.end, s.reason.replace("a =", "1 - b ="))
        for s in (a.high, a.low)
    ]
    return Profile("b", 1 - a.value, *ends, [1 - v for v in reversed(a.held)], a.ratio[::-1])


# -- one parameter --------------------------------------------------------------------------------
@dataclass
class _One:
    """The search for one parameter's ends, in the solver's coordinates."""

    problem: Problem
    index: int
    free: Problem
    rule: Objective
    scaled: np.ndarray  # (1, n)
    best: np.ndarray  # (p,) the optimum
    r: np.ndarray  # (n,) residuals there
    unit: float  # of the objective, per unit of S
    starts: np.ndarray  # (s, p)
    wide: float = 1.0  # what S is over the square of
    lost: int = 0

    @classmethod
    def of(cls, fit: LawFit, name: str, x: np.ndarray, loss: np.ndarray) -> _One:
        law, rule = fit.form, Objective(fit.objective_name, fit.delta or 1e-3)
        form = _by_balance(law) if name == "a" and "a" not in law.names else law
        index = form.names.index(name)
        coefficient = bool(form.terms) and form.parameters[index].kind == "coefficient"

        free = problem_of(form, x, loss)
        if coefficient:
            free = SumProblem(form, x, free.scale, centred=False)
        scaled = loss[None] / free.scale
        ones, y = np.ones(scaled.shape), scaled if rule.raw else np.log(scaled)
        best = solver.solve(free, rule, scaled, ones, STARTS).theta
        r = rule.residual(y, free.at(best).m)[0]
        if rule.name == "lad":
            rule = Objective("log-huber", max(LAD_SHARE * spread_of(r, best.shape[1]), LAD_DELTA))
            best = solver.solve(free, rule, scaled, ones, best[None]).theta
            r = rule.residual(y, free.at(best).m)[0]
        starts = free.starts(scaled, ones, MANY_STARTS)[0, :: MANY_STARTS // SOME_STARTS]
        return cls(
            free.holding(index),
            index,
            free,
            rule,
            scaled,
            best[0],
            r,
            unit_of(rule, r, best.shape[1]),
            starts,
        )

    @property
    def name(self) -> str:
        return self.problem.law.names[self.index]

    @property
    def middle(self) -> float:
        """Where the optimum is."""
        return float(self.best[self.index])

    @property
    def lowest(self) -> float:
        return float(self.rule.value(self.r[None], np.ones((1, len(self.r))))[0])

    # -- the noise --
    def _unit_slopes(self) -> tuple[np.ndarray, np.ndarray]:
        """(p, n) derivatives of what residuals are of, each row of length 1, and lengths (p,)."""
        n, found = len(self.r), []
        for rows in np.array_split(np.arange(n), n // CHUNK + 1):
            state = self.problem.at(np.repeat(self.best[None], len(rows), 0))
            pick = np.eye(n)[rows]
            found.append(self.problem.sums(state, pick, np.zeros(pick.shape))[0])
        slopes = np.concatenate(found, axis=1)
        if not self.rule.raw:
            slopes = slopes / self.problem.at(self.best[None]).m
        size = np.sqrt(np.maximum((slopes**2).sum(1), 1e-300))
        return slopes / size[:, None], size

    def widening(self, index: np.ndarray) -> float:
        """How many times wider own noise, of groups index (n,), makes the interval locally."""
        n, p = len(self.r), len(self.best)
        slopes, _ = self._unit_slopes()
        bend = bend_of(self.rule, self.r, p)
        row = np.linalg.pinv((slopes * bend) @ slopes.T)[self.index]
        scores = np.bincount(index, (row @ slopes) * psi_of(self.rule, self.r))
        few = p if len(scores) == n else 1
        own = (scores @ scores) * len(scores) / max(len(scores) - few, 1)
        equal = self.unit * 2 * row[self.index]
        return float(math.sqrt(own / equal)) if equal > 0 and own > 0 else 1.0

    def local_error(self) -> float:
        """The coordinate's standard error by the slopes; at most a share of it."""
        slopes, size = self._unit_slopes()
        inverse = np.linalg.pinv(slopes @ slopes.T)[self.index, self.index]
        sd = spread_of(self.r, len(self.best)) / size[self.index] * math.sqrt(max(inverse, 0.0))
        sd *= self.wide
        most = 0.2 * max(abs(self.middle), 0.1)
        return min(sd, most) if sd > 0 else most

    # -- the search --
    @np.errstate(over="ignore", divide="ignore", invalid="ignore", under="ignore")
    def interval(self, threshold: float) -> Profile:
        """Both ends, where S first reaches the threshold on either side of the optimum."""
        step = self.local_error() * math.sqrt(threshold) / 2
        low, high = self._range()
        near = np.concatenate(
            [[self.middle], *[self.middle + sign * step * np.array(NEAR) for sign in (-1, 1)]]
        )
        at, ratio, theta = self._settled(np.unique(np.clip(near, low, high)))
        further = [
            end
            for end, below in ((low, True), (high, False))
            if self._crossing(at, ratio, threshold, below) is None
        ]
        if further:
            steps = step * np.array(REACH)
            more = [
                np.append(self.middle + (steps if end == high else -steps), end) for end in further
            ]
            at, ratio, theta = self._settled(
                np.unique(np.clip(np.concatenate([at, *more]), low, high)), theta
            )
        sides = [self._side(at, ratio, theta, threshold, below) for below in (True, False)]
        return Profile(
            self.name,
            self._value(self.middle),
            *sides,
            [self._value(v) for v in at],
            ratio.tolist(),
        )

    def _range(self) -> tuple[float, float]:
        low, high = self.problem.lower[self.index], self.problem.upper[self.index]
        if self.problem.law.parameters[self.index].kind == "floor":
            high = 2 * self.scaled.max()  # the law is above every loss
        return max(low, self.middle - FAR), min(high, self.middle + FAR)

    def _crossing(self, at, ratio, threshold: float, below: bool) -> tuple[int, int] | None:
        """The last held value within the threshold on a side, and the first beyond it."""
        middle = int(np.abs(at - self.middle).argmin())
        order = range(middle, -1, -1) if below else range(middle, len(at))
        first = next((i for i in order if ratio[i] > threshold), None)
        return None if first is None else (first + (1 if below else -1), first)

    def _side(self, at, ratio, theta, threshold: float, below: bool) -> Side:
        pair = self._crossing(at, ratio, threshold, below)
        if pair is not None:
            return Side(self._end(at, ratio, theta, list(pair), threshold))
        last = self._value(at[0] if below else at[-1])
        return Side(None, f"{OPEN}: {self.name} = {last:.3g} fits within the noise")

    def _value(self, coordinate: float) -> float:
        theta = self.best.copy()
        theta[self.index] = coordinate
        return float(self.free.params(theta)[self.index])

    def _settled(self, at: np.ndarray, near: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        """at, S (K,) and solutions (K, p): from the optimum and starts, then from neighbours."""
        starts = np.concatenate([self.best[None], self.starts, *([] if near is None else [near])])
        theta, value, converged = self._solved(at, starts, project=True)
        for _ in range(PASSES):
            beside = np.stack([np.roll(theta, 1, 0), np.roll(theta, -1, 0)], axis=1)
            again, lower, done = self._solved(at, beside)
            better = lower < value - 1e-9 * abs(value)
            theta[better], value[better] = again[better], lower[better]
            converged |= done & (lower <= value)
            if not better.any():
                break
        self.lost += int((~converged).sum())
        return at, np.maximum(value - self.lowest, 0) / (self.unit * self.wide**2), theta

    def _solved(
        self, at: np.ndarray, starts: np.ndarray, project: bool = False
    ) -> tuple[np.ndarray, ...]:
        """Solutions (K, p), objectives (K,) and whether converged, held at `at` (K,).

        starts: (s, p), or (K, s, p) each its own; projected: their linear coefficients anew.
        """
        starts = np.array(np.broadcast_to(starts, (len(at), *starts.shape[-2:])))
        starts[..., self.index] = at[:, None]
        if project:
            flat = starts.reshape(-1, starts.shape[2])
            weight = np.broadcast_to(1 / self.scaled**2, (len(flat), len(self.r)))
            starts = self.problem.projected(flat, weight, self.scaled).reshape(starts.shape)
        ones = np.broadcast_to(np.ones_like(self.scaled), (len(at), len(self.r)))
        found = solver.solve(self.problem, self.rule, self.scaled, ones, starts)
        return found.theta, found.objective, found.converged

    def _end(self, at, ratio, theta, pair: list[int], threshold: float) -> float:
        """Where S is the threshold between two of the held values."""
        ends, s, starts = at[pair], ratio[pair], theta[pair]
        for _ in range(ROUNDS):
            values = np.linspace(*ends, INSIDE + 2)
            solved, value, _ = self._solved(values, starts)
            found = np.maximum(value - self.lowest, 0) / (self.unit * self.wide**2)
            found[0], found[-1] = s
            first = int(np.argmax(found > threshold))
            between = [first - 1, first]
            ends, s, starts = values[between], found[between], solved[between]
        root = np.sqrt(s)
        share = (math.sqrt(threshold) - root[0]) / (root[1] - root[0])
        return self._value(float(ends[0] + share * (ends[1] - ends[0])))


def _by_balance(law: Law) -> Law:
    """The law with a = second / (first + second) as a parameter, in place of the second."""
    pair = next((p for p in PAIRS if set(p) <= set(law.names)), None)
    if pair is None:
        raise UserError(f"law {law.name} has no pair of exponents that a is made of")
    first, second = pair

    def function(a: Array, **named: Array) -> Array:
        return law.function(**named, **{second: named[first] * a / (1 - a)})

    def starts(loss: np.ndarray, x: np.ndarray) -> np.ndarray:
        found = law.starts(loss, x)
        one, two = (found[:, law.names.index(n)] for n in pair)
        found[:, law.names.index(second)] = two / (one + two)
        return found

    parameters = tuple(BALANCE if p.name == second else p for p in law.parameters)
    if law.starts is None:
        grid = (0.2, 0.35, 0.5, 0.65, 0.8)
        parameters = tuple(replace(p, grid=grid) if p is BALANCE else p for p in parameters)
    return replace(
        law,
        parameters=parameters,
        function=function,
        terms=(),
        balance=None,
        starts=None if law.starts is None else starts,
    )
