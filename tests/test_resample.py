"""Resampling against scipy's upfirdn, and against what a filter does to constants and waves."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal

from score_jax.nets.resample import RESAMPLINGS

FIR = RESAMPLINGS["fir"]
KERNEL = np.array([1.0, 3.0, 3.0, 1.0]) / 8


def images(height, width):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.standard_normal((2, height, width, 3), dtype=np.float32))


def wave(frequency, positions):
    """cos(frequency * position) along the width, the same in every row; a batch of one."""
    values = np.cos(frequency * np.asarray(positions)).astype(np.float32)
    return jnp.asarray(
        np.broadcast_to(values[None, None, :, None], (1, len(values), len(values), 1))
    )


def upfirdn(x, up, down, skip, length):
    """Zeros between, filter, decimate, along height and width; `length` outputs after `skip`."""
    for axis, n in zip((1, 2), length, strict=True):
        full = signal.upfirdn(up * KERNEL, np.asarray(x, float), up, 1, axis=axis)
        x = np.take(full, skip + down * np.arange(n), axis=axis)
    return x


@pytest.mark.parametrize(
    "way, up, down, skip, length",
    [
        # the full filter starts 3 positions early; stylegan2 pads 1 in front, 2 with a convolution
        ("down", 1, 2, 2, (3, 4)),
        ("before_down", 1, 1, 1, (7, 9)),
        # zeros between included, it pads 2 in front, 3 with a convolution
        ("up", 2, 1, 1, (12, 16)),
        ("before_up", 2, 1, 0, (14, 18)),
    ],
)
def test_the_fir_filter_is_scipy_s_upfirdn(way, up, down, skip, length):
    x = images(6, 8)
    out = getattr(FIR, way)(x)
    np.testing.assert_allclose(out, upfirdn(x, up, down, skip, length), atol=1e-6)


@pytest.mark.parametrize("name", RESAMPLINGS)
def test_down_is_a_quarter_of_the_transpose_of_up(name):
    down, up = RESAMPLINGS[name].down, RESAMPLINGS[name].up
    fine, coarse = images(6, 8), images(3, 4)[::-1]
    np.testing.assert_allclose(
        jnp.vdot(down(fine), coarse), jnp.vdot(fine, up(coarse)) / 4, rtol=1e-5
    )


@pytest.mark.parametrize("name", RESAMPLINGS)
@pytest.mark.parametrize("way", ["down", "up"])
def test_a_constant_image_stays_one_inside(name, way):
    out = getattr(RESAMPLINGS[name], way)(jnp.full((1, 8, 8, 1), 3.0))
    np.testing.assert_allclose(out[:, 1:-1, 1:-1], 3.0, rtol=1e-6)


@pytest.mark.parametrize("frequency", [0.3, 1.0, 2.0, np.pi])
def test_down_scales_a_wave_by_the_transfer_function(frequency):
    # (1, 3, 3, 1) / 8 is (1, 1) / 2 three times, and (1, 1) / 2 scales a wave by cos(frequency / 2)
    # and moves it by half a pixel; at pi, where decimation would show a constant, nothing is left
    out = FIR.down(wave(frequency, np.arange(16)))
    expected = np.cos(frequency / 2) ** 3 * wave(frequency, 2 * np.arange(8) + 0.5)
    np.testing.assert_allclose(out[:, 1:-1, 1:-1], expected[:, 1:-1, 1:-1], atol=1e-6)


@pytest.mark.parametrize("frequency", [0.05, 0.5])
def test_down_after_up_gives_a_slow_wave_back(frequency):
    # up makes two waves, of frequency / 2 and of pi - frequency / 2, which down both takes to
    # `frequency`: in all cos^6 + sin^6 of frequency / 4, the error being of order frequency^2
    x = wave(frequency, np.arange(12))
    c, s = np.cos(frequency / 4) ** 2, np.sin(frequency / 4) ** 2
    out = FIR.down(FIR.up(x))[:, 2:-2, 2:-2]
    np.testing.assert_allclose(out, (c**3 + s**3) * x[:, 2:-2, 2:-2], atol=1e-6)
    np.testing.assert_allclose(out, x[:, 2:-2, 2:-2], atol=0.2 * frequency**2)


def test_naive_resampling_averages_and_repeats_pixels():
    x = jnp.arange(8.0).reshape(1, 2, 4, 1)
    naive = RESAMPLINGS["naive"]
    np.testing.assert_array_equal(naive.down(x)[0, :, :, 0], [[2.5, 4.5]])
    np.testing.assert_array_equal(
        naive.up(x[:, :, :2])[0, :, :, 0], [[0, 0, 1, 1], [0, 0, 1, 1], [4, 4, 5, 5], [4, 4, 5, 5]]
    )
