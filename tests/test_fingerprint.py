"""A fingerprint of a data set: another one as soon as training would see other examples."""

import numpy as np
import pytest

from score_jax.data.base import DataSet, Rows, Split
from score_jax.data.fingerprint import fingerprint

X = np.random.default_rng(0).standard_normal((300, 2)).astype(np.float32)
LABEL = np.arange(300, dtype=np.int32) % 7


def of(x=X, label=LABEL, held=X[:5]):
    other = Split(held, None)
    return fingerprint(DataSet("some", Split(x, label), other, other, None))


def test_the_same_data_have_the_same_wherever_they_are_kept(tmp_path):
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert of() == of(X.copy()) == of(mapped) == of(Rows(mapped, np.arange(300)))


@pytest.mark.parametrize(
    "other",
    [
        dict(x=X[:-1], label=LABEL[:-1]),
        dict(x=np.vstack([X[150:], X[:150]])),
        dict(x=X + 1e-6),
        dict(label=(LABEL + 1) % 7),
        dict(label=None),
        dict(held=X[1:6]),
        dict(held=X[:0]),
    ],
    ids=[
        "one less",
        "another order",
        "other values",
        "other labels",
        "no labels",
        "held",
        "none held",
    ],
)
def test_other_data_have_another(other):
    assert of(**other) != of()
