"""What may be chosen for speed and memory: the type to compute in, and recomputation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random
from jax.flatten_util import ravel_pytree

from score_jax import nets

NETS = {
    "unet": nets.ncsnpp(
        channels=8,
        multipliers=(1, 2),
        blocks=1,
        attention=(),
        dropout=0.5,
        n_classes=3,
        progressive_output="output_skip",
    ),
    "mlp": nets.MLP(width=16, depth=2, dropout=0.5, n_classes=3),
    "dit": nets.DiT(patch=2, width=16, depth=2, heads=2, dropout=0.5, n_classes=3),
}
F32, BF16 = jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16)


@pytest.fixture(scope="module", params=NETS)
def problem(request):
    """A network, parameters none of which is zero, and the arguments of a call with dropout."""
    net = NETS[request.param]
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 4, 4, 2), dtype=np.float32))
    c = jnp.array([-1.0, 0.5])
    params = jax.tree.map(
        lambda p: rng.normal(p.ndim == 1, 0.2, p.shape).astype(np.float32),
        jax.eval_shape(net.init, random.key(0), x, c),
    )
    keys = random.split(random.key(1, impl="rbg"), 2)  # compiles faster
    return net, params, (x, c, jnp.array([0, 3]), keys)


def compiled(fn):
    """For programs that run once: compiled in half the time."""
    return jax.jit(fn, compiler_options={"xla_backend_optimization_level": 0})


def outcome(net, params, x, c, label, keys):
    """The output and the gradient of its square."""

    def loss(params):
        out = net.apply(params, x, c, label, keys=keys)
        return jnp.sum(jnp.square(out)), out

    grad, out = jax.grad(loss, has_aux=True)(params)
    return out, grad


@pytest.fixture(scope="module")
def plain(problem):
    net, params, args = problem
    return compiled(partial(outcome, net))(params, *args)


def equations(jaxpr):
    """Also those of inner programs."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def program(net, params, x, c, label, keys):
    apply = lambda params, x: net.apply(params, x, c, label, keys=keys)
    return list(equations(jax.make_jaxpr(apply)(params, x).jaxpr))


def test_recomputation_changes_neither_the_output_nor_the_gradient(problem, plain):
    net, params, args = problem
    out, grad = compiled(partial(outcome, net.clone(remat=True)))(params, *args)
    np.testing.assert_allclose(out, plain[0], rtol=1e-4, atol=1e-4)
    flat, expected = (ravel_pytree(tree)[0] for tree in (grad, plain[1]))
    # relative to the largest: some are zero but for rounding, as of a key's bias
    np.testing.assert_allclose(flat, expected, atol=1e-5 * np.max(np.abs(expected)))


def test_recomputation_is_of_each_block(problem):
    net, params, args = problem
    count = lambda net: sum(e.primitive.name == "remat2" for e in program(net, params, *args))
    assert count(net) == 0
    # of the U-Net 10 residual blocks and the attention in the middle
    assert count(net.clone(remat=True)) == (11 if isinstance(net, nets.UNet) else 2)


def test_bfloat16_is_near_float32_with_parameters_gradient_and_output_in_float32(problem, plain):
    net, params, args = problem
    low = net.clone(dtype=jnp.bfloat16)
    initial = jax.eval_shape(low.init, random.key(0), *args[:2])
    abstract = jax.eval_shape(partial(outcome, low), params, *args)
    assert {leaf.dtype for leaf in jax.tree.leaves((initial, abstract))} == {F32}
    x, c, label, keys = args
    out = compiled(low.apply)(params, x, c, label, keys=keys)
    error = np.std(out - plain[0]) / np.std(plain[0])
    assert 1e-4 < error < 0.05  # a rounding is 2**-9, of some ten in a row


def test_bfloat16_is_for_products_only(problem):
    net, params, args = problem
    types = {}
    for eqn in program(net.clone(dtype=jnp.bfloat16), params, *args):
        types.setdefault(eqn.primitive.name, []).extend(v.aval.dtype for v in eqn.invars[:1])
    # the exponential is softmax's, the root a norm's, sine and cosine the embedding's
    for name in {"exp", "rsqrt", "sin", "cos"} & types.keys():
        assert set(types[name]) == {F32}
    products = types["dot_general"]
    assert products.count(BF16) > 2
    if isinstance(net, nets.UNet):
        assert set(types["conv_general_dilated"]) == {BF16}
        # float32 are two layers of the embedding and one in each residual block
        assert products.count(F32) == 2 + 10
    else:
        # and in DiT the map that modulates each block's norms and that of the last
        assert products.count(F32) == (2 if isinstance(net, nets.MLP) else 2 + 3)


def test_float64_is_computed_in_float64(problem, plain, x64):
    net, params, (x, c, label, keys) = problem
    double = jax.tree.map(lambda p: p.astype(np.float64), params)
    x, c = np.asarray(x, np.float64), np.asarray(c, np.float64)
    assert all(
        eqn.invars[0].aval.dtype == np.float64
        for eqn in program(net, double, jnp.asarray(x), jnp.asarray(c), label, keys)
        if eqn.primitive.name in ("dot_general", "conv_general_dilated", "exp", "rsqrt", "sin")
    )
    out = jax.eval_shape(net.apply, double, jnp.asarray(x), jnp.asarray(c), label, keys=keys)
    assert out.dtype == np.float64
