"""A run whose dequantization is a flow: trained for the score model of a finished run, and evaluated."""

from functools import partial

import jax
import numpy as np
import pytest

from score_jax import build, run, workdir
from score_jax.data.base import take

SCORE = dict(
    data=dict(name="digits"),
    sde=dict(name="vp"),
    net=dict(name="mlp", width=8, depth=1),
    loss=dict(name="denoising"),
    optim=dict(name="adam", lr=1e-2, warmup=0),
    train=dict(steps=2, batch_size=16, eval_images=8, ema=(0.5,)),
    sample=dict(name="ddim", n_steps=2),
    eval=dict(batch_size=8, elbo_times=2, solver="heun", n_steps=2, check_images=0),
)


def trained(folder, **sections):
    """(experiment, state) of a run of SCORE with sections of its own, in a folder."""
    config = build.resolve(SCORE | sections)
    experiment = build.experiment(config)
    checkpoints = run.checkpoints_of(folder, experiment)
    start = run.start_state(experiment, checkpoints)
    folder.mkdir(exist_ok=True)
    workdir.record(folder, config, "")
    assert run.fit(folder, experiment, start, checkpoints) is None
    return experiment, run.start_state(experiment, checkpoints)


@pytest.fixture(scope="module")
def score(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "score"
    return folder, trained(folder)[1].averaged()


def test_a_flow_is_trained_for_the_averaged_score_model_of_a_run_which_stays_as_it_is(
    score, tmp_path
):
    folder, params = score
    flow = dict(name="flow", width=4, depth=2, frozen=str(folder))
    experiment, state = trained(tmp_path / "flow", dequantize=flow)
    jax.tree.map(np.testing.assert_array_equal, state.params["score"], params)
    # a mean of what does not change, up to its rounding
    equal = partial(np.testing.assert_allclose, rtol=1e-6)
    jax.tree.map(equal, state.averaged()["score"], params)
    moved = [np.any(leaf != 0) for leaf in jax.tree.leaves(last_layers(state))]
    assert moved and all(moved)

    # its noise is what the likelihood and the ELBO take
    split = take(experiment.data.test, np.arange(8))
    path = tmp_path / "flow" / "bpd.csv"
    found = run.bits_per_dim(experiment, state.averaged(), split, path, {})
    assert experiment.eval.dequantize == "flow"
    levels = np.log2(2 / 17)  # what uniform noise costs
    assert found["terms"]["dequantization"] != pytest.approx(-levels, abs=1e-4)
    assert np.isfinite(found["elbo"]["mean"])


def last_layers(state):
    """Kernels that are zero before training."""
    return {k: v["kernel"] for k, v in state.params["dequantizer"].items() if k.endswith("_out")}


def test_a_run_of_another_model_is_refused(score):
    flow = dict(name="flow", frozen=str(score[0]))
    other = build.experiment(build.resolve(SCORE | dict(dequantize=flow, sde=dict(name="sub_vp"))))
    with pytest.raises(ValueError, match=r"a run whose config\.sde is .*'vp'.*, not .*'sub_vp'"):
        run.start_state(other, run.checkpoints_of(score[0] / "none", other))
