"""Any set of images that tensorflow_datasets has prepared, read without TensorFlow.

The set must have been prepared as array_record, which can be read at random. Its images are decoded
once, into an array in the cache that is mapped into memory from then on (`decoded`), so the set may
be larger than the memory.
"""

import difflib
import functools
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from score_jax.data.base import DataSet, Split
from score_jax.data.decoded import decode
from score_jax.data.image import VERSION, read_image
from score_jax.data.splits import complete


def tfds(
    dataset: str = "",
    folder: str = "~/tensorflow_datasets",
    size: int | None = None,
    train: str = "train",
    validation: str | None = None,
    test: str | None = None,
    n_validation: int | None = None,
    n_test: int | None = None,
    image: str | None = None,
    label: str | None = None,
    cache: str = "~/.cache/score_jax/data",
    workers: int = 2,
) -> DataSet:
    """Images and labels of a prepared set, 256 levels.

    Args:
      dataset: the set's name, as mnist, imagenet_resized/64x64 or my_own_set:1.0.0.
      folder: tensorflow_datasets' data_dir, where it was prepared or copied to.
      size: the shorter side is resized to it and the central square taken (`image.read_image`);
        None is for images that all have one size.
      train, validation, test: names of the set's splits; None means the one that is called so, or,
        if there is none or it is taken, examples held out of the training split.
      n_validation, n_test: how many examples are held out, evenly spaced; None means a tenth.
      image, label: names of the set's features; None means its one image and its one class label.
        A set may have no class label.
      cache: where decoded arrays are kept; old ones may be deleted at any time.
      workers: processes that decode.

    Raises:
      ValueError, FileNotFoundError: one line that names the set, the rule and the way out.
    """
    if not dataset:
        raise ValueError("no set is named; set config.data.dataset, as in mnist")
    builder = _prepared(dataset, Path(folder).expanduser())
    names = _split_names(dataset, list(builder.info.splits), train, validation, test)
    image, label = _features(dataset, dict(sorted(builder.info.features.items())), image, label)
    read = functools.partial(
        _read_split,
        builder,
        image=image,
        label=label,
        size=size,
        cache=Path(cache).expanduser(),
        workers=workers,
    )
    splits = [None if name is None else read(name) for name in names]
    for name, split in zip(names, splits, strict=True):
        if split is not None and split.x.shape[1:] != splits[0].x.shape[1:]:
            raise ValueError(_unlike(f"{dataset} {name}", split.x.shape[1:], splits[0].x.shape[1:]))
    classes = tuple(builder.info.features[label].names) if label else ()
    return DataSet(
        dataset, *complete(*splits, n_validation, n_test, dataset), 256, len(classes), classes
    )


def _prepared(dataset: str, folder: Path) -> Any:
    """The builder that reads the set's files."""
    # here, not above: tensorflow_datasets takes long to import. Its builders by name run the set's
    # code, which may need TensorFlow; this one needs the files alone
    import tensorflow_datasets as library

    try:
        builder = library.core.read_only_builder.builder_from_files(dataset, data_dir=str(folder))
    except library.core.DatasetNotFoundError as error:
        raise FileNotFoundError(_how_to_prepare(library, dataset, folder)) from error
    except ValueError as error:
        raise ValueError(
            f"config.data.dataset is {dataset!r}; it must be like name, name/config or name:1.0.0"
        ) from error
    if builder.info.file_format.value != "array_record":
        raise ValueError(
            f"{dataset} in {folder} was prepared as {builder.info.file_format.value}, which cannot "
            f"be read at random; prepare it again where TensorFlow is: {_command(dataset)}"
        )
    return builder


def _how_to_prepare(library, dataset: str, folder: Path) -> str:
    name = re.split("[/:]", dataset)[0]
    here = [path.name for path in folder.glob("*") if path.is_dir()]
    known = {*library.list_builders(with_community_datasets=False), *here}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        return (
            f"tensorflow_datasets knows no {name!r}, and there is none in {folder}; "
            f"{hint}set config.data.dataset and config.data.folder"
        )
    there = sorted(
        f"{p.parent.relative_to(folder)}" for p in folder.glob(f"{name}/**/features.json")
    )
    only = f", only {', '.join(there)}" if there else ""
    return (
        f"{dataset} is not prepared in {folder}{only}; "
        "set config.data.folder to where it is, or prepare "
        f"it where TensorFlow is, and copy ~/tensorflow_datasets/{name} to {folder}: "
        f"{_command(dataset)}"
    )


def _command(dataset: str) -> str:
    return (
        'python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{dataset}', file_format='array_record').download_and_prepare()\""
    )


def _split_names(
    dataset: str, own: list[str], train: str, validation: str | None, test: str | None
) -> tuple[str, str | None, str | None]:
    asked = {"train": train, "validation": validation, "test": test}
    for option, name in asked.items():
        if name is not None and name not in own:
            raise ValueError(
                f"config.data.{option} is {name!r}, but {dataset} has only {', '.join(own)}; "
                "set it to one of them" + (" or None" if option != "train" else "")
            )
    taken = [name for name in asked.values() if name is not None]
    if len(set(taken)) < len(taken):
        raise ValueError(
            f"config.data.train, validation and test are {train}, {validation} and {test}; "
            f"they must be different splits of {dataset}"
        )
    free = lambda name: name if name in own and name not in taken else None
    return train, validation or free("validation"), test or free("test")


def _features(
    dataset: str, features: dict[str, Any], image: str | None, label: str | None
) -> tuple[str, str | None]:
    import tensorflow_datasets as library

    # not its subclasses, such as segmentation masks
    images = [k for k, f in features.items() if type(f) is library.features.Image]
    labels = [k for k, f in features.items() if isinstance(f, library.features.ClassLabel)]
    image = _one_of("image", image, images, dataset)
    if image is None:
        raise ValueError(f"{dataset} has no image, only {', '.join(features)}; use another set")
    channels, dtype = features[image].shape[-1], np.dtype(features[image].np_dtype)
    if channels not in (1, 3) or dtype != np.uint8:
        raise ValueError(
            f"{dataset}: {image} has {channels} channels of {dtype}; "
            "use a set of images with 1 or 3 channels of uint8"
        )
    return image, _one_of("label", label, labels, dataset)


def _one_of(option: str, name: str | None, names: list[str], dataset: str) -> str | None:
    """The feature that is asked for, or the only one, or None if there is none."""
    if name is None and len(names) > 1:
        raise ValueError(
            f"{dataset} has several features to choose from, {', '.join(names)}; "
            f"set config.data.{option} to one of them"
        )
    if name is not None and name not in names:
        raise ValueError(
            f"config.data.{option} is {name!r}, but {dataset} has only "
            f"{', '.join(names) or 'None'}; set it to that"
        )
    return name or (names[0] if names else None)


def _read_split(
    builder: Any,
    split: str,
    *,
    image: str,
    label: str | None,
    size: int | None,
    cache: Path,
    workers: int,
) -> Split:
    import tensorflow_datasets as library

    where, features = f"{builder.info.full_name} {split}", builder.info.features
    try:
        raw = library.decode.DeserializeMethod.RAW_BYTES
        source = builder.as_data_source(split, deserialize_method=raw)
    except Exception as error:  # array_record raises what it finds
        raise ValueError(_unreadable(where, error)) from error

    def value(name: str) -> Callable[[int], Any]:
        one = library.features.FeaturesDict({name: features[name]})
        return functools.partial(_value, source, name, one, where)

    def decoded_once(what, fetch, shape, *key):
        key = "-".join([builder.info.full_name, split, *key, _digest(builder)])
        path = cache / f"{key.replace('/', '-')}.npy"
        what = f"{what} of {where}"
        return decode(fetch, len(source), shape, path, what=what, workers=workers).x

    fetch = functools.partial(_image, value(image), where, size, features[image].shape[-1])
    shape = fetch(None, 0).shape
    x = decoded_once("images", functools.partial(fetch, shape), shape, image, f"size_{size}")
    if label is None:
        return Split(x, None)
    fetch = functools.partial(_label, value(label), where)
    four_bytes = decoded_once("labels", fetch, (4,), label)
    return Split(x, np.array(four_bytes).view("<i4")[:, 0].astype(np.int32))


def _digest(builder: Any) -> str:
    """Another one for other data: of the set's description, and its files' names, sizes and times."""
    folder = Path(builder.data_dir)
    about = [(folder / name).read_bytes() for name in ("dataset_info.json", "features.json")]
    files = sorted(folder.glob("*.array_record*"))
    about += [f"{f.name} {f.stat().st_size} {f.stat().st_mtime_ns}".encode() for f in files]
    return hashlib.sha256(b"\n".join([*about, str(VERSION).encode()])).hexdigest()[:16]


def _value(source: Any, name: str, one: Any, where: str, i: int) -> Any:
    """The feature `name` of example i, an image as its file's bytes; `one` parses no other."""
    import tensorflow_datasets as library

    skip = {name: library.decode.SkipDecoding()}
    try:
        value = one.deserialize_example_np(source[i], decoders=skip)[name]
    except Exception as error:  # the file's checksums do not match, or worse
        raise ValueError(_unreadable(f"{where}: example {i}", error)) from error
    if value is None:  # of a truncated file, array_record gives empty examples
        raise ValueError(_unreadable(f"{where}: example {i}", "it is empty"))
    return value


def _unreadable(what: str, why: Exception | str) -> str:
    return f"{what} cannot be read ({' '.join(str(why).split())}); copy or prepare the set again"


def _image(
    encoded: Callable[[int], bytes],
    where: str,
    size: int | None,
    channels: int,
    shape: tuple[int, ...] | None,
    i: int,
) -> UInt8[np.ndarray, "h w c"]:
    content = encoded(i)
    try:
        x = read_image(content, size, channels)
    except ValueError as error:
        raise ValueError(f"{where}: image {i} {error}; prepare the set again without it") from error
    if shape is not None and x.shape != shape:
        raise ValueError(_unlike(f"{where}: image {i}", x.shape, shape))
    return x


def _unlike(what: str, shape: tuple[int, ...], first: tuple[int, ...]) -> str:
    (height, width, _), (first_height, first_width, _) = shape, first
    return (
        f"{what} is {height} by {width}, but the first is {first_height} by {first_width}; "
        "set config.data.size, which makes them alike"
    )


def _label(value: Callable[[int], int], where: str, i: int) -> UInt8[np.ndarray, "4"]:
    label = int(value(i))
    if label < 0:  # tensorflow_datasets' word for none
        raise ValueError(
            f"{where}: example {i} has no label; set config.data.train, validation or test to "
            "another split, or config.data.label to another feature"
        )
    return np.array([label], "<i4").view(np.uint8)
