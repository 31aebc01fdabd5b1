"""Sampling with a consistency model, whose x0 is where the probability-flow ODE ends."""

import jax.numpy as jnp

from score_jax import shapes
from score_jax.samplers.base import Sampler, check_ends, predict_at, transition
from score_jax.sde import SDE


def consistency(sde: SDE) -> Sampler:
    """Multi-step consistency sampling (Song et al. 2023, arXiv 2303.01469, algorithm 1), for every linear SDE.

    A step goes from t to t_min in one evaluation, and from there to s by the forward SDE: y(s) = f +
    sqrt(s^2 - s_min^2) z in y = x / alpha and sigma / alpha, as in the paper. The step to t_min itself
    adds no noise, so that one step is one-step sampling; denoising at the end would only divide by
    alpha(t_min). With a true consistency function and independent noise every number of steps has the law
    of the data at t_min: further steps mend a network's errors, and there is no order.

    It is for `predict.consistency` trained by `consistency.consistency`: the x0 of other models is a
    mean of data, and not a sample.
    """
    check_ends(sde, "consistency")

    def step(keys, predict, x, t, s, carry):
        t_min = jnp.asarray(sde.t_min, x.dtype)
        end = sde.alpha(t_min) * predict_at(predict, x, t).x0
        growth, variance = transition(sde, s, t_min)
        # at s = t_min it is zero up to rounding
        return growth * end + jnp.sqrt(jnp.maximum(variance, 0.0)) * shapes.normal(keys, x), carry

    return Sampler(init=lambda x: None, step=step, evaluations=1)
