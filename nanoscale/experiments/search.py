"""Searches: which config to try next, given what is known.

The one idea: a proposal is a function of the seed, the trial's number and the results so far (see
`samplers`). So nothing has to be kept but runs: the same call goes on where it was, and knows what
other studies have found.

Rungs (successive halving, Jamieson and Talwalkar 2016) are lengths of WSD runs. Trials begin at the
shortest; when all have, the best go on from the step at which their cooldown began. So trials are
compared by annealed losses at equal length: inside one decay a low learning rate looks good early.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nanoscale.errors import UserError, one_of
from nanoscale.experiments.progress import Expected
from nanoscale.experiments.records import SearchOutcome, TrialResult
from nanoscale.experiments.samplers import (
    SAMPLERS,
    STARTUP,
    Result,
    Sampler,
    Space,
    Told,
    importance_of,
    uniform,
)
from nanoscale.spec.values import Json, Overrides

MOST_DRAWS = 300  # of one trial, until one makes a run
MOST_ASKED = 3  # proposals of a sampler for one trial; then it is drawn at random
WORSE = 1.0  # nats above the worst finite loss: what a diverged run counts as


@dataclass(frozen=True)
class SearchPlan:
    """What a search is: its space, how many trials in all, the sampler, the rungs.

    Raises:
        UserError: these make no search.
    """

    space: Space
    trials: int
    sampler: str = "tpe"
    seed: int = 0
    rungs: Sequence[int] = (0,)  # updates; (0,): one rung, the base's own length
    promote: float = 1 / 3  # share of a rung's trials that go on
    proxy: Overrides = field(default_factory=dict)  # what makes trials small
    seeds: Sequence[int] = ()  # with which the best values are trained anew, at the base's size

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise UserError(f"sampler={self.sampler!r}: choose {one_of(SAMPLERS)}")
        check_count("trials", self.trials, 1)
        if not _are_whole(self.rungs) or list(self.rungs) != sorted(set(self.rungs)):
            raise UserError(
                f"rungs={list(self.rungs)}: expected growing numbers of updates, as in "
                "[250, 500, 1000]"
            )
        if not 0 < self.promote < 1:
            raise UserError(f"promote={self.promote}: expected a share between 0 and 1")
        if self.sampler in ("gp", "cma") and len(self.rungs) > 1:
            raise UserError(
                f"sampler={self.sampler!r} learns from whole trials only; leave rungs "
                "out, or take 'tpe'"
            )
        self._check_target()

    def _check_target(self) -> None:
        if not _are_whole(self.seeds):
            raise UserError(
                f"seeds={list(self.seeds)}: expected a list of whole numbers, as in [1, 2, 3]"
            )
        if len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"seeds={list(self.seeds)}: one stands there twice; give each once")
        for key in sorted(self.proxy):
            if key in self.space:
                raise UserError(
                    f"{key} is a key of the proxy and of the space; a trial has one value of it"
                )
        if self.proxy and not self.seeds:
            raise UserError(
                "a proxy is searched for the sake of a target: give the seeds with "
                "which the best values are trained there, as in seeds=[1, 2, 3]"
            )

    @property
    def has_rungs(self) -> bool:
        return any(self.rungs)

    def promoted(self, done: int) -> int:
        """How many of `done` trials of a rung go on."""
        return max(1, math.floor(done * self.promote + 1e-9))

    def to_json(self) -> dict[str, Json]:
        """Plain types, for a study's record."""
        space = {key: dimension.to_json() for key, dimension in self.space.items()}
        lists = {"rungs": list(self.rungs), "seeds": list(self.seeds)}
        return {**vars(self), "space": space, **lists}


def check_count(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or value < least:
        raise UserError(f"{name}={value!r}: expected a whole number, at least {least}")


def _finite(losses: Sequence[float], worst: float) -> list[float]:
    return [loss if math.isfinite(loss) else worst for loss in losses]


def _are_whole(numbers: Sequence[object]) -> bool:
    return all(isinstance(n, int) and n >= 0 for n in numbers)


@dataclass
class Trial:
    """One point of the space: its values, and its loss at every rung it has reached."""

    number: int
    values: Overrides
    losses: list[float] = field(default_factory=list)  # inf: diverged
    running: bool = True  # at rung len(losses)
    failed: bool = False

    @property
    def diverged(self) -> bool:
        return bool(self.losses) and math.isinf(self.losses[-1])


def anything(values: Overrides) -> bool:
    """Of a space in which all values go together."""
    return True


class Search:
    """The trials of a plan, and what is known beside them: values and losses of other runs.

    `possible` says which values make a run; others are never proposed, but drawn or asked for anew.
    """

    def __init__(
        self,
        plan: SearchPlan,
        known: Sequence[Result] = (),
        possible: Callable[[Overrides], bool] = anything,
    ) -> None:
        self.plan = plan
        self.known = known
        self.possible = possible
        self.trials: list[Trial] = []
        self.sampler = Sampler(plan.sampler, plan.space, plan.seed)

    # -- what next ------------------------------------------------------------------------------
    def propose(self) -> Trial | None:
        """A trial to run at its next rung: one that has earned it, or a new one; None: none now."""
        earned = self.promotable()
        if earned is not None:
            earned.running = True
            return earned
        if len(self.trials) >= self.plan.trials:
            return None
        return self.add(self.draw(len(self.trials)))

    def draw(self, number: int) -> Overrides:
        """The values of trial `number`."""
        if self.plan.sampler != "random" and number + len(self.known) >= STARTUP:
            for again in range(MOST_ASKED):
                values = self.sampler.propose(number, self.told(), again)
                if self.possible(values):
                    return values
                self.sampler.tell(number, None)
        return self.draw_at_random(number)

    def draw_at_random(self, number: int) -> Overrides:
        """The first possible values of those that the seed has for trial `number`.

        Raises:
            UserError: none of many is possible.
        """
        values = {}
        for again in range(MOST_DRAWS):
            for key, axis in self.plan.space.items():
                name = f"{key} {again}" if again else key
                values[key] = axis.at(uniform(self.plan.seed, number, name))
            if self.possible(values):
                return values
        raise UserError(f"none of {MOST_DRAWS} points of the space makes a run, as {values}")

    def add(self, values: Overrides) -> Trial:
        """A new trial at given values."""
        trial = Trial(len(self.trials), dict(values))
        self.trials.append(trial)
        return trial

    def promotable(self) -> Trial | None:
        """The best trial of the lowest rung with some to go on; none before a rung is done."""
        if len(self.trials) < self.plan.trials:
            return None
        for rung in range(len(self.plan.rungs) - 1):
            if any(t.running and len(t.losses) <= rung for t in self.trials):
                return None
            done = [t for t in self.trials if len(t.losses) > rung and not t.failed]
            done.sort(key=lambda t: t.losses[rung])  # stable: of equal ones the first
            for trial in done[: self.plan.promoted(len(done))]:
                if len(trial.losses) == rung + 1 and not trial.running and not trial.diverged:
                    return trial
        return None

    def left(self, costs: Sequence[float]) -> Expected:
        """The work that is still to be begun if each rung adds `costs` FLOPs to a trial."""
        live = [trial for trial in self.trials if not trial.failed]
        reach = self.plan.trials - len(self.trials) + len(live)
        runs = 0
        flops = 0.0
        for rung, cost in enumerate(costs):
            begun = [t for t in live if len(t.losses) + t.running > rung]
            more = max(0, reach - len(begun))
            runs += more
            flops += more * cost
            ended_here = [t for t in live if t.diverged and len(t.losses) == rung + 1]
            promoted = self.plan.promoted(reach) if reach else 0
            reach = min(promoted, reach - len(ended_here))
        return Expected(runs, flops)

    def tell(self, trial: Trial, loss: float | None) -> None:
        """A trial's loss at the rung it ran; inf if it diverged, None if it failed."""
        trial.running = False
        if loss is None:
            trial.failed = True
        else:
            trial.losses.append(loss)
        self.sampler.tell(trial.number, None if loss == math.inf else loss)

    # -- what is known --------------------------------------------------------------------------
    def best(self) -> Trial | None:
        """The trial of lowest loss among those that came furthest."""
        return min(self.finite(), key=lambda t: (-len(t.losses), t.losses[-1]), default=None)

    def told(self) -> list[Told]:
        """Everything known: of other studies, and every trial that has not failed."""
        finite = [loss for _, loss in self.known if math.isfinite(loss)]
        finite += [t.losses[-1] for t in self.finite()]
        worst = max(finite, default=0.0) + WORSE

        points = [Told(values, _finite([loss], worst), True) for values, loss in self.known]
        for t in self.trials:
            if not t.failed:
                whole = len(t.losses) == len(self.plan.rungs)
                points.append(Told(t.values, _finite(t.losses, worst), whole, t.running))
        return points

    def outcome(self) -> SearchOutcome:
        """What has been found so far."""
        results = [TrialResult(t.values, t.losses) for t in self.trials if t.losses]
        first = [(t.values, t.losses[0]) for t in self.finite()]
        return SearchOutcome(results, importance_of(self.plan.space, first))

    def finite(self) -> list[Trial]:
        """The trials that have a loss and have not diverged."""
        return [t for t in self.trials if t.losses and not t.diverged]
