"""The types that cross module borders.

Shapes in annotations: b is the batch, *s the event (any shape; h w c for images). `t` is [b] for
networks and predictions; inside a solver it is a scalar, broadcast in `shapes.like`. Time grows
with noise, s < t.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jax import Array
from jaxtyping import Float, Int
from jaxtyping import Key as KeyArray

Key = KeyArray[Array, ""]
Keys = KeyArray[Array, "b"]
Params = Any


class Prediction(NamedTuple):
    """What a network says of x_t = alpha x0 + sigma eps: the expected x0 and eps, which satisfy that equation."""

    x0: Float[Array, "b *s"]
    eps: Float[Array, "b *s"]


class Batch(NamedTuple):
    """One step's examples as the loss sees them on one device: in model space, or levels that it dequantizes itself.

    `keys` are one per example, folded from the step and the example's index in the global batch:
    whatever is random about an example comes from its key, so the number of devices changes
    nothing. A loss folds into it 0 for the noise, 1 for the network's dropout, 2 for a time of the
    example's own, 3 for a second noise, 4 for directions. `position` is that index divided by the
    global batch's size, in [0, 1). `augment` says what augmentation did to each example, for the
    network; `eps` is noise that is already coupled to x, in the place of the loss's own draw.
    """

    x: Float[Array, "b *s"]
    label: Int[Array, "b"] | None
    keys: Keys
    position: Float[Array, "b"]
    augment: Float[Array, "b k"] | None = None
    eps: Float[Array, "b *s"] | None = None


class Dequantized(NamedTuple):
    """A point in model space at which log p at t_min is taken, and what is added to it, in nats."""

    x: Float[Array, "b *s"]
    log_weight: Float[Array, "b"]


# predict(x, t, label) -> Prediction, the parameters already given
PredictFn = Callable[..., Prediction]


class Given(NamedTuple):
    """What a model knows, the parameters already given; the last two are None if it does not."""

    sde: Any
    predict: PredictFn
    level_logp: Callable[..., Float[Array, "b *s k"]] | None = None
    dequantize: Callable[..., Dequantized] | None = None


# loss(key, params, loss_state, batch, step) -> loss, (metrics, loss_state)
LossFn = Callable[..., tuple[Array, tuple[dict, Any]]]
