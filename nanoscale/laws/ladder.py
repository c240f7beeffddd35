"""One law through the final losses of a ladder: L(x) = E + K / x^g, with what is not known said.

The one idea: a ladder has few runs, so its interval comes from the measured noise of seeds and of
sizes (parametric resamples), and as nobody knows from which size on the law holds, or whether one
power is enough, the resamples are shared out over the ladder without its smallest sizes and over a
law of two powers, as far as the runs speak for each.

This is the estimator of a ladder study, and of `nanoscale fit` for a table of one. `fit_law` with
law `power` is for many points: its delta is the field's 1e-3 and not the runs' noise, it resamples
points, and drops no sizes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from nanoscale.errors import counted
from nanoscale.laws import bootstrap, solver
from nanoscale.laws.arrays import Array, Index
from nanoscale.laws.certified import Certified
from nanoscale.laws.components import Components
from nanoscale.laws.fit import SCHEMA, LawFit, finite
from nanoscale.laws.forms import Law, number
from nanoscale.laws.objectives import Objective
from nanoscale.laws.problem import problem_of
from nanoscale.laws.published import POWER, TWO_POWERS
from nanoscale.laws.record import PredictedLoss, Record
from nanoscale.laws.result import (
    NO_FIT,
    bounds_hit,
    digest,
    named,
    not_identified,
    status_of,
    warnings_of,
)
from nanoscale.laws.runs import SIZES_NEEDED, Runs

_STARTS, STARTS_OF_RESAMPLES = 32, 3
HUBER = 1.345  # delta in noise sd: 95 % efficient under Gaussian noise (Huber 1981)
DELTA_FLOOR = 1e-3  # the field's delta (Hoffmann et al. 2022), used where the noise is smaller
MISFIT = 0.05  # level of the test by which the law is said to miss the sizes
MOST_LEFT_OUT = 2  # sizes, by resamples
PREFERRED = math.e  # times more for a cut than for the whole ladder: worth a warning
CURVE_REACH = (0.7, 10.0)  # of the smallest and largest x
P = len(POWER.parameters)
RIVAL_SIZES = len(TWO_POWERS.parameters) + 1  # needed


@dataclass(frozen=True)
class Refit:
    """The law without the smallest sizes; parameters are NaN where the solver did not converge."""

    sizes_dropped: int
    n_points: int
    smallest_x: float
    params: dict[str, float]
    objective: float
    status: str

    @property
    def values(self) -> Array:
        """(p,) of its parameters."""
        return np.array([*self.params.values()])


@dataclass(frozen=True)
class LawCurve:
    """The law over x, and its 95 % band: of the law, not of a new run."""

    x: list[float]
    loss: list[float]
    lo: list[float]
    hi: list[float]


@dataclass(frozen=True)
class LadderPoint:
    """A run beside the law; `residual` is of ln L."""

    x: float
    loss: float
    fitted: float
    residual: float
    size: object  # labels, as given
    seed: object


@dataclass(frozen=True)
class LadderRival(Record):
    """The law of two powers through the whole ladder, and its share of the resamples."""

    law: str
    share: float
    params: dict[str, float]
    objective: float
    converged: bool
    draws: Array = field(repr=False)

    @classmethod
    def of(cls, part: Part) -> LadderRival | None:
        """Of its resamples; None of another law's."""
        form, best = part.cut.form, part.cut.best
        if form is POWER:
            return None
        return cls(
            law=form.name,
            share=part.share,
            params=named(form, best.params),
            objective=float(best.solution.objective[0]),
            converged=best.converged,
            draws=part.draws,
        )


@dataclass(frozen=True, kw_only=True)
class LadderFit(LawFit):
    """A power law through a ladder; `draws` are of all resamples of that law.

    `ci95` is of all resamples, those of the rival too where its parameter means the same (E),
    stretched over the `dropped` refits; `ci95_noise` of those of the whole ladder alone.
    """

    x_name: str
    n_sizes: int
    ci95_noise: dict[str, list[float]]
    noise: bootstrap.Noise
    components: Components | None  # where the noise of seeds is measured
    shares: list[float]  # of the resamples, without the smallest 0, 1, ... sizes
    rival: LadderRival | None  # of six sizes and more
    dropped: list[Refit]
    curve: LawCurve
    points: list[LadderPoint]  # in order of x

    @np.errstate(all="ignore")
    def predict(self, **x: float) -> PredictedLoss:
        """The loss at x, and its 95 % interval, over the `dropped` refits as the curve's is."""
        at = self.place(x)[0][0]
        loss = finite(self(at), "the law's loss", x)
        if not len(self.draws):
            return PredictedLoss(loss)
        refits = [self.form.at(d.params.values(), [at]) for d in self.dropped if at >= d.smallest_x]
        ends = bootstrap.interval(self.losses(np.array([at])))
        low, high = bootstrap.widened(ends, np.reshape(refits, (-1, 1)))[:, 0].tolist()
        return PredictedLoss(loss, [low, high])

    def losses(self, *x: Array) -> Array:
        """(R, n): also of the law of two powers."""
        of_law = super().losses(*x)
        if self.rival is None:
            return of_law
        return np.concatenate([of_law, TWO_POWERS.loss(self.rival.draws, *x)])

    def in_words(self) -> str:
        """What ten times the compute does, in a sentence."""
        curve = self.curve
        low, high = curve.lo[-1], curve.hi[-1]
        now = float(self(np.array([curve.x[-1] / CURVE_REACH[1]]))[0])
        ends = f"from {now:.3g} to {curve.loss[-1]:.3g} [{low:.3g}, {high:.3g}]"
        more = f"ten times the {'compute' if self.x_name == 'C' else self.x_name}"
        if high < now and f"{high:.3g}" != f"{now:.3g}":
            return f"by the law, {more} lowers the loss {ends}"
        return f"these runs do not show that {more} lowers the loss; by their law {ends}"

    def summary(self) -> list[str]:
        """The lines a user sees: the law, what is not identified, what both rest on."""
        curve = self.curve
        lines = [
            self.equation(with_intervals=True),
            f"at {curve.x[-1]:.3g}, {CURVE_REACH[1]:g} times the largest {self.x_name}: loss "
            f"{curve.loss[-1]:.3f} [{curve.lo[-1]:.3f}, {curve.hi[-1]:.3f}]",
        ]
        for name, reason in self.not_identified.items():
            lines.append(f"{name}: not identified ({reason})")
        lines.append(
            f"{self.n_sizes} sizes, {self.n_points} runs; noise {100 * self.noise.used:.2g} % of "
            f"the loss; {self.objective_name}, delta {self.delta:.2g}; {self.starts_agreeing()}"
        )
        if self.dropped:
            exponents = [number(refit.params["g"], self.se["g"]) for refit in self.dropped]
            counts = [str(refit.sizes_dropped) for refit in self.dropped]
            sizes = ", ".join(counts)
            whole = number(self.params["g"], self.se["g"])
            lines.append(
                f"best g {whole}; without the smallest {sizes} sizes {', '.join(exponents)}"
            )
        return lines


@np.errstate(all="ignore")
def fit_power_law(
    x: Iterable[float],
    loss: Iterable[float],
    *,
    size: Iterable[object] | None = None,
    seed: Iterable[object] | None = None,
    x_name: str = "C",
    delta: float | None = None,
    resamples: int = 2000,
    rng_seed: int = 0,
) -> LadderFit:
    """Fit L(x) = E + K / x^g to one (x, loss) per run by the Huber loss of ln L.

    The form is Hestness et al.'s (2017). `size` labels each run's model size (default: its x);
    runs of one size are replicates, told apart by `seed`. `delta` is the Huber threshold in ln L;
    by default 1.345 times the noise, at least 1e-3. Intervals: `resamples` parametric resamples
    with the noise of seeds and of sizes (of residuals where seeds do not measure theirs), shared
    out over the ladder, the ladder without its smallest one and two sizes and, from six sizes on,
    a law of two powers, stretched over the refits without the smallest 1, 2, ... sizes. Raises
    `UserError` for input that no law can be fitted to.

    >>> import nanoscale as ns
    >>> C = [1e15, 3e15, 1e16, 3e16, 1e17]
    >>> law = ns.fit_power_law(C, [1.5 + 100 / c**0.12 for c in C], resamples=100)
    >>> law.equation()
    'L(C) = 1.5... + 100... / C^0.12...'
    """
    runs = Runs.of(x, loss, size, seed, x_name)
    bootstrap.check_resamples(resamples)
    rule = _huber(runs) if delta is None else Objective.of("log-huber", delta)
    cuts = _cuts(runs, rule)
    parts = _parts(_tried(cuts, runs, rule), resamples, rng_seed)
    return _result(runs, cuts, parts, resamples, rng_seed)


def _result(
    runs: Runs, cuts: list[Cut], parts: list[Part], resamples: int, rng_seed: int
) -> LadderFit:
    whole, best = cuts[0], cuts[0].best
    lost = resamples - sum(len(part.draws) for part in parts)
    powers = [part for part in parts if part.cut.form is POWER]
    pooled = np.concatenate([part.draws for part in powers])
    dropped = _dropped(cuts, runs.x_name)
    ends = _interval(parts, pooled, dropped)
    reasons = _reasons(best, ends, runs.x_name)
    return LadderFit(
        schema=SCHEMA,
        law=POWER.name,
        form=POWER,
        x_name=runs.x_name,
        x_names=(runs.x_name,),
        predictors=[runs.x_name],
        objective_name=best.rule.name,
        delta=best.rule.delta,
        n_points=len(runs.x),
        n_sizes=runs.n_sizes,
        params=named(POWER, best.params),
        exponents={},
        objective=float(best.solution.objective[0]),
        status=_status(best, runs.x_name, reasons),
        not_identified=reasons,
        agreement_of_starts=best.agreement,
        n_starts=_STARTS,
        condition_number=solver.condition(best, best.theta)[0],
        se=_errors(pooled),
        ci95=_by_name(ends),
        ci95_noise=_by_name(_ends(powers[0].draws)),
        noise=whole.noise,
        components=whole.measured,
        shares=[part.share for part in powers],
        rival=LadderRival.of(parts[-1]),
        dropped=dropped,
        dropped_worst=0,
        resampling="parametric",
        resamples=resamples,
        lost=lost,
        rng_seed=rng_seed,
        warnings=_warnings(runs, whole, parts, lost, resamples),
        data=digest(runs.x, runs.loss),
        draws=pooled,
        curve=_curve(runs, parts, dropped),
        points=_points(runs, best.params),
    )


def _ends(draws: Array) -> Array:
    """(2, p) of draws (R, p); NaN without any."""
    return bootstrap.interval(draws) if len(draws) else np.full((2, draws.shape[1]), math.nan)


def _errors(draws: Array) -> dict[str, float]:
    """Standard errors."""
    return named(POWER, draws.std(0) if len(draws) else np.full(P, math.nan))


def _by_name(ends: Array) -> dict[str, list[float]]:
    return dict(zip(POWER.names, ends.T.tolist(), strict=True))


# -- fits and refits ------------------------------------------------------------------------------
@dataclass(frozen=True)
class Cut:
    """The law, or its rival, through a ladder without its smallest sizes."""

    left_out: int
    x: Array  # (n,) of the runs that are left
    size: Index  # (n,) 0, 1, ...
    best: Certified

    @property
    def form(self) -> Law:
        """The law."""
        return self.best.problem.law

    @property
    def more(self) -> int:
        """Parameters that it has beyond the whole ladder's law; a size left out counts as one."""
        return self.left_out + len(self.form.parameters) - P

    @property
    def logs(self) -> Array:
        """ln L (n,), over the problem's scale."""
        return np.asarray(np.log(self.best.loss[0]))

    @property
    def fitted(self) -> Array:
        """(n,) as the law has them."""
        return np.asarray(np.log(self.best.fitted))

    @cached_property
    def components(self) -> Components:
        """Its noise, of seeds and of sizes."""
        return Components.of(self.logs, self.size, self.fitted, len(self.form.parameters))

    @property
    def measured(self) -> Components | None:
        """`components`, where seeds tell them apart."""
        return self.components if self.components.measured else None

    @property
    def noise(self) -> bootstrap.Noise:
        """Its noise as of runs that are all alike."""
        return bootstrap.noise_of(self.logs, self.size, self.fitted, P)


@dataclass(frozen=True)
class Part:
    """The resamples of one cut: their share of all, and the parameters (R, p) that converged."""

    cut: Cut
    share: float
    draws: Array


def _cuts(runs: Runs, rule: Objective) -> list[Cut]:
    """The whole ladder, then without the smallest 1, 2, ... sizes, down to half of them."""
    left = max(SIZES_NEEDED, math.ceil(runs.n_sizes / 2))
    keeps = [np.ones(len(runs.x), bool), *bootstrap.without_smallest(runs.size, left)]
    cuts = []
    for left_out, keep in enumerate(keeps):
        x = runs.x[keep]
        best = _certified(POWER, x, runs.loss[keep], rule)
        cuts.append(Cut(left_out, x, runs.size[keep] - left_out, best))
    return cuts


def _tried(cuts: list[Cut], runs: Runs, rule: Objective) -> list[Cut]:
    """What the resamples are shared out over: a few cuts and, of enough sizes, two powers."""
    tried = cuts[: MOST_LEFT_OUT + 1]
    if runs.n_sizes >= RIVAL_SIZES:
        best = _certified(TWO_POWERS, runs.x, runs.loss, rule)
        tried.append(Cut(0, runs.x, runs.size, best))
    return tried


def _parts(tried: list[Cut], resamples: int, rng_seed: int) -> list[Part]:
    """Resamples of each, as many as its share is of all."""
    shares = _shares(tried)
    ends = np.rint(resamples * np.cumsum([0.0, *shares])).astype(int)
    parts = []
    for i, count in enumerate(np.diff(ends).tolist()):
        draws = _refits(tried[i], tried[0], count, rng_seed + i)
        parts.append(Part(tried[i], shares[i], draws))
    return parts


def _shares(tried: list[Cut]) -> list[float]:
    """Shares of the resamples by how well the runs speak for each: exp(-AIC / 2).

    A size that is left out costs what a parameter does, so that fewer sizes are not better for
    being fewer; noise is that of a size's mean about the whole ladder's law. Source: Jay & Neil
    2021, Physical Review D 103, 114502.
    """
    unit = tried[0].components.mean_variance
    aic = []
    for cut in tried:
        squares = cut.components.size_squares / unit if unit else 0.0
        aic.append(squares + 2 * cut.more)
    weights = np.exp(-(np.array(aic) - min(aic)) / 2)
    shares: list[float] = (weights / weights.sum()).tolist()
    return shares


def _refits(cut: Cut, whole: Cut, resamples: int, rng_seed: int) -> Array:
    """Of a cut, with the noise of the whole ladder, which knows it best."""
    if not resamples:
        return np.empty((0, len(cut.form.parameters)))
    if whole.measured is not None:
        drawn = whole.measured.resampled(cut.fitted, cut.size, resamples, rng_seed)
    else:
        drawn = bootstrap.resampled(cut.fitted, whole.noise, resamples, rng_seed)
    refits = solver.solve(cut.best.on(np.exp(drawn), cut.best.w), STARTS_OF_RESAMPLES)
    kept = refits.converged
    if cut.form is not POWER:  # a valley of equal losses, where two powers are hardly told apart
        kept = np.isfinite(refits.objective)
    return cut.best.problem.params(refits.theta[kept])


def _certified(law: Law, x: Array, loss: Array, rule: Objective) -> Certified:
    return Certified.of(problem_of(law, x[None], loss), loss, rule, _STARTS)


def _huber(runs: Runs) -> Objective:
    """1.345 times the larger of the seed sd and the robust sd about a least-squares fit."""
    pilot = _certified(POWER, runs.x, runs.loss, Objective("log-huber", math.inf))
    n = len(runs.x)
    typical = np.median(np.abs(pilot.residual))
    spread = 1.4826 * typical * math.sqrt(n / (n - P))
    losses = np.log(pilot.loss[0])
    seed_sd, _, measured = bootstrap.seed_noise(losses, runs.size)
    if seed_sd is not None and measured:
        spread = max(spread, seed_sd)
    delta = max(HUBER * spread, DELTA_FLOOR)
    return Objective("log-huber", float(delta))


def _dropped(cuts: list[Cut], x_name: str) -> list[Refit]:
    """The refits without the smallest 1, 2, ... sizes."""
    refits = []
    for cut in cuts[1:]:
        best = cut.best
        params = best.params if best.converged else np.full(P, math.nan)
        refit = Refit(
            sizes_dropped=cut.left_out,
            n_points=len(cut.x),
            smallest_x=float(cut.x[0]),
            params=named(POWER, params),
            objective=float(best.solution.objective[0]),
            status=_status(best, x_name, {}),
        )
        refits.append(refit)
    return refits


def _interval(parts: list[Part], pooled: Array, dropped: list[Refit]) -> Array:
    """Ends (2, p) by all resamples of the law (R, p), that of E by its rival's too, stretched over
    the refits."""
    ends = _ends(pooled)
    floors = np.concatenate([part.draws[:, :1] for part in parts])
    ends[:, 0] = _ends(floors)[:, 0]
    others = [refit.values for refit in dropped]
    return bootstrap.widened(ends, np.reshape(others, (-1, P)))


# -- what is said of them -------------------------------------------------------------------------
def _reasons(best: Certified, ends: Array, x_name: str) -> dict[str, str]:
    """Parameter -> why it is not identified."""
    if not best.converged:
        return dict.fromkeys(POWER.names, NO_FIT)
    return not_identified(best.problem, best.theta, ends, (x_name,))


def _status(best: Certified, x_name: str, reasons: dict[str, str]) -> str:
    bounds = bounds_hit(best.problem, best.theta, (x_name,))
    return status_of(best.converged, bounds, reasons)


def _warnings(runs: Runs, whole: Cut, tried: list[Part], lost: int, resamples: int) -> list[str]:
    warnings = []
    parts = whole.components
    if not parts.measured:
        warnings.append(
            "seed noise is not measured (3 seeds at 2 sizes would do): the interval rests on the "
            f"residuals alone, {whole.noise.residual_dof} degrees of freedom"
        )
    elif parts.misfit_p < MISFIT:
        warnings.append(
            f"the law misses the sizes by {parts.misfit:.1f} times the seed noise (p = "
            f"{parts.misfit_p:.2g}): the sizes are not tuned alike, or the law is not theirs; the "
            f"interval holds noise of {100 * parts.size_sd:.2g} % of a size"
        )
    preferred = max(tried, key=lambda part: part.share)
    times = preferred.share / tried[0].share
    if times > PREFERRED:
        other = "a law of two powers"
        if preferred.cut.left_out:
            other = f"the law without the smallest {counted(preferred.cut.left_out, 'size')}"
        warnings.append(
            f"the runs speak {times:.2g} times more for {other} than for one power of all sizes: "
            "the interval holds both"
        )
    remedy = "fit those of metrics.json, which are at full precision"
    return warnings + warnings_of(runs.loss, whole.best, lost, resamples, remedy)


def _curve(runs: Runs, parts: list[Part], dropped: list[Refit]) -> LawCurve:
    """The law and its band, in which a cut speaks of its own runs on alone."""
    low, high = CURVE_REACH
    x = np.geomspace(runs.x[0] * low, runs.x[-1] * high, 121)
    law = POWER.loss(parts[0].cut.best.params, x)
    others = np.empty((len(dropped), len(x)))
    for row, refit in zip(others, dropped, strict=True):
        seen = x >= refit.smallest_x
        row[:] = np.where(seen, POWER.loss(refit.values, x), np.nan)

    losses = []
    for part in parts:
        cut = part.cut
        seen = (x >= cut.x[0]) | (part is parts[0])
        losses.append(np.where(seen, cut.form.loss(part.draws, x), np.nan))
    pooled = np.concatenate(losses)
    band = np.full((2, len(x)), np.nan)
    if len(parts[0].draws):
        band = np.nanquantile(pooled, bootstrap.LEVEL, axis=0)
    lo, hi = bootstrap.widened(band, others).tolist()
    return LawCurve(x.tolist(), law.tolist(), lo, hi)


def _points(runs: Runs, params: Array) -> list[LadderPoint]:
    """One per run, in order of x."""
    fitted = POWER.loss(params, runs.x)
    residual = np.log(runs.loss / fitted)
    points = []
    for i, label in enumerate(runs.labels):
        point = LadderPoint(
            x=float(runs.x[i]),
            loss=float(runs.loss[i]),
            fitted=float(fitted[i]),
            residual=float(residual[i]),
            size=label,
            seed=runs.seeds[i],
        )
        points.append(point)
    return points
