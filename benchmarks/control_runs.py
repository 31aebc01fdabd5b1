"""Trained runs as benchmarks/control.py reads them, and arrays that it keeps in files."""

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from score_jax import build, cli, files, run
from score_jax.build import ConfigError, Experiment
from score_jax.data.base import to_levels, to_model
from score_jax.types import Params


class Run(NamedTuple):
    """A run's experiment, its averaged parameters, and its config and step, which decide both."""

    experiment: Experiment
    params: Params
    made_of: dict[str, Any]

    @property
    def data_name(self) -> str:
        """Of the data set; of one read from a folder or archive, that one's."""
        options = self.made_of["config"]["data"]
        return Path(options["path"]).stem if options.get("path") else self.experiment.data.name


class Kept(NamedTuple):
    """An array, and the seconds that it took."""

    x: np.ndarray
    seconds: float


def load(folder: Path) -> Run:
    """The newest checkpoint of the run in a folder.

    Raises:
      ConfigError, FileNotFoundError: one line on what is wrong.
    """
    config = cli.load_run(folder, [], "sample")
    experiment = build.experiment(config)
    step, params = run.averaged_params(folder, experiment)
    return Run(experiment, params, {"config": config, "step": step})


def load_model(folder: Path) -> Run:
    """A run that makes images, whose SDE has no force."""
    found = load(folder)
    data, no_samples = found.experiment.data, found.experiment.no_samples
    if no_samples is not None or data.levels is None or len(data.shape) != 3:
        raise ConfigError(
            f"the run in {folder} makes no images; {no_samples or 'give one that does'}"
        )
    if found.experiment.model.sde(found.params).force is not None:
        raise ConfigError(
            f"the SDE of the run in {folder} has a force, under which x_t is no noised x0"
        )
    return found


def load_classifier(folder: Path, data: str) -> Run:
    """A run of a classifier of the data set named."""
    found = load(folder)
    if found.experiment.model.class_logp is None:
        raise ConfigError(
            f"the run in {folder} is no classifier; train one with config.net.name=classifier"
        )
    if found.experiment.data.name != data:
        raise ConfigError(
            f"the classifier in {folder} knows {found.experiment.data.name}, and the model makes {data}"
        )
    return found


def kept(path: Path, made_for: Any, measure: Callable[[], np.ndarray | Array]) -> Kept:
    """What `measure()` gives, from the file if it is there and was made for the same."""
    text = json.dumps(made_for)
    if path.exists():
        with np.load(path) as saved:
            if str(saved["made_for"]) == text:
                return Kept(saved["x"], float(saved["seconds"]))
    begun = time.time()
    found = Kept(np.asarray(measure()), time.time() - begun)
    files.write(path, partial(_savez, found._asdict() | {"made_for": text}))
    print(f"{path.stem}: {found.seconds:.0f} s", flush=True)
    return found


def as_levels(x: np.ndarray, levels: int) -> np.ndarray:
    """The levels that x in [-1, 1] lies in; black where a sample is not finite."""
    return np.asarray(to_levels(np.nan_to_num(x, nan=-1.0, posinf=-1.0, neginf=-1.0), levels))


def as_points(stored: np.ndarray, levels: int) -> Array:
    """The middles of levels, in model space."""
    return jnp.asarray(to_model(stored.astype(np.float32) + 0.5, levels))


def _savez(arrays, part):
    np.savez_compressed(part, **arrays)
