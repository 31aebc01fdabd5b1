"""Langevin correctors, which leave x at time t, and their place before a predictor."""

import jax
import jax.numpy as jnp

from score_jax import shapes
from score_jax.samplers.base import Sampler, score_at
from score_jax.sde import SDE

# no step at all: the predictor of annealed Langevin dynamics (NCSN), or no corrector
stay = Sampler(
    init=lambda x: None, step=lambda keys, predict, x, t, s, carry: (x, carry), evaluations=0
)


def langevin(sde: SDE, *, snr: float = 0.16, n_steps: int = 1) -> Sampler:
    """Corrector: Langevin steps of size 2 (alpha_ts snr |z| / |score|)^2.

    Song et al. 2021, arXiv 2011.13456, algorithms 4 and 5. Each sample has its own norms and so its
    own step; the paper's code averages them over the batch, where one sample then depends on the
    others. The norms are near their means in many dimensions only: in two or three a step close to
    a mode, where the score is zero, is of any size, and `annealed_langevin` is the one to take.

    Args:
      snr: the ratio of a step's score to its noise, in norm, at alpha_ts = 1.
      n_steps: Langevin steps at each time.
    """

    def size(score, z, t, s):
        ratio = shapes.sum_event(jnp.square(z)) / shapes.sum_event(jnp.square(score))
        return 2 * jnp.square(sde.alpha(t) / sde.alpha(s) * snr) * ratio

    return _langevin(sde, size, n_steps)


def annealed_langevin(sde: SDE, *, snr: float = 0.16, n_steps: int = 1) -> Sampler:
    """Corrector: Langevin steps of size 2 (alpha_ts snr sigma_t)^2, the same for every x.

    With `stay` for a predictor it is annealed Langevin dynamics (Song & Ermon 2019, arXiv
    1907.05600, algorithm 1), snr = sqrt(epsilon) / (2 sigma_L) in that paper's symbols.

    Args:
      snr: the step's length in units of the noise level.
      n_steps: Langevin steps at each time.
    """
    size = lambda score, z, t, s: 2 * jnp.square(sde.alpha(t) / sde.alpha(s) * snr * sde.sigma(t))
    return _langevin(sde, size, n_steps)


def corrected(predictor: Sampler, corrector: Sampler) -> Sampler:
    """The corrector's steps at time t, then the predictor's from t to s.

    Song et al. 2021, arXiv 2011.13456, algorithm 1, has them in the other order, and its public code
    in this one. They differ at the ends alone: here x is corrected at t_max and not at t_min, where
    denoising would undo it.
    """

    def step(keys, predict, x, t, s, carry):
        first, second = carry
        x, first = corrector.step(shapes.fold_in(keys, 0), predict, x, t, s, first)
        x, second = predictor.step(shapes.fold_in(keys, 1), predict, x, t, s, second)
        return x, (first, second)

    return Sampler(
        init=lambda x: (corrector.init(x), predictor.init(x)),
        step=step,
        evaluations=corrector.evaluations + predictor.evaluations,
    )


def _langevin(sde, size, n_steps):
    def step(keys, predict, x, t, s, carry):
        def move(i, x):
            score, z = score_at(sde, predict, x, t), shapes.normal(shapes.fold_in(keys, i), x)
            h = shapes.like(size(score, z, t, s), x)
            return x + h * score + jnp.sqrt(2 * h) * z

        return jax.lax.fori_loop(0, n_steps, move, x), carry

    return Sampler(init=lambda x: None, step=step, evaluations=n_steps)
