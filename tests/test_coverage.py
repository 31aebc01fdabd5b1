"""Error bars against what they claim, over a thousand repeats of small problems with known answers.

Of a thousand intervals of 95 % the share that covers has a standard error of 0.7 %.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GAUSSIAN, coefficients
from test_exact import LEVELS, PROBABILITIES, boxes

from score_jax import bits, evaluate, exact, grids
from score_jax import sde as sdes
from score_jax.likelihood import log_likelihood
from score_jax.model import Model

REPEATS = 1000


def perfect(sde, noised_logp):
    predictor = exact.predictor(sde, noised_logp)
    predict = lambda params, x, t, label=None, *, keys=None: predictor(x, t)
    return Model(lambda key, shape: (), lambda params: sde, predict)


def ode(model, levels, **solver):
    """fn(keys, x, streams) -> the columns that a table has of the examples x [b, *s]."""

    def likelihood(keys, sde, predict, x, label):
        options = dict(grid=grids.log_snr(sde), trace="gaussian") | solver
        return log_likelihood(keys, sde, predict, x, label, **options)

    fn = evaluate.ode_bits(model, likelihood, levels)
    return jax.jit(lambda keys, x, streams: fn(keys, (), x, None, streams))


def streams(n, draw=0):
    return tuple(np.full(n, stream) for stream in evaluate.streams(draw))


def keys(n):
    return jax.random.split(jax.random.key(1), n)


def rows(found):
    """A table's columns, without an ELBO."""
    n = len(found["bpd"])
    columns = {name: np.asarray(values, np.float64) for name, values in found.items()}
    return columns | {"index": np.arange(n), "elbo": np.zeros(n), "failed": np.zeros(n)}


def part(columns, index):
    return {name: values[index] for name, values in columns.items()}


def coverage(numbers, errors, truth):
    return np.mean(np.abs(np.asarray(numbers) - truth) < 1.96 * np.asarray(errors))


def test_the_printed_error_covers_the_truth_over_test_sets_probes_and_noise():
    """50 points of a Gaussian a time; the truth is its entropy, which Heun's 24 steps err from by 1e-3."""
    n, rng, sde = 50, np.random.default_rng(0), sdes.vp()
    x = rng.multivariate_normal(GAUSSIAN.mean, GAUSSIAN.covariance, REPEATS * n)
    model = perfect(sde, exact.gaussian(GAUSSIAN.mean, GAUSSIAN.covariance))
    run = ode(model, None, solver="heun", n_steps=24)
    columns = rows(run(keys(len(x)), jnp.asarray(x, jnp.float32), streams(len(x))))
    entropy = 1 + 0.5 * np.linalg.slogdet(2 * np.pi * GAUSSIAN.covariance)[1]
    found = [
        bits.summary(part(columns, slice(i * n, (i + 1) * n)), None)["bpd"] for i in range(REPEATS)
    ]
    numbers, errors = (np.array([f[name] for f in found]) for name in ("mean", "stderr"))
    assert abs(numbers.mean() - entropy) < 4 * numbers.std() / math.sqrt(REPEATS) + 1e-3
    assert 0.92 < coverage(numbers, errors, entropy) < 0.98


@pytest.fixture(scope="module")
def images():
    """64 images of categorical pixels; fn(copies, draws) -> columns [copies * 64] under other draws."""
    n, rng = 64, np.random.default_rng(3)
    k = np.stack([rng.choice(LEVELS, n, p=p) for p in PROBABILITIES], 1).astype(np.uint8)
    run = ode(perfect(sdes.vp(t_min=1e-3), boxes()), LEVELS, solver="heun", n_steps=8, n_probes=2)

    def draws(noise, rest):
        """The columns under draws [m] of all images, [m * n]."""
        m = len(noise)
        repeated = np.repeat(2 * np.asarray(noise), n), np.repeat(2 * np.asarray(rest) + 1, n)
        return rows(run(jnp.tile(keys(n), m), np.tile(k, (m, 1)), repeated))

    return n, draws


def test_the_errors_of_one_test_sets_number_cover_what_other_probes_and_noise_would_give(images):
    """They are found from 32 of its 64 images, other ones each time; the truth is the mean over 500 repeats.

    Twice: with the error that two probes tell of themselves, and with that found by other probes.
    """
    (n, draws), m, size = images, 500, 32
    r = np.arange(m)
    first, noise, probe = draws(r, r), draws(r + m, r), draws(r, r + m)
    found = {"told": [], "found": []}
    for i in range(m):
        columns = part(first, slice(i * n, (i + 1) * n)) | {"index": np.arange(n)}
        index = bits.subset(n, size, i)
        again = {name: np.zeros(size) for name in bits.CHECK_COLUMNS}
        again |= {"index": index, "noise": noise["bpd"][i * n + index]}
        again |= {"probe": probe["bpd"][i * n + index]}
        for name, stderr in (("told", columns["probe_stderr"]), ("found", np.full(n, np.nan))):
            summary = bits.summary(columns | {"probe_stderr": stderr}, again)
            errors = summary["errors"]
            found[name].append((errors["probe"], errors["dequantization"], summary["bpd"]["mean"]))
    probe, dequantization, numbers = np.moveaxis(np.array(list(found.values())), -1, 0)
    for errors, values in zip(np.hypot(probe, dequantization), numbers, strict=True):
        assert 0.92 < coverage(values, errors, values.mean()) < 0.98
    # each is the spread of what it is named after, of which 500 repeats have a standard error of 3 %
    fixed = np.zeros(m, int)
    for errors, other in ((probe, draws(fixed, r)), (dequantization, draws(r, fixed))):
        actual = other["bpd"].reshape(m, n).mean(1).std()
        np.testing.assert_allclose(np.sqrt(np.mean(errors**2, 1)), actual, rtol=0.15)


@pytest.mark.parametrize(
    ("coarse", "fine", "left"),
    [
        (dict(solver="heun", n_steps=24), dict(solver="heun", n_steps=96), 0.1),
        (dict(rtol=1e-3, atol=1e-3), dict(rtol=1e-4, atol=1e-4), 0.3),
    ],
    ids=["steps", "tolerance"],
)
def test_the_solvers_bias_is_found_on_a_subset(coarse, fine, left):
    """Against the closed form of a Gaussian, but for the refined solve's own error: a sixteenth of Heun's.

    On the subset itself there is no chance in it; over all points, that of the subset.
    """
    n, sde = 400, sdes.vp()
    x = np.random.default_rng(0).multivariate_normal(GAUSSIAN.mean, GAUSSIAN.covariance, n)
    model = perfect(sde, exact.gaussian(GAUSSIAN.mean, GAUSSIAN.covariance))
    run = lambda options: rows(
        ode(model, None, trace="exact", **options)(keys(n), jnp.asarray(x, jnp.float32), streams(n))
    )
    columns, index = run(coarse), bits.subset(n, 32, 0)
    again = {name: np.zeros(32) for name in bits.CHECK_COLUMNS}
    again |= {"index": index, "refined": run(fine)["bpd"][index]}
    found = bits.summary(columns, again)["errors"]["solver"]
    # the standard prior is off by alpha(T) times the mean
    at_min, at_max = coefficients(sde, [sde.t_min, sde.t_max])
    latent = GAUSSIAN.flow(x, at_min, at_max)
    standard = -0.5 * np.sum(latent**2, 1) / at_max[1] ** 2 - np.log(2 * np.pi * at_max[1] ** 2)
    true = GAUSSIAN.logp(x, at_min) - GAUSSIAN.logp(latent, at_max) + standard
    actual = columns["bpd"] + true
    assert abs(np.mean(actual)) > 3e-4
    np.testing.assert_allclose(found["mean"], np.mean(actual[index]), rtol=left)
    allowed = 4 * found["stderr"] + left * abs(np.mean(actual))
    assert abs(found["mean"] - np.mean(actual)) < allowed
