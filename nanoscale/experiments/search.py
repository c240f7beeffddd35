"""Searches: which config to try next, given what is known; random, or by Optuna's samplers.

The one idea: a proposal is a function of the seed, the trial's number and the results so far, made
by a sampler that is told all of them anew each time. So nothing has to be kept but runs: the same
call goes on where it was, and knows what other studies have found.

Rungs (successive halving, Jamieson and Talwalkar 2016) are lengths of WSD runs. Trials begin at the
shortest; when all have, the best go on from the step at which their cooldown began. So trials are
compared by annealed losses at equal length: inside one decay a low learning rate looks good early.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanoscale.errors import UserError, one_of
from nanoscale.experiments.records import SearchOutcome, TrialResult
from nanoscale.experiments.space import Dimension, five_digits

if TYPE_CHECKING:
    import optuna

SAMPLERS = ("random", "tpe", "gp", "cma")
STARTUP = 10  # trials drawn at random before a sampler is asked
WORSE = 1.0  # nats above the worst finite loss: what a diverged run counts as


@dataclass
class Trial:
    """One point of the space: its values, and its loss at every rung it has reached."""

    number: int
    values: dict[str, Any]
    losses: list[float] = field(default_factory=list)  # inf: diverged
    running: bool = True  # at rung len(losses)
    failed: bool = False

    @property
    def diverged(self) -> bool:
        return bool(self.losses) and math.isinf(self.losses[-1])


@dataclass(frozen=True)
class SearchPlan:
    """What a search is: its space, how many trials in all, the sampler, the rungs."""

    space: Mapping[str, Dimension]
    trials: int
    sampler: str = "tpe"
    seed: int = 0
    rungs: Sequence[int] = (0,)  # updates; (0,): one rung, the base's own length
    promote: float = 1 / 3  # share of a rung's trials that go on
    proxy: Mapping[str, Any] = field(default_factory=dict)  # what makes trials small
    seeds: Sequence[int] = ()  # with which the best values are trained anew, at the base's size

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise UserError(f"sampler={self.sampler!r}: choose {one_of(SAMPLERS)}")
        if not isinstance(self.trials, int) or self.trials < 1:
            raise UserError(f"trials={self.trials!r}: expected a whole number, at least 1")
        if list(self.rungs) != sorted(set(self.rungs)) or not all(
            isinstance(n, int) and n >= 0 for n in self.rungs
        ):
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
        if not all(isinstance(n, int) and n >= 0 for n in self.seeds):
            raise UserError(
                f"seeds={list(self.seeds)}: expected a list of whole numbers, as in [1, 2, 3]"
            )
        both = sorted(set(self.proxy) & set(self.space))
        if both:
            raise UserError(
                f"{both[0]} is a key of the proxy and of the space; a trial has one value of it"
            )
        if self.proxy and not self.seeds:
            raise UserError(
                "a proxy is searched for the sake of a target: give the seeds with "
                "which the best values are trained there, as in seeds=[1, 2, 3]"
            )

    def promoted(self, done: int) -> int:
        """How many of `done` trials of a rung go on."""
        return max(1, math.floor(done * self.promote + 1e-9))

    def to_json(self) -> dict[str, Any]:
        """Plain types, for a study's record."""
        space = {
            key: list(one.choices)
            if one.choices
            else {"low": one.low, "high": one.high, "log": one.log}
            for key, one in self.space.items()
        }
        return {
            "space": space,
            "trials": self.trials,
            "sampler": self.sampler,
            "seed": self.seed,
            "rungs": list(self.rungs),
            "promote": self.promote,
            "proxy": dict(self.proxy),
            "seeds": list(self.seeds),
        }

    def expected(self, costs: Sequence[int]) -> tuple[int, float]:
        """About how many runs, and how many FLOPs, if each rung adds `costs`."""
        counts = [self.trials]
        for _ in costs[1:]:
            counts.append(self.promoted(counts[-1]))
        return sum(counts), float(sum(n * cost for n, cost in zip(counts, costs, strict=True)))


class Search:
    """The trials of a plan, and what is known beside them."""

    def __init__(
        self, plan: SearchPlan, known: Sequence[tuple[Mapping[str, Any], float]] = ()
    ) -> None:
        self.plan = plan
        self.known = [(dict(values), loss) for values, loss in known]
        self.trials: list[Trial] = []
        self.asked: dict[int, Callable[[float | None], None]] = {}  # who wants to hear of a trial
        self._cma: optuna.Study | None = None

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

    def add(self, values: Mapping[str, Any]) -> Trial:
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
            done = sorted(
                (t for t in self.trials if len(t.losses) > rung and not t.failed),
                key=lambda t: (t.losses[rung], t.number),
            )
            for trial in done[: self.plan.promoted(len(done))]:
                if len(trial.losses) == rung + 1 and not trial.running and not trial.diverged:
                    return trial
        return None

    def tell(self, trial: Trial, loss: float | None) -> None:
        """A trial's loss at the rung it ran; inf if it diverged, None if it failed."""
        trial.running = False
        if loss is None:
            trial.failed = True
        else:
            trial.losses.append(loss)
        if trial.number in self.asked:
            self.asked.pop(trial.number)(loss)

    def best(self) -> Trial | None:
        """The trial of lowest loss among those that came furthest."""
        done = [t for t in self.trials if t.losses and not t.diverged]
        return min(done, key=lambda t: (-len(t.losses), t.losses[-1]), default=None)

    def outcome(self) -> SearchOutcome:
        """What has been found so far."""
        results = [TrialResult(t.values, t.losses) for t in self.trials if t.losses]
        return SearchOutcome(results, self.importance())

    def importance(self) -> dict[str, float] | None:
        """Key -> its share in what separates the best tenth of the trials from the others.

        Source: PED-ANOVA (Watanabe et al. 2023), as Optuna has it; None for few trials.
        """
        from importlib.util import find_spec

        whole = [t for t in self.trials if t.losses and not t.diverged]
        if find_spec("optuna") is None or len(whole) < 2 * STARTUP:
            return None
        with quiet():
            import optuna

            study = optuna.create_study()
            distributions = {key: one.optuna() for key, one in self.plan.space.items()}
            study.add_trials(
                [
                    optuna.trial.create_trial(
                        params=t.values, distributions=distributions, value=t.losses[0]
                    )
                    for t in whole
                ]
            )
            return optuna.importance.get_param_importances(
                study, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
            )

    # -- values -----------------------------------------------------------------------------------
    def draw(self, number: int) -> dict[str, Any]:
        """The values of trial `number`."""
        if self.plan.sampler == "random" or number + len(self.known) < STARTUP:
            return {
                key: dimension.at(uniform(self.plan.seed, number, key))
                for key, dimension in self.plan.space.items()
            }
        with quiet():
            params = self._ask(number)
        return {
            key: five_digits(value) if isinstance(value, float) else value
            for key, value in params.items()
        }

    def _ask(self, number: int) -> dict[str, Any]:
        import optuna

        distributions = {key: one.optuna() for key, one in self.plan.space.items()}
        if self.plan.sampler == "cma":
            return self._ask_cma(number, distributions)
        study = optuna.create_study(sampler=self._sampler(number))
        study.add_trials(self.as_optuna())
        return study.ask(distributions).params

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """A new sampler for one proposal: one object used twice mixes its streams."""
        from optuna import samplers

        seed = int(uniform(self.plan.seed, number, "sampler") * 2**31)
        if self.plan.sampler == "gp":
            return samplers.GPSampler(seed=seed, n_startup_trials=0, deterministic_objective=False)
        return samplers.TPESampler(
            seed=seed, n_startup_trials=0, multivariate=True, constant_liar=True
        )

    def _ask_cma(self, number: int, distributions: dict[str, Any]) -> dict[str, Any]:
        """CMA-ES has a state of its own: one study per call, begun from the best tenth so far."""
        import optuna

        if self._cma is None:
            done = [t for t in self.as_optuna() if t.state.name == "COMPLETE"]
            sampler = optuna.samplers.CmaEsSampler(
                seed=int(uniform(self.plan.seed, number, "sampler") * 2**31),
                n_startup_trials=0,
                source_trials=done if len(done) >= STARTUP else None,
            )
            self._cma = optuna.create_study(sampler=sampler)
        asked = self._cma.ask(distributions)

        def hear(loss: float | None) -> None:
            failed = loss is None or not math.isfinite(loss)
            state = optuna.trial.TrialState.FAIL if failed else None
            self._cma.tell(asked, None if failed else loss, state=state)

        self.asked[number] = hear
        return asked.params

    def as_optuna(self) -> list[optuna.trial.FrozenTrial]:
        """Everything known, as Optuna's trials: whole ones, stopped ones, running ones."""
        from optuna.trial import TrialState, create_trial

        distributions = {key: one.optuna() for key, one in self.plan.space.items()}
        finite = [t.losses[-1] for t in self.trials if t.losses and not t.diverged]
        finite += [loss for _, loss in self.known if math.isfinite(loss)]
        worst = max(finite, default=0.0) + WORSE

        def told(
            values: Mapping[str, Any], losses: Sequence[float], running: bool, whole: bool
        ) -> optuna.trial.FrozenTrial:
            shown = [loss if math.isfinite(loss) else worst for loss in losses]
            state = (
                TrialState.RUNNING
                if running and not losses
                else TrialState.COMPLETE
                if whole
                else TrialState.PRUNED
            )
            return create_trial(
                state=state,
                params=dict(values),
                distributions=distributions,
                value=shown[-1] if state == TrialState.COMPLETE else None,
                intermediate_values=dict(enumerate(shown)),
            )

        found = [told(values, [loss], False, True) for values, loss in self.known]
        top = len(self.plan.rungs)
        return found + [
            told(t.values, t.losses, t.running, len(t.losses) == top)
            for t in self.trials
            if not t.failed
        ]

    def write_journal(self, path: Path, name: str) -> None:
        """The trials as an Optuna journal, for its dashboard; the runs are the truth."""
        import optuna
        from optuna.storages.journal import JournalFileBackend

        with quiet():
            path.unlink(missing_ok=True)
            storage = optuna.storages.JournalStorage(JournalFileBackend(str(path)))
            optuna.create_study(study_name=name, storage=storage).add_trials(self.as_optuna())


def uniform(seed: int, number: int, key: str) -> float:
    """A number in [0, 1) that depends on its three names alone."""
    digest = hashlib.sha256(f"{seed} {number} {key}".encode()).digest()
    return int.from_bytes(digest[:8], "little") / 2**64


def need_optuna(sampler: str) -> None:
    """Refuse a sampler whose package is not here, before anything is written."""
    from importlib.util import find_spec

    needed = {"random": (), "gp": ("optuna", "scipy", "torch"), "cma": ("optuna", "cmaes")}
    missing = [name for name in needed.get(sampler, ("optuna",)) if find_spec(name) is None]
    if missing:
        raise UserError(
            f"sampler={sampler!r} needs {missing[0]}: pip install 'nanoscale[hpo]', or "
            "take 'random'"
        )


class quiet(warnings.catch_warnings):
    """Without Optuna's lines per trial and its notes on what is experimental."""

    def __enter__(self) -> None:
        import optuna

        super().__enter__()
        warnings.simplefilter("ignore")
        optuna.logging.set_verbosity(optuna.logging.ERROR)
