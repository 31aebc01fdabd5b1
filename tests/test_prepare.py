"""From stored examples to a batch in model space: mirroring, dequantization, scaling, one key per example.

Level k of L becomes a point of [2 k / L - 1, 2 (k + 1) / L - 1).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_mean

from score_jax import train
from score_jax.data.base import Split

LEVELS = 24
# every value of an image differs from the others, so that no axis can be turned unnoticed
IMAGES = np.stack([np.random.default_rng(i).permutation(LEVELS) for i in range(5)])
DATA = Split(IMAGES.reshape(5, 3, 4, 2).astype(np.uint8), np.array([7, 3, 9, 0, 4], np.int32))
INDICES = np.random.default_rng(0).integers(0, 5, 64)
KEYS = jax.random.split(jax.random.key(0), 64)
POSITION = jnp.arange(64) / 64


def prepared(levels=LEVELS, flip=False, labels=True, *, data=DATA, indices=INDICES, keys=KEYS):
    fn = jax.jit(train.prepare(levels, flip, labels))
    return fn(keys, POSITION[: len(keys)], data, indices)


def levels_and_noise(batch):
    """k and u of x = 2 (k + u) / L - 1, in float64."""
    v = (np.asarray(batch.x, float) + 1) * LEVELS / 2
    return np.floor(v), v - np.floor(v)


def test_an_example_is_the_stored_image_and_label_at_its_index():
    batch = prepared()
    np.testing.assert_array_equal(levels_and_noise(batch)[0], DATA.x[INDICES])
    np.testing.assert_array_equal(batch.label, [[7, 3, 9, 0, 4][i] for i in INDICES])
    np.testing.assert_array_equal(batch.position, np.arange(64) / 64)


def test_an_image_is_mirrored_left_to_right_where_its_key_says_so():
    """By the key's first stream, in about half of 64: within 4 standard errors of 1/2, 1/16 each."""
    mirrored = np.array([bool(jax.random.bernoulli(jax.random.fold_in(key, 0))) for key in KEYS])
    assert abs(np.mean(mirrored) - 0.5) < 4 / 16
    found = levels_and_noise(prepared(flip=True))[0]
    np.testing.assert_array_equal(found[mirrored], DATA.x[INDICES[mirrored]][:, :, [3, 2, 1, 0]])
    np.testing.assert_array_equal(found[~mirrored], DATA.x[INDICES[~mirrored]])


def test_the_noise_fills_each_level_anew_for_every_value():
    """3072 draws, uniform on [0, 1): mean 1/2 and variance 1/12 within 4 standard errors, no two alike."""
    noise = levels_and_noise(prepared())[1].ravel()
    assert_mean(np.stack([noise, (noise - 0.5) ** 2], 1), [1 / 2, 1 / 12])
    same = prepared(indices=np.zeros(64, int))
    assert len(np.unique(np.asarray(same.x)[:, 0, 0, 0])) == 64


def test_the_noise_says_nothing_of_the_mirroring():
    """The correlation of 64 pairs has standard error 1/8."""
    mirrored = [float(jax.random.bernoulli(jax.random.fold_in(key, 0))) for key in KEYS]
    noise = levels_and_noise(prepared(flip=True))[1]
    assert abs(np.corrcoef(mirrored, noise.mean((1, 2, 3)))[0, 1]) < 4 / 8
    assert abs(np.corrcoef(mirrored, noise[:, 0, 0, 0])[0, 1]) < 4 / 8


@pytest.mark.parametrize("shape", [(2,), (4, 4, 1)])
def test_continuous_data_pass_unchanged(shape):
    x = np.random.default_rng(0).normal(size=(5, *shape)).astype(np.float32) * 3
    batch = prepared(None, labels=False, data=Split(x, None))
    np.testing.assert_array_equal(batch.x, x[INDICES])
    assert batch.label is None


def test_labels_that_are_not_asked_for_stay_behind():
    assert prepared(labels=False).label is None


def test_an_example_depends_on_its_own_key_alone():
    whole = prepared(flip=True)
    others = KEYS.at[1:].set(jax.random.split(jax.random.key(1), 63))
    changed, alone = (
        prepared(flip=True, keys=others),
        prepared(flip=True, keys=KEYS[:1], indices=INDICES[:1]),
    )
    for other in (changed, alone):
        np.testing.assert_array_equal(other.x[0], whole.x[0])
        assert other.keys[0] == whole.keys[0]
    assert np.all(np.any(np.asarray(changed.x != whole.x)[1:], axis=(1, 2, 3)))


def test_the_keys_handed_on_are_new_streams():
    """Not the given ones nor those already spent on mirroring and noise, and no two alike."""
    handed = prepared(flip=True).keys
    spent = [KEYS, *(jax.vmap(lambda key, i=i: jax.random.fold_in(key, i))(KEYS) for i in (0, 1))]
    data = np.concatenate([jax.random.key_data(keys) for keys in (handed, *spent)])
    assert len(np.unique(data, axis=0)) == 4 * 64
