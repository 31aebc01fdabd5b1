"""Measurements against the dense matrices that they stand for, and against answers that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

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
}
DECOMPOSED = [name for name in OPERATORS if name != "linear"]


def made(name):
    make, shape = OPERATORS[name]
    return make(), shape


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def dense(measurement, shape):
    """The matrix of A, column by column."""
    eye = jnp.eye(np.prod(shape)).reshape(-1, *shape)
    y = measurement.apply(eye)
    return np.asarray(y.reshape(len(y), -1)).T


@pytest.mark.parametrize("name", OPERATORS)
def test_the_adjoint_moves_a_to_the_other_side_of_the_inner_product(x64, name):
    measurement, shape = made(name)
    x = normal(0, 3, *shape)
    y = normal(1, *measurement.apply(x).shape)
    of_examples = lambda a, b: jnp.sum((a * b).reshape(3, -1), axis=1)
    left = of_examples(measurement.apply(x), y)
    right = of_examples(x, measurement.adjoint(y))
    np.testing.assert_allclose(left, right, rtol=1e-12)


@pytest.mark.parametrize("name", DECOMPOSED)
def test_the_decomposition_is_one_of_a(x64, name):
    measurement, shape = made(name)
    svd, x = measurement.svd, normal(0, 2, *shape)
    c = svd.to_right(x)
    close = dict(rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(svd.from_right(c), x, **close)
    np.testing.assert_allclose(jnp.sum(c**2), jnp.sum(x**2), rtol=1e-12)
    np.testing.assert_allclose(svd.from_left(svd.singular * c), measurement.apply(x), **close)
    np.testing.assert_allclose(svd.to_left(measurement.apply(x)), svd.singular * c, **close)
    a = dense(measurement, shape)
    found = np.sort(svd.singular.ravel())[::-1]
    true = np.zeros_like(found)
    values = np.linalg.svd(a, compute_uv=False)
    true[: len(values)] = values[: len(true)]
    np.testing.assert_allclose(found, true, atol=1e-6 * true[0])


@pytest.mark.parametrize("name", OPERATORS)
def test_pseudo_inverse_and_solve_are_those_of_the_matrix(x64, name):
    measurement, shape = made(name)
    a = dense(measurement, shape)
    y = measurement.apply(normal(0, 2, *shape))
    flat = np.asarray(y.reshape(2, -1))
    found = measurements.pseudo_inverse(measurement, y).reshape(2, -1)
    np.testing.assert_allclose(found, flat @ np.linalg.pinv(a, 1e-6).T, rtol=1e-4, atol=1e-5)
    scale, noise = jnp.array([0.5, 2.0]), jnp.array([0.1, 0.3])
    found = measurements.solve(measurement, y, scale, noise).reshape(2, -1)
    for i in range(2):
        system = scale[i] * a @ a.T + noise[i] * np.eye(len(a))
        np.testing.assert_allclose(found[i], np.linalg.solve(system, flat[i]), rtol=1e-4, atol=1e-5)


def test_what_is_measured_is_what_the_task_names(x64):
    x = normal(0, 2, *SHAPE)
    np.testing.assert_array_equal(measurements.inpaint(MASK).apply(x), np.asarray(x)[:, MASK])
    pooled = measurements.average_pool(SHAPE, 2).apply(x)
    np.testing.assert_allclose(pooled[1, 1, 2, 0], np.mean(x[1, 2:4, 4:6, 0]), rtol=1e-12)
    grey = measurements.grey(SHAPE).apply(x)
    luma = 0.299 * x[..., 0] + 0.587 * x[..., 1] + 0.114 * x[..., 2]
    np.testing.assert_allclose(grey[..., 0], luma, rtol=1e-12)
    shape = (21, 21, 1)
    impulse = jnp.zeros((1, *shape)).at[0, 10, 10, 0].set(1.0)
    blurred = measurements.blur(shape, 1.5).apply(impulse)[0, :, :, 0]
    density = scipy.stats.norm(scale=1.5).pdf(np.arange(-6, 7))
    kernel = density / density.sum()
    np.testing.assert_allclose(blurred[4:17, 4:17], np.outer(kernel, kernel), rtol=1e-10)
    assert blurred[3].max() == 0
    ones = jnp.ones((1, *shape))
    np.testing.assert_allclose(measurements.blur(shape, 1.5).apply(ones), 1.0, rtol=1e-12)


def test_a_random_mask_observes_its_share_of_pixels_in_all_channels(x64):
    x = jnp.broadcast_to(jnp.arange(24.0).reshape(1, 4, 6, 1), (1, *SHAPE))
    y = measurements.random_mask(SHAPE, 0.25, seed=3).apply(x)[0]
    pixels, counts = np.unique(y, return_counts=True)
    assert len(pixels) == 6 and np.all(counts == 3)
    other = measurements.random_mask(SHAPE, 0.25, seed=4).apply(x)[0]
    assert set(pixels) != set(np.asarray(other))


def test_the_likelihood_is_normal_and_noise_is_each_samples_own(x64):
    measurement = measurements.matrix(WIDE, std=0.3)
    x = normal(0, 4, 5)
    keys = jax.random.split(jax.random.key(1), 4)
    y = measurements.measure(keys, measurement, x)
    found = measurements.log_likelihood(measurement, y, x)
    true = scipy.stats.norm(np.asarray(x) @ WIDE.T, 0.3).logpdf(y).sum(axis=1)
    np.testing.assert_allclose(found, true, rtol=1e-12)
    alone = measurements.measure(keys[2:3], measurement, x[2:3])
    np.testing.assert_allclose(alone[0], y[2], rtol=1e-12)


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
