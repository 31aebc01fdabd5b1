"""One example that a user hands over: from a file or the test split, refused unless it is as the data are."""

from pathlib import Path

import numpy as np

from score_jax.data.base import DataSet
from score_jax.data.image import read_image


def from_file(path: Path, data: DataSet) -> np.ndarray:
    """The example as it is stored, from an image file or a .npy of the data's shape.

    Raises:
      ValueError: no such example, by its shape, its range or its format.
    """
    if path.suffix == ".npy":
        x = _array(path)
    # what the bytes of an image file are in units of continuous data, nobody knows
    elif data.levels is not None and len(data.shape) == 3 and data.shape[-1] in (1, 3):
        x = _pixels(str(path), path, data.shape[-1])
    else:
        kind = "continuous" if data.levels is None else "no images of 1 or 3 channels"
        raise ValueError(
            f"--input={path}: the run's data are {kind}; give a .npy of shape {data.shape}, or --index=0"
        )
    if x.shape != data.shape:
        raise ValueError(f"{path} has shape {x.shape}; the model's is {data.shape}: resize it")
    if data.levels is None:
        if not (x.dtype.kind in "iuf" and np.all(np.isfinite(x))):
            raise ValueError(f"{path} must hold finite numbers")
        return x.astype(np.float32)
    if x.dtype.kind not in "iu" or x.min() < 0 or x.max() >= data.levels:
        raise ValueError(
            f"{path} has values from {x.min()} to {x.max()}; the data have integers from 0 to "
            f"{data.levels - 1}"
        )
    return x.astype(np.uint8)


def from_test(index: int, data: DataSet) -> tuple[np.ndarray, int | None]:
    """An example of the test split as it is stored, and its class if it is known; ValueError beyond the split."""
    n = len(data.test.x)
    if not 0 <= index < n:
        raise ValueError(f"--index={index} is not in the test split, 0 to {n - 1}")
    label = data.test.label
    return data.test.x[index], None if label is None else int(label[index])


def mask_from_file(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """True where a grey image of the data's height and width is bright; ValueError if it has another size."""
    mask = _pixels(f"--mask={path}", path, 1)[..., 0] >= 128
    if mask.shape != shape[:2]:
        raise ValueError(f"--mask={path} is {mask.shape}; the model's images are {shape[:2]}")
    return mask


def _array(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        try:
            x = np.lib.format.read_array(file, allow_pickle=False)
        except ValueError as error:
            raise ValueError(f"{path} is no .npy of numbers ({error})") from error
    if x.dtype.kind not in "biuf":
        raise ValueError(f"{path} holds {x.dtype}; it must hold real numbers")
    return x


def _pixels(name: str, path: Path, channels: int) -> np.ndarray:
    try:
        return read_image(path.read_bytes(), None, channels)
    except ValueError as error:
        raise ValueError(f"{name} {error}") from error
