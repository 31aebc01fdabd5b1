"""Pictures of samples of any shape.

Images are a grid, in grey or colour if they have 1 or 3 channels, with other channels side by side.
Points in the plane are a scatter plot, numbers a histogram. Everything else is drawn as lines over
its first axis, one small plot for each sample and in it one line for each channel.
"""

import math
from pathlib import Path

import numpy as np

from score_jax import files

_MAX_PLOTS = 64  # more would be too small to read, and take seconds to draw


def count(shape: tuple[int, ...]) -> int:
    """How many samples of this shape make a good picture."""
    return 64 if len(shape) == 3 else 2000 if math.prod(shape) <= 2 else 16


def save(path: Path, x: np.ndarray, levels: int | None):
    """Writes a PNG of samples [n, *event].

    Args:
      x: integer levels, or continuous if `levels` is None; continuous images are shown from their
        smallest value to their largest.
    """
    with files.naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    if x.ndim == 4:
        files.write(path, lambda part: _grid(part, _to_bytes(x, levels)))
    else:
        files.write(path, lambda part: figure(x).savefig(part, bbox_inches="tight"))


def _to_bytes(x: np.ndarray, levels: int | None) -> np.ndarray:
    """Grey levels 0 to 255; black where the sampler failed."""
    low, high = 0, 255
    if levels is not None:
        high = levels - 1
    elif np.isfinite(x).any():
        finite = x[np.isfinite(x)]
        low, high = finite.min(), finite.max()
    scaled = (np.asarray(x, np.float32) - low) * (255 / max(high - low, 1e-30))
    return np.round(np.clip(np.nan_to_num(scaled, nan=0.0), 0, 255)).astype(np.uint8)


def _grid(path: Path, images: np.ndarray, gap: int = 1):
    from PIL import Image

    if images.shape[-1] not in (1, 3):
        images = np.concatenate(np.split(images, images.shape[-1], axis=-1), axis=2)
    n, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    canvas = np.full((rows, height + gap, columns, width + gap, channels), 128, np.uint8)
    for i, image in enumerate(images):
        canvas[i // columns, :height, i % columns, :width] = image
    canvas = canvas.reshape(rows * (height + gap), columns * (width + gap), channels)[:-gap, :-gap]
    scale = max(1, 512 // max(canvas.shape[:2]))  # small images are shown enlarged
    canvas = canvas.repeat(scale, axis=0).repeat(scale, axis=1)
    Image.fromarray(canvas[..., 0] if channels == 1 else canvas).save(path)


def figure(x: np.ndarray):
    """A matplotlib Figure of samples [n, *event] that are no images; of lines, the first 64."""
    from matplotlib.figure import Figure

    size = math.prod(x.shape[1:])
    if size > 2:
        columns = math.ceil(math.sqrt(min(len(x), _MAX_PLOTS)))
        rows = math.ceil(min(len(x), _MAX_PLOTS) / columns)
        result = Figure(figsize=(1.6 * columns, 1.2 * rows), dpi=128, layout="tight")
        plots = result.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        _lines(plots.ravel(), x)
        return result
    result = Figure(figsize=(4, 4), dpi=128)
    if size == 2:
        axes = result.add_subplot(aspect="equal")
        axes.scatter(*x.reshape(len(x), 2).T, s=2, linewidths=0)
    else:
        result.add_subplot().hist(x[np.isfinite(x)], bins=100)
    return result


def _lines(plots: np.ndarray, x: np.ndarray):
    channels = math.prod(x.shape[2:])
    # dots on short ones, which may be vectors: their lines alone would hide where the values are
    marker = "." if x.shape[1] <= 32 else None
    for plot, sample in zip(plots, x, strict=False):
        plot.plot(sample.reshape(-1, channels), marker=marker, linewidth=0.8, markersize=3)
        plot.tick_params(labelsize=6)
    for plot in plots[len(x) :]:
        plot.set_axis_off()
