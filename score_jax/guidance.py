"""Guidance: predictions of what was asked for, each a wrapper of `predict`, which every sampler and solver takes.

At a noise level the score of a product of powers of densities is the weighted sum of their scores,
and eps is -sigma times the score:

    p(x_t) p(y | x_t)^s                      eps - s sigma grad log p(y | x_t)    classifier
    p(x_t) (p(x_t | y) / p(x_t))^s           eps + s (eps_y - eps)                classifier_free
    p(x_t) prod_i (p_i(x_t) / p(x_t))^w_i    eps + sum_i w_i (eps_i - eps)        conjunction
    p(x_t) prod_i (p(x_t) / p_i(x_t))^w_i    eps - sum_i w_i (eps_i - eps)        negation
    prod_i p_i(x_t)^w_i                      sum_i w_i eps_i                      product

With the true p(y | x_t) and s = 1 the first two are the conditional law at every noise level, and so
are its samples. Any other product is one of noised densities, which is not the noised product: what
is drawn is near the product of the data's densities, not distributed as it (Du et al. 2023, arXiv
2302.11552).
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array

from score_jax import predict as predictions
from score_jax import shapes
from score_jax.sde import SDE, log_snr
from score_jax.types import PredictFn, Prediction

# log p(label | x_t), [b], of x [b, *s], t [b] and label [b]
LogProb = Callable[[Array, Array, Array], Array]


def classifier(sde: SDE, predict: PredictFn, log_prob: LogProb, scale: float | Array) -> PredictFn:
    """Predictions pushed towards what a classifier of x_t takes for the label.

    Dhariwal & Nichol 2021, arXiv 2105.05233, algorithm 2 and section 4.3.

    Args:
      predict: is given the label too. Of a class-conditional model, `of_class(predict, n_classes)`
        is the unconditional one, for which the formula is.
      log_prob: in nats, differentiable in x; see `of_label` and `across`.
      scale: of the gradient, a number or one for each sample; above 1 sharpens p(y | x_t).
    """

    def guided(x, t, label=None):
        pair = predict(x, t, label)
        gradient = jax.grad(lambda x: jnp.sum(log_prob(x, t, label)))(x)
        alpha, sigma = (shapes.like(c(t), x) for c in (sde.alpha, sde.sigma))
        push = _factor(scale, x) * sigma * gradient
        return Prediction(pair.x0 + sigma / alpha * push, pair.eps - push)

    return guided


def of_label(class_logp: Callable[[Array, Array], Array]) -> LogProb:
    """The label's entry of class_logp(x, t) [b, n_classes], as of `model.classifier`."""

    def log_prob(x, t, label):
        return jnp.take_along_axis(class_logp(x, t), label[:, None], axis=1)[:, 0]

    return log_prob


def across(sde: SDE, own: SDE, log_prob: LogProb) -> LogProb:
    """A classifier trained under the SDE `own`, for x_t of another: asked of the same x0 + (sigma / alpha) eps.

    Beyond the ends of its own time it is asked at the end, of x scaled so that neither signal nor
    noise is larger than it knows them there.
    """

    def fn(x, t, label):
        s = jnp.clip(own.time_of_log_snr(log_snr(sde, t)), own.t_min, own.t_max)
        # one number within its time, where the ratios are equal
        scale = jnp.minimum(own.alpha(s) / sde.alpha(t), own.sigma(s) / sde.sigma(t))
        return log_prob(shapes.like(scale, x) * x, s, label)

    return fn


def classifier_free(
    sde: SDE,
    predict: PredictFn,
    n_classes: int,
    scale: float | Array,
    *,
    interval: tuple[float, float] | None = None,
    rescale: float = 0.0,
) -> PredictFn:
    """Predictions of a class-conditional model moved on from "no class" through that of the label.

    Ho & Salimans 2022, arXiv 2207.12598, eq. 6, whose w is scale - 1: scale 0 is the unconditional
    model, 1 the conditional one. Without a label there is nothing to move to, and the prediction is
    the unconditional one.

    Args:
      predict: of a model that was trained with label dropout.
      n_classes: the label that stands for "no class".
      scale: a number, or one for each sample.
      interval: (low, high], noise levels sigma / alpha outside which the scale is 1 (Kynkaanniemi et
        al. 2024, arXiv 2404.07724, eq. 6); there the second evaluation is spared if no sample of the
        batch is inside. A step across an end meets a jump in the ODE: best are ends at which steps
        end too. The compiler for the CPU makes a gradient through it slow (jax issue 12868).
      rescale: share phi of the guided prediction that is scaled to the standard deviation of the
        conditional one, against over-exposure (Lin et al. 2023, arXiv 2305.08891, section 3.4, which
        has 0.7). As there it is of v, which goes from -x0 to eps between the ends of time.
    """

    def pushed(x, t, label, given):
        free = predict(x, t, jnp.full_like(label, n_classes))
        pair = _moved(free, (given,), (scale,))
        return _rescaled(sde, pair, given, x, t, rescale) if rescale else pair

    def guided(x, t, label=None):
        if label is None:
            return predict(x, t)
        given = predict(x, t, label)
        if interval is None:
            return pushed(x, t, label, given)
        ratio = sde.sigma(t) / sde.alpha(t)
        inside = (interval[0] < ratio) & (ratio <= interval[1])
        pair = jax.lax.cond(jnp.any(inside), lambda: pushed(x, t, label, given), lambda: given)
        chosen = shapes.like(inside, x)
        return jax.tree.map(lambda a, b: jnp.where(chosen, a, b), pair, given)

    return guided


def of_class(predict: PredictFn, k: int) -> PredictFn:
    """The predictions of a class-conditional model for class k, whatever the label; n_classes is "no class"."""
    return lambda x, t, label=None: predict(x, t, jnp.full(x.shape[:1], k))


def conjunction(
    predict: PredictFn,
    given: Sequence[PredictFn],
    weights: Sequence[float | Array] | None = None,
) -> PredictFn:
    """AND: all of the conditions at once, if they are independent given x (Liu et al. 2022, arXiv 2206.01714).

    With one condition it is `classifier_free`. "a AND NOT b" is the conjunction of a and of the
    negation of b.

    Args:
      predict: the unconditional model.
      given: of each condition, the conditional one.
      weights: guidance scale of each condition; None is 1.
    """
    weights = (1.0,) * len(given) if weights is None else tuple(weights)

    def composed(x, t, label=None):
        pairs = [fn(x, t, label) for fn in given]
        return _moved(predict(x, t, label), pairs, weights)

    return composed


def negation(
    predict: PredictFn,
    unwanted: Sequence[PredictFn],
    weights: Sequence[float | Array] | None = None,
) -> PredictFn:
    """NOT: what the model makes, the less probable the more it meets any of the conditions (Liu et al. 2022).

    arXiv 2206.01714; their NOT stands beside a wanted condition, with which it is a `conjunction`.

    Args:
      predict, unwanted, weights: as in `conjunction`. A large weight makes a density that cannot
        be normalised.
    """
    weights = (1.0,) * len(unwanted) if weights is None else tuple(weights)
    return conjunction(predict, unwanted, [-w for w in weights])


def product(
    sde: SDE, predicts: Sequence[PredictFn], weights: Sequence[float | Array] | None = None
) -> PredictFn:
    """The product of the densities of several models, each to the power of its weight.

    Args:
      weights: a number, or one for each sample, for each model; None is 1.
    """
    weights = (1.0,) * len(predicts) if weights is None else tuple(weights)

    def composed(x, t, label=None):
        pairs = [fn(x, t, label) for fn in predicts]
        eps = sum(_factor(w, x) * pair.eps for w, pair in zip(weights, pairs, strict=True))
        return predictions.read("eps", sde, eps, x, t)

    return composed


def _moved(
    base: Prediction, pairs: Sequence[Prediction], weights: Sequence[float | Array]
) -> Prediction:
    """base + sum_i weights[i] (pairs[i] - base), in eps and in x0 alike.

    Each pair makes x_t, and so does this, whose weights sum to 1: x0 is not a difference of x and
    sigma eps, which has lost its digits where alpha is small.
    """

    def moved(start, *ends):
        moves = (_factor(w, start) * (end - start) for w, end in zip(weights, ends, strict=True))
        return start + sum(moves)

    return jax.tree.map(moved, base, *pairs)


def _factor(weight, x):
    return shapes.like(jnp.asarray(weight, x.dtype), x)


def _rescaled(sde, pair, given, x, t, share):
    v, v_given = (predictions.combine("v", sde, p, t) for p in (pair, given))
    std = lambda v: jnp.std(v, axis=tuple(range(1, v.ndim)), keepdims=True)
    factor = share * std(v_given) / std(v) + (1 - share)
    return predictions.read("v", sde, factor * v, x, t)
