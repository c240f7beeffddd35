"""`nanoscale retry`: run again what failed or waits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nanoscale.commands.run_options import HOW_TO_RUN, runner_options
from nanoscale.commands.verb import json_output, output_root, verb, write_study
from nanoscale.errors import DONE, FAILURE


@verb("nanoscale retry quick", "nanoscale retry quick --workers=1 --retries=3")
@click.argument("name", metavar="STUDY")
@HOW_TO_RUN
@json_output("the study at its end")
@output_root()
def command(name: str, json_path: Path | None, output_root: Path, **how: Any) -> int:
    """Run what is left of STUDY: its failed runs anew, and those that wait."""
    from nanoscale.experiments import ExperimentRunner, Study
    from nanoscale.experiments.results import study_folder
    from nanoscale.studies.conclusion import asked_recipe

    study = Study.open(study_folder(name, output_root))
    if how.get("backend"):  # which the file of the study's recipe may register
        asked_recipe(study)
    runner = ExperimentRunner(output_root=study.output_root, **runner_options(how))
    study = runner.retry(study.name)
    write_study(json_path, study)
    return DONE if study.ok else FAILURE
