"""What a planned study will be able to say, before any of it is trained.

Worlds are drawn from a law held to be true and fitted as `nanoscale fit` would; what is asked of
each is answered with the width to expect, and the run that would narrow it most is sought.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nanoscale.errors import UserError, nearest_or_all
from nanoscale.laws import LAWS, fit_law, law_of
from nanoscale.laws.arrays import Array
from nanoscale.laws.bootstrap import METHODS
from nanoscale.laws.design import CHINCHILLA_TRUTH, Design, DesignAnswer, simulate
from nanoscale.laws.forms import Law
from nanoscale.laws.influence import USUAL_DELTA
from nanoscale.laws.information import NextRun, lattice, next_runs
from nanoscale.laws.ladder import HUBER
from nanoscale.laws.points import check_points
from nanoscale.laws.predict import FAR
from nanoscale.laws.questions import LawQuestion, flops
from nanoscale.store.files import read_json
from nanoscale.studies.design_record import AddedRun, ConfirmedRun, DesignRecord, TiedDelta, share
from nanoscale.studies.planned_runs import PlannedRuns, planned_runs
from nanoscale.studies.table_fit import named

USUAL_NOISE = 0.005
FEW_WORLDS = 40  # for a word beforehand
LEAST_FLOOR = 1e-3  # of the lowest loss, in a law that is held to be true
TRUTH_FROM = 4e6  # a tenth of the smallest model that the default truth was fitted to


@dataclass(frozen=True, kw_only=True)
class DesignSettings:
    """What is asked of a plan, and how worlds are drawn and fitted; None: what the plan suggests.

    Attributes:
        n, d, c, group: columns of a table; a study file's are known.
        noise: sd of ln L; seeds: times that each run is made.
        truth: files of stored fits, with commas; question: one of `LawQuestion`, or more with `;`.
        extra: the most FLOPs that a further run may take.
        law, objective, delta, resampling, resamples: see `fit_law`.
    """

    n: str | None = None
    d: str | None = None
    c: str | None = None
    group: str | None = None
    noise: float | None = None
    seeds: int | None = None
    truth: str | None = None
    question: str | None = None
    worlds: int = 200
    resamples: int = 300
    seed: int = 0
    extra: float | None = None
    law: str | None = None
    objective: str = "log-huber"
    delta: float | None = None
    resampling: str | None = None

    def columns(self) -> dict[str, str]:
        """Those that are named."""
        return named(self, ("n", "d", "c", "group"))


def design_study(name: str, settings: DesignSettings) -> DesignRecord:
    """What a planned study will be able to say.

    Args:
        name: a table of runs to make, or a study file, of which nothing is run.

    Raises:
        UserError: there is no such plan, or a setting does not fit it.
    """
    runs = planned_runs(name, settings.columns(), settings.seeds)
    design, notes = design_of(runs, settings)
    questions = _questions(design, settings.question)
    candidates = _candidates(design, settings.extra)
    answers = _simulated(design, questions, settings)
    asked = answers[:1] if settings.question is None else answers
    identified = all(answer.identified for answer in asked)

    ranked = next_runs(design, questions[0], *candidates)
    best = ranked[0]
    cheapest = max(ranked, key=lambda run: run.per_flop)
    confirmed = design.with_points(np.array(best.x)[:, None])
    (then,) = _simulated(confirmed, questions[:1], settings)
    return DesignRecord(
        plan=name,
        status="identified" if identified else "not_identified",
        law=design.form.name,
        truth=dict(zip(design.form.names, design.truths[0].tolist(), strict=True)),
        noise=float(design.noise),
        points=design.x.shape[1],
        cells=int(design.cells.max()) + 1,
        flops=float(runs.values["C"].sum()),
        worlds=settings.worlds,
        rng_seed=settings.seed,
        resamples=design.resamples,
        resampling=design.resampling,
        objective=design.objective,
        delta=design.delta,
        answers={answer.question: answer for answer in answers},
        next_run=ConfirmedRun(_added(design, best), then),
        next_run_per_flop=_added(design, cheapest),
        tied_delta=_tied(design, questions[:1], settings),
        warnings=[*runs.notes, *notes, *design.warnings(), *_doubts(design, answers, questions)],
    )


def width_at(runs: PlannedRuns, question: str, noise: float) -> DesignAnswer:
    """How wide the interval of the answer to a `LawQuestion` will be, by a few worlds."""
    settings = DesignSettings(worlds=FEW_WORLDS, resamples=100, noise=noise)
    design, _ = design_of(runs, settings)
    return _simulated(design, [LawQuestion.parse(question, design.form)], settings)[0]


def _simulated(
    design: Design, questions: Sequence[LawQuestion], settings: DesignSettings
) -> list[DesignAnswer]:
    return simulate(design, questions, worlds=settings.worlds, rng_seed=settings.seed)


def _tied(
    design: Design, questions: Sequence[LawQuestion], settings: DesignSettings
) -> TiedDelta | None:
    """What the delta that the noise asks for would say, where it says more."""
    delta = design.tied_delta
    if delta is None:
        return None
    return TiedDelta(delta, _simulated(replace(design, delta=delta), questions, settings)[0])


def _added(design: Design, run: NextRun) -> AddedRun:
    at = dict(zip(_read(design.form), run.x, strict=True))
    return AddedRun(at, run.cost, run.left, run.per_flop)


# -- the design ---------------------------------------------------------------------------------
def design_of(runs: PlannedRuns, settings: DesignSettings) -> tuple[Design, list[str]]:
    """The planned runs and how they will be fitted, and notes on what is held to be true."""
    fits = []
    usual = "power" if runs.ladder else "chinchilla"
    if settings.truth is not None:
        fits = [StoredTruth.of(name) for name in settings.truth.split(",")]
        usual = fits[0].law
    form = law_of(settings.law or usual)
    if any(fit.law != form.name for fit in fits):
        raise UserError(f"--truth={settings.truth}: not all of the {form.name} law")
    names = _read(form)
    x = np.array([runs.values[name] for name in names])
    check_points(form, names, x)

    noises = (settings.noise, *(fit.noise for fit in fits), USUAL_NOISE)
    noise = next(noise for noise in noises if noise is not None)
    delta = settings.delta
    if delta is None:
        delta = max(USUAL_DELTA, HUBER * noise) if runs.ladder else USUAL_DELTA
    resampling = _resampling(runs, settings.resampling)
    truths = [fit.values(form) for fit in fits] if fits else [_usual_truth(form, x, runs)]
    design = Design(
        form=form,
        x=x,
        truths=np.array(truths),
        noise=noise,
        groups=runs.groups,
        objective=settings.objective,
        delta=delta,
        resampling=resampling,
        resamples=settings.resamples,
    )
    smallest = runs.values["N"].min()
    if fits or smallest >= TRUTH_FROM:
        return design, []
    note = (
        "the default truth is of models from 4e+07 parameters, and the plan's smallest has "
        f"{smallest:.3g}: give a fit of your own runs, as in --truth=fit.json"
    )
    return design, [note]


def _read(form: Law) -> tuple[str, ...]:
    """Which of N, D and C the law reads: C for one of a single predictor."""
    if len(form.predictors) == 1:
        return ("C",)
    missing = [name for name in form.predictors if name not in ("N", "D", "C")]
    if missing:
        raise UserError(f"law {form.name} reads {missing[0]}; a plan has N, D and C")
    return form.predictors


def _resampling(runs: PlannedRuns, method: str | None) -> str:
    if method is None:
        return "parametric" if runs.ladder else "pairs"
    if method not in METHODS:
        raise UserError(f"--resample={method}: no such way{nearest_or_all(method, METHODS)}")
    if method == "cluster" and runs.groups is None:
        raise UserError(
            "--resample=cluster: every planned point is a run of its own; name the run "
            "that each is of, as in --group=run"
        )
    return method


def _usual_truth(form: Law, x: Array, runs: PlannedRuns) -> list[float]:
    """Hoffmann et al.'s law, or of this form the nearest to it at the planned runs."""
    if form.name == "chinchilla":
        return [*CHINCHILLA_TRUTH]
    truth = np.array(CHINCHILLA_TRUTH)
    loss = LAWS["chinchilla"].loss(truth, runs.values["N"], runs.values["D"])
    columns = dict(zip(_read(form), x, strict=True))
    nearest = dict(fit_law(columns, loss, law=form, resamples=0).params)
    for parameter in form.parameters:
        if parameter.kind == "floor":  # which tiny models hardly feel
            least = LEAST_FLOOR * float(loss.min())
            nearest[parameter.name] = max(nearest[parameter.name], least)
    return [*nearest.values()]


@dataclass(frozen=True)
class StoredTruth:
    """What a plan needs of a stored fit."""

    law: str
    params: Mapping[str, float | None]
    noise: float | None  # of a run, where the fit says it

    def values(self, form: Law) -> list[float]:
        """The law's parameters, in order."""
        return [float(self.params.get(name) or 0) for name in form.names]

    @classmethod
    def of(cls, name: str) -> StoredTruth:
        """A file that `nanoscale fit --json` wrote; `UserError` for another."""
        remedy = f"write one with nanoscale fit TABLE --json={name}"
        path = Path(name)
        if not path.is_file():
            raise UserError(f"--truth={name}: no such file; {remedy}")
        record = read_json(path)
        if not (isinstance(record, dict) and {"law", "params"} <= record.keys()):
            raise UserError(f"--truth={name}: no fit of a law; {remedy}")
        noise = record["noise"]["used"] if "noise" in record else None
        return cls(record["law"], record["params"], noise)


# -- what is asked of it ------------------------------------------------------------------------
def _questions(design: Design, text: str | None) -> list[LawQuestion]:
    """Those asked for, else all that matter, the first of them the one that decides."""
    form = design.form
    if text is not None:
        return [LawQuestion.parse(word, form) for word in text.split(";")]

    C = _rounded_down(FAR * flops(form, design.x).max())
    exponents = [p.name for p in form.parameters if p.kind == "exponent"]
    words = [p.name for p in form.parameters if p.kind == "floor"]
    if form.balance is not None:
        exponents.insert(0, "a")
        words += [f"N*@{C}", f"L@{C}"]
    elif len(design.x) == 1:
        words.insert(0, f"L@{C}")
    return [LawQuestion.parse(word, form) for word in (*exponents, *words)]


def _rounded_down(C: float) -> str:
    """To one digit, as in `9e20`."""
    power = math.floor(math.log10(C) + 1e-9)
    return f"{math.floor(C / 10**power + 1e-9)}e{power}"


def _candidates(design: Design, extra: float | None) -> tuple[Array, Array]:
    """Runs to add, (P, m), and their FLOPs: by default none dearer than those planned."""
    cost = flops(design.form, design.x)
    if extra is None:
        return lattice(design, float(cost.max()))
    x, costs = lattice(design, extra)
    if not len(costs):
        raise UserError(
            f"--extra={extra:g}: no run is that cheap; the cheapest planned "
            f"takes {cost.min():.3g} FLOPs"
        )
    return x, costs


def _doubts(
    design: Design, answers: Sequence[DesignAnswer], questions: Sequence[LawQuestion]
) -> list[str]:
    """Intervals that are too narrow, and questions far from all runs."""
    other = "pairs" if design.resampling == "parametric" else "parametric"
    doubts = []
    for answer in answers:
        if answer.verdict == "too narrow":
            doubts.append(
                f"95 % intervals of {answer.question} hold the truth in {share(answer)} of "
                f"worlds: too narrow with {design.resampling} resamples; try --resample={other}"
            )
    most = flops(design.form, design.x).max()
    for question in questions:
        if question.at is not None and question.at > FAR * most:
            doubts.append(
                f"{question.text} is beyond {FAR:g} times the largest budget, {most:.3g}: the "
                "intervals do not hold that the law itself may bend"
            )
    return doubts
