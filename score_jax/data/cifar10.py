"""CIFAR-10: 50,000 and 10,000 images of 32x32x3, 256 levels, ten classes.

tensorflow_datasets prepares and reads them, without TensorFlow. The first call prepares the data
(`cifar10_builder`) in `folder`, under a name that contains the archive's SHA-256: what was prepared
from one archive is never taken for another. Later calls read what was prepared.
"""

import hashlib
import io
from pathlib import Path

import numpy as np

from score_jax.data.base import DataSet, Split, hold_out

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def cifar10(
    folder: str = "~/tensorflow_datasets",
    archive: str | None = None,
    n_validation: int = 5000,
    sha256: str = SHA256,
    url: str = URL,
) -> DataSet:
    """32x32x3 images of ten classes, 256 levels; test is the archive's own test batch.

    Args:
      folder: tensorflow_datasets' data_dir, where prepared data are kept and looked for.
      archive: path of cifar-10-binary.tar.gz; None downloads it if there are no prepared data.
      n_validation: how many of the 50,000 training images are held out.
      sha256: what the archive must hash to; another value is for another archive, used on purpose.
      url: where to download from.
    """
    if archive is not None:  # prepared data do not excuse a wrong one
        path = Path(archive).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f"no CIFAR-10 archive {path}; download {URL} and set config.data.archive to it"
            )
        check_sha256(path.read_bytes(), sha256, archive)

    # here, not above: tensorflow_datasets takes seconds to import
    from score_jax.data.cifar10_builder import prepared

    builder = prepared(str(Path(folder).expanduser()), archive, sha256, url)
    train, validation = hold_out(_read_split(builder, "train"), n_validation)
    return DataSet(
        "cifar10", train, validation, _read_split(builder, "test"), 256, len(CLASSES), CLASSES
    )


def check_sha256(content: bytes, sha256: str, name: str) -> None:
    """Raises unless the content, of the archive with that name, has that hash."""
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ValueError(
            f"{name} has SHA-256 {found}, not {sha256}: it is damaged or another archive; "
            f"download {URL} again, or set config.data.sha256 to use this one on purpose"
        )


def _read_split(builder, name: str) -> Split:
    import tensorflow_datasets as tfds
    from PIL import Image

    source = builder.as_data_source(name, decoders={"image": tfds.decode.SkipDecoding()})
    x = np.empty((len(source), 32, 32, 3), np.uint8)
    label = np.empty(len(source), np.int32)
    for i, example in enumerate(source):
        x[i] = Image.open(io.BytesIO(example["image"]))
        label[i] = example["label"]
    return Split(x, label)
