"""The objectives' benchmark: measures whose answer is known, rows that are kept, a page of the rows there are."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import objectives
import objectives_measure
import objectives_page as pages


def test_the_relative_error_of_a_scaled_score_is_known_and_its_standard_error_covers():
    """Errors of independent size: sqrt(E error / E size), here 0.3, in 200 repetitions of 500 points."""
    rng = np.random.default_rng(0)
    size, error = rng.exponential(2.0, (200, 500)), rng.exponential(0.18, (200, 500))
    found = np.array(
        [objectives_measure.relative_rms(*pair) for pair in zip(error, size, strict=True)]
    )
    values, stderrs = found.T
    assert abs(values.mean() - 0.3) < 4 * values.std() / np.sqrt(200)
    # the spread of 200 values is known to 5 %
    assert abs(stderrs.mean() / values.std() - 1) < 0.2


def test_the_sliced_w2_of_shifted_points_is_the_shift_over_root_two():
    x = np.random.default_rng(0).standard_normal((100, 2))
    shift = np.array([0.3, -0.4])
    np.testing.assert_allclose(objectives_measure.sliced_w2(x + shift, x), 0.5 / np.sqrt(2))


def test_a_row_is_measured_again_only_for_another_config(tmp_path):
    calls = []

    def measure():
        calls.append(1)
        return {"nll": (1.0, 0.1)}

    path = tmp_path / "row.json"
    first = objectives.kept(path, [{"steps": 1}, 2], measure)
    assert objectives.kept(path, [{"steps": 1}, 2], measure) == first
    assert len(calls) == 1
    objectives.kept(path, [{"steps": 2}, 2], measure)
    assert len(calls) == 2
    assert json.loads(path.read_text())["made_for"] == [{"steps": 2}, 2]


def test_an_unknown_objective_is_refused_with_the_names(capsys):
    with pytest.raises(SystemExit):
        objectives.arguments(["--objectives=denoisng"])
    assert "no 'denoisng'; did you mean denoising?" in capsys.readouterr().err


@pytest.fixture
def config():
    """Of the plain objective, as the page reads it."""
    return {
        "net": dict(name="mlp", width=64, depth=3),
        "model": dict(output="v"),
        "sde": dict(name="vp"),
        "optim": dict(lr=0.003),
        "train": dict(steps=10, batch_size=8, ema=(0.99,)),
    }


def row(kl, ms, **more):
    cost = dict(step_seconds=1e-3 * ms, compile_seconds=2.0, mib=3.0, seconds=60.0)
    score = [[kl, 0.01]] * len(objectives_measure.LOG_SNRS)
    return (
        dict(nll=[kl, 0.01], above=[kl, 0.01], score=score, w2=[0.2, 0.1], w2_data=0.05)
        | cost
        | more
    )


FACTS = dict(sample_steps=(2, 64), n=100, command="it", cores=2, jax="0", picture="a.png")
FACTS["seeds"] = {"toy": 3}


def test_several_seeds_make_a_row_of_medians_and_half_ranges():
    rows = [row(kl, ms) for kl, ms in ((0.1, 5.0), (0.5, 1.0), (0.2, 2.0))]
    found = objectives.median(rows)
    np.testing.assert_allclose(found["above"], [0.2, 0.2])
    np.testing.assert_allclose(found["score"], [[0.2, 0.2]] * len(objectives_measure.LOG_SNRS))
    np.testing.assert_allclose(found["w2"], [0.2, 0.1])
    assert found["step_seconds"] == 1e-3 and found["seconds"] == 180.0
    assert objectives.median(rows[:1]) == rows[0]


def test_the_page_has_the_rows_that_are_there_and_says_nothing_of_others(config):
    rows = {"toy": {"denoising": row(0.125, 4.0), "sliced": row(0.5, 20.0)}}
    text = pages.page(rows, None, {"denoising": "a"}, configs={"toy": config}, **FACTS)
    assert "| `denoising` | 0.125 +- 0.010 | 0.2 | 0.1 | 4 | 2 | 3 |" in text
    assert "in 2 minutes" in text
    assert "Digits" not in text
    assert "Where there are no data" not in text


def test_advice_names_the_best_and_those_not_told_apart():
    digits = {"denoising": row(1.90, 20.0), "edm": row(1.885, 20.0), "sliced_vr": row(2.5, 80.0)}
    text = pages.advice({}, digits, (2, 64))
    assert "`edm` is first with 1.885 +- 0.010 bits/dim; not told apart" in text
    assert "by these test images: `denoising`." in text


def test_a_missing_row_leaves_its_comparison_out():
    toy = {"denoising": row(0.1, 1.0), "energy": row(0.2, 3.0)}
    text = pages.advice(toy, {}, (2, 64))
    assert "costs 3.0 times the step" in text
    assert "sliced" not in text
