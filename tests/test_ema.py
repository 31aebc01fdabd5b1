"""Moving averages: tracked, the sums of their profiles; chosen afterwards, what would have been tracked."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from score_jax import ema, snapshots

STEPS = 400
WIDTHS = (0.05, 0.1)


def walk(n=STEPS):
    """theta_1 ... theta_n, a random walk of three parameters that starts far from zero."""
    return 5.0 + np.cumsum(np.random.default_rng(0).standard_normal((n, 3)), axis=0)


def tracked(path, widths=(), rates=(), warmup=0.0):
    """Every average after each step [n, 3], in float64, from initial parameters of 100."""

    def one(averages, row):
        step, params = row
        averages = ema.update(averages, params, step, rates, warmup, widths)
        return averages, averages

    with jax.enable_x64(True):
        start = (jnp.full(path.shape[1:], 100.0),) * (len(rates) + len(widths))
        rows = jnp.arange(len(path), dtype=jnp.int32), jnp.asarray(path)
        return [np.asarray(a) for a in jax.lax.scan(one, start, rows)[1]]


def masses(profile_integral, t):
    """A profile's mass in each step up to t, from its distribution function on [0, t]."""
    return np.diff([profile_integral(k) for k in range(t + 1)])


def power_masses(width, t):
    return masses(lambda k: (k / t) ** (ema.gamma(width) + 1), t)


def exponential_masses(rate, t):
    return masses(lambda k: (rate ** (t - k) - rate**t) / (1 - rate**t), t)


@pytest.mark.parametrize("width", [0.01, 0.05, 0.1, 0.25, ema.LARGEST_SIGMA_REL])
def test_a_power_functions_width_is_the_standard_deviation_of_its_profile(width):
    """The moments of (gamma + 1) tau^gamma on (0, 1), by quadrature; the widest is the uniform distribution."""
    gamma = ema.gamma(width)
    moment = lambda n: quad(lambda x: (gamma + 1) * x ** (gamma + n), 0, 1, epsabs=1e-14)[0]
    np.testing.assert_allclose(moment(2) - moment(1) ** 2, width**2, rtol=1e-8)
    assert math.isclose(ema.sigma_rel(gamma), width, rel_tol=1e-12)
    # EDM2's two: their exponents as the paper rounds them
    if width in WIDTHS:
        assert round(gamma, 2) == {0.05: 16.97, 0.1: 6.94}[width]


def test_tracked_averages_are_the_sums_of_their_profiles_to_rounding():
    path, t = walk(), STEPS
    exponential, power = tracked(path, widths=(0.1,), rates=(0.98,))
    np.testing.assert_allclose(power[t - 1], power_masses(0.1, t) @ path, rtol=1e-12)
    # and in the middle of the run, of the same width relative to it
    np.testing.assert_allclose(power[99], power_masses(0.1, 100) @ path[:100], rtol=1e-12)
    forgotten = 0.98**t
    expected = (1 - forgotten) * exponential_masses(0.98, t) @ path + forgotten * 100.0
    np.testing.assert_allclose(exponential[t - 1], expected, rtol=1e-12)


def test_the_share_of_a_step_keeps_its_digits_in_float32_after_ten_million_steps():
    k, gamma = 10_000_000, ema.gamma(0.1)
    share = ema.update((0.0,), 1.0, jnp.int32(k - 1), (), 0.0, (0.1,))[0]
    np.testing.assert_allclose(share, -math.expm1((gamma + 1) * math.log1p(-1 / k)), rtol=1e-5)


def test_warming_up_an_average_is_nearly_a_power_function_and_then_has_its_rate():
    path = walk()
    # limited by (1 + k) / (12 + k) all the way: the power function of gamma = 10 but for its first steps
    (warming,) = tracked(path, rates=(0.9999,), warmup=12.0)
    (power,) = tracked(path, widths=(ema.sigma_rel(10.0),))
    spread = path.std()
    assert np.abs(warming - power)[-1].max() < 0.02 * spread
    # (1 + k) / (12 + k) passes 0.9 at step 98, and what came before is forgotten 200 steps later
    limited, plain = (tracked(path, rates=(0.9,), warmup=w)[0] for w in (12.0, 0.0))
    np.testing.assert_allclose(limited[300:], plain[300:], rtol=1e-8)
    assert np.abs(limited - plain)[20].max() > 1.0
    np.testing.assert_array_equal(plain, tracked(path, rates=(0.9,), warmup=1.0)[0])


@pytest.mark.parametrize(
    ("profile", "density"),
    [
        (
            partial(ema.power, 0.15),
            lambda x, t: (ema.gamma(0.15) + 1) / t * (x / t) ** ema.gamma(0.15),
        ),
        (
            partial(ema.exponential, 0.97),
            lambda x, t: -math.log(0.97) * 0.97 ** (t - x) / (1 - 0.97**t),
        ),
    ],
    ids=["power", "exponential"],
)
def test_profiles_products_are_their_integrals(profile, density):
    """By quadrature; with power functions that end before, with and after the profile."""
    t, steps, gamma = 150.0, np.array([40.0, 150.0, 400.0]), ema.gamma(0.1)
    wanted = profile(t)
    np.testing.assert_allclose(
        quad(lambda x: density(x, t) ** 2, 0, t)[0], wanted.square, rtol=1e-9
    )
    found = wanted.products(steps, np.full(3, gamma))
    for s, product in zip(steps, found, strict=True):
        of_both = lambda x, s=s: density(x, t) * (gamma + 1) / s * (x / s) ** gamma
        np.testing.assert_allclose(quad(of_both, 0, min(s, t))[0], product, rtol=1e-9)


def grid(n):
    """Steps and widths of n snapshots of both tracked averages."""
    steps = np.arange(1, n + 1) * STEPS / n
    return np.tile(steps, 2), np.repeat(WIDTHS, n)


def test_an_average_that_was_tracked_is_its_own_snapshot():
    steps, widths = grid(8)
    coefficients, residual = ema.solve(steps, widths, ema.power(0.1, 250.0))
    np.testing.assert_allclose(coefficients, (steps == 250) & (widths == 0.1), atol=1e-9)
    assert residual < 1e-7
    # also if the same width was tracked twice, where the combination is not the only one
    twice = np.tile(steps, 2), np.tile(widths, 2)
    coefficients, residual = ema.solve(*twice, ema.power(0.1, 250.0))
    assert residual < 1e-7 and np.abs(coefficients).max() < 0.51


@pytest.mark.parametrize(
    ("profile", "weights"),
    [
        (partial(ema.power, 0.15), partial(power_masses, 0.15)),
        (partial(ema.power, 0.03), partial(power_masses, 0.03)),
        (partial(ema.exponential, 0.97), partial(exponential_masses, 0.97)),
    ],
    ids=["longer", "shorter", "exponential"],
)
@pytest.mark.parametrize("t", [400, 300], ids=["of the last step", "of an earlier one"])
def test_an_average_chosen_afterwards_is_the_tracked_one_within_the_residual(profile, weights, t):
    """|sum of (w - w') theta| is at most |w - w'| |theta - any constant|: both weights add up to one."""
    path = walk()
    averages = tracked(path, widths=WIDTHS)
    exact, target = weights(t) @ path[:t], profile(float(t))

    def found(n):
        steps, widths = grid(n)
        coefficients, residual = ema.solve(steps, widths, target)
        index = steps.astype(int) - 1
        stored = [averages[WIDTHS.index(w)][i] for i, w in zip(index, widths, strict=True)]
        error = np.abs(ema.combine(stored, coefficients) - exact)
        spread = np.linalg.norm(path - path.mean(0), axis=0)
        assert np.all(error <= residual * math.sqrt(target.square) * spread + 1e-9)
        return residual, error.max()

    residuals, errors = zip(*map(found, (8, 40, 80)), strict=True)
    # towards the second order in the spacing of snapshots
    assert residuals[0] > 10 * residuals[1] > 25 * residuals[2]
    assert errors[2] < 0.1 * errors[0]


def test_parameters_that_rest_are_met_exactly_however_bad_the_fit():
    steps, widths = grid(2)
    coefficients, residual = ema.solve(steps, widths, ema.exponential(0.5, 100.0))
    assert residual > 0.5
    np.testing.assert_allclose(
        ema.combine([{"a": np.ones(2)}] * 4, coefficients)["a"], 1, rtol=1e-9
    )


PARAMS = {
    "dense": {
        "kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
        "bias": np.ones(3, np.float32),
    }
}


def written(folder, n=4):
    """Snapshots of PARAMS times each walk's average, whose first coordinate scales them."""
    averages = tracked(walk(), widths=WIDTHS)
    scaled = lambda factor: jax.tree.map(lambda p: np.float32(p * factor), PARAMS)
    for step in np.arange(1, n + 1) * STEPS // n:
        snapshot = tuple(scaled(average[step - 1, 0]) for average in averages)
        snapshots.write(folder / "snapshots", int(step), WIDTHS, snapshot)
    return folder / "snapshots"


def test_what_was_written_is_averaged_by_any_profile_at_any_step(tmp_path):
    folder = written(tmp_path, n=16)
    template = jax.tree.map(jnp.asarray, PARAMS)
    for step, t in ((None, STEPS), (300, 300)):
        params, residual = snapshots.load_posthoc(
            folder, template, snapshots.parse("power:0.15"), step
        )
        exact = (power_masses(0.15, t) @ walk()[:t])[0]
        np.testing.assert_allclose(
            params["dense"]["kernel"], PARAMS["dense"]["kernel"] * exact, rtol=2e-3
        )
        np.testing.assert_allclose(params["dense"]["bias"], exact, rtol=2e-3)
        assert 0 < residual < 0.02
        assert params["dense"]["bias"].dtype == jnp.float32
    params, residual = snapshots.load_posthoc(folder, template, snapshots.parse("exponential:0.97"))
    exact = (exponential_masses(0.97, STEPS) @ walk())[0]
    np.testing.assert_allclose(params["dense"]["bias"], exact, rtol=2e-3)
    # a profile that ends between snapshots is not among their sums
    assert snapshots.load_posthoc(folder, template, snapshots.parse("power:0.15"), 312)[1] > 0.1


def test_a_snapshot_written_again_has_the_same_bytes(tmp_path):
    folder = written(tmp_path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(before) == [f"step_{step:07d}.npz" for step in (100, 200, 300, 400)]
    written(tmp_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_snapshots_that_cannot_be_used_are_named(tmp_path):
    profile = snapshots.parse("power:0.1")
    with pytest.raises(
        FileNotFoundError, match="no snapshots in .*nowhere; train with config.train"
    ):
        snapshots.load_posthoc(tmp_path / "nowhere", PARAMS, profile)
    folder = written(tmp_path)
    wider = {"dense": PARAMS["dense"] | {"bias": np.ones(4, np.float32)}}
    with pytest.raises(
        ValueError, match=r"step_0000100.npz does not fit .*dense/bias is \(3,\) there, \(4,\)"
    ):
        snapshots.load_posthoc(folder, wider, profile)
    with pytest.raises(
        ValueError, match="step_0000100.npz does not fit .* has no 0/conv; use the config"
    ):
        snapshots.load_posthoc(folder, {"conv": np.ones(1)}, profile)
    path = folder / "step_0000200.npz"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="step_0000200.npz is damaged: .*; delete it"):
        snapshots.load_posthoc(folder, PARAMS, profile)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.1", "choose power:SIGMA_REL"),
        ("power:0.3", "at most 0.288"),
        ("power:", "a sigma_rel greater than 0"),
        ("exponential:1", "less than 1"),
        ("exponential:nan", "less than 1"),
    ],
)
def test_an_average_that_is_none_is_refused_in_one_line(text, message):
    with pytest.raises(ValueError, match=f"'{text}' is no average; .*{message}"):
        snapshots.parse(text)
