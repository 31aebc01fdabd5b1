"""The user's own arrays, in .npy and .npz files written here."""

import pickle

import numpy as np
import pytest

from score_jax.data.array import array
from score_jax.data.base import Rows

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(256, size=(40, 5, 6, 3), dtype=np.uint8)
VECTORS = RNG.standard_normal((40, 7)).astype(np.float32)
LABELS = np.arange(40) % 4
SPLITS = ("train", "validation", "test")


def save(path, x):
    np.save(path, x)
    return str(path)


def together(data):
    """The examples of all splits."""
    return np.concatenate([np.asarray(getattr(data, name).x) for name in SPLITS])


def rows(x):
    return sorted(map(bytes, np.ascontiguousarray(x)))


# what comes back


@pytest.mark.parametrize(
    "x, levels",
    [
        (IMAGES, 256),
        (RNG.integers(256, size=(40, 9), dtype=np.uint8), 256),
        (VECTORS, None),
        (RNG.standard_normal((40, 16, 2)).astype(np.float32), None),
        (RNG.standard_normal((40, 2, 3, 4, 5)).astype(np.float32), None),
        (np.asfortranarray(VECTORS), None),
    ],
)
def test_any_event_comes_back_exactly_from_a_memory_map(tmp_path, x, levels):
    data = array(save(tmp_path / "mine.npy", x), n_validation=5, n_test=8)
    assert [len(getattr(data, name).x) for name in SPLITS] == [27, 5, 8]
    np.testing.assert_array_equal(data.test.x, x[::5])
    assert rows(together(data)) == rows(x)
    assert (data.name, data.shape, data.levels, data.n_classes) == ("mine", x.shape[1:], levels, 0)
    for name in SPLITS:
        part = getattr(data, name).x
        assert (
            isinstance(part, Rows) and isinstance(part.array, np.memmap) and part.dtype == x.dtype
        )


def test_a_tenth_is_held_out_for_test_and_then_for_validation(tmp_path):
    path = save(tmp_path / "x.npy", np.zeros((200, 2), np.float32))
    assert [len(getattr(array(path), name).x) for name in SPLITS] == [162, 18, 20]
    path = save(tmp_path / "x.npy", np.zeros((3, 2), np.float32))
    assert [len(getattr(array(path), name).x) for name in SPLITS] == [1, 1, 1]


def test_labels_stay_with_their_examples(tmp_path):
    marked = np.arange(40, dtype=np.float32)[:, None]
    path, labels = save(tmp_path / "x.npy", marked), save(tmp_path / "y.npy", LABELS)
    data = array(path, labels)
    assert data.n_classes == 4
    for name in SPLITS:
        split = getattr(data, name)
        np.testing.assert_array_equal(split.label, np.asarray(split.x)[:, 0] % 4)


@pytest.mark.parametrize("layout", ["npz", "compressed npz", "folder"])
def test_splits_of_its_own_are_kept_as_they_are(tmp_path, layout):
    """The names and, for CIFAR, the [n, 1] labels of Keras' files."""
    parts = {
        "x_train": IMAGES[:20],
        "y_train": LABELS[:20, None],
        "x_validation": IMAGES[20:26],
        "y_validation": LABELS[20:26].astype(np.uint8),
        "x_test": IMAGES[26:],
        "y_test": np.full(14, 6),
        "notes": np.array(["not", "used"]),
    }
    path = tmp_path / ("own" if layout == "folder" else "own.npz")
    if layout == "folder":
        path.mkdir()
        for name, values in parts.items():
            np.save(path / f"{name}.npy", values)
    else:
        (np.savez if layout == "npz" else np.savez_compressed)(path, **parts)
    data = array(str(path))
    for name in SPLITS:
        split = getattr(data, name)
        np.testing.assert_array_equal(split.x, parts[f"x_{name}"])
        np.testing.assert_array_equal(split.label, parts[f"y_{name}"].ravel())
        assert isinstance(split.x, np.memmap) == (layout == "folder")
    assert (data.name, data.n_classes) == ("own", 7)  # the largest label is in test


def test_what_a_file_lacks_is_held_out_of_its_training_examples(tmp_path):
    np.savez(
        tmp_path / "some.npz", x=VECTORS, x_validation=VECTORS[:3], y=LABELS, y_validation=[0] * 3
    )
    data = array(str(tmp_path / "some.npz"), n_test=4)
    np.testing.assert_array_equal(data.validation.x, VECTORS[:3])
    np.testing.assert_array_equal(data.test.x, VECTORS[::10])
    np.testing.assert_array_equal(data.test.label, LABELS[::10])
    assert len(data.train.x) == 36


def test_grey_images_get_their_channel_axis_and_stay_a_map(tmp_path):
    grey = RNG.integers(256, size=(10, 5, 6), dtype=np.uint8)
    np.savez(tmp_path / "mnist.npz", x_train=grey, x_test=grey)
    np.testing.assert_array_equal(array(str(tmp_path / "mnist.npz")).test.x, grey[..., None])
    for x in (grey, np.asfortranarray(grey)):
        data = array(save(tmp_path / "x.npy", x), n_test=5, n_validation=1)
        np.testing.assert_array_equal(data.test.x, grey[::2, ..., None])
        # sent to another process, the file is opened again instead of copied
        sent = pickle.dumps(data.test.x)
        np.testing.assert_array_equal(pickle.loads(sent), data.test.x)
        assert isinstance(data.test.x.array, np.memmap) and len(sent) < 1000 and b"x.npy" in sent
    signals = array(save(tmp_path / "x.npy", grey.astype(np.float32)))
    assert signals.shape == (5, 6)


@pytest.mark.parametrize(
    "x, dtype, levels",
    [
        (VECTORS.astype(np.float64), np.float32, None),
        (VECTORS.astype(np.float16), np.float32, None),
        (VECTORS.astype(">f4"), np.float32, None),
        (IMAGES.astype(np.int64), np.uint8, 256),
        ((IMAGES % 100).astype(np.int8), np.uint8, 256),
    ],
)
def test_other_numbers_are_converted_in_memory(tmp_path, x, dtype, levels, monkeypatch):
    monkeypatch.setattr("score_jax.data.array._CHUNK_BYTES", 3 * x[0].nbytes + 1)
    data = array(save(tmp_path / "x.npy", x), n_test=8)
    np.testing.assert_array_equal(data.test.x, x[::5].astype(dtype))
    assert type(data.test.x) is np.ndarray and data.test.x.dtype == dtype
    assert data.levels == levels


def test_levels_are_the_users_or_256(tmp_path):
    path = save(tmp_path / "x.npy", IMAGES % 17)
    assert (array(path).levels, array(path, levels=17).levels) == (256, 17)


# what is refused


def refused(message, *args, **options):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        array(*args, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "x, options, message",
    [
        (np.array([1, "a"], object), {}, r"x.npy .*no array of numbers.*nothing is unpickled"),
        (np.array(["a", "b"]), {}, "x.npy holds <U1, neither integers nor floats"),
        (np.ones((4, 2), bool), {}, r"x.npy holds bool.*x.astype\(np.uint8\)"),
        (np.ones((4, 2), complex), {}, "holds complex128"),
        (np.float32(3), {}, r"x.npy has shape \(\), but the first axis is the examples"),
        (np.ones(4, np.float32), {}, r"has shape \(4,\).*x.reshape\(-1, 1\)"),
        (np.ones((0, 3), np.float32), {}, r"x.npy is empty: its shape is \(0, 3\)"),
        (np.ones((3, 0), np.uint8), {}, r"x.npy is empty: its shape is \(3, 0\)"),
        (IMAGES.transpose(0, 3, 1, 2), {}, r"\(40, 3, 5, 6\).*x.transpose\(0, 2, 3, 1\)"),
        (VECTORS, {"levels": 256}, "levels is 256, but .*x.npy holds float32.*set it to None"),
        (IMAGES, {"n_test": 40}, "n_test = 40 examples cannot be held out of 40 in .*x.npy"),
        (IMAGES, {"n_test": 30, "n_validation": 10}, "n_validation = 10 .* of 10 in"),
        (IMAGES[:1], {}, "n_test = 1 examples cannot be held out of 1"),
    ],
)
def test_an_array_that_is_no_data_set_is_refused(tmp_path, x, options, message):
    path = tmp_path / "x.npy"
    np.save(path, x, allow_pickle=True)
    refused(message, str(path), **options)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_first_example_that_is_not_finite_is_named(tmp_path, dtype, value, monkeypatch):
    x = np.zeros((40, 5, 2), dtype)
    x[23, 1, 0] = x[30] = value
    monkeypatch.setattr("score_jax.data.array._CHUNK_BYTES", 7 * x[0].nbytes)
    refused(rf"x.npy: example 23 holds {value};.*finite", save(tmp_path / "x.npy", x))
    refused("example 23", save(tmp_path / "x.npy", np.asfortranarray(x)))


def test_a_float64_too_large_for_float32_is_refused(tmp_path):
    x = np.zeros((4, 2))
    x[2] = 1e39
    refused("example 2 holds inf; floats must be finite, as float32", save(tmp_path / "x.npy", x))


@pytest.mark.parametrize(
    "dtype, levels, value, most",
    [(np.uint8, 17, 17, 16), (np.int64, None, 256, 255), (np.int16, None, -1, 255)],
)
def test_the_first_value_that_is_no_level_is_named(
    tmp_path, dtype, levels, value, most, monkeypatch
):
    x = np.zeros((40, 3, 3, 1), dtype)
    x[11, 2, 2] = x[12] = value
    monkeypatch.setattr("score_jax.data.array._CHUNK_BYTES", 4 * x[0].nbytes)
    refused(f"x.npy: example 11 holds {value}; levels are 0 to {most}: set config.data.levels",
            save(tmp_path / "x.npy", x), levels=levels)  # fmt: skip


@pytest.mark.parametrize(
    "y, message",
    [
        (LABELS[:39], r"y.npy has shape \(39,\), but .*x.npy holds 40 examples"),
        (np.eye(4, dtype=int)[LABELS], r"y.npy has shape \(40, 4\)"),
        (LABELS.astype(float), r"y.npy holds float64, but labels are integers"),
        (np.where(np.arange(40) == 9, -1, LABELS), "y.npy: example 9 has label -1; labels are 0"),
        (LABELS + 2**31, "example 0 has label 2147483648"),
    ],
)
def test_labels_that_are_none_are_refused(tmp_path, y, message):
    refused(message, save(tmp_path / "x.npy", VECTORS), save(tmp_path / "y.npy", y))


@pytest.mark.parametrize(
    "members, message",
    [
        ({"images": IMAGES}, "some.npz holds images; it needs x_train or x, one of the two"),
        ({"x": IMAGES, "x_train": IMAGES}, "one of the two"),
        ({"x_test": IMAGES}, "holds x_test; it needs x_train or x"),
        ({"x": IMAGES, "y_train": LABELS}, "holds labels y_train but no x_train"),
        (
            {"x": IMAGES, "y": LABELS, "x_test": IMAGES},
            "x_test has no labels y_test, but .*x has some",
        ),
        ({"x": IMAGES, "y_test": LABELS, "x_test": IMAGES}, "x has no labels y, but .*x_test has"),
        ({"x": IMAGES, "x_test": IMAGES[:, 1:]}, r"x_test holds uint8 of shape \(4, 6, 3\), but "),
        ({"x": VECTORS, "x_test": IMAGES}, "x_test holds uint8 .*x float32 .*must be alike"),
        ({"x_train": np.array([None, {}])}, "some.npz .*no array of numbers.*nothing is unpickled"),
    ],
)
def test_members_that_do_not_go_together_are_named(tmp_path, members, message):
    np.savez(tmp_path / "some.npz", **members)
    refused(message, str(tmp_path / "some.npz"))


def test_options_that_contradict_the_files_are_refused(tmp_path):
    np.savez(tmp_path / "some.npz", x=VECTORS, x_test=VECTORS)
    path = str(tmp_path / "some.npz")
    refused(
        "n_test is 3, but .*some.npz has a test split of its own; set it to None", path, n_test=3
    )
    refused("labels is y.npy, but goes with one .npy file", path, "y.npy")
    refused("set config.data.path")


@pytest.mark.parametrize("keep", [0, 5, 60, -1])
@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_a_truncated_file_is_named(tmp_path, name, keep):
    path = tmp_path / name
    (np.save if name == "x.npy" else lambda path, x: np.savez(path, x=x))(path, VECTORS)
    path.write_bytes(path.read_bytes()[:keep])
    refused(f"{name} is truncated", str(path))


def test_a_damaged_member_is_named(tmp_path):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, x=VECTORS)
    content = bytearray(path.read_bytes())
    content[200] ^= 255
    path.write_bytes(content)
    refused("x.npz is truncated or holds no array", str(path))


def test_a_missing_file_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    refused("no .*nowhere.npy; set config.data.path", str(tmp_path / "nowhere.npy"))
    refused("empty holds no arrays; it needs x_train or x", str(tmp_path / "empty"))
    path = save(tmp_path / "x.npy", VECTORS)
    refused("no file .*nowhere.npy", path, str(tmp_path / "nowhere.npy"))


def test_a_pickle_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path / "sprung").touch, ()

    for name in ("x.npy", "x.npz"):
        (tmp_path / name).write_bytes(pickle.dumps(Trap()))
        refused(f"{name} is truncated or", str(tmp_path / name))
    np.savez(tmp_path / "x.npz", x=np.array([Trap(), Trap()]))
    refused("nothing is unpickled", str(tmp_path / "x.npz"))
    assert not (tmp_path / "sprung").exists()
