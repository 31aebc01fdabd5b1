"""A tensorflow_datasets builder that reads CIFAR-10's binary archive and needs no TensorFlow.

The archive holds data_batch_1.bin to data_batch_5.bin, test_batch.bin and batches.meta.txt (ten
class names, one a line). A record is a label byte and 3,072 pixel bytes: the red, green and blue
plane, each row by row. Examples are kept in the archive's order, as PNG bytes: given an array
instead, tensorflow_datasets would call TensorFlow to encode it.

Only `cifar10` imports this module: importing tensorflow_datasets takes seconds.
"""

import http.client
import io
import tarfile
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from score_jax.data.cifar10 import CLASSES, check_sha256

TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
TEST = ("test_batch.bin",)
META = "batches.meta.txt"
RECORD = 1 + 3 * 32 * 32


def prepared(
    folder: str, archive: str | None, sha256: str, url: str
) -> tfds.core.GeneratorBasedBuilder:
    """The builder with its data in `folder`, prepared now if they were not there."""
    builder = Cifar10Binary(archive, sha256, url, data_dir=folder, file_format="array_record")
    # writes to a temporary folder and renames it at the end: what is under the final name is whole
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
    return builder


class Cifar10Binary(tfds.core.GeneratorBasedBuilder):
    """CIFAR-10 from an archive with a given SHA-256, which names the config and so the folder."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, archive: str | None, sha256: str, url: str, **options):
        self.archive, self.sha256, self.url = archive, sha256, url
        super().__init__(config=tfds.core.BuilderConfig(name=sha256), **options)

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(32, 32, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=CLASSES),
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        name = self.archive or self.url
        content = Path(self.archive).expanduser().read_bytes() if self.archive else self._download()
        check_sha256(content, self.sha256, name)
        members = read_archive(content, name)
        return {
            "train": self._generate_examples(b"".join(members[batch] for batch in TRAIN)),
            "test": self._generate_examples(b"".join(members[batch] for batch in TEST)),
        }

    def _generate_examples(self, records: bytes) -> Iterator[tuple[int, dict]]:
        for i, record in enumerate(np.frombuffer(records, np.uint8).reshape(-1, RECORD)):
            pixels = record[1:].reshape(3, 32, 32).transpose(1, 2, 0)
            png = io.BytesIO()
            Image.fromarray(pixels).save(png, "png")
            yield i, {"image": png.getvalue(), "label": int(record[0])}

    def _download(self) -> bytes:
        # not dl_manager.download: it retries for three minutes offline, and keeps a wrong file
        try:
            with urllib.request.urlopen(self.url, timeout=30) as response:
                return response.read()
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionError(
                f"no CIFAR-10 prepared in {self.data_dir}, and {self.url} could not be downloaded "
                f"({error}); download it elsewhere and set config.data.archive to its path"
            ) from error


def read_archive(content: bytes, name: str) -> dict[str, bytes]:
    """The archive's members by file name, checked to be whole records with labels 0 to 9.

    `name` is the archive's, for the error messages.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            members = {Path(m.name).name: tar.extractfile(m).read() for m in tar if m.isfile()}
    except (EOFError, OSError, tarfile.TarError, zlib.error) as error:
        raise ValueError(
            f"{name} is truncated or no tar archive ({error}); download it again"
        ) from error
    missing = [member for member in (*TRAIN, *TEST, META) if member not in members]
    if missing:
        raise ValueError(f"{name} lacks {', '.join(missing)}; is it CIFAR-10's binary version?")
    if tuple(members[META].decode().split()) != CLASSES:
        raise ValueError(f"{name}: {META} does not list CIFAR-10's classes, {', '.join(CLASSES)}")
    for member in (*TRAIN, *TEST):
        if len(members[member]) % RECORD:
            raise ValueError(
                f"{name}: {member} has {len(members[member])} bytes, "
                f"no multiple of a record's {RECORD}; download it again"
            )
        labels = np.frombuffer(members[member], np.uint8)[::RECORD]
        if labels.max(initial=0) >= len(CLASSES):
            raise ValueError(
                f"{name}: {member} holds label {labels.max()}; labels are 0 to {len(CLASSES) - 1}"
            )
    return members
