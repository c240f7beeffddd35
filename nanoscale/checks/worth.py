"""What a change is worth: FLOPs at equal loss, size by size, and whether that grows with size.

The base's losses over its FLOPs make a curve, a parabola in logarithms. A change moves the loss at
a size by what seeds in both arms differ by; the curve says with how many FLOPs the base would have
that loss. A line through the logarithms of these ratios over ln C, each at the middle of the two
FLOPs that it compares, so that it does not matter which arm is called the base, weighted by how
steep the curve is there, says what the change is worth and how that moves. Intervals: seeds' noise
drawn anew on the curve and on the differences, and Student's t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from nanoscale.checks.paired import Losses
from nanoscale.checks.seed_shifts import Interval, Numbers
from nanoscale.checks.t_distribution import t_quantile
from nanoscale.errors import UserError
from nanoscale.spec.values import Json
from nanoscale.store.files import plain

WORTH_SIZES = 4  # a parabola leaves one
HALF_LEFT = 0.5 / math.log(10)  # of the logarithm of a worth, lost over ten times the compute
DOUBLED = math.log10(2)  # exponent of a worth that ten times the compute doubles
GROWS, STAYS, FADES, UNDECIDED = "grows", "holds", "fades with scale", "not decided"
WORTH_DRAWS = 2000
MOST_LOG = math.log(1e6)  # of a worth
READ_BELOW = 1.2  # times below an arm's smallest run: its curve is read where it has none
MOST_FLAT = 0.025  # share of draws whose curve does not fall


@dataclass(frozen=True)
class SizeLosses:
    """Both arms at one size: FLOPs of a run, and losses by seed, of the same seeds."""

    base_flops: float
    base: Losses
    flops: float
    losses: Losses

    @property
    def difference(self) -> Numbers:
        """(seeds,) of ln L."""
        return np.log([self.losses[seed] / loss for seed, loss in self.base.items()])


@dataclass(frozen=True)
class WorthAt:
    """At one size: the change's FLOPs over those with which the base has the same loss.

    base_flops: of the base's run of that size. flops: the geometric mean of the two compared.
    """

    base_flops: float
    flops: float
    value: float
    ci95: Interval
    seeds: int


@dataclass(frozen=True)
class Worth:
    """How many times the base's FLOPs a change needs for the same loss; above 1, it is worse."""

    value: float  # at the middle of `at`
    ci95: Interval
    exponent: float  # of C, with which it rises
    exponent_ci95: Interval
    verdict: str  # grows, holds, fades with scale, not decided
    noise: float  # sd of a difference in ln L
    dof: float
    at: Sequence[WorthAt]

    def more(self) -> Numbers:
        """(S,) the share of the interval that one seed more at each size would about leave."""
        u = np.log([at.flops for at in self.at])
        powers = np.vander(u - u.mean(), 2)
        weight = np.array([np.log(at.ci95[1] / at.ci95[0]) ** -2 for at in self.at])
        seeds = np.array([at.seeds for at in self.at])

        def se(weight: Numbers) -> float:
            return math.sqrt(np.linalg.inv(powers.T @ (powers * weight[:, None]))[1, 1])

        one_more = np.eye(len(u)) / seeds
        return np.array([se(weight * (1 + more)) for more in one_more]) / se(weight)

    @property
    def times(self) -> str:
        """`1.35 [1.28, 1.42]`."""
        return f"{_three(self.value)} {_text(self.ci95)}"

    @property
    def moves(self) -> str:
        """The factor by which it goes at ten times the compute, as in `0.92 [0.85, 0.99]`."""
        low, high = self.exponent_ci95
        ends = (10**low, 10**high)
        moved = 10**self.exponent
        return f"{_three(moved)} {_text(ends)}"

    @property
    def middle(self) -> float:
        """The FLOPs at which `value` is."""
        return float(np.exp(np.mean([math.log(at.flops) for at in self.at])))

    @property
    def beyond(self) -> tuple[int, float]:
        """At how many sizes one arm has a loss that the other has at no size, as it is above that
        of its smallest run; and how many times below that run's FLOPs its curve is read at most."""
        smallest = min(at.base_flops for at in self.at)
        below = []
        for at in self.at:
            apart = max(at.value, 1 / at.value)
            read = at.flops / math.sqrt(apart)  # the fewer of the FLOPs compared
            if read < smallest / READ_BELOW:
                below.append(smallest / read)
        return len(below), max(below, default=1.0)

    def text(self) -> str:
        """`1.35 [1.28, 1.42] times the FLOPs for the same loss at 1e+12, and ...: fades...`."""
        return (
            f"{self.times} times the FLOPs for the same loss (at {self.middle:.2g} FLOPs), and at "
            f"ten times the compute {self.moves} times that: {self.verdict}"
        )

    def to_json(self) -> dict[str, Json]:
        record: dict[str, Json] = plain(asdict(self))
        return record


def _text(ends: Interval) -> str:
    low, high = map(_three, ends)
    return f"[{low}, {high}]"


def _three(value: float) -> str:
    """Three digits, also of a round number: `0.900`."""
    return f"{value:#.3g}".rstrip(".")


def _log(losses: Losses) -> Numbers:
    return np.log([*losses.values()])


def _least_squares(u: Numbers, degree: int) -> Numbers:
    """(degree + 1, S) that makes a polynomial's coefficients, highest first, of levels (S,)."""
    inverse: Numbers = np.linalg.pinv(np.vander(u, degree + 1))
    return inverse


@dataclass(frozen=True)
class _Noise:
    """sd of one observation, and its degrees of freedom."""

    sd: float
    dof: float

    @classmethod
    def of(cls, groups: Sequence[Numbers], means: Numbers, u: Numbers, degree: int) -> _Noise:
        """The larger of what replicates (n_i,) of every size scatter by, and what their means
        (S,) are off a polynomial of u (S,)."""
        counts = np.array([len(group) for group in groups])
        off = means - np.vander(u, degree + 1) @ (_least_squares(u, degree) @ means)
        left = len(u) - degree - 1
        curve = cls(math.sqrt(float((counts * off**2).sum()) / left), left)
        dof = int((counts - 1).sum())
        if not dof:
            return curve
        squares = sum(float(((group - group.mean()) ** 2).sum()) for group in groups)
        seeds = cls(math.sqrt(squares / dof), dof)
        return max(seeds, curve, key=lambda noise: noise.sd)


@dataclass(frozen=True)
class _Curve:
    """Parabolas through ln L over u (S,): their bends (R, 1), and their slopes at u (R, S)."""

    bends: Numbers
    slopes: Numbers

    @classmethod
    def of(cls, u: Numbers, levels: Numbers) -> _Curve:
        """Through levels (R, S)."""
        bends, middle, _ = np.split(levels @ _least_squares(u, 2).T, 3, axis=1)
        return cls(bends, middle + 2 * bends * u)

    def tilted(self, u: Numbers, shifts: Numbers) -> _Curve:
        """That of a change, by a line through what it adds (R, S): a parabola of its own would
        bend with its noise."""
        tilt = (shifts @ _least_squares(u, 1).T)[:, :1]
        return _Curve(self.bends, self.slopes + tilt)

    def back(self, higher: Numbers) -> Numbers:
        """(R, S) how far before u, where runs are, the loss is `higher` (R, S); NaN where it does
        not fall. Where the parabola bends down, as noise may have it, it is its tangent."""
        falling = np.where(self.slopes < 0, self.slopes, np.nan)
        bend = np.maximum(self.bends, 0) * np.abs(higher)
        return np.asarray(2 * higher / (np.sqrt(falling**2 + 4 * bend) - falling))


@dataclass(frozen=True)
class _Arms:
    """Both arms in logarithms over u (S,), ln C of the base about its mean; all are (S,)."""

    u: Numbers
    dearer: Numbers  # the change's FLOPs over the base's
    level: Numbers  # of the base
    shift: Numbers  # what the change adds
    seeds: Numbers
    base_noise: _Noise
    noise: _Noise  # of a shift

    @classmethod
    def of(cls, sizes: Sequence[SizeLosses]) -> _Arms:
        """Of sizes in order of the base's FLOPs."""
        x = np.log([size.base_flops for size in sizes])
        u = x - x.mean()
        losses = [_log(size.base) for size in sizes]
        shifts = [size.difference for size in sizes]
        level = np.array([of_size.mean() for of_size in losses])
        shift = np.array([of_size.mean() for of_size in shifts])
        return cls(
            u=u,
            dearer=np.log([size.flops for size in sizes]) - x,
            level=level,
            shift=shift,
            seeds=np.array([len(of_size) for of_size in losses]),
            base_noise=_Noise.of(losses, level, u, 2),
            noise=_Noise.of(shifts, shift, u, 1),
        )

    def ratios(self, steps: Numbers) -> tuple[Numbers, Numbers]:
        """ln FLOPs at equal loss (R, S), and slopes of the base's curve (R, S): with noise drawn
        anew by standard normal steps (2, R, S)."""
        level = self.level + self.base_noise.sd / np.sqrt(self.seeds) * steps[0]
        shift = self.shift + self.noise.sd / np.sqrt(self.seeds) * steps[1]
        base = _Curve.of(self.u, level)
        change = base.tilted(self.u, shift)
        moved = np.where(shift < 0, -change.back(-shift), base.back(shift))
        return self.dearer + moved, base.slopes

    def middles(self, ratios: Numbers) -> Numbers:
        """(S,) where ratios (S,) are read, as u: between the FLOPs that each compares."""
        places: Numbers = self.u + (self.dearer - np.abs(ratios - self.dearer)) / 2
        return places

    def each(self, sizes: Sequence[SizeLosses], logs: Numbers, halves: Numbers) -> list[WorthAt]:
        """The worth at every size, by ln ratios (S,) and the halves of their intervals."""
        shares = np.exp(self.middles(logs) - self.u)
        at = []
        for size, log, half, share in zip(sizes, logs, halves, shares.tolist(), strict=True):
            own = float(size.base_flops)
            at.append(WorthAt(own, own * share, math.exp(log), _around(log, half), len(size.base)))
        return at

    def line(self, ratios: Numbers, steep: Numbers) -> Numbers:
        """(R, 2) exponent and mean of ratios (R, S), the first of which were measured, weighted by
        squared slopes and seeds."""
        places = self.middles(ratios[0])
        root = np.sqrt(steep**2 * self.seeds)
        powers = np.vander(places - places.mean(), 2)
        lines: Numbers = ratios @ (np.linalg.pinv(powers * root[:, None]) * root).T
        return lines


def worth(sizes: Sequence[SizeLosses], *, rng_seed: int = 0) -> Worth:
    """What a change is worth, by four sizes or more in both arms.

    Raises:
        UserError: there are fewer, or losses do not fall with size.
    """
    if len(sizes) < WORTH_SIZES:
        raise UserError(f"{len(sizes)} sizes in both arms; {WORTH_SIZES} are needed")
    if any(loss <= 0 for size in sizes for loss in (*size.base.values(), *size.losses.values())):
        raise UserError("a loss of 0 or below has no logarithm")
    sizes = sorted(sizes, key=lambda size: size.base_flops)
    arms = _Arms.of(sizes)
    steps = np.random.default_rng(rng_seed).standard_normal((2, WORTH_DRAWS, len(sizes)))
    steps[:, 0] = 0  # the first is what was measured
    ratios, slopes = arms.ratios(steps)
    if np.abs(ratios[0]).max(initial=0) > MOST_LOG:
        raise UserError(
            "its losses and the base's are too far apart: one would need more than a million times "
            "the other's FLOPs for them"
        )
    known = np.isfinite(ratios).all(axis=1)
    if not known[0] or (~known).mean() > MOST_FLAT:
        raise UserError("the losses do not fall beyond their noise from size to size")

    lines = arms.line(ratios[known], slopes[0])
    t = t_quantile(0.95, arms.noise.dof)
    exponent, mean = lines[0].tolist()
    exponent_half, mean_half = (t * lines.std(axis=0, ddof=1)).tolist()
    at = arms.each(sizes, ratios[0], t * ratios[known].std(axis=0, ddof=1))
    ends = (exponent - exponent_half, exponent + exponent_half)
    return Worth(
        value=math.exp(mean),
        ci95=_around(mean, mean_half),
        exponent=exponent,
        exponent_ci95=ends,
        verdict=_verdict(mean, ends),
        noise=arms.noise.sd,
        dof=arms.noise.dof,
        at=at,
    )


def _around(log: float, half: float) -> Interval:
    """Ends a million times a million away are as good as any beyond."""
    half = min(half, 2 * MOST_LOG)
    return math.exp(log - half), math.exp(log + half)


def _verdict(mean: float, ends: Interval) -> str:
    """How the worth moves with size, by the exponent's interval: it holds where at ten times the
    compute at least half of it is left, at most half as much again has come to it, and it has at
    most doubled or halved."""
    low, high = ends
    if max(-low, high) <= min(HALF_LEFT * abs(mean), DOUBLED):
        return STAYS
    if mean < 0:
        low, high = -high, -low
    if low > 0:
        return GROWS
    return FADES if high < 0 else UNDECIDED
