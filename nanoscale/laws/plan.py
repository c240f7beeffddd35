"""The next run from a law: N*, D* at a budget, and the nearest model that can be built.

The one idea: an optimum is a flat valley, so the model is rounded to widths and depths that exist
and the tokens are what the budget then leaves; what that rounding costs is the law's own answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields

import numpy as np

from nanoscale.errors import UserError
from nanoscale.laws.fit import LawFit
from nanoscale.laws.predict import FAR, Basis, predict
from nanoscale.laws.registry import law_of
from nanoscale.spec.config import ExperimentConfig
from nanoscale.spec.counting import flops_per_token, parameter_counts
from nanoscale.store.files import plain

SCHEMA = 1
LLAMA = {"use_rmsnorm": True, "use_rope": True, "use_swiglu": True}
# from, to, in steps of, head size
WIDTHS = ((32, 256, 16, 16), (288, 512, 32, 32), (576, 2048, 64, 64), (2304, 40960, 256, 128))
ASPECT, ASPECT_WEIGHT = 64.0, 0.04  # channels per block; a factor e away is worth 4 % of N
OFF_SIZE, OFF_FLOPS = 0.1, 0.1  # relative differences that are worth a warning
BATCH, BATCH_POWER = 0.58, 0.571  # tokens of an update, 0.58 D^0.571: Li et al. 2025 (Step Law)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run at a budget of C = 6 N D FLOPs. Intervals are 95 %; None without the fit's draws."""

    schema: int
    law: str
    status: str
    budget: float
    N: float
    D: float
    N_ci95: list[float] | None
    D_ci95: list[float] | None
    tokens_per_param: float
    loss: float
    loss_ci95: list[float] | None  # of the law
    run_ci95: list[float] | None  # of one new run
    distance: float | None  # budget over the largest fitted
    run: dict[str, object]  # the nearest buildable one
    warnings: list[str]

    def to_json(self) -> dict[str, object]:
        """Plain types."""
        return plain(asdict(self))

    def summary(self) -> list[str]:
        """The lines a user sees."""
        run = self.run
        far = "" if self.distance is None else f", {self.distance:.3g} times the largest fitted"
        lines = [
            f"{self.budget:.4g} FLOPs (C = 6 N D){far}; the {self.law} law is {self.status}",
            f"  N*    {self.N:.4g}{_ends(self.N_ci95)} parameters",
            f"  D*    {self.D:.4g}{_ends(self.D_ci95)} tokens, {self.tokens_per_param:.3g} per "
            "parameter",
            f"  loss  {self.loss:.4f}{_ends(self.loss_ci95, '.4f')}"
            + (f"; a new run {_ends(self.run_ci95, '.4f').strip()}" if self.run_ci95 else ""),
            "  run   " + " ".join(f"--{key}={value}" for key, value in run["config"].items()),
            f"        N = {run['N']:.4g} ({100 * run['N_off']:+.1f} %), D = {run['D']:.4g}: "
            f"{run['iterations']:,} updates of {run['batch_tokens']:,} tokens; loss "
            f"{run['loss']:.4f}; exact FLOPs {run['flops']:.4g}, {run['flops_ratio']:.2f} of 6 N D",
        ]
        if run["hours"] is not None:
            lines.append(f"        {run['hours']:.3g} hours at {run['speed']:.3g} {run['unit']}")
        return lines


def _ends(ends: list[float] | None, spec: str = ".3g") -> str:
    return "" if ends is None else f" [{ends[0]:{spec}}, {ends[1]:{spec}}]"


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
    without N and D.
    """
    if not (math.isfinite(C) and C > 0):
        raise UserError(f"budget {C:g}: expected FLOPs above 0")
    best = fit.optimum(C)
    noise = None if basis is None else basis.noise
    expected = predict(fit, noise, N=best["N"], D=best["D"])
    run = _run(fit, C, best["N"], vocab_size, block_size, batch_tokens)
    run |= _expected(fit, noise, run) | _time(run, speed, unit)
    return Plan(
        schema=SCHEMA,
        law=fit.law,
        status=fit.status,
        budget=float(C),
        N=best["N"],
        D=best["D"],
        N_ci95=best.get("N_ci95"),
        D_ci95=best.get("D_ci95"),
        tokens_per_param=best["D"] / best["N"],
        loss=expected["loss"],
        loss_ci95=expected.get("loss_ci95"),
        run_ci95=expected.get("run_ci95"),
        distance=None if basis is None else basis.distance(C),
        run=run,
        warnings=_warnings(fit, best["N"], C, basis, run),
    )


def fit_of(record: Mapping[str, object]) -> LawFit:
    """The fit of a record that `nanoscale fit --json` wrote; its draws if it has the key."""
    form = law_of(record["law"])
    values = {f.name: record[f.name] for f in fields(LawFit) if f.name in record}
    draws = np.array(record.get("draws", []), float).reshape(-1, len(form.names))
    return LawFit(
        **values
        | {
            "form": form,
            "x_names": tuple(record["predictors"]),
            "not_identified": record["reasons"],
            "draws": draws,
        }
    )


def buildable(N: float, vocab_size: int, block_size: int = 1024) -> ExperimentConfig:
    """The model of LLaMA parts whose total parameters are nearest to N, at a sensible shape.

    Widths in steps of whole heads (of 16, 32, 64, then 128 channels), each at its best depths; a
    shape away from 64 channels per block pays a little, as nothing else tells equal sizes apart.
    """

    def cost(candidate: tuple[int, int, int, float]) -> float:
        n_embd, n_layer, _, size = candidate
        shape = abs(math.log(n_embd / n_layer / ASPECT))
        return abs(math.log(size / N)) + ASPECT_WEIGHT * shape

    n_embd, n_layer, head, _ = min(_shapes(N, vocab_size, block_size), key=cost)
    return _config(n_layer, n_embd, head, vocab_size, block_size)


def _config(
    n_layer: int, n_embd: int, head: int, vocab_size: int, block_size: int
) -> ExperimentConfig:
    return ExperimentConfig(
        n_layer=n_layer,
        n_embd=n_embd,
        n_head=n_embd // head,
        vocab_size=vocab_size,
        block_size=block_size,
        **LLAMA,
    )


def _shapes(N: float, vocab_size: int, block_size: int) -> Iterator[tuple[int, int, int, float]]:
    """(n_embd, n_layer, head size, total parameters) of every width at its best depths."""
    for least, most, step, head in WIDTHS:
        for n_embd in range(least, most + 1, step):
            one, two = (
                parameter_counts(_config(n, n_embd, head, vocab_size, block_size))["total"]
                for n in (1, 2)
            )
            best = max((N - one) / (two - one) + 1, 2)  # N is linear in the depth
            for n_layer in {math.floor(best), math.ceil(best)}:
                yield n_embd, n_layer, head, one + (n_layer - 1) * (two - one)


def _run(
    fit: LawFit, C: float, N: float, vocab_size: int, block_size: int, batch_tokens: float | None
) -> dict[str, object]:
    """The nearest model, and the updates that the budget leaves it."""
    config = buildable(N, vocab_size, block_size)
    size = parameter_counts(config)["total"]
    tokens = C / (6 * size)
    batch = BATCH * tokens**BATCH_POWER if batch_tokens is None else batch_tokens
    sequences = max(1, round(batch / block_size))
    iterations = max(1, round(tokens / (sequences * block_size)))
    seen = iterations * sequences * block_size
    flops = flops_per_token(config)["exact"] * seen
    shape = {
        key: getattr(config, key)
        for key in ("n_layer", "n_embd", "n_head", *LLAMA, "vocab_size", "block_size")
    }
    return {
        "config": shape
        | {"batch_size": sequences, "gradient_accumulation_steps": 1, "max_iters": iterations},
        "N": size,
        "D": seen,
        "N_off": size / N - 1,
        "iterations": iterations,
        "batch_tokens": sequences * block_size,
        "flops": flops,
        "flops_ratio": flops / (6 * size * seen),
    }


def _expected(fit: LawFit, noise, run: Mapping[str, float]) -> dict[str, object]:
    found = predict(fit, noise, N=run["N"], D=run["D"])
    return {key: found.get(key) for key in ("loss", "loss_ci95", "run_ci95")}


def _time(run: Mapping[str, float], speed: float | None, unit: str) -> dict[str, object]:
    if speed is None:
        return {"hours": None, "speed": None, "unit": None}
    work = run["D"] if unit == "tokens/s" else run["flops"]
    return {"hours": work / speed / 3600, "speed": float(speed), "unit": unit}


def _warnings(
    fit: LawFit, N: float, C: float, basis: Basis | None, run: Mapping[str, float]
) -> list[str]:
    found = [f"{name} is not identified: {reason}" for name, reason in fit.not_identified.items()]
    least, most = (C, C) if basis is None else basis.reach["C"]
    if least / C > FAR:
        found.append(
            f"the budget is {least / C:.3g} times below the smallest fitted, more than "
            f"{FAR:g}: the law was not seen there"
        )
    if C / most > FAR:
        distance = C / most
        found.append(
            f"the budget is {distance:.3g} times the largest fitted, beyond {FAR:g}: the "
            "intervals do not hold that the law itself may bend; hold out the largest "
            "budgets (nanoscale fit --holdout=FLOPS) to see how it did before"
        )
    if abs(run["N_off"]) > OFF_SIZE:
        found.append(
            f"N* = {N:.3g} is far from any model with this vocabulary; the nearest has "
            f"{run['N']:.3g}"
        )
    if abs(run["flops_ratio"] - 1) > OFF_FLOPS:
        found.append(
            f"the run's exact FLOPs are {run['flops_ratio']:.2f} of 6 N D (attention, "
            "embeddings): the budget is in the table's convention"
        )
    if run["iterations"] < 100:
        found.append(f"{run['iterations']} updates are few: give a smaller --batch-tokens")
    return found
