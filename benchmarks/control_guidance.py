"""Samples under guidance by its scale, and what is measured of them: their class and their diversity.

All settings have the same labels and the same noise, sample by sample.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from control_runs import Kept, Run, as_levels, as_points, kept
from jax import Array

from score_jax import grids, guidance, samplers, sampling
from score_jax.data.base import Split, take
from score_jax.evaluate import Estimate, estimate
from score_jax.model import bind
from score_jax.samplers.base import Steps, run_jitted

KINDS = ("classifier_free", "classifier")
BATCH = 50  # samples at a time
TEST_BATCH = 500


class Judged(NamedTuple):
    """Of samples of given classes: the share that judge and guide take for theirs, and how they spread.

    Attributes:
      spread: the standard deviation of a pixel within a class, over that of the test images.
    """

    judge: Estimate
    guide: Estimate
    spread: Estimate


def drawer(kind: str, model: Run, guide: Run, n_steps: int) -> Callable[..., Array]:
    """draw(keys, label, scale) -> x at t_min, by DPM-Solver++(2M); compiled once for all scales."""
    net, judge = model.experiment.model, guide.experiment.model
    n_classes = model.experiment.data.n_classes

    def steps(params, guide_params, label, scale):
        sde, predict = net.sde(params), bind(net, params)
        if kind == "classifier_free":
            guided = guidance.classifier_free(sde, predict, n_classes, scale)
        else:
            log_prob = guidance.of_label(partial(judge.class_logp, guide_params))
            log_prob = guidance.across(sde, judge.sde(guide_params), log_prob)
            free = guidance.of_class(predict, n_classes)
            guided = guidance.classifier(sde, free, log_prob, scale)
        return Steps(samplers.dpmpp_2m(sde), lambda x, t: guided(x, t, label))

    def draw(keys, label, scale):
        sde = net.sde(model.params)
        pair = jax.vmap(lambda key: jax.random.split(key, 2))(keys)
        x = sampling.prior(pair[:, 0], sde, model.experiment.data.shape)
        times = grids.log_snr(sde)(jnp.linspace(0.0, 1.0, n_steps + 1))
        given = (model.params, guide.params, label, jnp.asarray(scale))
        return run_jitted(steps, given, pair[:, 1], x, times, gradients=kind == "classifier")

    return draw


def labels_of(n: int, n_classes: int) -> np.ndarray:
    """n labels, as many of each class."""
    return np.arange(n) % n_classes


def samples(
    model: Run, guide: Run, scales: tuple[float, ...], n: int, n_steps: int, folder: Path
) -> dict[tuple[str, float], Kept]:
    """(kind, scale) -> x [n, *event], of which the classes are `labels_of`. At scale 0 the kinds are the same."""
    label = labels_of(n, model.experiment.data.n_classes)
    keys = jax.random.split(jax.random.key(0), n)
    found = {}
    for kind in KINDS:
        draw = drawer(kind, model, guide, n_steps)
        made_of = [model.made_of, n, n_steps] + ([guide.made_of] if kind == "classifier" else [])
        for scale in scales:
            if scale == 0 and kind != KINDS[0]:
                found[kind, scale] = found[KINDS[0], scale]
                continue
            measure = partial(_in_batches, draw, keys, label, float(scale))
            path = folder / f"{kind}_{scale:g}.npz"
            found[kind, scale] = kept(path, [*made_of, scale], measure)
    return found


def _in_batches(draw, keys, label, scale):
    starts = range(0, len(label), BATCH)
    parts = [draw(keys[i : i + BATCH], jnp.asarray(label[i : i + BATCH]), scale) for i in starts]
    return np.concatenate([np.asarray(part) for part in parts])


def judge(
    found: dict[tuple[str, float], Kept], model: Run, guide: Run, judge: Run, n_test: int
) -> tuple[dict[tuple[str, float], Judged], Judged]:
    """Of each setting's samples, and of n_test images of the test split itself."""
    data = model.experiment.data
    test = take(data.test, np.linspace(0, len(data.test.x) - 1, n_test).astype(int))
    of_judge, of_guide = (classify(run) for run in (judge, guide))
    variance = within(test).mean

    def of(split):
        hits = [estimate(fn(split.x) == split.label) for fn in (of_judge, of_guide)]
        return Judged(*hits, _relative(within(split), variance))

    # both are levels of pixels, so that nothing else tells samples from images
    splits = {
        key: Split(as_levels(kept.x, data.levels), labels_of(len(kept.x), data.n_classes))
        for key, kept in found.items()
    }
    return {key: of(split) for key, split in splits.items()}, of(test)


def classify(run: Run) -> Callable[[np.ndarray], np.ndarray]:
    """The most probable class of images in levels, by a classifier of x_t asked at t_min."""
    model, levels = run.experiment.model, run.experiment.data.levels

    @jax.jit
    def classes(params, x):
        sde = model.sde(params)
        t = jnp.full(len(x), sde.t_min)
        return jnp.argmax(model.class_logp(params, sde.alpha(t)[0] * x, t), axis=1)

    def of(stored):
        starts = range(0, len(stored), TEST_BATCH)
        batches = (as_points(stored[i : i + TEST_BATCH], levels) for i in starts)
        return np.concatenate([np.asarray(classes(run.params, x)) for x in batches])

    return of


def within(split: Split) -> Estimate:
    """The variance of a pixel within a class, the mean over pixels and examples.

    Its error is as if the examples' distances to their class's mean were independent.
    """
    x, squares = split.x.reshape(len(split.x), -1).astype(float), np.zeros(len(split.x))
    for k in np.unique(split.label):
        of_class = split.label == k
        centred = x[of_class] - x[of_class].mean(axis=0)
        squares[of_class] = np.mean(centred**2, axis=1) * len(centred) / max(len(centred) - 1, 1)
    return estimate(squares)


def _relative(found: Estimate, variance: float) -> Estimate:
    ratio = float(np.sqrt(found.mean / variance))
    return Estimate(ratio, 0.5 * ratio * found.stderr / found.mean, found.n)
