"""Data order as a pure function of (seed, step): a resumed run needs no iterator state.

The order is the endless concatenation of one permutation per epoch, cut into batches. Nothing is
dropped: a batch may straddle epochs, and may be larger than the data set. A permutation takes 8
bytes and about 30 ns per example: 0.1 s and 40 MB for five million.
"""

from functools import lru_cache

import numpy as np
from jaxtyping import Int


def batch_indices(seed: int, step: int, n: int, batch_size: int) -> Int[np.ndarray, "batch_size"]:
    """The indices in [0, n) of the examples of a step, counted from 0."""
    start, stop = step * batch_size, (step + 1) * batch_size
    epochs = range(start // n, -(-stop // n))
    return np.concatenate(
        [
            _permutation(seed, epoch, n)[max(start - epoch * n, 0) : stop - epoch * n]
            for epoch in epochs
        ]
    )


@lru_cache(maxsize=2)  # a batch straddles two epochs, unless they are short and quickly made
def _permutation(seed: int, epoch: int, n: int) -> Int[np.ndarray, "n"]:
    permutation = np.random.default_rng((seed, epoch)).permutation(n)
    permutation.flags.writeable = False  # the cache hands out the same array every time
    return permutation
