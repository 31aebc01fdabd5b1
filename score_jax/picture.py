"""Pictures of samples: a grid of images, or a scatter plot of points."""

import math
from pathlib import Path

import numpy as np

from score_jax import files


def save(path: Path, x: np.ndarray, levels: int | None):
    """Writes a PNG of samples [n, h, w, c] in integer levels, or of points [n, 2]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if x.ndim == 4:
        files.write(
            path, lambda part: _grid(part, np.asarray(x, np.float32) * (255 / (levels - 1)))
        )
    else:
        files.write(path, lambda part: _scatter(part, x))


def _grid(path: Path, images: np.ndarray, gap: int = 1):
    from PIL import Image

    n, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    canvas = np.full((rows, height + gap, columns, width + gap, channels), 128, np.uint8)
    for i, image in enumerate(images):
        canvas[i // columns, :height, i % columns, :width] = np.round(image)
    canvas = canvas.reshape(rows * (height + gap), columns * (width + gap), channels)[:-gap, :-gap]
    scale = max(1, 512 // max(canvas.shape[:2]))  # small images are shown enlarged
    canvas = canvas.repeat(scale, axis=0).repeat(scale, axis=1)
    Image.fromarray(canvas[..., 0] if channels == 1 else canvas).save(path)


def _scatter(path: Path, points: np.ndarray):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 4), dpi=128)
    axes = figure.add_subplot(aspect="equal")
    axes.scatter(points[:, 0], points[:, 1], s=2, linewidths=0)
    figure.savefig(path, bbox_inches="tight")
