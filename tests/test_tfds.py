"""Sets of tensorflow_datasets, prepared here without TensorFlow from small images."""

import io
import json
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as library
from PIL import Image

from score_jax.data import tfds as module
from score_jax.data.base import Rows
from score_jax.data.image import read_image
from score_jax.data.tfds import tfds

ROOT = Path(__file__).parents[1]
COLOUR = library.features.Image(shape=(None, None, 3), encoding_format="png")
LABEL = library.features.ClassLabel(names=["ant", "bee", "cow"])
SPLITS = ("train", "validation", "test")


class TinySet(library.core.GeneratorBasedBuilder, skip_registration=True):
    """A set whose features and examples are given."""

    VERSION = library.core.Version("1.2.0")

    def __init__(self, features, splits, **options):
        self.features, self.splits = features, splits
        super().__init__(file_format="array_record", **options)

    def _info(self):
        features = library.features.FeaturesDict(self.features)
        return library.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {name: enumerate(examples) for name, examples in self.splits.items()}

    def _generate_examples(self):
        raise NotImplementedError


def prepare(folder, splits, features=None, **options):
    features = features or {"image": COLOUR, "label": LABEL}
    builder = TinySet(features, splits, data_dir=str(folder), **options)
    config = library.download.DownloadConfig(try_download_gcs=False)
    builder.download_and_prepare(download_config=config)
    return Path(builder.data_dir)


def random_images(seed, n, height=4, width=5, channels=3):
    return np.random.default_rng(seed).integers(
        256, size=(n, height, width, channels), dtype=np.uint8
    )


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(file, "png")
    return file.getvalue()


def examples(images, start=0):
    return [{"image": png(x), "label": (start + i) % 3} for i, x in enumerate(images)]


def load(tmp_path, dataset="tiny_set", **options):
    return tfds(dataset, str(tmp_path / "data"), cache=str(tmp_path / "cache"), **options)


def refused(message, tmp_path, **options):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load(tmp_path, **options)
    assert "\n" not in str(caught.value)


# what comes back


def test_each_split_comes_back_exactly_and_in_order_from_a_memory_map(tmp_path):
    images = {name: random_images(i, 6 + i) for i, name in enumerate(SPLITS)}
    splits = {name: examples(x, start=i) for i, (name, x) in enumerate(images.items())}
    prepare(tmp_path / "data", splits)
    data = load(tmp_path)
    for i, name in enumerate(SPLITS):
        split = getattr(data, name)
        np.testing.assert_array_equal(split.x, images[name])
        np.testing.assert_array_equal(split.label, (i + np.arange(6 + i)) % 3)
        assert isinstance(split.x, np.memmap) and split.label.dtype == np.int32
    assert (data.name, data.shape, data.levels) == ("tiny_set", (4, 5, 3), 256)
    assert (data.n_classes, data.class_names) == (3, ("ant", "bee", "cow"))


def test_what_a_set_lacks_is_held_out_of_its_training_split(tmp_path):
    images, others = random_images(0, 20), random_images(1, 4)
    prepare(tmp_path / "data", {"train": examples(images), "validation": examples(others)})

    data = load(tmp_path, n_test=5)
    np.testing.assert_array_equal(data.test.x, images[::4])
    np.testing.assert_array_equal(data.test.label, np.arange(20)[::4] % 3)
    np.testing.assert_array_equal(data.validation.x, others)
    assert isinstance(data.train.x, Rows) and len(data.train.x) == 15

    data = load(tmp_path, test="validation", n_validation=2)
    np.testing.assert_array_equal(data.test.x, others)
    np.testing.assert_array_equal(data.validation.x, images[::10])
    data = load(tmp_path, train="validation", test="train")
    assert [len(getattr(data, name).x) for name in SPLITS] == [3, 1, 20]


def test_a_set_is_found_by_name_version_and_config(tmp_path):
    images = random_images(0, 3)
    prepare(tmp_path / "data", {"train": examples(images)})
    config = library.core.BuilderConfig(name="grey", version="2.0.0")
    grey = {"picture": library.features.Image(shape=(4, 5, 1), encoding_format="png")}
    greys = random_images(1, 3, channels=1)
    prepare(tmp_path / "data", {"train": [{"picture": png(x)} for x in greys]}, grey, config=config)
    whole = lambda data: np.concatenate([np.asarray(getattr(data, name).x) for name in SPLITS])
    # three examples: the first is for test, the second for validation
    np.testing.assert_array_equal(whole(load(tmp_path, "tiny_set:1.2.0")), images[[2, 1, 0]])
    data = load(tmp_path, "tiny_set/grey")
    np.testing.assert_array_equal(whole(data), greys[[2, 1, 0]])
    assert (data.n_classes, data.train.label) == (0, None)


def test_other_features_are_not_looked_at(tmp_path):
    features = {
        "image": COLOUR,
        "id": library.features.Text(),
        "mask": library.features.LabeledImage(labels=9, shape=(None, None, 1)),
        "views": library.features.Sequence(library.features.Image(encoding_format="png")),
        "label": LABEL,
    }
    images = random_images(0, 3)
    broken = {"id": "7", "mask": b"no png", "views": [b"nor this"]}
    prepare(tmp_path / "data", {"train": [e | broken for e in examples(images)]}, features)
    np.testing.assert_array_equal(load(tmp_path).test.x, images[:1])


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    prepare(tmp_path / "data", {"train": examples(random_images(0, 3))})
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(OSError, match="cannot be made .*; set config.data.cache to another folder"):
        load(tmp_path)


def test_images_are_decoded_once_and_again_when_the_data_change(tmp_path, monkeypatch):
    images, decoded = random_images(0, 20), []
    here = prepare(tmp_path / "data", {"train": examples(images)})
    read = module.read_image
    monkeypatch.setattr(module, "read_image", lambda *args: decoded.append(1) or read(*args))
    load(tmp_path)
    assert len(decoded) == 21  # the first one also for its size
    np.testing.assert_array_equal(load(tmp_path).test.x, images[::10])
    assert len(decoded) == 22

    for file in here.iterdir():
        file.unlink()
    here.rmdir()
    prepare(tmp_path / "data", {"train": examples(images[::-1])})
    np.testing.assert_array_equal(load(tmp_path).test.x, images[::-1][::10])


def test_what_decodes_can_be_sent_to_a_worker(tmp_path, monkeypatch):
    images, decode = random_images(0, 12), module.decode
    prepare(tmp_path / "data", {"train": examples(images)})

    def sent(fetch, *args, what, workers):
        assert workers == 3
        return decode(pickle.loads(pickle.dumps(fetch)), *args, what=what)

    monkeypatch.setattr(module, "decode", sent)
    data = load(tmp_path, workers=3)
    np.testing.assert_array_equal(data.test.x, images[:1])
    np.testing.assert_array_equal(data.train.label, np.arange(2, 12) % 3)


def test_images_of_different_sizes_need_a_size(tmp_path):
    images = [*random_images(0, 9), *random_images(1, 1, 8, 6)]
    here = {"train": examples(images[:9]), "test": examples(images[9:])}
    prepare(tmp_path / "data", here)
    prepare(tmp_path / "mixed" / "data", {"train": examples(images)})
    rule = "is 8 by 6, but the first is 4 by 5; set config.data.size"
    refused(f"tiny_set test {rule}", tmp_path)
    refused(f"tiny_set/1.2.0 train: image 9 {rule}", tmp_path / "mixed")
    data = load(tmp_path, size=3)
    np.testing.assert_array_equal(data.test.x, [read_image(png(images[9]), 3, 3)])
    assert data.train.x.shape == (8, 3, 3, 3)
    assert load(tmp_path, size=2).shape == (2, 2, 3)  # not the array that was decoded for 3


def test_reading_imports_no_tensorflow(tmp_path):
    images = random_images(0, 3)
    prepare(tmp_path / "data", {"train": examples(images)})
    script = f"""
        import sys
        import numpy as np
        from score_jax.data.tfds import tfds
        assert "tensorflow_datasets" not in sys.modules, "imported before it is used"
        data = tfds("tiny_set", {str(tmp_path / "data")!r}, cache={str(tmp_path / "cache")!r})
        assert "tensorflow_datasets" in sys.modules and "tensorflow" not in sys.modules
        print(int(np.asarray(data.test.x).sum()))
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split()[-1] == str(int(images[0].sum()))


# features


def test_one_of_several_features_must_be_named(tmp_path):
    images, backs = random_images(0, 3), random_images(1, 3)
    features = {"front": COLOUR, "back": COLOUR, "kind": LABEL, "size": LABEL}
    rows = [
        {"front": png(x), "back": png(y), "kind": 0, "size": i}
        for i, (x, y) in enumerate(zip(images, backs, strict=True))
    ]
    prepare(tmp_path / "data", {"train": rows}, features)
    refused("several .*, back, front; set config.data.image", tmp_path)
    refused("several .*, kind, size; set config.data.label", tmp_path, image="back")
    refused(
        "label is 'front', but tiny_set has only kind, size", tmp_path, image="back", label="front"
    )
    data = load(tmp_path, image="back", label="size")
    np.testing.assert_array_equal(data.test.x, backs[:1])
    assert [getattr(data, name).label.tolist() for name in SPLITS] == [[2], [1], [0]]


@pytest.mark.parametrize(
    "features, example, message",
    [
        ({"text": library.features.Text()}, {"text": "a"}, "tiny_set has no image, only text"),
        (
            {"image": library.features.Image(shape=(None, None, 4))},
            {"image": png(random_images(0, 1, channels=4)[0])},
            "image has 4 channels of uint8; use a set of images with 1 or 3 channels",
        ),
        (
            {
                "image": library.features.Image(
                    shape=(4, 5, 1), dtype=np.uint16, encoding_format="png"
                )
            },
            {"image": b""},
            "image has 1 channels of uint16",
        ),
    ],
)
def test_a_set_without_images_of_bytes_is_refused(tmp_path, features, example, message):
    prepare(tmp_path / "data", {"train": [example] * 3}, features)
    refused(message, tmp_path)


def test_a_split_without_labels_is_refused(tmp_path):
    unlabelled = [e | {"label": -1} for e in examples(random_images(1, 3))]
    prepare(tmp_path / "data", {"train": examples(random_images(0, 9)), "test": unlabelled})
    refused("test: example 0 has no label; set .*config.data.* test to another split", tmp_path)


def test_a_damaged_image_is_named(tmp_path):
    rows = examples(random_images(0, 5))
    rows[3]["image"] = rows[3]["image"][:60]
    prepare(tmp_path / "data", {"train": rows})
    refused("tiny_set/1.2.0 train: image 3 cannot be read", tmp_path)
    assert not list((tmp_path / "cache").glob("*.npy"))


# sets


def test_an_unknown_set_is_answered_with_near_names(tmp_path):
    prepare(tmp_path / "data", {"train": examples(random_images(0, 3))})
    refused(
        "knows no 'cifra10'.*did you mean cifar10 or .*config.data.dataset",
        tmp_path,
        dataset="cifra10",
    )
    refused("knows no 'tinyset'.*did you mean tiny_set", tmp_path, dataset="tinyset")
    refused("dataset is 'a b'; it must be like name, name/config", tmp_path, dataset="a b")
    refused("no set is named; set config.data.dataset", tmp_path, dataset="")


def test_a_set_that_is_not_prepared_is_answered_with_how_to_prepare_it(tmp_path):
    command = r"download_and_prepare\(\)"
    refused(
        f"imagenet_resized/64x64 is not prepared in {tmp_path}/data; set config.data.folder to where"
        f".*builder\\('imagenet_resized/64x64', file_format='array_record'\\).{command}",
        tmp_path,
        dataset="imagenet_resized/64x64",
    )
    prepare(tmp_path / "data", {"train": examples(random_images(0, 3))})
    only = "tiny_set:3.0.0 is not prepared in .*, only tiny_set/1.2.0; "
    refused(only, tmp_path, dataset="tiny_set:3.0.0")


def test_a_set_prepared_as_tfrecord_is_refused(tmp_path):
    here = prepare(tmp_path / "data", {"train": examples(random_images(0, 3))})
    about = json.loads((here / "dataset_info.json").read_text())
    (here / "dataset_info.json").write_text(json.dumps(about | {"fileFormat": "tfrecord"}))
    refused("prepared as tfrecord.*file_format='array_record'", tmp_path)


@pytest.mark.parametrize("damage", ["missing", "truncated", "empty", "flipped"])
def test_a_damaged_file_of_a_set_is_one_line(tmp_path, damage):
    here = prepare(tmp_path / "data", {"train": examples(random_images(0, 3))})
    (file,) = here.glob("*.array_record*")
    content = bytearray(file.read_bytes())
    content[content.index(b"PNG") + 50] ^= 1
    damaged = {"truncated": content[: len(content) // 2], "empty": b"", "flipped": content}
    file.unlink()
    if damage in damaged:
        file.write_bytes(damaged[damage])
    refused("tiny_set/1.2.0 train.* cannot be read .*; copy or prepare the set again", tmp_path)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"test": "tset"}, "test is 'tset', but tiny_set has only train, test; set it to .* None"),
        (
            {"train": "all"},
            "train is 'all', but tiny_set has only train, test; set it to one of them$",
        ),
        ({"test": "train"}, "are train, None and train; they must be different splits"),
        ({"n_test": 2}, "n_test is 2, but tiny_set has a test split of its own; set it to None"),
        ({"n_validation": 9}, "n_validation = 9 examples cannot be held out of 9 in tiny_set"),
    ],
)
def test_splits_that_are_none_are_refused(tmp_path, options, message):
    splits = {"train": examples(random_images(0, 9)), "test": examples(random_images(1, 3))}
    prepare(tmp_path / "data", splits)
    refused(message, tmp_path, **options)
