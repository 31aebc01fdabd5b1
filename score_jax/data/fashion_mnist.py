"""Fashion-MNIST from its four IDX files: 60,000 and 10,000 images of 28x28 in ten classes.

An IDX file is 0, 0, a type code (8: unsigned bytes), the number of axes, each axis's length as a
big-endian 32-bit integer, then the values, last axis fastest.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from score_jax.data.base import DataSet, Split, hold_out

URL = "https://github.com/zalandoresearch/fashion-mnist"
CLASSES = (
    "t-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


def fashion_mnist(
    folder: str = "/usr/share/datasets/fashion-mnist", pad: int = 0, n_validation: int = 5000
) -> DataSet:
    """28x28x1 images of clothes, 256 levels; test is the file's own test set.

    Args:
      folder: where the IDX files are, gzipped or not; the default is where Debian's package
        dataset-fashion-mnist puts them.
      pad: zeros added on each side; 2 makes 32x32. Padding changes the bits/dim.
      n_validation: how many of the 60,000 training images are held out.
    """
    train = _read_split(folder, "train", pad)
    test = _read_split(folder, "t10k", pad)
    return DataSet(
        "fashion_mnist", *hold_out(train, n_validation), test, 256, len(CLASSES), CLASSES
    )


def _read_split(folder: str, prefix: str, pad: int) -> Split:
    images_path = _find(folder, f"{prefix}-images-idx3-ubyte")
    labels_path = _find(folder, f"{prefix}-labels-idx1-ubyte")
    images, labels = read_idx(images_path, n_axes=3), read_idx(labels_path, n_axes=1)
    if len(images) != len(labels):
        raise ValueError(
            f"{images_path} holds {len(images)} images but {labels_path} {len(labels)} labels"
        )
    if labels.max(initial=0) >= len(CLASSES):
        raise ValueError(
            f"{labels_path} holds label {labels.max()}; labels are 0 to {len(CLASSES) - 1}"
        )
    images = np.pad(images, ((0, 0), (pad, pad), (pad, pad)))[..., None]
    return Split(images, labels.astype(np.int32))


def _find(folder: str, name: str) -> Path:
    for path in (Path(folder).expanduser() / f"{name}.gz", Path(folder).expanduser() / name):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"no {name}.gz or {name} in {folder}; Fashion-MNIST is train-images-idx3-ubyte, "
        "train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte: "
        "apt-get install dataset-fashion-mnist, "
        f"or download them from {URL} and set config.data.folder"
    )


def read_idx(path: Path, n_axes: int) -> UInt8[np.ndarray, "..."]:
    """The array of bytes in an IDX file, which must have n_axes axes."""
    raw = path.read_bytes()
    if path.suffix == ".gz":
        try:
            raw = gzip.decompress(raw)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(
                f"{path} is truncated or no gzip file ({error}); get it again"
            ) from error
    if raw[:4] != bytes([0, 0, 8, n_axes]):
        raise ValueError(
            f"{path} starts with bytes {list(raw[:4])}, not [0, 0, 8, {n_axes}]: "
            f"it is no IDX file of unsigned bytes with {n_axes} axes"
        )
    start = 4 + 4 * n_axes
    if len(raw) < start:
        raise ValueError(
            f"{path} is truncated in its header, at {len(raw)} of {start} bytes; get it again"
        )
    shape = struct.unpack(f">{n_axes}I", raw[4:start])
    if len(raw) - start != math.prod(shape):
        raise ValueError(
            f"{path} holds {len(raw) - start} values, but its header says shape {shape}; "
            "get it again"
        )
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)
