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

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from nanoscale.data.gauge import each
from nanoscale.errors import UserError, nearest_or_all, one_of
from nanoscale.laws.fit import LawFit
from nanoscale.laws.forms import number
from nanoscale.laws.points import Points
from nanoscale.laws.profile_search import Profile, ProfileSearch, ProfileSide
from nanoscale.laws.record import Record
from nanoscale.spec.values import Json

_LEVEL = 0.95
NOISES = ("equal", "own")
_UNEQUAL = 1.3  # times too narrow an interval that is worth a warning


@dataclass(frozen=True)
class Profiles(Record):
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
        return {name: profile.ends for name, profile in self.profiles.items()}

    def to_json(self) -> dict[str, Json]:
        """Plain types; `ci` and `text` besides the fields."""
        return super().to_json() | {"ci": self.ci(), "text": self.text()}

    def text(self) -> list[str]:
        """A line for each parameter."""
        width = max(map(len, self.profiles))
        lines = []
        for name, profile in self.profiles.items():
            low, high = ["open" if end is None else f"{end:.4g}" for end in profile.ends]
            line = f"  {name:{width}}  {number(profile.value)} [{low}, {high}]"
            reasons = [side.reason for side in (profile.low, profile.high) if side.reason]
            if reasons:
                line += f"  ({'; '.join(reasons)})"
            lines.append(line)
        return lines


def profile_law(
    fit: LawFit,
    columns: Mapping[str, Iterable[float]],
    loss: Iterable[float],
    *,
    drop_worst: int = 0,
    names: Sequence[str] | None = None,
    level: float = _LEVEL,
    noise: str = "equal",
    groups: Iterable[object] | None = None,
) -> Profiles:
    """Profile-likelihood intervals of the parameters and exponents of `fit`.

    Source: Heritier and Ronchetti 1994; `own` noise as in Chandler and Bate 2007.

    columns, loss (n,), drop_worst: as given to `fit_law`. names: which; all by default. noise:
    equal, of one scale, or own, each point its own (each of `groups` (n,), where several points
    are of one run). Raises `UserError` for a name that is not of the fit, a level that is not
    between 0 and 1, or a noise of neither kind.
    """
    _check(level, noise)
    points = Points.of(fit.form, columns, loss, drop_worst)
    wanted = _wanted(fit, names)
    n = len(points.loss)
    index = np.arange(n) if groups is None else points.groups(groups)

    dof = n - len(fit.form.names)
    if noise == "own":
        dof = min(dof, int(index.max()))
    students_t = float(stdtrit(dof, (1 + level) / 2))  # two-sided
    threshold = students_t**2

    profiles = {}
    searches = []
    distinct = dict.fromkeys("a" if name == "b" else name for name in wanted)
    for name in each([*distinct], "profiles"):
        search = ProfileSearch.of(fit, name, points, index, threshold)
        if noise == "own":
            search.wide = search.widening
        profiles[name] = search.interval()
        searches.append(search)
    if "b" in wanted:
        profiles["b"] = _mirrored(profiles["a"])
    return Profiles(
        law=fit.law,
        objective_name=fit.objective_name,
        level=level,
        threshold=threshold,
        n_points=n,
        noise=noise,
        profiles={name: profiles[name] for name in wanted},
        warnings=_warnings(noise, searches),
    )


def _check(level: float, noise: str) -> None:
    if not 0 < level < 1:
        raise UserError(f"level = {level:g}: expected a share such as 0.95")
    if noise not in NOISES:
        raise UserError(f"noise {noise!r}: choose {one_of(NOISES)}")


def _wanted(fit: LawFit, names: Sequence[str] | None) -> list[str]:
    known = [*fit.form.names, *fit.exponents]
    if names is None:
        return known
    for name in names:
        if name not in known:
            raise UserError(f"parameter {name!r}: not of this fit{nearest_or_all(name, known)}")
    return list(names)


def _warnings(noise: str, searches: list[ProfileSearch]) -> list[str]:
    warnings = []
    lost = sum(search.lost for search in searches)
    if lost:
        warnings.append(f"{lost} refits did not converge: an end may be too near")
    widest = max(searches, key=lambda search: search.widening, default=None)
    if widest and noise == "equal" and widest.widening > _UNEQUAL:
        warnings.append(
            f"residuals are not of one size: with noise='own' the interval of {widest.name} is "
            f"{widest.widening:.1f} times as wide"
        )
    return warnings


def _mirrored(a: Profile) -> Profile:
    """That of b = 1 - a."""
    return Profile(
        name="b",
        value=1 - a.value,
        low=_mirrored_side(a.high),
        high=_mirrored_side(a.low),
        held=[1 - value for value in reversed(a.held)],
        ratio=a.ratio[::-1],
    )


def _mirrored_side(side: ProfileSide) -> ProfileSide:
    end = None if side.end is None else 1 - side.end
    return ProfileSide(end, side.reason.replace("a =", "1 - b ="))
