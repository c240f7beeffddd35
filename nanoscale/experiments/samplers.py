"""What Optuna does for a search: the next values, the importance of keys.

Everything is made anew for every use and told all that is known, so what it answers is a function
of that, the seed and the trial's number alone.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from nanoscale.errors import UserError
from nanoscale.experiments.space import Dimension, five_digits
from nanoscale.spec.values import Overrides

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

SAMPLERS = ("random", "tpe", "gp", "cma")
STARTUP = 10  # trials drawn at random before a sampler is asked

Space = Mapping[str, Dimension]
Result = tuple[Overrides, float]  # a run's values and its loss


@dataclass(frozen=True)
class Told:
    """What is known of one point: its loss at every rung that it has reached, all finite."""

    values: Overrides
    losses: Sequence[float]
    whole: bool  # it has reached the last
    running: bool = False

    def as_optuna(self, distributions: dict[str, BaseDistribution]) -> FrozenTrial:
        """A whole trial, a stopped one or a running one."""
        from optuna.trial import TrialState, create_trial

        state, loss = TrialState.PRUNED, None
        if self.running and not self.losses:
            state = TrialState.RUNNING
        elif self.whole:
            state, loss = TrialState.COMPLETE, self.losses[-1]
        return create_trial(
            state=state,
            params=dict(self.values),
            distributions=distributions,
            value=loss,
            intermediate_values=dict(enumerate(self.losses)),
        )


@dataclass
class Sampler:
    """Optuna's sampler of that name, for the trials of one search."""

    name: str
    space: Space
    seed: int
    _cma: optuna.Study | None = None
    _asked: dict[int, optuna.Trial] = field(default_factory=dict)  # of CMA-ES, by trial number

    def propose(self, number: int, told: Iterable[Told], again: int = 0) -> Overrides:
        """The values of trial `number`; others, when asked for it `again`."""
        with quiet():
            asked = self._study(number, told, again).ask(distributions_of(self.space))
        if self.name == "cma":
            self._asked[number] = asked
        values = dict(asked.params)
        for key, value in values.items():
            if isinstance(value, float):
                values[key] = five_digits(value)
        return values

    def tell(self, number: int, loss: float | None) -> None:
        """How a trial ended, for a sampler that has a state; None: no loss, or none that counts."""
        asked = self._asked.pop(number, None)
        if asked is not None and self._cma is not None:
            from optuna.trial import TrialState

            state = TrialState.FAIL if loss is None else None
            self._cma.tell(asked, loss, state=state)

    def _study(self, number: int, told: Iterable[Told], again: int) -> optuna.Study:
        """A new study with a new sampler: one object used twice mixes its streams.

        CMA-ES has a state of its own: one study per call, begun from the best tenth so far.
        """
        from optuna import create_study, samplers
        from optuna.trial import TrialState

        if self._cma is not None:
            return self._cma
        name = f"sampler {again}" if again else "sampler"
        seed = int(uniform(self.seed, number, name) * 2**31)
        if self.name == "cma":
            done = study_of(told, self.space).get_trials(states=[TrialState.COMPLETE])
            source = done if len(done) >= STARTUP else None
            cma = samplers.CmaEsSampler(seed=seed, n_startup_trials=0, source_trials=source)
            self._cma = create_study(sampler=cma)
            return self._cma

        sampler: samplers.BaseSampler = samplers.TPESampler(
            seed=seed, n_startup_trials=0, multivariate=True, constant_liar=True
        )
        if self.name == "gp":
            sampler = samplers.GPSampler(
                seed=seed, n_startup_trials=0, deterministic_objective=False
            )
        return study_of(told, self.space, sampler=sampler)


def importance_of(space: Space, results: Sequence[Result]) -> dict[str, float] | None:
    """Key -> its share in what separates the best tenth of the (values, loss) from the others.

    Source: PED-ANOVA (Watanabe et al. 2023), as Optuna has it; None for few trials.
    """
    if find_spec("optuna") is None or len(results) < 2 * STARTUP:
        return None
    with quiet():
        from optuna import importance

        told = [Told(values, [loss], whole=True) for values, loss in results]
        evaluator = importance.PedAnovaImportanceEvaluator()
        study = study_of(told, space)
        shares: dict[str, float] = importance.get_param_importances(study, evaluator=evaluator)
        return shares


def distributions_of(space: Space) -> dict[str, BaseDistribution]:
    """The space as Optuna says it."""
    return {key: dimension.optuna() for key, dimension in space.items()}


def study_of(told: Iterable[Told], space: Space, **options: Any) -> optuna.Study:
    """A new study of Optuna's that knows these points; `options` are of `create_study`."""
    import optuna

    study = optuna.create_study(**options)
    distributions = distributions_of(space)
    study.add_trials([point.as_optuna(distributions) for point in told])
    return study


def uniform(seed: int, number: int, key: str) -> float:
    """A number in [0, 1) that depends on its three names alone."""
    digest = hashlib.sha256(f"{seed} {number} {key}".encode()).digest()
    return int.from_bytes(digest[:8], "little") / 2**64


def need_optuna(sampler: str) -> None:
    """Refuse a sampler whose package is not here, before anything is written."""
    needed = {"random": (), "gp": ("optuna", "scipy", "torch"), "cma": ("optuna", "cmaes")}
    for name in needed.get(sampler, ("optuna",)):
        if find_spec(name) is None:
            raise UserError(
                f"sampler={sampler!r} needs {name}: pip install 'nanoscale[hpo]', or take 'random'"
            )


@contextmanager
def quiet() -> Iterator[None]:
    """Without Optuna's lines per trial and its notes on what is experimental."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
