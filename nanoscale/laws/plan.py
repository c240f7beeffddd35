"""The next run from a law: N*, D* at a budget, and the nearest model that can be built.

The one idea: an optimum is a flat valley, so the model is rounded to widths and depths that exist
and the tokens are what the budget then leaves; what that rounding costs is the law's own answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from nanoscale.errors import UserError
from nanoscale.laws.band import Ends, ends_text
from nanoscale.laws.bootstrap import Noise, interval
from nanoscale.laws.fit import LawFit
from nanoscale.laws.predict import FAR, Basis, predict
from nanoscale.laws.record import Record
from nanoscale.laws.registry import digest_of, law_of
from nanoscale.spec.config import ExperimentConfig
from nanoscale.spec.counting import flops_per_token, parameter_counts

PLAN_SCHEMA = 1
LLAMA = ("use_rmsnorm", "use_rope", "use_swiglu")  # parts
# from, to, in steps of, head size
WIDTHS = ((32, 256, 16, 16), (288, 512, 32, 32), (576, 2048, 64, 64), (2304, 40960, 256, 128))
ASPECT, ASPECT_WEIGHT = 64.0, 0.04  # channels per block; a factor e away is worth 4 % of N
MOST_OFF_SIZE, MOST_OFF_FLOPS = 0.1, 0.1  # relative differences; more gets a warning
FEW_UPDATES = 100
MOST_DISTANCE = 1e4  # times beyond the budgets fitted, either way, where no law says anything
SIZE_ROUNDS = 4  # in which a run's size meets its budget
FEWEST_PARAMETERS = 1000  # of a model; N* below is N in other units, or a budget far too small
SHAPE = ("n_layer", "n_embd", "n_head")  # keys of a model
STEP_LAW_BATCH, STEP_LAW_POWER = 0.58, 0.571  # tokens of an update, 0.58 D^0.571: Li et al. 2025


@dataclass(frozen=True, kw_only=True)
class BuildableRun:
    """The run nearest to a plan that can be built. Intervals are 95 %; None without draws."""

    config: dict[str, int | bool]
    N: int
    D: int
    N_off: float  # N over the best, minus 1
    iterations: int
    batch_tokens: int
    flops: float  # exact
    flops_ratio: float  # of 6 N D
    loss: float
    loss_ci95: Ends | None  # of the law
    run_ci95: Ends | None  # of one new run
    hours: float | None = None
    speed: float | None = None
    unit: str | None = None

    def lines(self) -> list[str]:
        """What a user sees of it."""
        flags = " ".join(f"--{key}={value}" for key, value in self.config.items())
        lines = [
            f"  run   {flags}",
            f"        N = {self.N:.4g} ({100 * self.N_off:+.1f} %), D = {self.D:.4g}: "
            f"{self.iterations:,} updates of {self.batch_tokens:,} tokens; loss "
            f"{self.loss:.4f}; exact FLOPs {self.flops:.4g}, {self.flops_ratio:.2f} of 6 N D",
        ]
        if self.hours is not None:
            lines.append(f"        {self.hours:.3g} hours at {self.speed:.3g} {self.unit}")
        return lines


@dataclass(frozen=True, kw_only=True)
class Plan(Record):
    """A run at a budget of C = 6 N D FLOPs. Intervals are 95 %; None without the fit's draws."""

    schema: int
    law: str
    status: str
    budget: float
    N: float
    D: float
    N_ci95: Ends | None
    D_ci95: Ends | None
    tokens_per_param: float
    tokens_per_param_ci95: Ends | None
    loss: float
    loss_ci95: Ends | None  # of the law
    run_ci95: Ends | None  # of one new run
    distance: float | None  # budget over the largest fitted
    run: BuildableRun
    warnings: list[str]

    def summary(self) -> list[str]:
        """The lines a user sees."""
        return [
            self._of_budget("C = 6 N D"),
            f"  N*    {self.N:.4g}{ends_text(self.N_ci95)} parameters",
            f"  D*    {self.D:.4g}{ends_text(self.D_ci95)} tokens, {self.tokens_per_param:.3g}"
            f"{ends_text(self.tokens_per_param_ci95)} per parameter",
            self._of_loss(),
            *self.run.lines(),
        ]

    def _of_budget(self, convention: str) -> str:
        far = "" if self.distance is None else f", {self.distance:.3g} times the largest fitted"
        return f"{self.budget:.4g} FLOPs ({convention}){far}; the {self.law} law is {self.status}"

    def _of_loss(self) -> str:
        loss = f"  loss  {self.loss:.4f}{ends_text(self.loss_ci95, '.4f')}"
        return f"{loss}; a new run{ends_text(self.run_ci95, '.4f')}" if self.run_ci95 else loss


def plan(
    fit: LawFit,
    C: float,
    basis: Basis | None = None,
    *,
    vocab_size: int = 50304,
    block_size: int = 1024,
    batch_tokens: float | None = None,
    speed: float | None = None,
    unit: str = "tokens/s",
) -> Plan:
    """What to train with C = 6 N D FLOPs, N being total parameters.

    basis: noise and reach of the fitted table. batch_tokens: of an update; by default what Step Law
    says for D. speed: in `unit`, tokens/s or FLOP/s (exact FLOPs). Raises `UserError` for a law
    without N and D, and for a budget so far from those fitted that no law says anything.
    """
    _check_budget(C)
    best = fit.optimum(C)
    _check_reach(C, best.N, basis)
    noise = None
    distance = None
    if basis is not None:
        noise = basis.noise
        distance = basis.distance(C)
    expected = predict(fit, noise, N=best.N, D=best.D)
    model = buildable(best.N, vocab_size, block_size)
    run = _run(fit, noise, best.N, model, C / (6 * _size(model)), batch_tokens)
    run = _timed(run, speed, unit)
    return Plan(
        schema=PLAN_SCHEMA,
        law=fit.law,
        status=fit.status,
        budget=float(C),
        tokens_per_param=best.D / best.N,
        tokens_per_param_ci95=_ratio_ci95(fit, C),
        distance=distance,
        run=run,
        warnings=_warnings(fit, best.N, C, basis, run),
        **vars(best),
        **vars(expected),
    )


def _timed(run: BuildableRun, speed: float | None, unit: str) -> BuildableRun:
    """The run with its hours, at a speed in `unit`."""
    if speed is None:
        return run
    work = run.D if unit == "tokens/s" else run.flops
    return replace(run, hours=work / speed / 3600, speed=float(speed), unit=unit)


def _check_budget(C: float) -> None:
    if not (math.isfinite(C) and C > 0):
        raise UserError(f"budget {C:g}: expected FLOPs above 0")


def _check_reach(C: float, N: float, basis: Basis | None) -> None:
    if basis is not None:
        least, most = basis.reach["C"]
        if not least / MOST_DISTANCE <= C <= most * MOST_DISTANCE:
            way = "far below" if least > C else "far beyond"
            raise UserError(
                f"budget {C:g}: {way} the runs fitted, over {MOST_DISTANCE:,.0f} times, of "
                f"{least:.3g} to {most:.3g} FLOPs; no law says anything there: train runs nearer"
            )
    if FEWEST_PARAMETERS > N:
        raise UserError(
            f"budget {C:g}: its N* is {N:.3g} parameters, no model; is N of the table in millions "
            "or billions? give parameters, or a larger budget"
        )


def _ratio_ci95(fit: LawFit, C: float) -> Ends | None:
    """95 % of D*/N*; None without draws."""
    if not len(fit.draws):
        return None
    N, D = fit.form.optimum(fit.draws, C)
    ratios = D / N
    ends: Ends = interval(ratios).tolist()
    return ends


@dataclass(frozen=True, kw_only=True)
class Extension(Plan):
    """The next run of a ladder: its ratio of tokens to parameters, at a budget of exact FLOPs."""

    command: str | None = None  # that trains it

    def summary(self) -> list[str]:
        """The lines a user sees."""
        lines = [
            self._of_budget("exact"),
            f"  N     {self.N:.4g} parameters, D = {self.D:.4g} tokens: the ladder's "
            f"{self.tokens_per_param:.3g} per parameter, of which one ratio does not say whether "
            "it is best",
            self._of_loss(),
            *self.run.lines(),
        ]
        return lines if self.command is None else [*lines, f"next: {self.command}"]


def extend(
    fit: LawFit,
    C: float,
    ratio: float,
    like: ExperimentConfig,
    basis: Basis,
    *,
    batch_tokens: float,
    speed: float | None = None,
    unit: str = "tokens/s",
) -> Extension:
    """The next run of a ladder of `ratio` tokens per parameter, with C exact FLOPs.

    fit: a law of C. like: a run of the ladder, whose parts, vocabulary, block and shape it has.
    batch_tokens: of an update. speed: see `plan`. Raises `UserError` for a budget out of reach.
    """
    _check_budget(C)
    N = math.sqrt(C / (6 * ratio))
    for _ in range(SIZE_ROUNDS):  # exact FLOPs of a token are not 6 N, nor as many at another N
        _check_reach(C, N, basis)
        model = buildable(N, like.vocab_size, like.block_size, like)
        per_parameter = flops_per_token(model)["exact"] / _size(model)
        N = math.sqrt(C / (per_parameter * ratio))
    size = _size(model)
    run = _run(fit, basis.noise, N, model, ratio * size, batch_tokens)
    run = _timed(run, speed, unit)
    expected = predict(fit, basis.noise, x=C)
    return Extension(
        schema=PLAN_SCHEMA,
        law=fit.law,
        status=fit.status,
        budget=float(C),
        N=N,
        D=ratio * N,
        N_ci95=None,
        D_ci95=None,
        tokens_per_param=ratio,
        tokens_per_param_ci95=None,
        distance=basis.distance(C),
        run=run,
        warnings=_warnings(fit, N, C, basis, run),
        **vars(expected),
    )


def fit_of(record: Mapping[str, Any]) -> LawFit:
    """The fit of a record that `nanoscale fit --json` wrote; its draws if it has the key."""
    form = law_of(record["law"])
    if record.get("laws_digest") != digest_of(form.name):
        raise UserError(
            f"law {form.name!r}: its file is not what it was when this was fitted; give the one "
            "it was, as in --laws=FILE, or fit anew"
        )
    values = {f.name: record[f.name] for f in fields(LawFit) if f.name in record}
    values["form"] = form
    values["x_names"] = tuple(record["predictors"])
    values["not_identified"] = record["reasons"]
    values["draws"] = np.array(record.get("draws", []), float).reshape(-1, len(form.names))
    return LawFit(**values)


def buildable(
    N: float, vocab_size: int | None, block_size: int = 1024, like: ExperimentConfig | None = None
) -> ExperimentConfig:
    """The model whose total parameters are nearest to N, at a sensible shape: of LLaMA parts, or
    with the parts, the heads and the shape of `like`.

    Widths in steps of whole heads (of 16, 32, 64, then 128 channels), each at its best depths; a
    shape away from 64 channels per block pays a little, as nothing else tells equal sizes apart.
    """
    base = ExperimentConfig(use_rmsnorm=True, use_rope=True, use_swiglu=True)
    aspect = ASPECT
    if like is not None:
        base = like
        aspect = like.n_embd / like.n_layer
    base = replace(base, n_layer=1, vocab_size=vocab_size, block_size=block_size)

    cheapest = math.inf
    for first, last, step, head in WIDTHS:
        for n_embd in range(first, last + 1, step):
            heads = n_embd // head if like is None else like.n_head
            if n_embd % (2 * heads):
                continue
            model = replace(base, n_embd=n_embd, n_head=heads)
            for n_layer, size in _depths(model, N):
                shape = abs(math.log(n_embd / n_layer / aspect))
                cost = abs(math.log(size / N)) + ASPECT_WEIGHT * shape
                if cost < cheapest:
                    cheapest = cost
                    best = replace(model, n_layer=n_layer)
    return best


def equal_cost(N: float, like: ExperimentConfig) -> ExperimentConfig:
    """The model in the shape of `like` whose exact training FLOPs per token are nearest to 6 N."""
    size = N
    for _ in range(SIZE_ROUNDS):  # they are not 6 times its parameters, nor as many at another N
        model = buildable(size, like.vocab_size, like.block_size, like)
        size = N * 6 * _size(model) / flops_per_token(model)["exact"]
    return model


def _depths(model: ExperimentConfig, N: float) -> list[tuple[int, int]]:
    """The depths nearest to N parameters, two at least, and the parameters there.

    model: the same with one block.
    """
    shallow = _size(model)
    block = _size(replace(model, n_layer=2)) - shallow
    depth = max((N - shallow) / block + 1, 2)  # N is linear in the depth
    depths = []
    for n_layer in {math.floor(depth), math.ceil(depth)}:
        size = shallow + (n_layer - 1) * block
        depths.append((n_layer, size))
    return depths


def _size(config: ExperimentConfig) -> int:
    return parameter_counts(config)["total"]


def _run(
    fit: LawFit,
    noise: Noise | None,
    N: float,
    model: ExperimentConfig,
    tokens: float,
    batch_tokens: float | None,
) -> BuildableRun:
    """The updates that make `tokens` for a model, and the loss there."""
    size = _size(model)
    batch = STEP_LAW_BATCH * tokens**STEP_LAW_POWER if batch_tokens is None else batch_tokens
    sequences = max(1, round(batch / model.block_size))
    update = sequences * model.block_size
    iterations = max(1, round(tokens / update))
    seen = iterations * update
    flops = flops_per_token(model)["exact"] * seen
    at = {"x": flops} if fit.form.predictors == ("x",) else {"N": size, "D": seen}
    loss = predict(fit, noise, **at)
    keys = ("n_layer", "n_embd", "n_head", *LLAMA, "vocab_size", "block_size")
    config = {key: getattr(model, key) for key in keys}
    config["batch_size"] = sequences
    config["gradient_accumulation_steps"] = 1
    config["max_iters"] = iterations
    return BuildableRun(
        config=config,
        N=size,
        D=seen,
        N_off=size / N - 1,
        iterations=iterations,
        batch_tokens=update,
        flops=flops,
        flops_ratio=flops / (6 * size * seen),
        **vars(loss),
    )


def _far(C: float, least: float, most: float) -> list[str]:
    """Whether a budget is far from the fitted ones."""
    if least / C > FAR:
        return [
            f"the budget is {least / C:.3g} times below the smallest fitted, more than "
            f"{FAR:g}: the law was not seen there"
        ]
    if C / most > FAR:
        return [
            f"the budget is {C / most:.3g} times the largest fitted, beyond {FAR:g}: the "
            "intervals do not hold that the law itself may bend; hold out the largest "
            "budgets (nanoscale fit --holdout=FLOPS) to see how it did before"
        ]
    return []


def _warnings(fit: LawFit, N: float, C: float, basis: Basis | None, run: BuildableRun) -> list[str]:
    warnings = [f"{name} is not identified: {why}" for name, why in fit.not_identified.items()]
    if basis is not None:
        warnings += _far(C, *basis.reach["C"])
    if abs(run.N_off) > MOST_OFF_SIZE:
        warnings.append(
            f"N* = {N:.3g} is far from any model with this vocabulary; the nearest has {run.N:.3g}"
        )
    if abs(run.flops_ratio - 1) > MOST_OFF_FLOPS and "x" not in fit.form.predictors:
        warnings.append(
            f"the run's exact FLOPs are {run.flops_ratio:.2f} of 6 N D (attention, "
            "embeddings): the budget is in the table's convention"
        )
    if run.iterations < FEW_UPDATES:
        warnings.append(f"{run.iterations} updates are few: give a smaller --batch-tokens")
    return warnings
