"""scikit-learn's handwritten digits: 1,797 images of 8x8 with 17 levels, inside its wheel.

The file has no official split. Here image i is a test image if i % 5 == 1 (360 images); validation
is spread evenly over the other 1,437. In bits/dim of the test images, a uniform distribution scores
log2(17) = 4.087, and a categorical distribution per pixel, counted with one added to each level
over all 1,437 images, 2.426. The latter is 2.428 +- 0.010 (standard deviation) over random splits
of the same sizes, and 2.407 to 2.441 over the five residues of i: this one was chosen for being
neither easy nor hard by that measure.
"""

import numpy as np

from score_jax.data.base import DataSet, Split, hold_out, take


def digits(n_validation: int = 144) -> DataSet:
    """8x8x1 images of ten digits, 17 levels.

    Args:
      n_validation: how many of the 1,437 images outside the test split are held out.
    """
    from sklearn.datasets import load_digits

    file = load_digits()
    images = Split(file.images.astype(np.uint8)[..., None], file.target.astype(np.int32))
    is_test = np.arange(len(images.x)) % 5 == 1
    train, validation = hold_out(take(images, ~is_test), n_validation)
    names = tuple(str(name) for name in file.target_names)
    return DataSet("digits", train, validation, take(images, is_test), 17, len(names), names)
