"""Measurements against the dense matrices that they stand for, and against answers that are known."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from conftest import assert_mean

from score_jax import measurement as measurements

SHAPE = (4, 6, 3)
RNG = np.random.default_rng(0)
WIDE, TALL = RNG.normal(size=(3, 5)), RNG.normal(size=(5, 3))
MASK = RNG.random(SHAPE) < 0.4
OPERATORS = {
    "inpaint": (lambda: measurements.inpaint(MASK), SHAPE),
    "random_mask": (lambda: measurements.random_mask(SHAPE, 0.3), SHAPE),
    "grey": (lambda: measurements.grey(SHAPE), SHAPE),
    "average_pool": (lambda: measurements.average_pool(SHAPE, 2), SHAPE),
    "blur": (lambda: measurements.blur(SHAPE, 0.8), SHAPE),
    "wide": (lambda: measurements.matrix(WIDE), (5,)),
    "tall": (lambda: measurements.matrix(TALL), (3,)),
    "linear": (lambda: measurements.linear(lambda x: x @ WIDE.T, (5,)), (5,)),
    "tall_linear": (lambda: measurements.linear(lambda x: x @ TALL.T, (3,)), (3,)),
}
DECOMPOSED = [name for name in OPERATORS if "linear" not in name]


class Found(NamedTuple):
    """What an operator's functions give for x, y = A x, another y and the unit vectors; the matrix of A from those."""

    shape: tuple[int, ...]
    svd: measurements.SVD | None
    x: np.ndarray
    y: np.ndarray
    other: np.ndarray
    adjoint: np.ndarray
    pseudo_inverse: np.ndarray
    nearest: np.ndarray
    solved: np.ndarray
    coordinates: tuple[np.ndarray, ...] | None
    matrix: np.ndarray


SCALE, NOISE = np.array([0.5, 2.0]), np.array([0.1, 0.3])  # of `solve`, for each example


@functools.cache
def found(name):
    """Computed once, in float64, by one program."""
    make, shape = OPERATORS[name]
    measurement = make()
    svd = measurement.svd

    @jax.jit
    def run(x, unit, key):
        y, columns = measurement.apply(x), measurement.apply(unit)
        other = jax.random.normal(key, y.shape)
        coordinates = None
        if svd is not None:
            c = svd.to_right(x)
            coordinates = c, svd.from_right(c), svd.from_left(svd.singular * c), svd.to_left(y)
        return (
            y,
            other,
            measurement.adjoint(other),
            measurements.pseudo_inverse(measurement, y),
            measurements.pseudo_inverse(measurement, other),
            measurements.solve(measurement, y, jnp.asarray(SCALE), jnp.asarray(NOISE)),
            coordinates,
            columns.reshape(len(unit), -1).T,
        )

    with jax.enable_x64(True):
        x, unit = RNG.normal(size=(2, *shape)), np.eye(np.prod(shape)).reshape(-1, *shape)
        out = run(jnp.asarray(x), jnp.asarray(unit), jax.random.key(1))
        return Found(shape, svd, x, *jax.tree.map(np.asarray, out))


def flat(x):
    return x.reshape(len(x), -1)


@pytest.mark.parametrize("name", OPERATORS)
def test_the_adjoint_moves_a_to_the_other_side_of_the_inner_product(name):
    of = found(name)
    left = np.sum(flat(of.y * of.other), axis=1)
    np.testing.assert_allclose(left, np.sum(flat(of.x * of.adjoint), axis=1), rtol=1e-12)


@pytest.mark.parametrize("name", DECOMPOSED)
def test_the_decomposition_is_one_of_a(name):
    of = found(name)
    c, back, of_c, of_y = of.coordinates
    close = dict(rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(back, of.x, **close)
    np.testing.assert_allclose(np.sum(c**2), np.sum(of.x**2), rtol=1e-12)
    np.testing.assert_allclose(of_c, of.y, **close)
    np.testing.assert_allclose(of_y, of.svd.singular * c, **close)
    singular = np.sort(of.svd.singular.ravel())[::-1]
    true = np.zeros_like(singular)
    values = np.linalg.svd(of.matrix, compute_uv=False)
    true[: len(values)] = values[: len(true)]
    np.testing.assert_allclose(singular, true, atol=1e-6 * true[0])


@pytest.mark.parametrize("name", OPERATORS)
def test_pseudo_inverse_and_solve_are_those_of_the_matrix(name):
    """The former also of a y that no x gives."""
    of = found(name)
    a, y = of.matrix, flat(of.y)
    close = dict(rtol=1e-4, atol=1e-5)
    inverse = np.linalg.pinv(a, 1e-6)
    np.testing.assert_allclose(flat(of.pseudo_inverse), y @ inverse.T, **close)
    np.testing.assert_allclose(flat(of.nearest), flat(of.other) @ inverse.T, **close)
    for i in range(2):
        system = SCALE[i] * a @ a.T + NOISE[i] * np.eye(len(a))
        np.testing.assert_allclose(flat(of.solved)[i], np.linalg.solve(system, y[i]), **close)


def test_what_is_measured_is_what_the_task_names():
    x, y = found("inpaint").x, found("inpaint").y
    np.testing.assert_array_equal(y, x[:, MASK])
    x, pooled = found("average_pool").x, found("average_pool").y
    np.testing.assert_allclose(pooled[1, 1, 2, 0], np.mean(x[1, 2:4, 4:6, 0]), rtol=1e-12)
    x, grey = found("grey").x, found("grey").y
    luma = 0.299 * x[..., 0] + 0.587 * x[..., 1] + 0.114 * x[..., 2]
    np.testing.assert_allclose(grey[..., 0], luma, rtol=1e-12)


def test_a_blur_has_a_gaussian_kernel_and_keeps_what_is_constant(x64):
    shape = (21, 21, 1)
    x = np.stack([np.zeros(shape), np.ones(shape)])
    x[0, 10, 10, 0] = 1.0
    impulse, ones = jax.jit(measurements.blur(shape, 1.5).apply)(jnp.asarray(x))
    density = scipy.stats.norm(scale=1.5).pdf(np.arange(-6, 7))
    kernel = density / density.sum()
    np.testing.assert_allclose(impulse[4:17, 4:17, 0], np.outer(kernel, kernel), rtol=1e-10)
    assert impulse[3].max() == 0
    np.testing.assert_allclose(ones, 1.0, rtol=1e-12)


def test_what_a_blur_all_but_erases_is_taken_for_erased(x64):
    """Of a fine pattern 1e-4 of the coarsest is left, or less: it counts as unseen, and A^+ does not blow it up."""
    measurement = measurements.blur((12, 12, 1), 1.5)
    singular = measurement.svd.singular
    seen = singular[singular > 0]
    assert 0.3 < seen.size / singular.size < 1 and seen.min() > 1e-4 * seen.max()
    checkers = jnp.asarray((-1.0) ** np.add.outer(np.arange(12), np.arange(12))[None, ..., None])
    inverse = jax.jit(lambda y: measurements.pseudo_inverse(measurement, y))
    assert np.linalg.norm(inverse(checkers)) < 1e4 / seen.max() * np.linalg.norm(checkers)


def test_a_random_mask_observes_its_share_of_pixels_in_all_channels():
    x = jnp.broadcast_to(jnp.arange(24.0).reshape(1, 4, 6, 1), (1, *SHAPE))
    y = measurements.random_mask(SHAPE, 0.25, seed=3).apply(x)[0]
    pixels, counts = np.unique(y, return_counts=True)
    assert len(pixels) == 6 and np.all(counts == 3)
    other = measurements.random_mask(SHAPE, 0.25, seed=4).apply(x)[0]
    assert set(pixels) != set(np.asarray(other))


def test_the_likelihood_is_normal_and_noise_is_each_samples_own(x64):
    measurement = measurements.matrix(WIDE, std=0.3)
    keys, x = jax.random.split(jax.random.key(1), 4), RNG.normal(size=(4, 5))

    @jax.jit
    def run(keys, x):
        y = measurements.measure(keys, measurement, x)
        alone = measurements.measure(keys[2:3], measurement, x[2:3])
        return y, alone, measurements.log_likelihood(measurement, y, x)

    y, alone, logp = run(keys, jnp.asarray(x))
    true = scipy.stats.norm(x @ WIDE.T, 0.3).logpdf(y).sum(axis=1)
    np.testing.assert_allclose(logp, true, rtol=1e-12)
    np.testing.assert_allclose(alone[0], y[2], rtol=1e-12)


def test_noise_has_the_standard_deviation_that_is_given(x64):
    measurement = measurements.matrix(np.eye(1), std=0.3)
    keys = jax.random.split(jax.random.key(2), 4000)
    y = jax.jit(lambda keys, x: measurements.measure(keys, measurement, x))(
        keys, jnp.ones((4000, 1))
    )
    # of a standard deviation of normals the relative standard error is 1 / sqrt(2 n)
    assert abs(np.std(y) / 0.3 - 1) < 4 / np.sqrt(8000)
    assert_mean(y, 1.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: measurements.inpaint(np.zeros((2, 2), bool)),
            "the mask of shape (2, 2) observes nothing; make some of it true",
        ),
        (
            lambda: measurements.random_mask((4,), 1.5),
            "share = 1.5 of observed pixels must be above 0 and at most 1",
        ),
        (
            lambda: measurements.grey((8, 8, 1)),
            "colorization needs images of 3 channels, and one is (8, 8, 1) here",
        ),
        (
            lambda: measurements.average_pool((8, 6, 1), 4),
            "factor = 4 must divide the image's 8x6; choose another factor",
        ),
        (
            lambda: measurements.blur((2,), 1.0),
            "deblurring needs images [height, width, channels], and one is (2,) here",
        ),
        (
            lambda: measurements.blur((8, 8, 1), 0.0),
            "width = 0.0 of the blur must be a positive number of pixels",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value) == message
