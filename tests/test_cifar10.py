"""The CIFAR-10 builder, on archives of random images written here in CIFAR-10's binary layout."""

import functools
import hashlib
import http.server
import io
import subprocess
import sys
import tarfile
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest

from score_jax.data.cifar10 import CLASSES, SHA256, cifar10

ROOT = Path(__file__).parents[1]
META = "\n".join(CLASSES) + "\n\n"


def write_archive(path, train, test, meta=META):
    """Writes (images [n,32,32,3], labels [n]) pairs, train in five batches; returns the SHA-256."""

    def records(images, labels):
        planes = [images[:, :, :, channel].reshape(len(images), 1024) for channel in range(3)]
        return np.concatenate([labels[:, None], *planes], axis=1).astype(np.uint8).tobytes()

    parts = zip(np.array_split(train[0], 5), np.array_split(train[1], 5), strict=True)
    files = {f"data_batch_{i}.bin": records(*part) for i, part in enumerate(parts, start=1)}
    files |= {
        "test_batch.bin": records(*test),
        "batches.meta.txt": meta.encode(),
        "readme.html": b"",
    }
    return write_tar(path, files)


def write_tar(path, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return digest(path)


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def random_images(seed, n):
    rng = np.random.default_rng(seed)
    return rng.integers(256, size=(n, 32, 32, 3), dtype=np.uint8), rng.integers(10, size=n)


def load(folder, archive, sha256, **options):
    return cifar10(str(folder), str(archive), sha256=sha256, **{"n_validation": 10} | options)


def test_images_and_labels_come_back_exactly_and_in_order(tmp_path):
    train, test = random_images(0, 50), random_images(1, 10)
    sha256 = write_archive(tmp_path / "small.tar.gz", train, test)
    data = load(tmp_path / "data", tmp_path / "small.tar.gz", sha256)

    held = np.arange(50) % 5 == 0
    for split, images, labels in [
        (data.train, train[0][~held], train[1][~held]),
        (data.validation, train[0][held], train[1][held]),
        (data.test, *test),
    ]:
        np.testing.assert_array_equal(split.x, images)
        np.testing.assert_array_equal(split.label, labels)
    assert (data.shape, data.levels, data.n_classes) == ((32, 32, 3), 256, 10)
    assert data.class_names[0] == "airplane" and data.class_names[9] == "truck"


def test_prepared_data_are_read_without_the_archive(tmp_path):
    archive = tmp_path / "small.tar.gz"
    sha256 = write_archive(archive, random_images(0, 50), random_images(1, 10))
    first = load(tmp_path / "data", archive, sha256)
    archive.unlink()
    again = cifar10(str(tmp_path / "data"), n_validation=10, sha256=sha256)
    np.testing.assert_array_equal(again.train.x, first.train.x)


def test_another_archive_is_not_answered_with_the_first_ones_data(tmp_path):
    archive, test = tmp_path / "small.tar.gz", random_images(1, 10)
    first = write_archive(archive, random_images(0, 50), test)
    load(tmp_path / "data", archive, first)
    images, labels = random_images(2, 50)
    second = write_archive(archive, (images, labels), test)
    np.testing.assert_array_equal(
        load(tmp_path / "data", archive, second, n_validation=0).train.x, images
    )
    with pytest.raises(ValueError, match=f"has SHA-256 {second}, not {first}"):
        load(tmp_path / "data", archive, first)


def test_an_archive_with_another_hash_is_refused_before_anything_is_written(tmp_path):
    archive = tmp_path / "small.tar.gz"
    found = write_archive(archive, random_images(0, 5), random_images(1, 1))
    with pytest.raises(
        ValueError, match=f"{found}, not {SHA256}.*config.data.sha256 to use this one on purpose"
    ):
        cifar10(str(tmp_path / "data"), str(archive))
    assert not (tmp_path / "data").exists()


def test_a_missing_archive_is_named_with_where_to_get_it(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="no CIFAR-10 archive.*nowhere.*cs.toronto.edu.*config.data.archive"
    ):
        cifar10(str(tmp_path), str(tmp_path / "nowhere.tar.gz"))


def test_offline_one_line_says_what_to_download_and_which_option_to_set(tmp_path):
    url = "http://127.0.0.1:9/cifar-10-binary.tar.gz"  # the discard port: nothing listens
    with pytest.raises(
        ConnectionError, match=f"{url} could not be downloaded.*config.data.archive"
    ):
        cifar10(str(tmp_path), url=url)


def test_a_truncated_archive_is_named_and_leaves_nothing_prepared(tmp_path):
    archive = tmp_path / "small.tar.gz"
    write_archive(archive, random_images(0, 50), random_images(1, 10))
    archive.write_bytes(archive.read_bytes()[:-5000])
    with pytest.raises(ValueError, match="small.tar.gz is truncated"):
        load(tmp_path / "data", archive, digest(archive))
    assert not list((tmp_path / "data").rglob("*.array_record*"))


@pytest.mark.parametrize(
    "name, content, message",
    [
        (
            "data_batch_3.bin",
            bytes(3073 + 100),
            "data_batch_3.bin has 3173 bytes, no multiple of a record's 3073",
        ),
        (
            "test_batch.bin",
            bytes([10]) + bytes(3072),
            "test_batch.bin holds label 10; labels are 0 to 9",
        ),
        ("batches.meta.txt", b"apple\naquarium_fish\n", "does not list CIFAR-10's classes"),
        ("data_batch_5.bin", None, "lacks data_batch_5.bin; is it CIFAR-10's binary version"),
    ],
)
def test_a_wrong_member_is_named(tmp_path, name, content, message):
    files = {f"data_batch_{i}.bin": bytes(3073) for i in range(1, 6)}
    files |= {
        "test_batch.bin": bytes(3073),
        "batches.meta.txt": "\n".join(CLASSES).encode(),
        name: content,
    }
    archive = tmp_path / "wrong.tar.gz"
    sha256 = write_tar(archive, {k: v for k, v in files.items() if v is not None})
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "data", archive, sha256)


def test_a_preparation_that_was_cut_short_is_done_again(tmp_path, monkeypatch):
    from score_jax.data import cifar10_builder

    archive, (images, labels) = tmp_path / "small.tar.gz", random_images(0, 50)
    sha256 = write_archive(archive, (images, labels), random_images(1, 10))
    whole = cifar10_builder.Cifar10Binary._generate_examples

    def cut_short(self, records):
        for i, example in whole(self, records):
            if i == 7:
                raise KeyboardInterrupt
            yield i, example

    with monkeypatch.context() as patch:
        patch.setattr(cifar10_builder.Cifar10Binary, "_generate_examples", cut_short)
        with pytest.raises(KeyboardInterrupt):
            load(tmp_path / "data", archive, sha256)
    np.testing.assert_array_equal(
        load(tmp_path / "data", archive, sha256, n_validation=0).train.x, images
    )


@pytest.fixture
def server(tmp_path):
    """The address of an HTTP server for the files of tmp_path / "www"."""
    (tmp_path / "www").mkdir()
    handler = functools.partial(
        http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "www")
    )
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def test_a_wrong_download_is_refused_and_not_kept(tmp_path, server):
    archive, (images, labels) = tmp_path / "www/small.tar.gz", random_images(0, 50)
    sha256 = write_archive(archive, (images, labels), random_images(1, 10))
    right = archive.read_bytes()
    archive.write_text("log in to use this network")
    options = dict(n_validation=0, sha256=sha256, url=f"{server}/small.tar.gz")
    with pytest.raises(ValueError, match=f"has SHA-256 {digest(archive)}, not {sha256}"):
        cifar10(str(tmp_path / "data"), **options)
    archive.write_bytes(right)
    np.testing.assert_array_equal(cifar10(str(tmp_path / "data"), **options).train.x, images)


def test_downloading_preparing_and_reading_import_no_tensorflow(tmp_path, server):
    images, labels = random_images(0, 50)
    sha256 = write_archive(tmp_path / "www/small.tar.gz", (images, labels), random_images(1, 10))
    script = f"""
        import sys
        from score_jax.data.cifar10 import cifar10
        assert "tensorflow_datasets" not in sys.modules, "imported before it is used"
        url = "{server}/small.tar.gz"
        data = cifar10({str(tmp_path / "data")!r}, n_validation=0, sha256={sha256!r}, url=url)
        assert "tensorflow_datasets" in sys.modules and "tensorflow" not in sys.modules
        print(int(data.train.x.sum()))
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split()[-1] == str(int(images.sum()))
