"""Your own data from numpy's files: images, vectors, signals, or events of any other shape.

Arrays are called as in Keras' files: `x_train`, `x_validation`, `x_test`, or `x` alone, examples
along their first axis, and `y_train`, `y_validation`, `y_test` or `y` for their labels. They are
members of an .npz file, or .npy files in a folder; one .npy file is an `x`.

Integers are levels and are kept as uint8; floats are continuous and are kept as float32. An .npy
file of one of these two types is a memory map, and may be larger than the memory. Other integers
and floats are converted in memory, and so is what an .npz file holds. Nothing is ever unpickled.
"""

import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from score_jax.data.base import DataSet, Split
from score_jax.data.splits import complete

_CHUNK_BYTES = 2**24  # checked and converted at a time
_PAIRS = {f"x{part}": f"y{part}" for part in ("_train", "_validation", "_test", "")}


class _Array(NamedTuple):
    where: str  # for the error messages
    values: np.ndarray


def array(
    path: str = "",
    labels: str | None = None,
    levels: int | None = None,
    n_validation: int | None = None,
    n_test: int | None = None,
) -> DataSet:
    """A data set of arrays [n, *event] in numpy's files.

    Images are [n, h, w, c]; integers [n, h, w] become [n, h, w, 1]. Floats [n, l, c] are signals of
    length l in c channels. The model sees floats as they are: scale them to about [-1, 1], or to
    unit variance. Floats are read once at the start, to find what is not finite.

    Args:
      path: an .npz file, a folder of .npy files, or one .npy file.
      labels: an .npy file of integers [n] from 0, where `path` is an .npy file.
      levels: of integers, whose values are 0 to levels - 1; None means 256. Floats have none.
      n_validation, n_test: how many examples of x_train or x are held out, evenly spaced, if there
        is no x_validation or x_test; None means a tenth. Those for test are held out first.

    Raises:
      ValueError, FileNotFoundError: one line that names the file, the rule and the way out.
    """
    if not path:
        raise ValueError("no data; set config.data.path to an .npz or .npy file, or a folder")
    found = _find(Path(path).expanduser(), labels)
    splits = {x: _split(found, x, y, levels) for x, y in _PAIRS.items() if x in found}
    x_train = "x_train" if "x_train" in splits else "x"
    for name in splits:
        _check_alike(found, splits, x_train, name)

    train, validation, test = complete(
        splits[x_train],
        splits.get("x_validation"),
        splits.get("x_test"),
        n_validation,
        n_test,
        path,
    )
    levels = None if train.x.dtype == np.float32 else levels or 256
    known = [split.label.max() for split in splits.values() if split.label is not None]
    n_classes = 1 + int(max(known)) if known else 0
    return DataSet(Path(path).stem, train, validation, test, levels, n_classes)


def _find(path: Path, labels: str | None) -> dict[str, _Array]:
    """The arrays by their names; those of .npy files are memory maps."""
    if not path.exists():
        raise FileNotFoundError(
            f"no {path}; set config.data.path to an .npz or .npy file, or a folder of .npy files"
        )
    if path.suffix == ".npy" and path.is_file():
        files = {"x": path} | ({"y": Path(labels).expanduser()} if labels else {})
        return {name: _Array(str(file), _map(file)) for name, file in files.items()}
    if labels:
        raise ValueError(
            f"config.data.labels is {labels}, but goes with one .npy file; call the labels in "
            f"{path} y_train or y"
        )
    wanted = [name for pair in _PAIRS.items() for name in pair]
    if path.is_dir():
        present = sorted(file.stem for file in path.glob("*.npy"))
        read = lambda name: _Array(f"{path}/{name}.npy", _map(path / f"{name}.npy"))
        found = {name: read(name) for name in wanted if name in present}
    else:
        present, members = _read_npz(path, wanted)
        found = {name: _Array(f"{path}: {name}", values) for name, values in members.items()}
    if ("x_train" in found) == ("x" in found):
        raise ValueError(
            f"{path} holds {', '.join(present) or 'no arrays'}; it needs x_train or x, one of the "
            "two, and may have x_validation, x_test, and y_train or y, .. for labels"
        )
    for x, y in _PAIRS.items():
        if y in found and x not in found:
            raise ValueError(f"{path} holds labels {y} but no {x}; give both the same ending")
    return found


def _map(path: Path) -> np.memmap:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; see config.data.path and config.data.labels")
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except ValueError as error:
        raise ValueError(_unreadable(path, error)) from error


def _read_npz(path: Path, wanted: list[str]) -> tuple[list[str], dict[str, np.ndarray]]:
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} is truncated or no .npz file; save it again with np.savez, or np.save to .npy"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            return file.files, {name: file[name] for name in wanted if name in file.files}
    except (EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(_unreadable(path, error)) from error


def _unreadable(path: Path, error: Exception) -> str:
    return (
        f"{path} is truncated or holds no array of numbers ({error}); "
        "nothing is unpickled: save one array of integers or floats"
    )


def _split(found: dict[str, _Array], x: str, y: str, levels: int | None) -> Split:
    examples = _examples(*found[x], levels)
    if y not in found:
        return Split(examples, None)
    return Split(examples, _labels(*found[y], len(examples), found[x].where))


def _examples(
    where: str, x: np.ndarray, levels: int | None
) -> UInt8[np.ndarray, "n *s"] | Float[np.ndarray, "n *s"]:
    kind = x.dtype.kind
    if kind not in "fiu":
        raise ValueError(
            f"{where} holds {x.dtype}, neither integers nor floats; "
            "save x.astype(np.uint8) or x.astype(np.float32)"
        )
    if kind == "f" and levels is not None:
        raise ValueError(
            f"config.data.levels is {levels}, but {where} holds {x.dtype}, which has no levels; "
            "set it to None, or save x.astype(np.uint8)"
        )
    if x.ndim < 2:
        raise ValueError(
            f"{where} has shape {x.shape}, but the first axis is the examples and others are an "
            "example's; save single numbers as x.reshape(-1, 1)"
        )
    if x.size == 0:
        raise ValueError(f"{where} is empty: its shape is {x.shape}")
    if x.ndim == 4 and x.shape[1] in (1, 3) and x.shape[3] > 4:
        raise ValueError(
            f"{where} has shape {x.shape}, but images are [n, height, width, channels]; "
            "save x.transpose(0, 2, 3, 1)"
        )
    if x.dtype != np.uint8 or levels not in (None, 256):  # all bytes are among 256 levels
        x = _checked(where, x, levels or 256)
    return _with_channel(x) if x.dtype == np.uint8 and x.ndim == 3 else x


def _checked(
    where: str, x: np.ndarray, levels: int
) -> UInt8[np.ndarray, "n *s"] | Float[np.ndarray, "n *s"]:
    """x itself, or converted to uint8 or float32, all values below `levels` or finite."""
    is_float = x.dtype.kind == "f"
    rule = (
        "floats must be finite, as float32"
        if is_float
        else f"levels are 0 to {levels - 1}: set config.data.levels, at most 256, or save continuous "
        "data as float32"
    )
    stored_type = np.dtype(np.float32 if is_float else np.uint8)
    stored = x if x.dtype == stored_type else np.empty(x.shape, stored_type)
    n_rows = max(1, _CHUNK_BYTES * len(x) // x.nbytes)
    for start in range(0, len(x), n_rows):
        part = x[start : start + n_rows]
        if is_float:
            with np.errstate(over="ignore"):  # too large for float32: infinite, and refused below
                part = part.astype(np.float32, copy=False)
        good = np.isfinite(part) if is_float else (part >= 0) & (part < levels)
        if not good.all():
            i = int(np.argmin(good))
            row = start + i // (part.size // len(part))
            raise ValueError(f"{where}: example {row} holds {part.flat[i]}; {rule}")
        if stored is not x:
            stored[start : start + n_rows] = part
    return stored


def _with_channel(x: UInt8[np.ndarray, "n h w"]) -> UInt8[np.ndarray, "n h w 1"]:
    if not isinstance(x, np.memmap):
        return x[..., None]
    # a map again, not a view of one, which would be pickled as all that it holds
    order = "C" if x.flags.c_contiguous else "F"
    return np.memmap(x.filename, x.dtype, "r", x.offset, (*x.shape, 1), order)


def _labels(where: str, y: np.ndarray, n: int, examples: str) -> Int[np.ndarray, "n"]:
    if y.dtype.kind not in "iu":
        raise ValueError(
            f"{where} holds {y.dtype}, but labels are integers from 0; "
            "names are np.unique(y, return_inverse=True)[1], one-hot rows are y.argmax(axis=1)"
        )
    if y.shape not in ((n,), (n, 1)):
        raise ValueError(
            f"{where} has shape {y.shape}, but {examples} holds {n} examples; "
            "labels are one integer for each"
        )
    y = np.array(y).reshape(n)
    good = (y >= 0) & (y < 2**31)
    if not good.all():
        row = int(np.argmin(good))
        raise ValueError(f"{where}: example {row} has label {y[row]}; labels are 0, 1, 2, ..")
    return y.astype(np.int32)


def _check_alike(found: dict[str, _Array], splits: dict[str, Split], x_train: str, name: str):
    a, b = splits[x_train], splits[name]
    if a.x.shape[1:] != b.x.shape[1:] or a.x.dtype != b.x.dtype:
        raise ValueError(
            f"{found[name].where} holds {b.x.dtype} of shape {b.x.shape[1:]}, but "
            f"{found[x_train].where} {a.x.dtype} of shape {a.x.shape[1:]}; splits must be alike"
        )
    if (a.label is None) != (b.label is None):
        have, lack = (x_train, name) if b.label is None else (name, x_train)
        raise ValueError(
            f"{found[lack].where} has no labels {_PAIRS[lack]}, but {found[have].where} has some; "
            "give them to all splits or to none"
        )
