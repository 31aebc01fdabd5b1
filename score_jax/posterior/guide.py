"""Guidance by a likelihood of x0: its gradient with respect to x_t, through the network, added to the score.

    score(x_t | y) = score(x_t) + grad_{x_t} log p(y | x_t),

with log p(y | x_t) a function of the predicted x0 (Chung et al. 2023, arXiv 2209.14687, section 3).
The function also gives its own gradient at x0, which is then pulled back through the prediction:
what it solves for is not differentiated.
"""

from collections.abc import Callable

import jax
from jax import Array
from jaxtyping import Float

from score_jax import predict as predictions
from score_jax import shapes
from score_jax.sde import SDE
from score_jax.types import PredictFn, Prediction

# twist(x0, t) -> log p(y | x_t) [b] up to a function of t, and its gradient [b, *s] with respect to x0
Twist = Callable[[Array, Array], tuple[Array, Array]]


def through(
    predict: PredictFn, twist: Twist, x: Float[Array, "b *s"], t: Float[Array, "b"]
) -> tuple[Prediction, Float[Array, "b"], Float[Array, "b *s"]]:
    """The prediction, the twist's value there, and its gradient with respect to x; one evaluation."""

    def of_x(x):
        pair = predict(x, t)
        return pair.x0, pair

    x0, pull, pair = jax.vjp(of_x, x, has_aux=True)
    value, gradient = twist(x0, t)
    return pair, value, pull(gradient)[0]


def add(
    sde: SDE, pair: Prediction, gradient: Array, x: Float[Array, "b *s"], t: Float[Array, "b"]
) -> Prediction:
    """The prediction whose score has the gradient added."""
    eps = pair.eps - shapes.like(sde.sigma(t), x) * gradient
    return predictions.read("eps", sde, eps, x, t)


def guided(sde: SDE, predict: PredictFn, twist: Twist) -> PredictFn:
    """predict(x, t) of x_t given y."""

    def guided_predict(x, t):
        pair, _, gradient = through(predict, twist, x, t)
        return add(sde, pair, gradient, x, t)

    return guided_predict
