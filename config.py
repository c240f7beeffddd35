"""The config's dataclasses, under the original README's name; they are nanoscale/spec/config.py.

The folder of presets has the same name, so `config.train_shakespeare_char` is found there.
"""

from pathlib import Path

from nanoscale.spec.config import ExperimentConfig, ParametrizationConfig

__path__ = [str(Path(__file__).with_suffix(""))]
__all__ = ["ExperimentConfig", "ParametrizationConfig"]
