"""A folder or a .zip of images as a data set.

    PATH/cat/1.jpg           images by class,
    PATH/train/cat/1.jpg     or by split and class; train, validation (or val) and test are splits,
    PATH/1.jpg               or neither.

The class is the first folder, or the first below the split; what is deeper does not count. One
folder around all the others, as many zips have, is passed over. A split that has no folder is taken
from the training images by a hash of their paths below all of these but the class: cat/1.jpg above,
in a folder, in a zip, or in one folder more. An image's split depends on this path and on nothing
else, so that adding images to the folders moves no other one.

Images are decoded once, into an array in the cache that is mapped into memory from then on
(`decoded`).
"""

import collections
import functools
import hashlib
import os
import sys
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from score_jax.data.base import DataSet, Rows, Split
from score_jax.data.decoded import BadExampleError, Decoded, decode
from score_jax.data.image import VERSION, read_image
from score_jax.data.listing import Listing, list_images, read

SPLITS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
ON_BAD_IMAGE = {"error": False, "skip": True}  # whether such images are left out

_PROBED = 20  # images that tell the size of all


def folder(
    path: str = "",
    size: int | None = None,
    channels: int = 3,
    validation_fraction: float = 0.05,
    test_fraction: float = 0.05,
    on_bad_image: str = "error",
    cache: str = "~/.cache/score_jax/data",
    workers: int = 2,
) -> DataSet:
    """The images (jpg, jpeg, png, webp, bmp, gif) of a folder or a .zip, 256 levels.

    Args:
      path: of the folder or the .zip.
      size: the shorter side is resized to it and the central square taken (`image.read_image`);
        None is for images that all have one size.
      channels: 3 or 1; other images are converted where nothing is lost, and bad where it is.
      validation_fraction, test_fraction: of the training images, about, for a split that has no
        folder.
      on_bad_image: "error", or "skip" to leave out images that cannot be used; they are counted on
        stderr and listed in a file.
      cache: where decoded arrays are kept; a change to the images or to size or channels makes
        another one, and old ones may be deleted at any time.
      workers: processes that decode.
    """
    if channels not in (1, 3):
        raise ValueError(f"config.data.channels is {channels}; set it to 3 or 1")
    if validation_fraction + test_fraction >= 1:
        raise ValueError(
            f"config.data.validation_fraction and test_fraction are {validation_fraction} and "
            f"{test_fraction}; they must leave some images for training"
        )
    if on_bad_image not in ON_BAD_IMAGE:
        raise ValueError(f"config.data.on_bad_image is {on_bad_image!r}; set it to error or skip")
    listing = list_images(path)
    splits, own = _splits_and_paths(listing)  # errors here before decoding, which takes long
    names, labels = _labels(listing, own)
    splits = _hold_out(splits, own, validation_fraction, test_fraction)
    decoded = _decode(listing, size, channels, cache, workers, ON_BAD_IMAGE[on_bad_image])
    splits = splits[decoded.index]

    def split(name: str) -> Split:
        rows = np.flatnonzero(splits == name)
        if not len(rows):
            way = "" if name == "train" else f", or set config.data.{name}_fraction higher"
            raise ValueError(
                f"no {name} images among the {len(splits)} of {listing.path}; add some{way}"
            )
        label = None if labels is None else labels[decoded.index[rows]]
        return Split(Rows(decoded.x, rows), label)

    return DataSet(
        "folder", split("train"), split("validation"), split("test"), 256, len(names), names
    )


def _splits_and_paths(listing: Listing) -> tuple[list[str], list[list[str]]]:
    """Each image's split, and its own path: below the split and a folder around all, in parts."""
    parts = [name.split("/") for name in listing.names]
    while min(map(len, parts)) > 1 and len({part[0] for part in parts}) == 1:
        if parts[0][0] in SPLITS:
            break
        parts = [part[1:] for part in parts]
    top = {part[0] if len(part) > 1 else "" for part in parts}
    if "train" not in top and not top <= SPLITS.keys():  # without train, test may be a class
        return ["train"] * len(parts), parts
    for name, part in zip(listing.names, parts, strict=True):
        if len(part) == 1 or part[0] not in SPLITS:
            raise ValueError(
                f"{listing.path} has a folder train, but {name} is in none of {', '.join(SPLITS)}; "
                "move it there or out of config.data.path"
            )
    return [SPLITS[part[0]] for part in parts], [part[1:] for part in parts]


def _labels(
    listing: Listing, own: list[list[str]]
) -> tuple[tuple[str, ...], Int[np.ndarray, "n"] | None]:
    """The classes' names in order, and each image's number among them; (), None if there are none."""
    classes = [part[0] if len(part) > 1 else "" for part in own]
    names = sorted(set(classes))
    if names == [""]:
        return (), None
    if "" in names:
        raise ValueError(
            f"{listing.path}: {listing.names[classes.index('')]} is in no class's folder, as others "
            "are; move it into one or out of config.data.path"
        )
    number = {name: i for i, name in enumerate(names)}
    return tuple(names), np.array([number[name] for name in classes], np.int32)


def _hold_out(
    splits: list[str], own: list[list[str]], validation_fraction: float, test_fraction: float
) -> np.ndarray:
    """The splits, with training images moved to those that are missing."""
    moved = np.array(splits, object)
    # test from the low end and validation from the high one: neither moves with the other's
    # fraction, and both only grow with their own
    place = np.array(
        [
            _uniform("/".join(part)) if split == "train" else np.nan
            for part, split in zip(own, splits, strict=True)
        ]
    )
    if "test" not in splits:
        moved[place < test_fraction] = "test"
    if "validation" not in splits:
        moved[place >= 1 - validation_fraction] = "validation"
    return moved


def _uniform(path: str) -> float:
    """A number in [0, 1) from a path, as good as random."""
    digest = hashlib.sha256(os.fsencode(path)).digest()
    return int.from_bytes(digest[:6]) / 2**48


def _decode(
    listing: Listing, size: int | None, channels: int, cache: str, workers: int, skip: bool
) -> Decoded:
    n = len(listing.names)
    key = f"{listing.hash()} {size} {channels} {VERSION}".encode()
    stem = listing.path.stem or "images"
    path = Path(cache).expanduser() / f"{stem}-{hashlib.sha256(key).hexdigest()[:20]}.npy"
    try:
        shape = _shape(listing, channels) if size is None else (size, size, channels)
        fetch = functools.partial(_fetch, listing, size, channels, shape)
        what = f"images of {listing.path}"
        decoded = decode(fetch, n, shape, path, what=what, workers=workers, skip=skip)
    except BadExampleError as error:
        raise ValueError(
            f"{error}; mend or remove it, or set config.data.on_bad_image to skip"
        ) from error
    if decoded.bad:
        print(
            f"{len(decoded.bad)} of the {n} images of {listing.path} cannot be used and are left "
            f"out, listed in {decoded.bad_list}; the first: {next(iter(decoded.bad.values()))}",
            file=sys.stderr,
        )
    return decoded


def _shape(listing: Listing, channels: int) -> tuple[int, int, int]:
    """The shape that most of the first images have, so that an error names the odd one."""
    shapes, refused = collections.Counter(), []
    for i in range(min(_PROBED, len(listing.names))):
        try:
            shapes[_image(listing, None, channels, i).shape] += 1
        except ValueError as error:
            refused.append(error)
    if not shapes:
        raise BadExampleError(str(refused[0])) from refused[0]
    return shapes.most_common(1)[0][0]


def _fetch(
    listing: Listing, size: int | None, channels: int, shape: tuple[int, int, int], i: int
) -> UInt8[np.ndarray, "h w c"]:
    image = _image(listing, size, channels, i)
    if image.shape != shape:
        (height, width), (h, w) = image.shape[:2], shape[:2]
        raise ValueError(
            f"{listing.path}/{listing.names[i]} is {width}x{height}, where others are {w}x{h}; "
            "set config.data.size to resize the images"
        )
    return image


def _image(listing: Listing, size: int | None, channels: int, i: int) -> UInt8[np.ndarray, "h w c"]:
    try:
        return read_image(read(listing, i), size, channels)
    except ValueError as error:
        raise ValueError(f"{listing.path}/{listing.names[i]} {error}") from error
