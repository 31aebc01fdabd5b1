"""What is asked of an image, as a measurement of it: tasks by name, and the masks that have names."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from score_jax import measurement as measurements
from score_jax.measurement import Measurement

# the pixels that are to be drawn, by their places in units of height and width
_HIDDEN = {
    "center": lambda row, column: np.maximum(abs(row - 0.5), abs(column - 0.5)) < 0.25,
    "left": lambda row, column: column < 0.5,
    "right": lambda row, column: column > 0.5,
    "top": lambda row, column: row < 0.5,
    "bottom": lambda row, column: row > 0.5,
}
MASKS = tuple(_HIDDEN)


class Task(NamedTuple):
    """make(shape, **options) -> Measurement of events of a shape; its options, and what is drawn, in words."""

    make: Callable[..., Measurement]
    options: tuple[str, ...]
    what: str


def named_mask(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """True where x of shape (height, width, ...) is observed; a word of MASKS says what is hidden."""
    height, width = shape[:2]
    row, column = np.meshgrid(
        (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij"
    )
    return ~np.asarray(_HIDDEN[name](row, column))


def _inpaint(shape, mask, std):
    return measurements.inpaint(np.broadcast_to(mask[..., None], shape), std)


TASKS = {
    "inpaint": Task(_inpaint, ("mask",), "what a mask hides"),
    "random_mask": Task(
        measurements.random_mask, ("share", "seed"), "all pixels, of a share of them"
    ),
    "colorize": Task(measurements.grey, (), "the colours of a grey image"),
    "super_resolution": Task(
        measurements.average_pool, ("factor",), "an image of the means of its squares"
    ),
    "deblur": Task(measurements.blur, ("width",), "a sharp image of a blurred one"),
}
