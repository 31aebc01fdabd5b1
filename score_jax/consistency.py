"""Consistency training: a network that goes from any x_t to the end of its probability-flow path in one evaluation.

In y = x / alpha and s = sigma / alpha every linear SDE has the paths dy / ds = eps_hat of the
variance-exploding one, and the consistency function f(x_t, t) is the point y at s_min of the path
through x_t. It satisfies f(x, t_min) = x / alpha (`predict.consistency` sees to that) and is the same
all along a path. Of two neighbours s_i < s_{i+1} on a path the second is a sample, y = x0 + s_{i+1}
eps, and x0 + s_i eps, with the same x0 and eps, is the first in the mean over all x0 and eps that
make y, up to the square of the interval: no score network is needed (Song et al. 2023, arXiv
2303.01469, lemma 1 and theorem 2). Improved consistency training, iCT (Song & Dhariwal 2023, arXiv
2310.14189), is

    E[ 1 / (s_{i+1} - s_i) d( f(x0 + s_{i+1} eps), stop_gradient f(x0 + s_i eps) ) ],

with pseudo-Huber distance d, a log-normal density of s and a number of times that grows in training.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array

from score_jax import grids, shapes
from score_jax.model import Model
from score_jax.sde import log_snr, log_snr_ends, perturb
from score_jax.types import LossFn


def n_times(step: Array, *, steps: int, s0: int, s1: int) -> Array:
    """The number of times in the discretization at a training step, N(k) (2310.14189, table 1).

    N(k) = min(s0 2^floor(k / K'), s1) + 1 with K' = floor(K / (log2 floor(s1 / s0) + 1)), K steps in
    the whole run.
    """
    doubled_every = max(1, math.floor(steps / (math.log2(s1 // s0) + 1)))
    # no more than reach s1: further ones would overflow
    doublings = jnp.minimum(step // doubled_every, math.ceil(math.log2(s1 / s0)))
    return jnp.minimum(s0 * 2**doublings, s1) + 1


def consistency(
    model: Model,
    *,
    steps: int,
    s0: int = 10,
    s1: int = 1280,
    rho: float = 7.0,
    mean: float = -1.1,
    std: float = 2.0,
    huber: float = 0.00054,
) -> LossFn:
    """The iCT loss, of a model whose x0 is a consistency function; times stratified over the global batch.

    Its gradient at the true consistency function is of order 1 / N, once the steps of f between
    neighbouring times are small against `huber`. Before that the distance is the norm and not its
    square, and the network learns a conditional median in place of a mean.

    The distance is the paper's over sqrt(d), d dimensions, in units of the data. The weight jumps
    with N and so does the loss: its values are to be compared at one step number, as validation does.

    Args:
      model: gives the SDE and f = predict(...).x0. Its eps is not a mean of noise: it has neither
        score nor ELBO.
      steps: the length of the run.
      s0, s1: the number of intervals between times at the start and at the end.
      rho: the times are uniform in s^(1 / rho), as in `grids.power`.
      mean, std: of log s; an interval's probability is its own under this normal distribution, cut
        off at the ends. The defaults are for data of standard deviation 0.5.
      huber: the error, as a root mean square over dimensions, at which the distance goes from square
        to linear; the paper's c is huber sqrt(d).
    """

    def loss(key, params, loss_state, batch, step):
        sde = model.sde(params)
        low, high = neighbours(sde, n_times(step, steps=steps, s0=s0, s1=s1), key, batch.position)
        eps = batch.eps
        if eps is None:
            eps = shapes.normal(shapes.fold_in(batch.keys, 0), batch.x)
        # the same for both: dropout is then no difference between them
        options = dict(keys=shapes.fold_in(batch.keys, 1), augment=batch.augment)

        def f(params, t):
            x_t = perturb(sde, batch.x, t, eps)
            return model.predict(params, x_t, t, batch.label, **options).x0

        error = f(params, high) - f(jax.lax.stop_gradient(params), low)
        square = shapes.sum_event(jnp.square(error)) / shapes.event_size(error)
        # sqrt(square + huber^2) - huber, without cancellation
        distance = square / (jnp.sqrt(square + huber**2) + huber)
        width = _ratio(sde, high) - _ratio(sde, low)
        return jnp.mean(distance / width), ({}, loss_state)

    def neighbours(sde, n, key, position):
        """Neighbouring times of the n, [b] each: those on both sides of a draw from the normal distribution."""
        drawn = grids.log_normal(sde, mean, std)(grids.stratified(key, position))
        largest, smallest = log_snr_ends(sde)
        first, last, root = (
            jnp.exp(-0.5 / rho * value) for value in (largest, smallest, log_snr(sde, drawn))
        )
        i = jnp.clip(jnp.floor((root - first) / (last - first) * (n - 1)), 0, n - 2)
        time = grids.reverse(grids.power(sde, rho))
        return time(i / (n - 1)), time((i + 1) / (n - 1))

    return loss


def _ratio(sde, t):
    """sigma / alpha."""
    return jnp.exp(-0.5 * log_snr(sde, t))
