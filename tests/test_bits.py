"""The number and its errors by hand, examples evaluated again, and what is printed and written of them."""

import csv
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import GAUSSIAN
from PIL import Image

from score_jax import bits, build, evaluate, run
from score_jax import sde as sdes
from score_jax.dequantize import DEQUANTIZATIONS


def table(bpd, **columns):
    """Columns of a table; those not given are zero."""
    bpd = np.asarray(bpd, float)
    zero = {name: np.zeros(len(bpd)) for name in bits.COLUMNS}
    return zero | {"index": np.arange(len(bpd)), "bpd": bpd} | columns


def again(index, **columns):
    zero = {name: np.zeros(len(index)) for name in bits.CHECK_COLUMNS}
    return zero | {"index": np.asarray(index)} | columns


def test_the_number_is_the_mean_and_its_error_that_of_independent_examples():
    """Of 1, 2, 3, 6: variance 14 / 3; the ELBO's differences 1, 1, 1, -1 have variance 1."""
    rows = table([1, 2, 3, 6], elbo=np.array([2.0, 3, 4, 5]), nfe=np.array([10.0, 10, 20, 20]))
    found = bits.summary(rows, None)
    assert found["bpd"] == {"mean": 3.0, "stderr": pytest.approx(math.sqrt(14 / 12)), "n": 4}
    assert found["elbo"]["mean"] == 3.5
    assert found["elbo_minus_bpd"] == {"mean": 0.5, "stderr": pytest.approx(0.5), "n": 4}
    assert (found["nfe"], found["failed"]) == (15.0, 0)


def test_the_errors_are_those_of_half_the_squared_differences():
    """Differences 0.2 and -0.4 of two draws: a variance of 0.1 / 2 an example, of 4 examples 0.05 / 4."""
    rows = table([1, 2, 3, 6], elbo=np.full(4, 3.0), probe_stderr=np.full(4, np.nan))
    checks = again(
        [1, 3],
        noise=np.array([1.8, 6.4]),
        probe=np.array([2.1, 6.1]),
        refined=np.array([1.99, 5.97]),
        elbo_noise=np.array([3.3, 3.3]),
        elbo_times=np.array([3.4, 2.6]),
    )
    found = bits.summary(rows, checks)["errors"]
    assert found["dequantization"] == pytest.approx(math.sqrt(0.05 / 4))
    assert found["probe"] == pytest.approx(math.sqrt(0.005 / 4))
    assert found["elbo"] == pytest.approx(math.sqrt((0.045 + 0.08) / 4))
    assert found["solver"] == {
        "mean": pytest.approx(0.02),
        "stderr": pytest.approx(0.01),
        "n": 2,
    }


def test_several_probes_tell_their_error_themselves():
    """sqrt(0.3^2 + 0.4^2) / 2."""
    rows = table([1, 2], probe_stderr=np.array([0.3, 0.4]))
    checks = again([0, 1], probe=np.array([9.0, 9.0]))
    for found in (bits.summary(rows, checks), bits.summary(rows, None)):
        assert found["errors"]["probe"] == pytest.approx(0.25)


def test_examples_that_failed_are_left_out_of_every_mean():
    rows = table(
        [1, np.nan, 3],
        elbo=np.array([2, np.nan, 4]),
        nfe=np.array([10.0, 4096, 10]),
        failed=np.array([0, 1, 0]),
        probe_stderr=np.full(3, np.nan),
    )
    checks = again(
        [0, 1, 2],
        noise=np.array([1.2, 2.0, np.nan]),
        probe=np.array([1.4, 2.0, 3.0]),
        refined=np.array([0.9, 2.0, 3.0]),
        elbo_noise=np.array([2.0, 2.0, 4.0]),
        elbo_times=np.array([2.0, 2.0, 4.0]),
    )
    found = bits.summary(rows, checks)
    assert (found["failed"], found["bpd"]["mean"], found["bpd"]["n"]) == (1, 2.0, 2)
    assert (found["elbo"]["mean"], found["nfe"]) == (3.0, 10.0)
    errors = found["errors"]  # of the first example alone
    assert errors["dequantization"] == pytest.approx(0.2 / math.sqrt(4))
    assert errors["probe"] == pytest.approx(0.4 / math.sqrt(4))
    assert (errors["solver"]["mean"], errors["solver"]["n"]) == (pytest.approx(0.1), 1)


def test_of_no_example_nothing_is_known():
    found = bits.summary(table([np.nan], failed=np.array([1])), None)
    assert math.isnan(found["bpd"]["mean"]) and found["failed"] == 1 and found["bpd"]["n"] == 0


# computing the tables


class Fake:
    """Numbers that tell the example and its draws, in batches of three; it counts the examples computed."""

    def __init__(self, n, fail=()):
        self.n, self.fail, self.computed = n, fail, 0

    def __call__(self, index=None, streams=evaluate.STREAMS, start=0):
        index = np.arange(self.n) if index is None else index
        noise, rest = (np.broadcast_to(s, len(index)) for s in streams)
        for first in range(start // 3 * 3, len(index), 3):
            part = slice(max(first, start), first + 3)
            i = index[part]
            self.computed += len(i)
            bpd = (i + noise[part] / 10 + rest[part] / 100).astype(np.float32)
            yield {
                "bpd": bpd,
                **{name: bpd / 3 for name in (*bits.TERMS, *bits.ERRORS)},
                "elbo": bpd + 100,
                "nfe": np.full(len(i), 6),
                "ok": ~np.isin(i, self.fail),
            }


def test_every_example_is_computed_once_wherever_the_computation_was_killed(tmp_path):
    path = tmp_path / "bpd.csv"
    rows = bits.measure(path, {"step": 1}, 8, Fake(8))
    np.testing.assert_allclose(rows["bpd"], np.arange(8) + 0.01, rtol=1e-6)
    before = path.read_bytes()
    lines = before.splitlines(keepends=True)
    for whole in range(1, 10):
        path.write_bytes(b"".join(lines[:whole]) + b"7,0.1"[: whole % 2 * 5])
        fake = Fake(8)
        bits.measure(path, {"step": 1}, 8, fake)
        assert path.read_bytes() == before and fake.computed == 9 - whole


def test_an_example_that_fails_has_a_row_without_numbers(tmp_path):
    rows = bits.measure(tmp_path / "bpd.csv", {}, 5, Fake(5, fail=[1]))
    np.testing.assert_array_equal(rows["failed"], [0, 1, 0, 0, 0])
    for name in ("bpd", "elbo", *bits.TERMS):
        np.testing.assert_array_equal(np.isnan(rows[name]), [0, 1, 0, 0, 0])
    text = (tmp_path / "bpd.csv").read_text().splitlines()
    assert text[2] == "1,nan,nan,nan,nan,nan,6,nan,nan,nan,nan,1"


def test_examples_evaluated_again_have_one_draw_anew_and_the_other_kept(tmp_path):
    """Stream 0 is the noise's and 1 the rest's; those of another draw are 2 and 3."""
    index, path = np.array([2, 5, 6]), tmp_path / "again.csv"
    found = bits.check(path, {}, index, Fake(8), Fake(8))
    for name, offset in {"noise": 0.21, "probe": 0.03, "refined": 0.01}.items():
        np.testing.assert_allclose(found[name], index + offset, rtol=1e-6)
    for name, offset in {"elbo_noise": 100.21, "elbo_times": 100.03}.items():
        np.testing.assert_allclose(found[name], index + offset, rtol=1e-6)
    before = path.read_bytes()
    path.write_bytes(before[:-9])
    bits.check(path, {}, index, Fake(8), Fake(8))
    assert path.read_bytes() == before
    fake = Fake(8)
    bits.check(path, {}, index, fake, fake)
    assert fake.computed == 0


def test_an_example_whose_second_solve_failed_is_no_part_of_the_errors(tmp_path):
    """A solve that gave up has a number, but a wrong one."""
    index = np.array([2, 5, 6])
    found = bits.check(tmp_path / "again.csv", {}, index, Fake(8, fail=[5]), Fake(8, fail=[6]))
    for name, failed in {"noise": [0, 1, 0], "probe": [0, 1, 0], "refined": [0, 0, 1]}.items():
        np.testing.assert_array_equal(np.isnan(found[name]), failed)
    rows = bits.measure(tmp_path / "bpd.csv", {}, 8, Fake(8))
    assert bits.summary(rows, found)["errors"]["solver"]["n"] == 1


def test_a_subset_is_random_but_the_same_again():
    found = bits.subset(1000, 32, 0)
    assert len(np.unique(found)) == 32 and np.all(np.diff(found) > 0)
    np.testing.assert_array_equal(found, bits.subset(1000, 32, 0))
    assert np.any(found != bits.subset(1000, 32, 1))
    np.testing.assert_array_equal(bits.subset(5, 32, 0), np.arange(5))
    # the mean of 32 of 0 .. 999 has standard deviation 51
    assert abs(np.mean([bits.subset(1000, 32, seed).mean() for seed in range(100)]) - 499.5) < 21


# the prior


@pytest.mark.parametrize("alpha", [0.9, 0.0066])
def test_the_priors_mismatch_is_the_divergence_of_two_gaussians(alpha):
    """Of points with exactly the mean and covariance of GAUSSIAN; the formula is that of N(m, V) and N(0, s^2 I)."""
    root = np.linalg.cholesky(GAUSSIAN.covariance)
    signs = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]]) * math.sqrt(3 / 4)
    x, sigma = GAUSSIAN.mean + signs @ root.T, 1.1
    mean, covariance = GAUSSIAN.moments((alpha, sigma))
    true = 0.5 * (
        np.trace(covariance) / sigma**2
        - 2
        + mean @ mean / sigma**2
        - np.linalg.slogdet(covariance / sigma**2)[1]
    )
    np.testing.assert_allclose(bits.prior_mismatch(x, alpha, sigma), true, rtol=1e-6)


@pytest.mark.parametrize(("levels", "x"), [(4, 3), (None, 0.75)])
def test_the_priors_mismatch_of_a_run_takes_levels_for_the_middles_of_their_boxes(levels, x):
    """All examples are one point, the last of four boxes in [-1, 1] or its middle 0.75."""
    sde = sdes.vp(beta_max=4.0)
    train = SimpleNamespace(x=np.full((5, 2), x))
    experiment = build.Experiment(**dict.fromkeys(build.Experiment._fields))._replace(
        data=SimpleNamespace(train=train, levels=levels, shape=(2,)),
        model=SimpleNamespace(sde=lambda params: sde),
    )
    ratio = float(sde.alpha(1.0) / sde.sigma(1.0)) ** 2
    unit = 1 if levels is None else 2 * math.log(2)
    found = run._prior_mismatch(experiment, {})
    assert found == pytest.approx(0.5 * ratio * 2 * 0.75**2 / unit, rel=1e-5)


# what is printed and written


RESULT = {
    "split": "test",
    "size": 10000,
    "step": 4000,
    "weights": "ema 0.99",
    "unit": "bits/dim",
    "bpd": {"mean": 2.87412, "stderr": 0.0061, "n": 10000},
    "elbo": {"mean": 2.91, "stderr": 0.0071, "n": 10000},
    "errors": {
        "probe": 0.0004,
        "dequantization": 0.0007,
        "solver": {"mean": 0.0011, "stderr": 0.0002, "n": 32},
        "elbo": 0.003,
    },
    "nfe": 48.0,
    "no_elbo": None,
    "importance": 1,
    "failed": 0,
    "dequantization": "uniform",
    "conditional": False,
    "t_min": 1e-5,
    "prior_mismatch": 1.3e-5,
}


def test_the_line_has_the_number_its_errors_and_how_it_was_computed():
    first, elbo, ends = bits.report(RESULT)
    assert first == (
        "test 2.8741 +- 0.0061 bits/dim (10000 examples; probe 0.0004, dequantization 0.0007, "
        "solver +0.0011; 48 evaluations; uniform dequantization; step 4000, ema 0.99)"
    )
    assert elbo.startswith("by the ELBO at most 2.9100 +- 0.0071, with the same weights")
    assert ends == "log p at t_min = 1e-05, not corrected to t = 0; the prior at t_max costs 1e-05"


def test_a_part_of_a_split_failures_classes_and_corrections_are_said():
    changed = {"conditional": True, "failed": 2, "dequantization": "decoder", "size": 60000}
    changed |= {"importance": 8, "optimism": 0.00213}
    first, failed, _, ends = bits.report(RESULT | changed)
    assert "(the first 10002 of 60000 examples; " in first
    assert " evaluations; 8 importance samples, optimism by probes 0.0021; decoder" in first
    assert "; decoder dequantization; given the class; step" in first
    one_probe = bits.report(RESULT | changed | {"optimism": math.nan})[0]
    assert "; 8 importance samples, optimism by probes unknown from one; " in one_probe
    assert failed.startswith("the solver failed on 2 of them, which are left out")
    assert ", corrected to t = 0;" in ends


@pytest.mark.parametrize(
    ("dequantization", "truncation"),
    [
        ("uniform", "not corrected to t = 0"),
        ("flow", "not corrected to t = 0"),
        ("truncated_normal", "whose noise is the dequantization's"),
        ("decoder", "corrected to t = 0"),
        ("lattice_decoder", "corrected to t = 0"),
        ("denoised", "corrected to t = 0"),
    ],
)
def test_what_became_of_the_noise_at_t_min_is_said(dequantization, truncation):
    assert dequantization in DEQUANTIZATIONS
    ends = bits.report(RESULT | {"dequantization": dequantization})[-1]
    assert ends.startswith(f"log p at t_min = 1e-05, {truncation}; the prior")


def test_of_continuous_data_the_line_is_in_nats_and_the_divergence_is_said():
    known = {
        "unit": "nats",
        "dequantization": None,
        "errors": RESULT["errors"] | {"dequantization": math.nan},
        "exact": {"mean": 2.7, "stderr": 0.02, "n": 10000},
        "kl": {"mean": 0.17, "stderr": 0.004, "n": 10000},
    }
    first, _, ends, kl = bits.report(RESULT | known)
    assert " nats (" in first and "dequantization" not in first and "nan" not in first
    assert "not corrected to t = 0" in ends
    assert kl == ("the data's own density has 2.7000 +- 0.0200: KL(data || model) 0.1700 +- 0.0040")


def test_what_is_not_known_is_null_in_json():
    text = bits.to_json({"a": math.nan, "b": {"c": -math.inf, "d": 1.5}, "e": None, "f": "nan"})
    found = json.loads(text, parse_constant=pytest.fail)
    assert found == {"a": None, "b": {"c": None, "d": 1.5}, "e": None, "f": "nan"}


def test_a_curve_has_a_row_for_each_step_and_each_of_the_weights(tmp_path):
    results = [
        RESULT | {"step": step, "weights": weights, "nfe": float(step)}
        for step in (10, 20)
        for weights in ("ema 0.99", "raw")
    ]
    bits.write_curve(tmp_path / "bpd_by_step.csv", results)
    with (tmp_path / "bpd_by_step.csv").open() as file:
        rows = list(csv.DictReader(file))
    steps = [(row["step"], row["weights"]) for row in rows]
    assert steps == [("10", "ema 0.99"), ("10", "raw"), ("20", "ema 0.99"), ("20", "raw")]
    last = {name: float(rows[-1][name]) for name in ("bpd", "stderr", "n", "elbo", "nfe", "failed")}
    assert last == {
        **{"bpd": 2.87412, "stderr": 0.0061, "n": 10000},
        **{"elbo": 2.91, "nfe": 20, "failed": 0},
    }
    assert float(rows[0]["elbo_stderr"]) == 0.0071
    assert min(Image.open(tmp_path / "bpd_by_step.png").size) > 100
