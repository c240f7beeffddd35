"""Many runs: cells of a study as content-addressed run folders, run by a backend, read as tables.

Nothing here imports torch. `ExperimentRunner` is the door; a backend with the five verbs of
`backends.Backend` takes the runs elsewhere.
"""

from nanoscale.experiments.results import Study, rebuild_table
from nanoscale.experiments.runner import ExperimentRunner

__all__ = ["ExperimentRunner", "Study", "rebuild_table"]
