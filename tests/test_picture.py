"""Pictures of samples: what is in the pixels, and what is drawn into the plots."""

import numpy as np
import pytest
from PIL import Image

from score_jax import picture

RNG = np.random.default_rng(0)


def pixels(path, x, levels):
    picture.save(path / "new" / "x.png", x, levels)
    return np.asarray(Image.open(path / "new" / "x.png")).astype(int)


def tiles(canvas, n, height, width):
    """The n tiles of a grid with gaps of one pixel, each shown larger."""
    columns = int(np.ceil(np.sqrt(n)))
    scale = (canvas.shape[1] + 1) // (columns * (width + 1) - 1)
    canvas = canvas[scale // 2 :: scale, scale // 2 :: scale]
    corners = [(i // columns * (height + 1), i % columns * (width + 1)) for i in range(n)]
    return np.stack([canvas[row : row + height, col : col + width] for row, col in corners])


@pytest.mark.parametrize("levels, factor", [(256, 1), (18, 15), (2, 255)])
def test_colour_images_are_shown_from_black_to_the_highest_level(tmp_path, levels, factor):
    x = RNG.integers(levels, size=(5, 3, 4, 3), dtype=np.uint8)
    shown = tiles(pixels(tmp_path, x, levels), 5, 3, 4)
    np.testing.assert_array_equal(shown, x.astype(int) * factor)


def test_continuous_images_are_shown_from_their_smallest_to_their_largest_value(tmp_path):
    x = RNG.integers(256, size=(4, 3, 3, 1)).astype(np.float32)
    x[0, 0, 0], x[0, 0, 1] = 0, 255
    for values in (x, x / 100 - 7):
        np.testing.assert_array_equal(tiles(pixels(tmp_path, values, None), 4, 3, 3), x[..., 0])


def test_a_failed_or_flat_continuous_image_is_black(tmp_path):
    x = np.stack([np.zeros((2, 2, 1)), np.ones((2, 2, 1)), np.full((2, 2, 1), np.nan)])
    shown = tiles(pixels(tmp_path, x.astype(np.float32), None), 3, 2, 2)
    np.testing.assert_array_equal(shown[:, 0, 0], [0, 255, 0])
    for value in (np.nan, 3.0):
        assert not tiles(pixels(tmp_path, np.full((1, 2, 2, 1), value), None), 1, 2, 2).any()


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_channels_that_are_no_colour_are_side_by_side(tmp_path, channels):
    x = RNG.integers(256, size=(3, 4, 3, channels), dtype=np.uint8)
    shown = tiles(pixels(tmp_path, x, 256), 3, 4, 3 * channels)
    for c in range(channels):
        np.testing.assert_array_equal(shown[:, :, 3 * c : 3 * c + 3], x[..., c])


@pytest.mark.parametrize(
    "event, n_lines, marker",
    [((7,), 1, "."), ((40,), 1, "None"), ((40, 3), 3, "None"), ((4, 2, 3), 6, ".")],
)
def test_each_sample_has_a_plot_and_each_channel_a_line(event, n_lines, marker):
    x = RNG.standard_normal((5, *event)).astype(np.float32)
    plots = picture.figure(x).axes
    assert len(plots) == 6 and [plot.axison for plot in plots] == [True] * 5 + [False]
    for plot, sample in zip(plots, x, strict=False):
        drawn = [line.get_ydata() for line in plot.lines]
        np.testing.assert_array_equal(drawn, sample.reshape(event[0], n_lines).T)
        assert {line.get_marker() for line in plot.lines} == {marker}
        assert plot.get_ylim() == plots[0].get_ylim()


def test_no_more_than_64_samples_are_drawn_as_lines():
    assert len(picture.figure(np.zeros((100, 5), np.uint8)).axes) == 64


@pytest.mark.parametrize("event", [(2,), (2, 1), (1, 2)])
def test_points_in_the_plane_are_scattered(event):
    x = RNG.standard_normal((30, *event)).astype(np.float32)
    (plot,) = picture.figure(x).axes
    np.testing.assert_array_equal(plot.collections[0].get_offsets(), x.reshape(30, 2))


def test_numbers_are_counted_and_failed_ones_left_out():
    x = np.array([[0.0], [0.1], [1.0], [np.nan], [np.inf]], np.float32)
    (plot,) = picture.figure(x).axes
    heights = [bar.get_height() for bar in plot.patches]
    assert (heights[0], heights[10], heights[-1], sum(heights)) == (1, 1, 1, 3)


@pytest.mark.parametrize("event", [(1,), (2,), (9,), (64,), (64, 2), (3, 4, 5, 2), (8, 8, 1)])
@pytest.mark.parametrize("levels", [None, 256])
def test_samples_of_any_event_become_a_picture(tmp_path, event, levels):
    """What the plots hold is tested above; here, that a file of a legible size is written."""
    x = RNG.integers(256, size=(4, *event), dtype=np.uint8)
    canvas = pixels(tmp_path, x if levels else x.astype(np.float32), levels)
    assert min(canvas.shape[:2]) > 200 and len(np.unique(canvas)) > 2


def test_a_picture_has_as_many_samples_as_it_can_show():
    assert [picture.count(event) for event in [(2,), (1,), (8, 8, 1), (64,), (64, 2)]] == [
        2000,
        2000,
        64,
        16,
        16,
    ]
