"""MANY RUNS: cells become folders, a pool fills them on a backend. No torch, never training/.

`ExperimentRunner` is the door. What it needs is loaded when it is asked for: the fork server and
the workers of a cluster import this package too, and start three times as fast without.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nanoscale.experiments.results import Study, rebuild_table
    from nanoscale.experiments.runner import ExperimentRunner

__all__ = ["ExperimentRunner", "Study", "rebuild_table"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "runner" if name == "ExperimentRunner" else "results"
    return getattr(import_module(f"{__name__}.{module}"), name)
