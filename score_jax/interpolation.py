"""Examples between two: both encoded by the probability-flow ODE, and what lies between their latents decoded.

Song et al. 2021, arXiv 2011.13456, section 4.3. `METHODS` lists the ways between latents.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from score_jax import latents
from score_jax.sde import SDE
from score_jax.solve import Solution
from score_jax.types import Params, PredictFn

# make(model) -> row(params, ends [2, *s], shares [n], label=None) -> Solution, y [n, *s]
MakeRow = Callable[[Callable[[Params], tuple[SDE, PredictFn]]], Callable[..., Solution]]


def slerp(*, rtol: float = 1e-4, atol: float = 1e-4) -> MakeRow:
    """Rows on the great circle between the latents (`latents.slerp`): y[i] is shares[i] of the way from end to end.

    Shares 0 and 1 come back to the ends, up to the solver's error. nfe, of both ways, and ok are [n].

    Args:
      rtol, atol: of the adaptive solver, for each example alone.
    """

    def make(model):
        @jax.jit
        def row(
            params: Params,
            ends: Float[Array, "2 *s"],
            shares: Float[Array, "n"],
            label: Array | int | None = None,
        ):
            sde, predict = model(params)
            of = lambda n: None if label is None else jnp.full(n, label)
            code = latents.encode(sde, predict, ends, of(2), rtol=rtol, atol=atol)
            n = len(shares)
            a, b = (jnp.broadcast_to(z, (n, *z.shape)) for z in code.y)
            z = latents.slerp(a, b, shares)
            found = latents.decode(sde, predict, z, of(n), rtol=rtol, atol=atol)
            return Solution(found.y, found.nfe + jnp.sum(code.nfe), found.ok & jnp.all(code.ok))

        return row

    return make


class Entry(NamedTuple):
    """make(**options) -> MakeRow, what it does in words, and its paper."""

    make: Callable[..., MakeRow]
    what: str
    source: str


METHODS = {
    "slerp": Entry(
        slerp,
        "along the great circle between the latents of the probability-flow ODE",
        "Song et al. 2021, arXiv 2011.13456, section 4.3",
    )
}
