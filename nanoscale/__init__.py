"""Scaling studies and hyperparameter optimisation of small GPTs: `import nanoscale as ns`.

One run: `load_config`, `train`, and its parts `GPT` and `Muon`. Many runs: `ExperimentRunner`,
`run_study`, and the `Study` that they give and `open_study` opens again. What they say: `answer`,
`read_table`, `rank`, `fit_law`, `plan`, `compare`, `transfer`, `coord_check`. Your own:
`register_scheme`, `register_law`, `register_recipe`, `register_backend`, `register_tracker`. A
value that is refused is a `UserError` of one line; one of another type than is written there, what
Python says of it.

The names are loaded when they are first used: the import itself loads neither torch nor numpy.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nanoscale.data.dataset import open_dataset
    from nanoscale.data.prepare import prepare
    from nanoscale.errors import UserError
    from nanoscale.experiments.backends import register_backend
    from nanoscale.experiments.results import Study, open_study
    from nanoscale.experiments.runner import ExperimentRunner
    from nanoscale.experiments.tables import read_table
    from nanoscale.laws.fit import fit_law
    from nanoscale.laws.ladder import fit_power_law
    from nanoscale.laws.registry import register_law
    from nanoscale.model.gpt import GPT
    from nanoscale.model.muon import Muon
    from nanoscale.report.ladder_figures import law_figure
    from nanoscale.report.run_figures import heatmap_figure, lines_figure
    from nanoscale.spec.config import ExperimentConfig
    from nanoscale.spec.parametrization import register as register_scheme
    from nanoscale.spec.sources import load_config
    from nanoscale.studies.compare_arms import compare
    from nanoscale.studies.conclusion import answer
    from nanoscale.studies.coordinate_study import coord_check
    from nanoscale.studies.next_run import plan
    from nanoscale.studies.ranking import rank
    from nanoscale.studies.recipe import register_recipe
    from nanoscale.studies.stages import run_study
    from nanoscale.studies.transfer_table import transfer
    from nanoscale.training.run import train
    from nanoscale.training.trackers import register_tracker

__version__ = "0.2.0"

# Public name -> (the module it stands in, its name there).
_PLACES = {
    "ExperimentConfig": ("spec.config", "ExperimentConfig"),
    "ExperimentRunner": ("experiments.runner", "ExperimentRunner"),
    "GPT": ("model.gpt", "GPT"),
    "Muon": ("model.muon", "Muon"),
    "Study": ("experiments.results", "Study"),
    "UserError": ("errors", "UserError"),
    "answer": ("studies.conclusion", "answer"),
    "compare": ("studies.compare_arms", "compare"),
    "coord_check": ("studies.coordinate_study", "coord_check"),
    "fit_law": ("laws.fit", "fit_law"),
    "fit_power_law": ("laws.ladder", "fit_power_law"),
    "heatmap_figure": ("report.run_figures", "heatmap_figure"),
    "law_figure": ("report.ladder_figures", "law_figure"),
    "lines_figure": ("report.run_figures", "lines_figure"),
    "load_config": ("spec.sources", "load_config"),
    "open_dataset": ("data.dataset", "open_dataset"),
    "open_study": ("experiments.results", "open_study"),
    "plan": ("studies.next_run", "plan"),
    "prepare": ("data.prepare", "prepare"),
    "rank": ("studies.ranking", "rank"),
    "read_table": ("experiments.tables", "read_table"),
    "register_backend": ("experiments.backends", "register_backend"),
    "register_law": ("laws.registry", "register_law"),
    "register_recipe": ("studies.recipe", "register_recipe"),
    "register_scheme": ("spec.parametrization", "register"),
    "register_tracker": ("training.trackers", "register_tracker"),
    "run_study": ("studies.stages", "run_study"),
    "train": ("training.run", "train"),
    "transfer": ("studies.transfer_table", "transfer"),
}

__all__ = [
    "GPT",
    "ExperimentConfig",
    "ExperimentRunner",
    "Muon",
    "Study",
    "UserError",
    "__version__",
    "answer",
    "compare",
    "coord_check",
    "fit_law",
    "fit_power_law",
    "heatmap_figure",
    "law_figure",
    "lines_figure",
    "load_config",
    "open_dataset",
    "open_study",
    "plan",
    "prepare",
    "rank",
    "read_table",
    "register_backend",
    "register_law",
    "register_recipe",
    "register_scheme",
    "register_tracker",
    "run_study",
    "train",
    "transfer",
]


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module 'nanoscale' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(import_module(f"nanoscale.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
