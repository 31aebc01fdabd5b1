"""A model: a network, an SDE, and what the network's output means."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from score_jax import levels, predict, shapes
from score_jax.sde import SDE, log_snr, log_snr_ends
from score_jax.types import Dequantized, Given, Key, Params, PredictFn, Prediction


class Model(NamedTuple):
    """init(key, event shape) -> params; sde(params) -> SDE; predict(params, x, t, label=None, **options).

    The options: `keys`, one per example, switch dropout on; `augment` [b, k] is what augmentation
    did to each example, None for nothing. A fixed SDE ignores the params it is given; a
    learned one reads them. Some models also know log P(level of each pixel | x), level_logp(params,
    x, t, label=None) [b, *s, levels], or how to dequantize, dequantize(params, keys, k, levels,
    label=None). A classifier knows log p(class | x) and nothing else, class_logp(params, x, t, *,
    keys=None) [b, n_classes]: its predict is None.
    """

    init: Callable[[Key, tuple[int, ...]], Params]
    sde: Callable[[Params], SDE]
    predict: Callable[..., Prediction] | None
    level_logp: Callable[..., Array] | None = None
    dequantize: Callable[..., Dequantized] | None = None
    class_logp: Callable[..., Array] | None = None


def _scaled_time(sde: SDE, t: Array) -> Array:
    return 999.0 * t / max(1.0, sde.t_max)


def _log_snr_fraction(sde: SDE, t: Array) -> Array:
    largest, smallest = log_snr_ends(sde)
    return 100.0 * (largest - log_snr(sde, t)) / (largest - smallest)


def _log_sigma(sde: SDE, t: Array) -> Array:
    return -0.5 * log_snr(sde, t)


# what tells the network how noisy its input is. The range sets how fast the network can vary with
# time: log-SNR at DDPM's range of 1000 cost the likelihood's adaptive solver 3.5 times the
# evaluations of 100, for no better a fit
CONDITIONING = {
    "t": _scaled_time,
    "log_snr": _log_snr_fraction,
    "log_sigma": _log_sigma,
    "edm": lambda sde, t: 0.25 * _log_sigma(sde, t),
}


# what a network's output means: a quantity, or the logits of the levels of data that have them, or
# those of the classes (`classifier`)
OUTPUTS = {**predict.OUTPUTS, "levels": levels.posterior, "class": jax.nn.log_softmax}


def denoiser(
    net: nn.Module,
    sde: SDE,
    *,
    output: str = "eps",
    conditioning: str = "log_snr",
    sigma_data: float | None = None,
    n_levels: int | None = None,
    conservative: bool = False,
) -> Model:
    """The model whose prediction is the output of `net`, read as `output`.

    Args:
      net: called as net(x, c, label, keys=keys, augment=augment).
      output: one of OUTPUTS but "class". "levels": `net` has n_levels outputs for each number of
        x, the logits that `levels.posterior` makes a prediction of.
      conditioning: one of CONDITIONING. "t" is 999 t, as in score_sde's VP models (999 t / t_max if
        t_max is above 1); "log_snr" the share of the log-SNR range passed, times 100, which still
        tells apart the smallest noise levels, on which a likelihood depends; "log_sigma" is
        log(sigma / alpha), for the Fourier features of NCSN++ (Song et al. 2021, arXiv 2011.13456,
        appendix H); "edm" a quarter of it (Karras et al. 2022, arXiv 2206.00364, table 1).
      sigma_data: if given, the network's input is x / sqrt(alpha^2 sigma_data^2 + sigma^2), of
        about unit scale; needed when sigma is large (VE). If None it is x.
      n_levels: of the data, if they have levels.
      conservative: the output is the gradient with respect to x of a scalar, <x, net(x)> / 2: every
        output of `predict.KINDS` then stands for a score that is a gradient, at each time that of a
        normalisable or other density (Salimans & Ho 2021, "Should EBMs model the energy or the
        score?"). Costs a backward pass through the network.
    """

    def outputs(params, x, t, label, keys=None, augment=None):
        scaled, noise_level = _inputs(sde, conditioning, sigma_data, x, t)

        def apply(x):
            return net.apply({"params": params}, x, noise_level, label, keys=keys, augment=augment)

        if not conservative:
            return apply(scaled)
        return jax.grad(lambda x: 0.5 * jnp.sum(x * apply(x)))(scaled)

    def predict_fn(params, x, t, label=None, **options) -> Prediction:
        out = outputs(params, x, t, label, **options)
        return predict.OUTPUTS[output](sde, out, x, t)

    def posterior(params, x, t, label=None, **options):
        logits = outputs(params, x, t, label, **options).reshape(*x.shape, n_levels)
        return levels.posterior(sde, logits, x, t)

    fixed = lambda params: sde
    if output != "levels":
        return Model(_init(net), fixed, predict_fn)
    return Model(
        _init(net),
        fixed,
        predict=lambda *args, **options: posterior(*args, **options).mean,
        level_logp=lambda *args: posterior(*args).log_p,
    )


def classifier(
    net: nn.Module, sde: SDE, *, conditioning: str = "log_snr", sigma_data: float | None = None
) -> Model:
    """The classifier of x_t whose logits are the output of `net`, [b, n_classes].

    Args:
      net, conditioning, sigma_data: as of `denoiser`.
    """

    def class_logp(params, x, t, *, keys=None):
        scaled, noise_level = _inputs(sde, conditioning, sigma_data, x, t)
        return OUTPUTS["class"](net.apply({"params": params}, scaled, noise_level, keys=keys))

    return Model(_init(net), lambda params: sde, predict=None, class_logp=class_logp)


def _init(net):
    def init(key, shape):
        x = jnp.zeros((1, *shape))
        return net.init(key, x, jnp.zeros(1), jnp.zeros(1, jnp.int32))["params"]

    return init


def _inputs(sde, conditioning, sigma_data, x, t):
    noise_level = CONDITIONING[conditioning](sde, t)
    if sigma_data is None:
        return x, noise_level
    variance = jnp.square(sde.alpha(t) * sigma_data) + jnp.square(sde.sigma(t))
    return x * shapes.like(jax.lax.rsqrt(variance), x), noise_level


def deterministic(model: Model) -> Model:
    """The same model with dropout off, whatever keys it is given."""
    if model.class_logp is not None:
        class_logp = lambda params, x, t, *, keys=None: model.class_logp(params, x, t)
        return model._replace(class_logp=class_logp)

    def predict_fn(params, x, t, label=None, *, keys=None, augment=None):
        return model.predict(params, x, t, label, augment=augment)

    return model._replace(predict=predict_fn)


def bind(model: Model, params: Params) -> PredictFn:
    """predict(x, t, label) with the parameters given and dropout off. Call it inside jit, with params an argument."""
    return lambda x, t, label=None: model.predict(params, x, t, label)


def at(model: Model, params: Params) -> Given:
    """All that the model knows at the parameters given; like `bind`, to be called inside jit."""
    given = lambda fn: None if fn is None else partial(fn, params)
    return Given(
        model.sde(params), bind(model, params), given(model.level_logp), given(model.dequantize)
    )
