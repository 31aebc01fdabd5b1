"""Snapshots of a run's power-function averages, from which every other average can be made after training.

One .npz file for each step: "sigma_rel" [n], the averages' widths, and the parameters of average i as
"i/NAME/OF/LEAF". A resumed run writes the files of the steps that it takes again, with the same bytes.
"""

import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from score_jax import ema, files
from score_jax.types import Params

# kind -> profile(value, step), the range of its value in words, and as a test
PROFILES = {
    "power": (
        ema.power,
        "a sigma_rel greater than 0 and at most 0.288",
        lambda v: 0 < v <= ema.LARGEST_SIGMA_REL,
    ),
    "exponential": (
        ema.exponential,
        "a rate greater than 0 and less than 1",
        lambda v: 0 < v < 1,
    ),
}


def parse(text: str) -> Callable[[float], ema.Profile]:
    """The profile, a function of the step where it ends, that "power:SIGMA_REL" or "exponential:RATE" names.

    Raises:
      ValueError: it names none.
    """
    kind, _, word = text.partition(":")
    if kind not in PROFILES:
        raise ValueError(
            f"{text!r} is no average; choose power:SIGMA_REL, as power:0.1, or exponential:RATE, as "
            "exponential:0.9999"
        )
    profile, words, holds = PROFILES[kind]
    try:
        value = float(word)
    except ValueError:
        value = float("nan")
    if not holds(value):
        raise ValueError(f"{text!r} is no average; after {kind}: give {words}")
    return partial(profile, value)


def write(folder: Path, step: int, sigma_rels: tuple[float, ...], averages: tuple[Params, ...]):
    """Writes the snapshot of a step, whole or not at all."""
    with files.naming(folder):
        folder.mkdir(exist_ok=True)
    arrays = {"sigma_rel": np.array(sigma_rels)}
    for i, average in enumerate(averages):
        arrays |= {f"{i}/{name}": np.asarray(leaf) for name, leaf in _named(average)}
    files.write(_path(folder, step), lambda part: np.savez(part, **arrays))


def load_posthoc(
    folder: Path,
    template: Params,
    profile: Callable[[float], ema.Profile],
    step: int | None = None,
) -> tuple[Params, float]:
    """The parameters averaged by a profile that ends at a step, and what it misses of the profile (`ema.solve`).

    Args:
      folder: WORKDIR/snapshots.
      template: parameters of the same structure, shapes and dtypes.
      profile: as `parse` gives it.
      step: that of a snapshot, by default the newest; between two of them the profile's sharp end is
        not among their sums, and much is missed.
    Raises:
      FileNotFoundError: there are no snapshots.
      ValueError: a file is damaged, or of another network; names it.
    """
    found = sorted(int(path.stem.removeprefix("step_")) for path in folder.glob("step_*.npz"))
    # later ones may be of a run that was taken up again from before them
    found = [s for s in found if step is None or s <= step]
    if not found:
        raise FileNotFoundError(
            f"no snapshots in {folder}; train with config.train.ema_profiles=(0.05, 0.1) and a "
            "config.train.snapshot_every"
        )
    widths = [_read(_path(folder, s), ["sigma_rel"])[0] for s in found]
    places = [(s, i) for s, row in zip(found, widths, strict=True) for i in range(len(row))]
    target = profile(float(found[-1] if step is None else step))
    coefficients, residual = ema.solve(
        np.array([s for s, _ in places], float), np.concatenate(widths), target
    )
    averages = (_average(_path(folder, s), i, template) for s, i in places)
    total = ema.combine(averages, coefficients)
    return jax.tree.map(lambda leaf, a: jnp.asarray(a, leaf.dtype), template, total), residual


def _path(folder: Path, step: int) -> Path:
    return folder / f"step_{step:07d}.npz"


def _named(params: Params) -> list[tuple[str, jax.Array | np.ndarray]]:
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


def _read(path: Path, names: list[str]) -> list[np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return [file[name] for name in names]
    except KeyError as error:
        raise ValueError(
            f"snapshot {path} does not fit this config: it has no {error.args[0].split()[0]}; use the "
            "config it was trained with"
        ) from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"snapshot {path} is damaged: {error}; delete it") from error


def _average(path: Path, i: int, template: Params) -> Params:
    wanted = _named(template)
    leaves = _read(path, [f"{i}/{name}" for name, _ in wanted])
    for (name, leaf), found in zip(wanted, leaves, strict=True):
        if found.shape != leaf.shape:
            raise ValueError(
                f"snapshot {path} does not fit this config: {name} is {found.shape} there, "
                f"{leaf.shape} here; use the config it was trained with"
            )
    return jax.tree.unflatten(jax.tree.structure(template), leaves)
