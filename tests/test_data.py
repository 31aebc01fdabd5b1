"""Data: levels and model space, splits, order, and the data sets that are files or formulas."""

import gzip
import math
import pickle
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_jax.data.base import Rows, Split, hold_out, log_det, take, to_levels, to_model
from score_jax.data.digits import digits
from score_jax.data.fashion_mnist import fashion_mnist
from score_jax.data.order import batch_indices
from score_jax.data.toy2d import SHAPES, toy2d

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


# levels and model space


@pytest.mark.parametrize("levels", [2, 17, 255, 256])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_level_plus_noise_comes_back_as_the_level(levels, compiled):
    k = np.arange(levels, dtype=np.float32)
    u = np.concatenate([[0.0, 1e-6], np.linspace(0.001, 0.999, 999)]).astype(np.float32)
    there = lambda v: to_model(v, levels)
    back = lambda x: to_levels(x, levels)
    if compiled:
        there, back = jax.jit(there), jax.jit(back)
    found = back(there(k[:, None] + u))
    np.testing.assert_array_equal(found, np.broadcast_to(k[:, None], found.shape))


def test_model_space_is_minus_one_to_one_for_bytes_too():
    np.testing.assert_array_equal(
        to_model(np.array([0, 128, 255], np.uint8), 256), [-1, 0, 127 / 128]
    )
    np.testing.assert_array_equal(
        to_model(jnp.array([0, 128, 255], jnp.uint8), 256), [-1, 0, 127 / 128]
    )
    assert to_model(np.array([17.0]), 17) == 1


def test_samples_outside_the_range_are_clipped():
    np.testing.assert_array_equal(to_levels(jnp.array([-1.5, -1.0, 1.0, 2.0]), 17), [0, 0, 16, 16])


def test_log_det_is_the_one_of_the_jacobian():
    v = jnp.array([0.3, 7.9, 16.2])
    jacobian = jax.jacobian(lambda v: to_model(v, 17))(v)
    assert log_det(17, n_dims=3) == pytest.approx(float(jnp.linalg.slogdet(jacobian)[1]), rel=1e-6)


def test_continuous_data_are_their_own_model_space():
    x = np.array([[-3.0, 0.2]], np.float32)
    assert to_model(x, None) is x and to_levels(x, None) is x and log_det(None, 2) == 0


# splits


@pytest.mark.parametrize("n", [0, 1, 7, 50, 99])
def test_holding_out_shares_no_example_and_loses_none(n):
    marked = Split(np.arange(100, dtype=np.uint8)[:, None], np.arange(100))
    train, validation = hold_out(marked, n)
    assert len(validation.x) == n
    assert sorted([*train.x[:, 0], *validation.x[:, 0]]) == list(range(100))
    np.testing.assert_array_equal(train.label, train.x[:, 0])
    np.testing.assert_array_equal(validation.label, validation.x[:, 0])


def test_held_out_examples_are_evenly_spaced():
    _, validation = hold_out(Split(np.arange(100, dtype=np.uint8), None), 4)
    np.testing.assert_array_equal(validation.x, [0, 25, 50, 75])


@pytest.mark.parametrize("n", [-1, 100])
def test_holding_out_everything_is_refused(n):
    with pytest.raises(
        ValueError, match=f"n_validation = {n} .* the 100 training .*config.data.n_validation"
    ):
        hold_out(Split(np.zeros((100, 2), np.uint8), None), n)


def memory_map(path, array):
    np.save(path, array)
    return np.load(path, mmap_mode="r")


@pytest.mark.parametrize("n", [0, 7])
def test_a_split_of_a_memory_map_is_rows_of_it(tmp_path, n):
    x = np.arange(300, dtype=np.uint8).reshape(100, 3)
    mapped = memory_map(tmp_path / "x.npy", x)
    label = np.arange(100)
    splits, plain = hold_out(Split(mapped, label), n), hold_out(Split(x, label), n)
    odd = np.arange(100) % 2 == 1
    splits += (take(splits[0], odd[: 100 - n]), take(splits[0], np.array([5, 2, 2])))
    plain += (take(plain[0], odd[: 100 - n]), take(plain[0], np.array([5, 2, 2])))
    for split, expected in zip(splits, plain, strict=True):
        assert split.x.array is mapped and type(expected.x) is np.ndarray
        np.testing.assert_array_equal(split.x[:], expected.x)
        np.testing.assert_array_equal(split.label, expected.label)


@pytest.mark.parametrize(
    "key",
    [0, -1, slice(1, 3), slice(None, None, -1), np.array([3, 0, 0]), np.arange(4) > 1, [1, 2]],
    ids=str,
)
def test_rows_are_indexed_like_the_array_they_stand_for(tmp_path, key):
    x = np.arange(60, dtype=np.uint8).reshape(10, 2, 3)
    index = np.array([7, 1, 1, 4])
    rows, array = Rows(memory_map(tmp_path / "x.npy", x), index), x[index]
    assert type(rows[key]) is np.ndarray
    np.testing.assert_array_equal(rows[key], array[key])
    rows[key][...] = 0  # a copy: the file is read-only
    assert (rows.shape, rows.dtype, rows.nbytes, rows.ndim, len(rows)) == (
        array.shape,
        array.dtype,
        array.nbytes,
        array.ndim,
        len(array),
    )
    np.testing.assert_array_equal(np.asarray(rows), array)
    assert jax.tree.leaves((rows, None)) == [rows]


@pytest.mark.parametrize("order", "CF")
def test_rows_of_a_memory_map_are_sent_to_another_process_as_its_path(tmp_path, order):
    x = np.arange(120_000, dtype=np.float32).reshape(300, 400, order=order)
    mapped, index = memory_map(tmp_path / "x.npy", x), np.array([299, 3, 5])
    content = pickle.dumps(Rows(mapped, index))
    assert len(content) < 2000
    np.testing.assert_array_equal(pickle.loads(content)[:], x[index])
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(Rows(mapped[100:], index[1:])))[:], x[[103, 105]]
    )


# order


def test_every_epoch_visits_every_example_once():
    n, batch_size = 10, 4
    stream = np.concatenate(
        [batch_indices(0, step, n, batch_size) for step in range(15)]
    )  # 6 epochs
    epochs = stream.reshape(6, n)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(n), (6, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 6


def test_any_step_can_be_asked_first():
    forward = [batch_indices(3, step, 10, 4) for step in range(50)]
    for step in reversed(range(50)):
        np.testing.assert_array_equal(batch_indices(3, step, 10, 4), forward[step])
    assert not np.array_equal(batch_indices(4, 0, 10, 4), forward[0])


def test_a_batch_may_be_larger_than_the_data():
    large = np.concatenate([batch_indices(0, step, 10, 25) for step in range(4)])
    small = np.concatenate([batch_indices(0, step, 10, 4) for step in range(25)])
    np.testing.assert_array_equal(large, small)


# digits


def test_digits_are_scikit_learns_and_split_by_index():
    from sklearn.datasets import load_digits

    file, data = load_digits(), digits(n_validation=100)
    np.testing.assert_array_equal(data.test.x[..., 0], file.images[1::5])
    np.testing.assert_array_equal(data.test.label, file.target[1::5])
    assert [len(split.x) for split in (data.train, data.validation, data.test)] == [1337, 100, 360]
    rows = lambda x: sorted(map(bytes, x))
    together = np.concatenate([data.train.x, data.validation.x, data.test.x])
    assert rows(together) == rows(file.images.astype(np.uint8))
    assert (data.shape, data.levels, data.n_classes) == ((8, 8, 1), 17, 10)
    assert set(np.unique(data.validation.label)) == set(range(10))


def test_a_categorical_per_pixel_scores_2_426_bits_per_dim_on_the_digits():
    """The number a model of the digits must beat; random splits have 2.428 +- 0.010."""
    data = digits(n_validation=0)
    train, test = data.train.x.reshape(-1, 64), data.test.x.reshape(-1, 64)
    count = 1 + np.sum(train[:, :, None] == np.arange(17), axis=0)
    p = count / count.sum(axis=1, keepdims=True)
    bits_per_dim = -np.mean(np.log2(p[np.arange(64), test]))
    assert bits_per_dim == pytest.approx(2.4262, abs=1e-4)


# Fashion-MNIST


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_fashion(folder, suffix=".gz"):
    """Files in Fashion-MNIST's layout with 6 and 3 random images of 4 rows and 5 columns."""
    rng, arrays = np.random.default_rng(0), {}
    for prefix, n in [("train", 6), ("t10k", 3)]:
        arrays[prefix] = rng.integers(256, size=(n, 4, 5)), rng.integers(10, size=n)
        write_idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", arrays[prefix][0])
        write_idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", arrays[prefix][1])
    return arrays


@pytest.mark.parametrize("suffix", [".gz", ""])
def test_idx_files_come_back_exactly(tmp_path, suffix):
    arrays = write_fashion(tmp_path, suffix)
    data = fashion_mnist(str(tmp_path), n_validation=2)
    (images, labels), held = arrays["train"], [0, 3]
    np.testing.assert_array_equal(data.validation.x[..., 0], images[held])
    np.testing.assert_array_equal(data.validation.label, labels[held])
    np.testing.assert_array_equal(data.train.x[..., 0], np.delete(images, held, axis=0))
    np.testing.assert_array_equal(data.train.label, np.delete(labels, held))
    np.testing.assert_array_equal(data.test.x[..., 0], arrays["t10k"][0])
    np.testing.assert_array_equal(data.test.label, arrays["t10k"][1])


def test_padding_surrounds_the_images_with_zeros(tmp_path):
    arrays = write_fashion(tmp_path)
    data = fashion_mnist(str(tmp_path), pad=2, n_validation=0)
    assert data.shape == (8, 9, 1)
    np.testing.assert_array_equal(data.test.x[:, 2:-2, 2:-2, 0], arrays["t10k"][0])
    assert data.test.x.sum() == arrays["t10k"][0].sum()


def test_missing_files_are_named_with_the_ways_to_get_them(tmp_path):
    ways = (
        f"no train-images.*in {tmp_path}; .*apt-get install dataset-fashion-mnist, or .*data.folder"
    )
    with pytest.raises(FileNotFoundError, match=ways):
        fashion_mnist(str(tmp_path))
    write_fashion(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(
        FileNotFoundError, match="no t10k-labels-idx1-ubyte.gz or t10k-labels-idx1-ubyte in"
    ):
        fashion_mnist(str(tmp_path), n_validation=0)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda raw: raw[:-10], "train-images-idx3-ubyte.gz is truncated or no gzip file"),
        (lambda raw: b"<html>", "train-images-idx3-ubyte.gz is truncated or no gzip file"),
        (
            lambda raw: gzip.compress(gzip.decompress(raw)[:-7]),
            r"holds 113 values, but its header says shape \(6, 4, 5\)",
        ),
        (
            lambda raw: gzip.compress(gzip.decompress(raw)[:9]),
            "truncated in its header, at 9 of 16 bytes",
        ),
        (
            lambda raw: gzip.compress(b"\0\0\x0d\3" + bytes(40)),
            r"starts with bytes \[0, 0, 13, 3\], not \[0, 0, 8, 3\]",
        ),
        (
            lambda raw: gzip.compress(b"\0\0\x08\3" + struct.pack(">3I", 1, 4, 5) + bytes(20)),
            "1 images but .*labels",
        ),
    ],
)
def test_a_damaged_idx_file_is_named(tmp_path, damage, message):
    write_fashion(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        fashion_mnist(str(tmp_path), n_validation=0)


def test_a_label_that_is_no_class_is_refused(tmp_path):
    write_fashion(tmp_path)
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.arange(5, 11))
    with pytest.raises(ValueError, match="holds label 10; labels are 0 to 9"):
        fashion_mnist(str(tmp_path), n_validation=0)


@pytest.mark.skipif(
    not DEBIAN.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed"
)
def test_the_real_fashion_mnist_has_its_published_classes_and_mean():
    data = fashion_mnist(pad=2)
    assert [len(split.x) for split in (data.train, data.validation, data.test)] == [
        55_000,
        5_000,
        10_000,
    ]
    np.testing.assert_array_equal(np.bincount(data.test.label), np.full(10, 1000))
    train = np.concatenate([data.train.x, data.validation.x])[:, 2:-2, 2:-2]
    assert train.mean() / 255 == pytest.approx(0.2860, abs=5e-5)  # the mean everyone normalizes by
    assert train.std() / 255 == pytest.approx(0.3530, abs=5e-5)
    assert data.class_names[data.test.label[0]] == "ankle boot"


# toy2d


@pytest.mark.parametrize("shape", ["gaussians", "checkerboard", "unequal"])
def test_a_toy_density_integrates_to_one(shape):
    step = 0.02
    centres = np.arange(-2.5 + step / 2, 2.5, step, dtype=np.float32)
    grid = np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2)
    assert jnp.exp(toy2d(shape, n=10).log_prob(grid)).sum() * step**2 == pytest.approx(1, abs=1e-3)


def test_the_mean_log_density_of_the_gaussians_is_minus_their_entropy():
    """Neighbours are 11 standard deviations apart: the entropy is log 8 plus one Gaussian's."""
    data = toy2d("gaussians")
    entropy = math.log(8) + math.log(2 * math.pi * math.e * 0.1**2)
    log_prob = np.asarray(data.log_prob(data.train.x))
    standard_error = float(log_prob.std()) / math.sqrt(len(log_prob))
    assert float(log_prob.mean()) == pytest.approx(-entropy, abs=4 * standard_error)


def test_four_fifths_of_the_unequal_points_are_on_one_side_and_noise_keeps_the_density_whole():
    data = toy2d("unequal", n=4000)
    share = np.mean(data.train.x.sum(axis=1) > 0)
    assert share == pytest.approx(0.8, abs=4 * math.sqrt(0.16 / 4000))
    x, alpha, sigma = jnp.zeros((1, 2)), jnp.asarray(0.6), jnp.asarray(0.5)
    variance = (alpha * 0.15) ** 2 + sigma**2
    logp = -((alpha * 1.5) ** 2) / (2 * variance) - math.log(2 * math.pi * variance)
    np.testing.assert_allclose(data.noised_logp(x, alpha, sigma), logp, rtol=1e-5)


def test_the_checkerboard_has_its_points_where_its_density_is():
    data = toy2d("checkerboard", n=8000)
    np.testing.assert_allclose(data.log_prob(data.train.x), -math.log(8), rtol=1e-6)
    _, count = np.unique(np.floor(data.train.x), axis=0, return_counts=True)
    assert len(count) == 8
    assert np.all(np.abs(count - 1000) < 4 * math.sqrt(8000 * 7 / 64))


def test_moons_lie_on_their_half_circles():
    data = toy2d("moons", n=4000)
    centre = np.where(data.train.label[:, None] == 0, [-0.5, -0.25], [0.5, 0.25])
    radius = np.linalg.norm(data.train.x - centre, axis=1)
    assert radius.mean() == pytest.approx(1 + 0.08**2 / 2, abs=4 * 0.08 / math.sqrt(4000))
    assert radius.std() == pytest.approx(0.08, rel=0.05)


def test_spirals_are_each_other_turned_by_half_a_turn():
    """The angle less 1.5 turns times radius / 1.8 is 0 on one arm, half a turn on the other."""
    x, label = toy2d("spirals", n=4000).train
    radius = np.linalg.norm(x, axis=1)
    angle = np.arctan2(x[:, 1], x[:, 0]) - 2 * math.pi * 1.5 * radius / 1.8 - math.pi * label
    outside = radius > 0.5  # the noise blurs the centre
    assert np.cos(angle[outside]).min() > 0.5


@pytest.mark.parametrize("shape", SHAPES)
def test_toys_are_reproducible_and_their_splits_differ(shape):
    data, again, other = toy2d(shape, n=1000), toy2d(shape, n=1000), toy2d(shape, n=1000, seed=1)
    np.testing.assert_array_equal(data.train.x, again.train.x)
    points = [tuple(point) for split in data[1:4] for point in split.x] + [
        tuple(p) for p in other.train.x
    ]
    assert len(set(points)) == 1000 + 100 + 100 + 1000
    assert data.train.x.dtype == np.float32 and np.abs(data.train.x).max() < 2.2


def test_an_unknown_toy_is_answered_with_the_choices():
    with pytest.raises(
        ValueError, match="no toy2d shape 'moon'.*moons, checkerboard, spirals, gaussians, unequal"
    ):
        toy2d("moon")
