"""`nanoscale design`: what a planned study will be able to say, before any of it is trained.

The plan is a table of runs to make (N and D, no loss) or a study file, of which nothing is run.
Worlds are drawn from a law held to be true and fitted as `nanoscale fit` would; what is printed is
made from the record that `--json` writes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanoscale.errors import UserError, did_you_mean, one_of
from nanoscale.experiments.tables import column, read_table
from nanoscale.store.files import read_json
from nanoscale.studies.table_fit import OURS, numbers_of

if TYPE_CHECKING:
    import numpy as np
    from pandas import DataFrame

    from nanoscale.laws.design import Answer, Design
    from nanoscale.laws.forms import Law
    from nanoscale.laws.information import NextRun
    from nanoscale.laws.questions import Question

SCHEMA = 1
NOISE, WORLDS, RESAMPLES, DELTA = 0.005, 200, 300, 1e-3
TRUTH_FROM = 4e6  # a tenth of the smallest model that the default truth was fitted to
FAR = 10.0  # times beyond the largest budget: there the form of the law decides


@dataclass(frozen=True, kw_only=True)
class DesignSettings:
    """What is asked of a plan, and how worlds are drawn and fitted; None: what the plan suggests.

    Attributes:
        n, d, c, group: columns of a table; a study file's are known.
        noise: sd of ln L; seeds: times that each run is made.
        truth: files of stored fits, with commas; question: one of `Question`, or more with `;`.
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
    worlds: int = WORLDS
    resamples: int = RESAMPLES
    seed: int = 0
    extra: float | None = None
    law: str | None = None
    objective: str = "log-huber"
    delta: float | None = None
    resampling: str | None = None

    def columns(self, *keys: str) -> dict[str, str]:
        """Those of `keys` that are named."""
        named = {key: getattr(self, key) for key in keys}
        return {key: name for key, name in named.items() if name is not None}


def design_study(name: str, settings: DesignSettings) -> dict[str, Any]:
    """What a planned study will be able to say, as the record that `--json` writes.

    Raises:
        UserError: there is no such plan, or a setting does not fit it.
    """
    runs = _planned(name, settings)
    design, notes = _design(runs, settings)
    record = {"schema": SCHEMA, "plan": name} | judged(design, settings, runs)
    record["warnings"] = [*runs.notes, *notes, *record["warnings"]]
    return record


def judged(design: Design, settings: DesignSettings, runs: Planned) -> dict[str, Any]:
    """The record: an answer per question, the next run, another delta, and what they say."""
    from nanoscale.laws.design import simulate

    questions = _questions(design, settings)
    candidates = _candidates(design, settings)
    how = {"worlds": settings.worlds, "rng_seed": settings.seed}
    answers = simulate(design, questions, **how)
    first = questions[0]
    asked = answers[:1] if settings.question is None else answers
    best, cheapest, then = _next(design, first, candidates, how)
    tied = None
    if design.tied_delta is not None:
        tied = simulate(replace(design, delta=design.tied_delta), [first], **how)[0]
    known = all(answer.identified for answer in asked)
    warnings = [*design.warnings(), *_doubts(design, answers, questions)]
    record = {
        "status": "identified" if known else "not_identified",
        "law": design.form.name,
        "truth": dict(zip(design.form.names, design.truths[0].tolist(), strict=True)),
        "noise": design.noise,
        "points": design.x.shape[1],
        "cells": int(design.cells.max()) + 1,
        "flops": float(runs.cost.sum()),
        **how,
        "resamples": design.resamples,
        "resampling": design.resampling,
        "objective": design.objective,
        "delta": design.delta,
        "answers": {a.question: asdict(a) for a in answers},
        "next_run": _named(design, best) | {"then": asdict(then)},
        "next_run_per_flop": _named(design, cheapest),
        "tied_delta": tied and {"delta": design.tied_delta, "then": asdict(tied)},
        "warnings": warnings,
    }
    return record | {"summary": _said(record, runs, answers)}


# -- what is planned ----------------------------------------------------------------------------
@dataclass(frozen=True)
class Planned:
    """The runs of a plan, each as often as it has seeds."""

    values: dict[str, np.ndarray]  # N and D, or C as well: (n,)
    groups: np.ndarray | None
    cost: np.ndarray  # (n,) FLOPs
    notes: list[str]
    ladder: bool = False  # fitted in compute alone, with the noise that seeds measure


def _planned(name: str, settings: DesignSettings) -> Planned:
    path = Path(name)
    if path.suffix == ".toml":
        for key in settings.columns("n", "d", "c", "group"):
            raise UserError(
                f"{name} is a study file, whose N and D are known; --{key} is of a table"
            )
        return _of_study(path, settings.seeds)
    return _of_table(read_table(name), settings)


def _of_table(frame: DataFrame, settings: DesignSettings) -> Planned:
    import numpy as np

    from nanoscale.laws.points import with_compute

    if frame.empty:
        raise UserError("the table has no rows; it needs one per planned run")
    columns = settings.columns("n", "d", "c")
    named = {key: column(key, name, frame) for key, name in columns.items()}
    for key in ("n", "d", "c"):
        if len(named) < 2 and key not in named:
            usual = next((c for c in (OURS[key], key.upper()) if c in frame), None)
            named |= {} if usual is None else {key: usual}
    if len(named) < 2:
        raise UserError(
            "which columns are N and D? give two of --n, --d and --c (C = 6 N D), as "
            f"in --n=total_params; the table has {', '.join(map(str, frame.columns))}"
        )
    K = settings.seeds or 1
    values = with_compute(
        {key.upper(): np.repeat(numbers_of(frame, name), K) for key, name in named.items()}
    )
    group = "run" if settings.group is None else column("group", settings.group, frame)
    groups = None
    if group in frame and frame[group].nunique() < len(frame):
        labels = np.unique([str(g) for g in frame[group]], return_inverse=True)[1]
        groups = (labels[:, None] * K + np.arange(K)).ravel()
    N, D = values["N"], values["D"]
    return Planned({"N": N, "D": D, "C": 6 * N * D}, groups, 6 * N * D, [])


def _of_study(path: Path, seeds_of_each: int | None) -> Planned:
    """N (total), D (tokens) and exact C of a study file's runs, none of which is made."""
    import numpy as np

    from nanoscale.experiments.cells import make_cells
    from nanoscale.spec.counting import parameter_counts
    from nanoscale.spec.sources import Source
    from nanoscale.studies.stages import DEFAULTS
    from nanoscale.studies.study_file import read_study

    file = read_study(path)
    question = file.question
    if not question.rows:
        raise UserError(
            f"{path}: a {file.recipe_name} has no rows before it runs; give a grid or a "
            "ladder, or a table of planned runs"
        )
    base = Source(f"{path}, [base]", file.base)
    cells = make_cells(DEFAULTS, [base], question.rows, question.where)
    points: dict[tuple[int, int, int], set[Any]] = {}
    for cell in cells:
        config = cell.spec.config
        key = (
            parameter_counts(config)["total"],
            config.max_iters * config.tokens_per_iter,
            cell.flops,
        )
        points.setdefault(key, set()).add(config.seed)
    seeds = {key: seeds_of_each or len(own) for key, own in points.items()}
    rows = np.array([key for key, K in seeds.items() for _ in range(K)], float).T
    notes = []
    if sum(map(len, points.values())) < len(cells):
        notes.append(
            f"{len(cells)} cells are {sum(map(len, points.values()))} runs of different "
            "N, D and seed: the others count as tuning, of which the best remains"
        )
    ladder = file.recipe.refits_without_smallest
    if ladder:
        notes.append(
            "the study's own interval also takes in its refits without the smallest "
            "sizes, and so may be wider"
        )
    return Planned(dict(zip("NDC", rows, strict=True)), None, rows[2], notes, ladder)


# -- the design ---------------------------------------------------------------------------------
def _design(runs: Planned, settings: DesignSettings) -> tuple[Design, list[str]]:
    import numpy as np

    from nanoscale.laws import law_of
    from nanoscale.laws.bootstrap import METHODS
    from nanoscale.laws.design import Design
    from nanoscale.laws.ladder import HUBER
    from nanoscale.laws.points import check_points

    stored = []
    if settings.truth is not None:
        stored = [_stored(name) for name in settings.truth.split(",")]
    usual = "power" if runs.ladder else "chinchilla"
    form = law_of(settings.law or (stored[0]["law"] if stored else usual))
    if any(record["law"] != form.name for record in stored):
        raise UserError(f"--truth={settings.truth}: not all of the {form.name} law")
    x = np.array([runs.values[name] for name in _read(form)])
    check_points(form, _read(form), x)
    method = settings.resampling or ("parametric" if runs.ladder else "pairs")
    if method not in METHODS:
        hint = did_you_mean(method, METHODS) or f"; choose {one_of(METHODS)}"
        raise UserError(f"--resample={method}: no such way{hint}")
    if method == "cluster" and runs.groups is None:
        raise UserError(
            "--resample=cluster: every planned point is a run of its own; name the run "
            "that each is of, as in --group=run"
        )
    noise = settings.noise
    if noise is None:
        noises = [record["noise"]["used"] for record in stored if "noise" in record]
        noise = noises[0] if noises else NOISE
    delta = settings.delta
    if delta is None:
        delta = max(DELTA, HUBER * noise) if runs.ladder else DELTA
    truths, notes = _truths(form, x, runs, stored)
    return Design(
        form,
        x,
        truths,
        noise,
        runs.groups,
        settings.objective,
        delta,
        method,
        settings.resamples,
    ), notes


def _read(form: Law) -> tuple[str, ...]:
    """Which of N, D and C the law reads: C for one of a single predictor."""
    if len(form.predictors) == 1:
        return ("C",)
    missing = [name for name in form.predictors if name not in ("N", "D", "C")]
    if missing:
        raise UserError(f"law {form.name} reads {missing[0]}; a plan has N, D and C")
    return form.predictors


def _truths(
    form: Law, x: np.ndarray, runs: Planned, stored: Sequence[Mapping[str, Any]]
) -> tuple[list[Sequence[float]], list[str]]:
    """What worlds are drawn from: stored fits, else the law of Hoffmann et al.'s points, or the law
    nearest to that one at the planned runs."""
    from nanoscale.laws import LAWS, fit_law
    from nanoscale.laws.design import CHINCHILLA_TRUTH

    if stored:
        return [[float(r["params"].get(n) or 0) for n in form.names] for r in stored], []
    notes = (
        []
        if runs.values["N"].min() >= TRUTH_FROM
        else [
            f"the default truth is of models from 4e+07 parameters, and the plan's smallest has "
            f"{runs.values['N'].min():.3g}: give a fit of your own runs, as in --truth=fit.json"
        ]
    )
    if form.name == "chinchilla":
        return [CHINCHILLA_TRUTH], notes
    import numpy as np

    loss = LAWS["chinchilla"].loss(np.array(CHINCHILLA_TRUTH), runs.values["N"], runs.values["D"])
    near = fit_law(dict(zip(_read(form), x, strict=True)), loss, law=form, resamples=0)
    return [list(near.params.values())], notes


def _stored(name: str) -> dict[str, Any]:
    """The record of a stored fit."""
    if not Path(name).is_file():
        raise UserError(
            f"--truth={name}: no such file; write one with nanoscale fit TABLE --json={name}"
        )
    record = read_json(Path(name))
    if not (isinstance(record, dict) and {"law", "params"} <= record.keys()):
        raise UserError(
            f"--truth={name}: no fit of a law; write one with nanoscale fit TABLE --json={name}"
        )
    return record


def _questions(design: Design, settings: DesignSettings) -> list[Question]:
    """Those asked for, else all that matter, the first of them the one that decides."""
    from nanoscale.laws.questions import Question, flops

    if settings.question is not None:
        words = settings.question.split(";")
    else:
        C = _rounded_down(FAR * flops(design.form, design.x).max())
        words = [p.name for p in design.form.parameters if p.kind in ("exponent", "floor")]
        words += [f"L@{C}"] if len(design.x) == 1 else []
        words = [word for word in words if word != "E"] + [word for word in words if word == "E"]
        if design.form.balance is not None:
            words = ["a", *words, f"N*@{C}", f"L@{C}"]
    return [Question.parse(word, design.form) for word in words]


def _rounded_down(C: float) -> str:
    """To one digit, as in `9e20`."""
    power = math.floor(math.log10(C) + 1e-9)
    return f"{math.floor(C / 10**power + 1e-9)}e{power}"


def _candidates(design: Design, settings: DesignSettings) -> tuple[np.ndarray, np.ndarray]:
    """Runs to add, (P, m), and their FLOPs: by default none dearer than those planned."""
    from nanoscale.laws.information import lattice
    from nanoscale.laws.questions import flops

    cost = flops(design.form, design.x)
    most = float(cost.max()) if settings.extra is None else settings.extra
    x, found = lattice(design, most)
    if not len(found):
        raise UserError(
            f"--extra={settings.extra:g}: no run is that cheap; the cheapest planned "
            f"takes {cost.min():.3g} FLOPs"
        )
    return x, found


def _next(
    design: Design,
    question: Question,
    candidates: tuple[np.ndarray, np.ndarray],
    how: Mapping[str, int],
) -> tuple[NextRun, NextRun, Answer]:
    """The run that narrows most, the one that does most per FLOP, and the first confirmed."""
    import numpy as np

    from nanoscale.laws.design import simulate
    from nanoscale.laws.information import next_runs

    found = next_runs(design, question, *candidates)
    best = found[0]
    then = simulate(design.with_points(np.array(best.x)[:, None]), [question], **how)[0]
    return best, max(found, key=lambda run: run.per_flop), then


def _named(design: Design, run: NextRun) -> dict[str, Any]:
    return dict(zip(_read(design.form), run.x, strict=True)) | {
        "flops": run.cost,
        "left": run.left,
        "per_flop": run.per_flop,
    }


# -- what it says -------------------------------------------------------------------------------
def _doubts(design: Design, answers: Sequence[Answer], questions: Sequence[Question]) -> list[str]:
    from nanoscale.laws.questions import flops

    narrow = [a for a in answers if a.verdict == "too narrow"]
    found = [
        f"95 % intervals of {a.question} hold the truth in {_share(a)} of worlds: too narrow "
        f"with {design.resampling} resamples; try "
        f"--resample={'parametric' if design.resampling != 'parametric' else 'pairs'}"
        for a in narrow
    ]
    most = flops(design.form, design.x).max()
    far = [q.text for q in questions if (q.at or 0) > FAR * most]
    return found + [
        f"{text} is beyond {FAR:g} times the largest budget, {most:.3g}: the "
        "intervals do not hold that the law itself may bend"
        for text in far
    ]


def _share(answer: Answer) -> str:
    low, high = answer.coverage_ci95
    return f"{answer.coverage:.2f} [{low:.2f}, {high:.2f}]"


def _wide(answer: Answer) -> str:
    return f"a factor {answer.width:.3g} wide" if answer.ratio else f"{answer.width:.2g} wide"


def _said(record: Mapping[str, Any], runs: Planned, answers: Sequence[Answer]) -> list[str]:
    """The lines a user sees."""
    lines = [
        f"{record['points']} runs at {record['cells']} sizes and lengths, "
        f"{record['flops']:.3g} FLOPs; noise {100 * record['noise']:.2g} % of the loss; "
        f"{record['worlds']} worlds of {record['law']} x {record['resamples']} "
        f"{record['resampling']} resamples"
    ]
    for a in answers:
        if not a.identified:
            lines.append(
                f"  {a.question}: not identified in {100 * a.not_identified:.0f} % of "
                f"worlds; its interval is typically {_wide(a)}"
            )
            continue
        low, high = a.ends
        lines.append(
            f"  {a.question}: {_wide(a)} (95 %), coverage {_share(a)}"
            f"{'' if a.verdict == 'nominal' else f' ({a.verdict})'}; cannot tell "
            f"{low:.3g} from {high:.3g}"
        )
    first, run, cheap = answers[0].question, record["next_run"], record["next_run_per_flop"]
    then = run["then"]
    wide = f"a factor {then['width']:.3g}" if then["ratio"] else f"{then['width']:.2g}"
    lines.append(
        f"the run that narrows {first} most: {_at(run)}; then {wide} (simulated; expected "
        f"information: {100 * (1 - run['left']):.2g} % narrower)"
    )
    if _at(cheap) != _at(run):
        lines.append(f"most per FLOP: {_at(cheap)}; {100 * (1 - cheap['left']):.2g} % narrower")
    tied = record["tied_delta"]
    if tied:
        wide = tied["then"]["width"]
        lines.append(
            f"without any run: --delta={tied['delta']:g} (1.345 times the noise) leaves "
            f"{'a factor ' if tied['then']['ratio'] else ''}"
            f"{wide:.3g}, coverage {tied['then']['coverage']:.2f}"
        )
    return lines


def _at(run: Mapping[str, Any]) -> str:
    where = ", ".join(f"{key}={run[key]:.3g}" for key in ("N", "D") if key in run)
    return f"{where} (C={run['flops']:.2g})" if where else f"C={run['flops']:.3g}"
