"""The benchmark of control: measures whose answer is known, evaluations that are counted, files that are kept."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import control_guidance
import control_page as pages
import control_restoration as restoration
import control_runs

from score_jax import measurement
from score_jax.data.base import DataSet, Split
from score_jax.evaluate import Estimate


def test_the_psnr_of_a_shift_by_a_tenth_is_20_db_and_ssim_is_one_of_the_same_image():
    truth = np.random.default_rng(0).uniform(size=(28, 28, 3))
    assert restoration.psnr(truth, truth + 0.1) == pytest.approx(20)
    assert restoration.ssim(truth, truth) == pytest.approx(1)
    assert restoration.ssim(truth, 1 - truth) < 0


@pytest.mark.parametrize("evaluations", [20, 100])
def test_every_method_evaluates_the_network_as_often_for_an_image(evaluations):
    ways = restoration.ways(evaluations)
    counts = {name: restoration.evaluations_of(way) for name, way in ways.items()}
    assert set(counts.values()) == {evaluations}, counts


def test_the_linear_estimate_fills_in_what_training_images_repeat():
    """The right half repeats the left, so that both see it: for Gaussian data their mean is what is left of the noise.

    Of a pixel of variance v seen with noise of variance s: mean + v / (v + s) (y - mean).
    """
    rng = np.random.default_rng(0)
    left = np.clip(np.round(rng.normal(128, 30, (4000, 4, 2, 1))), 0, 255).astype(np.uint8)
    x = np.concatenate([left, left], axis=2)
    data = DataSet("pairs", Split(x, None), Split(x[:2], None), Split(x[:2], None), 256)
    mask = np.zeros((4, 4, 1), bool)
    mask[:, :2] = True
    std = 0.2
    a = measurement.inpaint(mask, std)
    truth = control_runs.as_points(x[:2], 256)
    y = measurement.measure(jax.random.split(jax.random.key(0), 2), a, truth)
    found = restoration.linear_estimate(a, y, data)
    np.testing.assert_allclose(found[:, :, 2:], found[:, :, :2], atol=1e-6)
    v = (30 * 2 / 256) ** 2
    expected = v / (v + std**2) * np.asarray(y).reshape(2, 4, 2, 1)
    # 4000 images tell variances to 2 %, correlations to 0.016, the mean to 0.004
    np.testing.assert_allclose(found[:, :, :2], expected, atol=0.06)


def test_the_variance_within_classes_does_not_see_their_means():
    rng = np.random.default_rng(0)
    label = control_guidance.labels_of(40, 4)
    draws = [
        control_guidance.within(
            Split((100 * label[:, None] + 3 * rng.standard_normal((40, 25))).astype("f4"), label)
        )
        for _ in range(50)
    ]
    means = np.array([found.mean for found in draws])
    assert abs(means.mean() - 9) < 4 * means.std() / np.sqrt(50)
    # the spread of 50 values is known to 10 %
    assert np.mean([found.stderr for found in draws]) == pytest.approx(means.std(), rel=0.4)


def test_the_page_says_in_what_the_judge_was_trained_otherwise():
    """Seed and steps are said elsewhere; the data set's folder is no choice."""
    config = {name: {} for name in ("sde", "net", "model", "optim")}
    guide = config | dict(seed=0, data=dict(folder="a"), train=dict(steps=3), loss=dict(grid="a"))
    judge = config | dict(seed=1, data=dict(folder="b"), train=dict(steps=9), loss=dict(grid="b"))
    assert pages.difference(judge, guide) == (
        "Of its config `loss.grid` is b (the guide: a); the rest is the same."
    )
    same = pages.difference(judge | {"loss": guide["loss"]}, guide)
    assert same == "Their configs are otherwise the same."


def test_samples_that_are_not_finite_are_named_on_the_page():
    good = restoration.Scores(*(np.array([20.0, 21.0, 22.0, 23.0]) + k for k in range(3)))
    bad = good._replace(residual=np.array([1.0, np.nan, 1.0, 1.0]))
    names = restoration.TRIVIAL, restoration.LINEAR
    text = pages.score_advice(dict.fromkeys(names, good) | {"dps": bad, "ddrm": good})
    assert "black in their place, are images of `dps` (25%)." in text


def test_neighbours_that_the_images_cannot_tell_apart_are_not_ranked():
    a, sign = np.random.default_rng(0).normal(20, 5, 32), np.resize([1, -1], 32)
    values = {"a": a, "b": a - 1 + 0.1 * sign, "c": a - 1.01 + sign}
    assert pages.order(values) == "`a` > `b` ~ `c`"
    assert pages.differ(Estimate(0.9, 0.02, 9), Estimate(0.8, 0.02, 9))
    assert not pages.differ(Estimate(0.9, 0.02, 9), Estimate(0.85, 0.02, 9))


def test_samples_are_drawn_again_only_for_another_setting(tmp_path):
    calls = []

    def measure():
        calls.append(1)
        return np.full(3, len(calls))

    path = tmp_path / "x.npz"
    for setting, expected in (([1, "a"], 1), ([1, "a"], 1), ([2, "a"], 2)):
        assert control_runs.kept(path, setting, measure).x[0] == expected
