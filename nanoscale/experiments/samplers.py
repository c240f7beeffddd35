"""What Optuna does for a search: the next values, the importance of keys, a journal to look at.

Everything is made anew for every use and told all that is known, so what it answers is a function
of that, the seed and the trial's number alone.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from nanoscale.errors import UserError
from nanoscale.experiments.records import Row
from nanoscale.experiments.space import Dimension, five_digits

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

SAMPLERS = ("random", "tpe", "gp", "cma")
STARTUP = 10  # trials drawn at random before a sampler is asked

Space = Mapping[str, Dimension]
Distributions = dict[str, "BaseDistribution"]


@dataclass(frozen=True)
class Told:
    """What is known of one point: its loss at every rung that it has reached, all finite."""

    values: Row
    losses: Sequence[float]
    whole: bool  # it has reached the last
    running: bool = False

    def as_optuna(self, distributions: Distributions) -> optuna.trial.FrozenTrial:
        """A whole trial, a stopped one or a running one."""
        from optuna.trial import TrialState, create_trial

        state = TrialState.PRUNED
        if self.running and not self.losses:
            state = TrialState.RUNNING
        elif self.whole:
            state = TrialState.COMPLETE
        return create_trial(
            state=state,
            params=dict(self.values),
            distributions=distributions,
            value=self.losses[-1] if state == TrialState.COMPLETE else None,
            intermediate_values=dict(enumerate(self.losses)),
        )


class Sampler:
    """Optuna's sampler of that name, for the trials of one search."""

    def __init__(self, name: str, space: Space, seed: int) -> None:
        self.name = name
        self.space = space
        self.seed = seed
        self._cma: optuna.Study | None = None
        self._asked: dict[int, optuna.Trial] = {}  # of CMA-ES, by the trial's number

    def propose(self, number: int, told: Iterable[Told]) -> Row:
        """The values of trial `number`."""
        with quiet():
            trials = as_trials(told, self.space)
            asked = self._study(number, trials).ask(distributions_of(self.space))
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

    def _study(self, number: int, trials: list[optuna.trial.FrozenTrial]) -> optuna.Study:
        """A new study with a new sampler: one object used twice mixes its streams.

        CMA-ES has a state of its own: one study per call, begun from the best tenth so far.
        """
        import optuna
        from optuna import samplers

        if self._cma is not None:
            return self._cma
        seed = int(uniform(self.seed, number, "sampler") * 2**31)
        if self.name == "cma":
            done = [trial for trial in trials if trial.state.name == "COMPLETE"]
            source = done if len(done) >= STARTUP else None
            cma = samplers.CmaEsSampler(seed=seed, n_startup_trials=0, source_trials=source)
            self._cma = optuna.create_study(sampler=cma)
            return self._cma

        sampler: samplers.BaseSampler = samplers.TPESampler(
            seed=seed, n_startup_trials=0, multivariate=True, constant_liar=True
        )
        if self.name == "gp":
            sampler = samplers.GPSampler(
                seed=seed, n_startup_trials=0, deterministic_objective=False
            )
        study = optuna.create_study(sampler=sampler)
        study.add_trials(trials)
        return study


def importance_of(space: Space, results: Sequence[tuple[Row, float]]) -> dict[str, float] | None:
    """Key -> its share in what separates the best tenth of the (values, loss) from the others.

    Source: PED-ANOVA (Watanabe et al. 2023), as Optuna has it; None for few trials.
    """
    if find_spec("optuna") is None or len(results) < 2 * STARTUP:
        return None
    with quiet():
        import optuna

        study = optuna.create_study()
        told = [Told(values, [loss], whole=True) for values, loss in results]
        study.add_trials(as_trials(told, space))
        return optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
        )


def write_journal(path: Path, name: str, space: Space, told: Iterable[Told]) -> None:
    """The trials as an Optuna journal, for its dashboard; the runs are the truth."""
    with quiet():
        import optuna
        from optuna.storages.journal import JournalFileBackend

        path.unlink(missing_ok=True)
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(path)))
        study = optuna.create_study(study_name=name, storage=storage)
        study.add_trials(as_trials(told, space))


def distributions_of(space: Space) -> Distributions:
    """The space as Optuna says it."""
    return {key: dimension.optuna() for key, dimension in space.items()}


def as_trials(told: Iterable[Told], space: Space) -> list[optuna.trial.FrozenTrial]:
    distributions = distributions_of(space)
    return [point.as_optuna(distributions) for point in told]


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
