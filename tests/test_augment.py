"""EDM's augmentation: exact where pixels meet pixels, a smooth image's closed form elsewhere, as often as asked."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_jax import augment, shapes
from score_jax.augment import N_CONDITIONS

HEIGHT, WIDTH = 8, 12
transform = jax.jit(augment.transform)
augmented = jax.jit(augment.augment, static_argnums=2)
X_FLIP, Y_FLIP, SCALE, COS_LESS_1, SIN, STRETCH_COS, STRETCH_SIN, RIGHT, DOWN = range(N_CONDITIONS)


def keys(n):
    return shapes.fold_in(jax.random.split(jax.random.key(0), n), 1)


def image(seed=0, n=1):
    """Noise, of which every pixel is told from its neighbours, in two channels."""
    return jax.random.normal(jax.random.key(seed), (n, HEIGHT, WIDTH, 2))


def condition(**values):
    """One image's condition, all 0 but for the entries named as above, in lower case."""
    entries = np.zeros((1, N_CONDITIONS), np.float32)
    for name, value in values.items():
        entries[0, globals()[name.upper()]] = value
    return jnp.asarray(entries)


def test_without_transforms_images_stay_as_they_are_to_the_last_bit():
    x = image(n=16)
    found, conditions = augmented(keys(16), x, 0.0)
    np.testing.assert_array_equal(found, x)
    np.testing.assert_array_equal(conditions, np.zeros((16, N_CONDITIONS)))


@pytest.mark.parametrize(
    ("flips", "expected"),
    [
        (dict(x_flip=1), lambda x: x[:, :, ::-1]),
        (dict(y_flip=1), lambda x: x[:, ::-1]),
        (dict(x_flip=1, y_flip=1), lambda x: x[:, ::-1, ::-1]),
    ],
)
def test_flips_are_exact(flips, expected):
    x = image()
    np.testing.assert_array_equal(transform(x, condition(**flips)), expected(x))


@pytest.mark.parametrize(("right", "down"), [(1, 0), (0, 3), (-2, -1), (5, 2)])
def test_a_shift_by_whole_pixels_moves_the_image_and_mirrors_it_at_the_border(right, down):
    """The mirror stands on the outermost pixels: numpy calls that padding "reflect"."""
    x = image()
    shift = condition(right=8 * right / WIDTH, down=8 * down / HEIGHT)
    wide = np.pad(x, ((0, 0), (6, 6), (6, 6), (0, 0)), mode="reflect")
    expected = wide[:, 6 - down : 6 - down + HEIGHT, 6 - right : 6 - right + WIDTH]
    np.testing.assert_allclose(transform(x, shift), expected, atol=2e-5)


def test_a_quarter_turn_is_counter_clockwise():
    x = image()[:, :, :HEIGHT]
    found = transform(x, condition(cos_less_1=-1, sin=1))
    np.testing.assert_allclose(found[0], np.rot90(x[0]), atol=2e-5)


def plane(height, width):
    """Coordinates of the pixels from the middle, rightwards and upwards."""
    rows, columns = np.mgrid[:height, :width]
    return columns - (width - 1) / 2, (height - 1) / 2 - rows


def turned(angle):
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


# entries, and the map from where a point is to where it goes, rightwards and upwards, of a matrix
TURN, AXIS = 0.7, 0.4
ALONG = turned(AXIS) @ np.diag([2**0.3, 2**-0.3]) @ turned(AXIS).T  # a5 = 1.5
MAPS = {
    "scaling": (dict(scale=-1.0), 2**-0.2 * np.eye(2)),
    "rotation": (dict(cos_less_1=np.cos(TURN) - 1, sin=np.sin(TURN)), turned(TURN)),
    "stretch": (
        dict(stretch_cos=1.5 * np.cos(2 * AXIS), stretch_sin=1.5 * np.sin(2 * AXIS)),
        ALONG,
    ),
    "all": (
        dict(
            x_flip=1,
            scale=2.0,
            cos_less_1=np.cos(TURN) - 1,
            sin=np.sin(TURN),
            stretch_cos=1.5 * np.cos(2 * AXIS),
            stretch_sin=1.5 * np.sin(2 * AXIS),
        ),
        ALONG @ turned(TURN) @ (2**0.4 * np.diag([-1.0, 1.0])),
    ),
}


def deviation(name, height, width, wave):
    """The largest error where the interpolation reads no pixel beyond the border, of an image that is wave(x, y)."""
    entries, matrix = MAPS[name]
    right, up = plane(height, width)
    x = jnp.asarray(wave(right, up)[None, ..., None], jnp.float32)
    found = transform(x, condition(**entries))[0, ..., 0]
    source = np.einsum("ij,jhw->ihw", np.linalg.inv(matrix), np.stack([right, up]))
    inside = (np.abs(source[0]) < width / 2 - 2) & (np.abs(source[1]) < height / 2 - 2)
    assert inside.sum() > 10
    return np.max(np.abs(found - wave(*source))[inside])


@pytest.mark.parametrize("name", MAPS)
def test_a_transformed_quadratic_is_the_quadratic_of_transformed_coordinates(name):
    assert (
        deviation(name, 20, 30, lambda x, y: 0.3 * x - 0.2 * y + 0.01 * x * y + 0.02 * y**2) < 3e-5
    )


@pytest.mark.parametrize("name", MAPS)
def test_a_transformed_wave_has_an_error_of_third_order_in_the_size_of_pixels(name):
    wave = lambda scale: lambda x, y: np.cos(scale * (0.5 * x + 0.3 * y) + 0.2)
    errors = [deviation(name, 20 * n, 30 * n, wave(1 / n)) for n in (1, 2)]
    assert errors[0] < 0.02
    assert math.log2(errors[0] / errors[1]) > 2.7


def test_a_shift_comes_last():
    """It is by shares of the image, also of one that was turned and scaled."""
    turn = dict(cos_less_1=-1, sin=1, scale=0.7)
    x, shift = image(), dict(right=8 / WIDTH, down=16 / HEIGHT)
    both = transform(x, condition(**turn, **shift))
    alone = transform(x, condition(**turn))
    np.testing.assert_allclose(both[:, 2:, 1:], alone[:, :-2, :-1], atol=2e-5)


P, N = 0.3, 40_000


@pytest.fixture(scope="module")
def drawn():
    return np.asarray(jax.jit(jax.vmap(lambda key: augment.draw(key, P)))(keys(N)), float)


@pytest.mark.parametrize(
    ("entry", "rate"),
    [
        (X_FLIP, 0.5),
        (Y_FLIP, P / 2),
        (SCALE, P),
        (SIN, P),
        (STRETCH_COS, P),
        (RIGHT, P),
        (DOWN, P),
    ],
)
def test_transforms_come_as_often_as_asked(drawn, entry, rate):
    """A flip is a coin's toss when it is drawn; the x flip is always drawn."""
    found = np.mean(drawn[:, entry] != 0)
    assert abs(found - rate) < 4 * math.sqrt(rate * (1 - rate) / N)


def test_transforms_are_drawn_independently(drawn):
    one_each = drawn[:, [X_FLIP, Y_FLIP, SCALE, SIN, STRETCH_COS, RIGHT]] != 0
    correlation = np.corrcoef(one_each.T)
    # of independent coins a correlation has a standard error of 1 / sqrt(N)
    assert np.max(np.abs(correlation - np.eye(6))) < 4 / math.sqrt(N)


def test_parameters_follow_the_papers_laws(drawn):
    """Scales, stretches and shifts are normal, the angle and the axis uniform over the circle."""
    of = lambda entry: drawn[drawn[:, entry] != 0, entry]
    for entry, variance in [
        (SCALE, 1.0),
        (RIGHT, 1.0),
        (DOWN, 1.0),
        (STRETCH_COS, 0.5),
        (STRETCH_SIN, 0.5),
    ]:
        square = of(entry) ** 2
        assert abs(square.mean() - variance) < 4 * square.std() / math.sqrt(len(square))
    cos, sin = drawn[drawn[:, SIN] != 0][:, [COS_LESS_1, SIN]].T
    np.testing.assert_allclose((1 + cos) ** 2 + sin**2, 1.0, atol=1e-6)
    for moment in (1, 2, 3):
        wave = np.exp(1j * moment * np.arctan2(sin, 1 + cos))
        assert abs(wave.mean()) < 4 / math.sqrt(len(wave))


def test_the_condition_alone_says_what_was_done():
    x = image(n=16)
    found, conditions = augmented(keys(16), x, 0.8)
    np.testing.assert_allclose(transform(x, conditions), found, atol=1e-5)
    assert np.any(np.asarray(conditions)[:, SCALE:] != 0, axis=1).sum() > 8


def test_an_image_is_a_function_of_its_own_key():
    """Not of its place in the batch, nor of the images beside it."""
    x, some = image(n=16), np.array([6, 1, 3])
    found, conditions = augmented(keys(16), x, 0.8)
    again, same = augmented(keys(16)[some], x[some], 0.8)
    np.testing.assert_allclose(again, found[some], atol=1e-5)
    np.testing.assert_allclose(same, conditions[some], atol=1e-6)
