"""Variational dequantization: the noise in the boxes from a flow trained with the score model.

    log P(k) >= E_q(u | k) [ log p(x) + D log(2 / levels) - log q(u | k) ],    x = 2 (k + u) / levels - 1

(Ho et al. 2019, arXiv 1902.00275, section 3.1; with score models Song et al. 2021, arXiv
2101.09258). q is trained by the gradient of a bound on -log p(x) through x.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Num

from score_jax import shapes
from score_jax.data.base import log_det, to_model
from score_jax.dequantize import lattice
from score_jax.model import Model
from score_jax.types import Dequantized, Key, Keys, LossFn, Params


class Dequantizer(NamedTuple):
    """init(key, event shape) -> params; draw(params, keys, k [b *s], levels, label=None) -> Dequantized."""

    init: Callable[[Key, tuple[int, ...]], Params]
    draw: Callable[..., Dequantized]


def flow(net: nn.Module) -> Dequantizer:
    """The dequantizer whose noise is that of `net`, called as net(levels in [-1, 1], logits) -> (u, log q)."""

    def init(key, shape):
        x = jnp.zeros((1, *shape))
        return net.init(key, x, x)["params"]

    def draw(
        params: Params,
        keys: Keys,
        k: Num[Array, "b *s"],
        levels: int,
        label: Array | None = None,
    ) -> Dequantized:
        logits = jax.vmap(lambda key: jax.random.logistic(key, k.shape[1:]))(keys)
        u, log_q = net.apply({"params": params}, lattice(k, levels), logits)
        x = to_model(k.astype(u.dtype) + u, levels)
        return Dequantized(x, log_det(levels, shapes.event_size(x)) - log_q)

    return Dequantizer(init, draw)


def joint(loss_fn: LossFn, dequantizer: Dequantizer, levels: int) -> LossFn:
    """The loss of score model and dequantizer together, of batches whose x are levels.

    It is the score model's loss at the drawn x, plus log q less D log(2 / levels), per dimension.
    With `losses.likelihood` weighting, in eps, it is minus the ELBO's diffusion term and the weight,
    in nats per dimension; the ELBO's other two terms, at the ends of time, depend on x too little to
    matter here. With another weighting the two parts do not belong together.

    Parameters are {"score": loss_fn's, "dequantizer": the dequantizer's}.
    """

    def loss(key, params, loss_state, batch, step):
        k_draw, keys = shapes.fold_in(batch.keys, 0), shapes.fold_in(batch.keys, 1)
        point = dequantizer.draw(params["dequantizer"], k_draw, batch.x, levels, batch.label)
        batch = batch._replace(x=point.x, keys=keys)
        value, (metrics, loss_state) = loss_fn(key, params["score"], loss_state, batch, step)
        weight = jnp.mean(point.log_weight) / shapes.event_size(point.x)
        return value - weight, ({**metrics, "dequantization": -weight}, loss_state)

    return loss


def frozen(loss_fn: LossFn) -> LossFn:
    """The loss with no gradient for the parameters: for `joint`, to train a dequantizer for a given score model."""

    def loss(key, params, loss_state, batch, step):
        return loss_fn(key, jax.lax.stop_gradient(params), loss_state, batch, step)

    return loss


def attach(model: Model, dequantizer: Dequantizer) -> Model:
    """The model that also dequantizes, of parameters {"score": the model's, "dequantizer": the dequantizer's}."""

    def init(key, shape):
        k_score, k_dequantizer = jax.random.split(key)
        return {
            "score": model.init(k_score, shape),
            "dequantizer": dequantizer.init(k_dequantizer, shape),
        }

    of_score = lambda fn: fn and (lambda params, *args, **keys: fn(params["score"], *args, **keys))
    return Model(
        init,
        sde=of_score(model.sde),
        predict=of_score(model.predict),
        level_logp=of_score(model.level_logp),
        dequantize=lambda params, *args: dequantizer.draw(params["dequantizer"], *args),
    )
