"""Which of several settings may be the best one, from their losses by seed.

The one idea: a setting is out of the running only if another is surely better, and the level is
that of the whole choice. This is screening to the best (Nelson, Swann, Goldsman and Song 2001,
Operations Research 49), the subset selection behind Hsu's multiple comparisons with the best, for
unequal noise: each setting is held against every better one by a one-sided t, of pairs where seeds
are shared, else Welch's, at 5 % over the number of the others (Bonferroni). So the setting that is
truly best stays with a probability of at least 95 %, whatever the settings' noise and whatever they
share; one variance pooled over them, as Hsu's own, loses that where the best is noisier.
"""

from __future__ import annotations

from collections.abc import Sequence

from nanoscale.checks.drift import UNKNOWN
from nanoscale.checks.paired import Losses, Sample, difference_of
from nanoscale.checks.seed_shifts import Interval
from nanoscale.checks.t_distribution import t_quantile

_LEVEL = 0.05


def mean_interval(losses: Losses) -> Interval:
    """Student's 95 % interval of the mean over seeds; UNKNOWN from fewer than two."""
    if len(losses) < 2:
        return UNKNOWN
    sample = Sample.of([losses])
    half = t_quantile(1 - _LEVEL, sample.n - 1) * sample.se
    return sample.mean - half, sample.mean + half


def may_be_best(settings: Sequence[Losses]) -> list[bool]:
    """Which settings, in the order of their means, no other is surely better than.

    With one seed a setting cannot be told from any: True.
    """
    share = _LEVEL / max(len(settings) - 1, 1)
    stays = []
    for place, losses in enumerate(settings):
        beaten = any(_surely_better(better, losses, share) for better in settings[:place])
        stays.append(not beaten)
    return stays


def _surely_better(better: Losses, losses: Losses, level: float) -> bool:
    difference = difference_of([(better, losses)])
    return difference.known and difference.value > 0 and difference.p / 2 < level
