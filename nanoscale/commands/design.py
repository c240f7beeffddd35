"""`nanoscale design`: what a planned study will be able to say, before any of it is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nanoscale.commands.fit_options import GROUP, RESAMPLE
from nanoscale.commands.verb import (
    COUNT,
    COUNT_FROM_0,
    NUMBER,
    column,
    given,
    json_output,
    number,
    option,
    say,
    verb,
    warned,
)
from nanoscale.errors import DONE, INCONCLUSIVE

FEWEST_WORLDS = 50


@verb(
    "nanoscale design studies/ladder.toml --question=L@1e20",
    "nanoscale design planned.csv --n=params --d=tokens --seeds=3 --json=design.json",
)
@click.argument("name", metavar="TABLE|STUDY.toml")
@column("n", "The column of parameters, N.")
@column("d", "The column of training tokens, D.")
@column("c", "The column of training FLOPs, C; two of N, D and C say a run.")
@GROUP
@option("noise", "SD", "Of ln L over seeds (0.005).", NUMBER)
@option("seeds", "K", "Times each run is made.", COUNT)
@option("truth", "FIT.json,..", "Fits to draw worlds from (Chinchilla's).")
@option("question", "Q;Q", "What to be sure of: a, alpha, E, N*@C, L@C or L@N,D.")
@option("worlds", "W", "Worlds to draw and fit (200).", number(whole=True, least=FEWEST_WORLDS))
@option("bootstrap", "R", "Resamples of each fit (300).", COUNT, keyword="resamples")
@option("seed", "S", "Of the draws (0).", COUNT_FROM_0)
@option("extra", "FLOPS", "The most that one more run may take.", NUMBER)
@option("law", "LAW", "The law to fit (chinchilla; of a ladder power).")
@option("objective", "NAME", "What a fit minimises (log-huber).")
@option("delta", "DELTA", "Of the Huber loss (1e-3).", NUMBER)
@RESAMPLE
@json_output("the record")
def command(name: str, json_path: Path | None, **how: Any) -> int:
    """Draw worlds from a law held to be true, fit each as `nanoscale fit` would, and say how wide
    the intervals of the planned runs will be, and which run more would narrow them most.

    Exits with 3 where a question will not be answered.
    """
    from nanoscale.studies.designs import DesignSettings, design_study

    record = design_study(name, DesignSettings(**given(how)))
    say([*record.summary(), *warned(record.warnings)], json_path, record.to_json())
    return DONE if record.status == "identified" else INCONCLUSIVE
