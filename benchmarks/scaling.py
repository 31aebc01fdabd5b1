"""Memory, time and gradient of the train section's options, on DDPM's CIFAR-10 network; writes docs/scaling.md.

    python benchmarks/scaling.py

About ten minutes on two CPU cores.
"""

import os
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scaling_page

from score_jax import losses, nets, sde, train
from score_jax import model as models

BATCH = 32
ROUNDS = 3
# name -> the network's dtype, remat, parts that the batch is taken in
VARIANTS = {
    "defaults": (None, False, 1),
    "compute=bfloat16": (jnp.bfloat16, False, 1),
    "remat=True": (None, True, 1),
    "accumulate=2": (None, False, 2),
    "accumulate=4": (None, False, 4),
    "remat=True, accumulate=4": (None, True, 4),
}
PAGE = """# Memory and time of the train section's options

Written by `python benchmarks/scaling.py`: one gradient of the likelihood-weighted loss of DDPM's
CIFAR-10 network ({n_params:,} parameters, dropout on) over a batch of {batch} images, on {cores} CPU
cores, jax {jax}. The parameters take {params:.2f} GiB, as much again for the gradient, for each
moving average and for each of Adam's two moments. Beside them,

- kept: what automatic differentiation keeps from the forward pass of a part for its backward pass, in
  GiB, on any platform;
- planned: XLA's plan for all temporary buffers on the CPU (`memory_analysis().temp_size_in_bytes`);
- seconds: the median of {rounds} rounds, the variants interleaved;
- error: the Euclidean distance to the gradient of the first row, divided by its norm.

| config.train | kept | of the first row | planned | of the first row | seconds | of the first row | error |
| --- | --- | --- | --- | --- | --- | --- | --- |
{rows}

XLA's compiler for the CPU undoes `remat` (it removes the barriers that tell what to compute again from
what is there) and has no bfloat16 arithmetic: on the CPU these two cost time and save no memory, and
their rows show only that the gradient is right. What they save on a GPU or TPU is in the column
"kept". `accumulate` works everywhere. A gradient in parts differs from the whole batch's by the order
of summation. bfloat16 has 8 significant bits: each of the network's hundred layers rounds by 0.2 %.
"""


def loss_of(dtype, remat: bool):
    """The loss of the network with these options."""
    net = nets.ddpm().clone(dtype=dtype, remat=remat)
    return losses.denoising(models.denoiser(net, sde.vp()))


def gradient(dtype, remat: bool, parts: int):
    """fn(params, batch) -> loss, gradient."""
    fn = train.loss_and_grad(loss_of(dtype, remat), parts)

    def value_and_gradient(params, batch):
        (value, _), grads = fn(jax.random.key(0), params, (), batch, 0)
        return value, grads

    return value_and_gradient


def kept(params, batch, dtype, remat: bool, parts: int) -> float:
    """GiB that the backward pass of one part is given by its forward pass, the parameters aside."""
    part = jax.tree.map(lambda a: a[: BATCH // parts], batch)
    loss = lambda params: loss_of(dtype, remat)(jax.random.key(0), params, (), part, 0)[0]
    backward = jax.eval_shape(lambda params: jax.vjp(loss, params)[1], params)
    own = {p.shape for p in jax.tree.leaves(params)}
    leaves = [leaf for leaf in jax.tree.leaves(backward) if leaf.shape not in own]
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) / 2**30


def main():
    key = jax.random.key(0)
    x = jax.random.uniform(key, (BATCH, 32, 32, 3), minval=-1.0, maxval=1.0)
    batch = train.Batch(x, None, jax.random.split(key, BATCH), jnp.arange(BATCH) / BATCH)
    model = models.denoiser(nets.ddpm(), sde.vp())
    params = jax.jit(lambda key: model.init(key, x.shape[1:]))(jax.random.key(0, impl="rbg"))
    # away from the zeros that training starts from, behind which most of the gradient is zero
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: p + 0.02 * rng.standard_normal(p.shape, np.float32), params)

    compiled, memory, saved = {}, {}, {}
    for name, variant in VARIANTS.items():
        compiled[name] = jax.jit(gradient(*variant)).lower(params, batch).compile()
        memory[name] = compiled[name].memory_analysis().temp_size_in_bytes / 2**30
        saved[name] = kept(params, batch, *variant)
        print(f"{name}: {saved[name]:.2f} GiB kept, {memory[name]:.2f} GiB planned", flush=True)

    seconds, errors = {name: [] for name in VARIANTS}, {}
    for _ in range(ROUNDS):
        for name, fn in compiled.items():
            start = time.perf_counter()
            _, grads = jax.block_until_ready(fn(params, batch))
            seconds[name].append(time.perf_counter() - start)
            if name == "defaults":
                exact = grads
            difference = jax.tree.map(jnp.subtract, grads, exact)
            errors[name] = float(optax.global_norm(difference) / optax.global_norm(exact))
            print(f"{name}: {seconds[name][-1]:.1f} s, error {errors[name]:.1e}", flush=True)

    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rows = [
        f"| {name} | {saved[name]:.2f} | {saved[name] / saved['defaults']:.2f} "
        f"| {memory[name]:.2f} | {memory[name] / memory['defaults']:.2f} "
        f"| {medians[name]:.1f} | {medians[name] / medians['defaults']:.2f} | {errors[name]:.1e} |"
        for name in VARIANTS
    ]
    n_params = sum(leaf.size for leaf in jax.tree.leaves(params))
    page = PAGE.format(
        n_params=n_params,
        params=4 * n_params / 2**30,
        batch=BATCH,
        cores=os.cpu_count(),
        jax=jax.__version__,
        rounds=ROUNDS,
        rows="\n".join(rows),
    )
    scaling_page.write_first(page)


if __name__ == "__main__":
    main()
