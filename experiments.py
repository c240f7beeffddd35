"""The door to grids of runs, as a script or notebook beside the clone's files uses it:

from experiments import ExperimentRunner
runner = ExperimentRunner(base_config_path='config/train_shakespeare_char.py')
study = runner.run_grid(grid_name='depth_study', base_params={'max_iters': 1000},
                        grid_params={'n_layer': [2, 4, 8]})
study.frame()
"""

from nanoscale.experiments import ExperimentRunner, Study

__all__ = ["ExperimentRunner", "Study"]
