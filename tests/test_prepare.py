"""From stored examples to a batch in model space: mirroring, dequantization, scaling, one key per example.

Level k of L becomes a point of [2 k / L - 1, 2 (k + 1) / L - 1).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_mean

from score_jax import shapes, train
from score_jax.augment import augment
from score_jax.coupling import optimal
from score_jax.data.base import Split

LEVELS = 24
# every value of an image differs from the others, so that no axis can be turned unnoticed
IMAGES = np.stack([np.random.default_rng(i).permutation(LEVELS) for i in range(5)])
DATA = Split(IMAGES.reshape(5, 3, 4, 2).astype(np.uint8), np.array([7, 3, 9, 0, 4], np.int32))
INDICES = np.random.default_rng(0).integers(0, 5, 64)
KEYS = jax.random.split(jax.random.key(0), 64)
POSITION = jnp.arange(64) / 64


def prepared(
    levels=LEVELS, flip=False, labels=True, *, data=DATA, indices=INDICES, keys=KEYS, **options
):
    fn = jax.jit(train.prepare(levels, flip, labels, **options))
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
    spent = [KEYS, *(shapes.fold_in(KEYS, i) for i in (0, 1, 3, 4, 5))]
    data = np.concatenate([jax.random.key_data(keys) for keys in (handed, *spent)])
    assert len(np.unique(data, axis=0)) == 7 * 64


def test_a_dropped_label_is_the_class_after_the_last():
    """In about 0.4 of 64, within 4 standard errors of 0.061; the other labels stay."""
    label = np.asarray(prepared(n_classes=10, label_dropout=0.4).label)
    dropped = label == 10
    assert abs(np.mean(dropped) - 0.4) < 4 * 0.061
    np.testing.assert_array_equal(label[~dropped], DATA.label[INDICES[~dropped]])
    # as its own key says
    other = prepared(n_classes=10, label_dropout=0.4, keys=KEYS[::-1]).label
    np.testing.assert_array_equal(np.asarray(other == 10)[::-1], dropped)


def test_augmentation_is_of_points_in_model_space_and_says_what_it_did():
    plain, batch = prepared(flip=True), prepared(flip=True, augment=0.5)
    x, condition = augment(shapes.fold_in(KEYS, 4), plain.x, 0.5)
    # compiled in another program, which may round otherwise
    np.testing.assert_allclose(batch.x, x, atol=1e-5)
    np.testing.assert_allclose(batch.augment, condition, atol=1e-6)
    assert plain.augment is None


def test_noise_is_coupled_to_what_the_loss_sees():
    """Each example has the noise of one of the keys' new streams, a permutation, of the augmented x."""
    batch = prepared(augment=0.5, couple=optimal)
    noise = np.asarray(shapes.normal(shapes.fold_in(KEYS, 5), batch.x)).reshape(64, -1)
    eps, x = (np.asarray(a).reshape(64, -1) for a in (batch.eps, batch.x))
    is_row = lambda row: np.all(np.isclose(noise, row, rtol=1e-6), axis=1)  # of another program
    place = np.array([np.flatnonzero(is_row(row))[0] for row in eps])
    np.testing.assert_array_equal(np.sort(place), np.arange(64))
    # no exchange of two examples' noise is better
    cost = -x @ eps.T
    own = np.diag(cost)
    assert np.all(own[:, None] + own <= cost + cost.T + 1e-4)
    assert np.any(place != np.arange(64)) and prepared().eps is None


def test_what_else_is_random_changes_no_stream_that_was_there():
    """Runs of configs without the new options keep their numbers."""
    plain = prepared(flip=True)
    others = prepared(flip=True, n_classes=10, label_dropout=0.5, couple=optimal)
    np.testing.assert_array_equal(others.x, plain.x)
    assert np.all(others.keys == plain.keys) and np.all(plain.keys == shapes.fold_in(KEYS, 2))
