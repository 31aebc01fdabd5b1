"""Optimizers: Adam with warm-up, gradient clipping and a learning-rate decay, from optax."""

import optax

DECAYS = {
    "constant": lambda lr, steps: optax.constant_schedule(lr),
    "linear": lambda lr, steps: optax.linear_schedule(lr, 0.0, steps),
    "cosine": lambda lr, steps: optax.cosine_decay_schedule(lr, steps),
}


def _decays_weights(params):
    # a learned schedule has no weights: decay would pull it towards the one that it began with
    of_schedule = isinstance(params, dict) and "schedule" in params
    return {part: part != "schedule" for part in params} if of_schedule else True


def adam(
    steps: int,
    *,
    lr: float = 2e-4,
    warmup: int = 1000,
    decay: str = "constant",
    clip: float = 1.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """Adam (AdamW if weight_decay > 0) after clipping the gradient's global norm.

    Args:
      steps: length of the run; the decay ends there.
      lr: the learning rate after warm-up, which is linear from lr / warmup at the first step.
      decay: one of DECAYS.
      clip: largest global norm of the gradient; 0 for none.
    """
    after = DECAYS[decay](lr, max(1, steps - warmup))
    schedule = optax.join_schedules(
        [lambda step: lr * (step + 1) / max(1, warmup), after], [warmup]
    )
    return optax.chain(
        optax.clip_by_global_norm(clip) if clip else optax.identity(),
        optax.adamw(
            schedule, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=_decays_weights
        ),
    )
