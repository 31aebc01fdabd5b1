"""Time to sample: one compiled program here, against the same network and steps in PyTorch with diffusers' schedulers.

    pip install torch==2.13.0 diffusers
    python benchmarks/sampling_speed.py

Two minutes on two idle CPU cores; writes docs/sampling_speed.md. Only PyTorch and diffusers come on top
of the package's own requirements.
"""

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn import functional

from score_jax import model as models
from score_jax import nets, samplers, sde
from score_jax.nets.mlp import MLP

WIDTH, DEPTH = 128, 3
N_SAMPLES, N_STEPS = 10_000, 50
SQUARE, CHAIN = 2048, 8
# rows of matrix products whose rates stand for the machine's peak
PRODUCTS = {"square": SQUARE, "network's": N_SAMPLES}
ROUNDS = 9
IMAGES, IMAGE_STEPS, IMAGE_ROUNDS = 16, 10, 11
AIM = 3  # times as fast as PyTorch + diffusers
BUSY = 1.3  # slowest over fastest round of the same program, from which the machine is called busy
BETAS = dict(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
PAGE = """# Time to sample

Written by `python benchmarks/sampling_speed.py` on {cores} CPU cores, jax {jax}, torch {torch},
diffusers {diffusers}. Medians of {rounds} rounds, everything interleaved; in brackets the fastest and
the slowest round. Other programs on the machine only add time, and more to PyTorch, whose threads wait
for each other at each operation: so ratios and rates are those of the fastest rounds. The load
average was {load:.1f} before the first run and {load_after:.1f} after the last, the benchmark's own threads
included.

## A network for points in the plane, against PyTorch and diffusers

{n:,} samples in {steps} steps, DDPM's betas, an MLP of {depth} residual blocks of width {width}: the
same weights, times and starts on both sides, in float32. Here the steps are one compiled program, with
the network in it. There the network is called from Python by the scheduler's loop, in
`torch.inference_mode()`, as diffusers' pipelines do it. "Apart" is the largest difference of the
results, over their largest value.

| sampler | score_jax, s | PyTorch + diffusers, s | times as fast | median of rounds' ratios | apart |
| --- | --- | --- | --- | --- | --- |
{rows}

{verdict}

{busy}

The network is {flops:.1f} GFLOP of matrix products for a step of all samples; {of_time} of its {products}
products by {width} x {width} matrices depend on the time alone, and are taken for every sample on both
sides. Beside it the rates of bare products, of {square} x {square} matrices and of the network's
{n:,} x {width} by {width} x {width}; the machine's peak is taken to be the highest of the four.

| | square, GFLOP/s | the network's shape, GFLOP/s | share of the peak, {first} | share, {second} |
| --- | --- | --- | --- | --- |
{roofline}

## What sampling costs beyond the network

The Fashion-MNIST U-Net of `configs/vp_fashion_mnist.py`, {images} images, {image_steps} steps: the time of
the whole program over that of {image_steps} calls of the compiled network alone in the same round, the
median of {image_rounds} such ratios less one, with its bootstrap standard error. In brackets the lowest and
the highest.

| sampler | program, s | network alone, s | overhead |
| --- | --- | --- | --- |
{overhead}

{noise}
"""


def schedulers():
    """Name -> sampler, diffusers' scheduler, the times of both, in thousandths."""
    ddim = diffusers.DDIMScheduler(**BETAS, clip_sample=False, timestep_spacing="leading")
    dpm = diffusers.DPMSolverMultistepScheduler(**BETAS, final_sigmas_type="sigma_min")
    found = {}
    for name, make, scheduler, last in (
        ("ddim", samplers.ddim, ddim, 0),  # to no noise at all
        ("dpmpp_2m", samplers.dpmpp_2m, dpm, 1),  # to the first beta's
    ):
        scheduler.set_timesteps(N_STEPS)
        # their timestep k is after k + 1 betas
        times = np.append(scheduler.timesteps.numpy() + 1, last) / 1000
        found[name] = make(sde.ddpm()), scheduler, jnp.asarray(times, jnp.float32)
    return found


def perturbed(params):
    """Away from the zeros that training starts from, behind which the network does nothing."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noise = (0.05 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True))
    return jax.tree.unflatten(tree, [a + b for a, b in zip(leaves, noise, strict=True)])


def torch_mlp(params) -> Callable:
    """eps(x, c) of `nets.mlp.MLP` with these parameters."""
    tensors = jax.tree.map(lambda leaf: torch.from_numpy(np.array(leaf)), params)
    weight = {name: layer["kernel"].T.contiguous() for name, layer in _layers(tensors)}
    bias = {name: layer["bias"] for name, layer in _layers(tensors)}
    dense = lambda name, x: functional.linear(x, weight[name], bias[name])
    half = WIDTH // 2
    frequencies = 10000.0 ** (-torch.arange(half) / (half - 1))

    def eps(x, c):
        angle = c[:, None] * frequencies
        emb = torch.cat([torch.sin(angle), torch.cos(angle)], dim=1)
        emb = dense("embedding/dense_1", functional.silu(dense("embedding/dense_0", emb)))
        emb, h = functional.silu(emb), dense("dense_in", x)
        for i in range(DEPTH):
            norm = tensors[f"block_{i}_norm"]
            y = functional.layer_norm(h, (WIDTH,), norm["scale"], norm["bias"], eps=1e-6)
            y = dense(f"block_{i}_dense_0", y) + dense(f"block_{i}_emb", emb)
            h = h + dense(f"block_{i}_dense_1", functional.silu(y))
        return dense("dense_out", functional.silu(h))

    return eps


def _layers(tree, prefix=""):
    for name, sub in tree.items():
        if "kernel" in sub:
            yield prefix + name, sub
        elif not ("scale" in sub or "bias" in sub):
            yield from _layers(sub, f"{prefix}{name}/")


def torch_sampler(eps: Callable, scheduler) -> Callable:
    def run(x):
        scheduler.set_timesteps(N_STEPS)
        with torch.inference_mode():
            for t in scheduler.timesteps:
                c = (999.0 * (t + 1) / 1000).float().expand(len(x))
                x = scheduler.step(eps(x, c), t, x).prev_sample
        return x

    return run


def program(model, sampler, times) -> Callable:
    """fn(params, x): all the steps, compiled as one."""

    def run(params, x):
        keys = jax.random.split(jax.random.key(0), len(x))
        return samplers.sample(keys, sampler, models.bind(model, params), x, times)

    return jax.jit(run)


def interleaved(functions: dict[str, Callable], rounds: int) -> dict[str, list[float]]:
    """Seconds of each function in each round, after one call that compiles and warms up."""
    seconds = {name: [] for name in functions}
    for i in range(rounds + 1):
        for name, fn in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(fn())
            if i:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def spread(values: list[float], digits: int = 3) -> str:
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def product_flops(params, n: int) -> int:
    """Of the matrix products of one call of an MLP on n examples."""
    return 2 * n * sum(leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim == 2)


def compare_with_torch() -> dict[str, object]:
    model = models.denoiser(MLP(WIDTH, DEPTH), sde.ddpm(), conditioning="t")
    params = perturbed(model.init(jax.random.key(0), (2,)))
    x = jax.random.normal(jax.random.key(2), (N_SAMPLES, 2))
    x_torch, eps = torch.from_numpy(np.array(x)), torch_mlp(params)

    functions, apart, setups = {}, {}, schedulers()
    for name, (sampler, scheduler, times) in setups.items():
        ours, theirs = program(model, sampler, times), torch_sampler(eps, scheduler)
        functions[f"{name} jax"] = lambda ours=ours: ours(params, x)
        functions[f"{name} torch"] = lambda theirs=theirs: theirs(x_torch)
        here, there = np.asarray(ours(params, x)), theirs(x_torch).numpy()
        apart[name] = float(np.abs(here - there).max() / np.abs(here).max())
        print(f"{name}: {apart[name]:.1e} apart", flush=True)
    for name, rows in PRODUCTS.items():
        functions |= products(name, rows)

    seconds = interleaved(functions, ROUNDS)
    flops = product_flops(params, N_SAMPLES)
    first, second = setups
    return dict(
        rows="\n".join(speed_row(name, seconds, apart[name]) for name in setups),
        roofline="\n".join(
            roofline_row(title, side, (first, second), seconds, flops)
            for title, side in (("score_jax", "jax"), ("PyTorch + diffusers", "torch"))
        ),
        busy=noise(f"`{first}` in PyTorch", seconds[f"{first} torch"]),
        verdict=verdict(setups, seconds, N_STEPS * flops / peak(seconds)),
        flops=flops / 1e9,
        first=first,
        second=second,
    )


def verdict(names, seconds: dict[str, list[float]], least: float) -> str:
    """Whether the aim was reached, and what was possible.

    Args:
      least: seconds of the network's products alone at the machine's peak.
    """
    reached = {name: fastest_ratio(name, seconds) for name in names}
    missed = [name for name, value in reached.items() if value < AIM]
    measured = " and ".join(f"{value:.2f} with `{name}`" for name, value in reached.items())
    possible = [min(seconds[f"{name} torch"]) / least for name in names]
    said = "not reached" if missed else "reached"
    if missed and len(missed) < len(reached):
        said += " with " + ", ".join(f"`{name}`" for name in missed)
    beyond = ", so that the aim is\nout of its reach" if max(possible) < AIM else ""
    return (
        f"**The aim of {AIM} times as fast was {said}**: it is {measured}.\n"
        f"At the machine's peak below, the network's products alone take {least:.3f} s. A program that takes\n"
        "all of them and no time for anything else would be "
        f"{' and '.join(f'{p:.2f}' for p in possible)} times as fast{beyond}."
    )


def fastest_ratio(name: str, seconds: dict[str, list[float]]) -> float:
    return min(seconds[f"{name} torch"]) / min(seconds[f"{name} jax"])


def speed_ratios(name: str, seconds: dict[str, list[float]]) -> list[float]:
    """Of each round."""
    pairs = zip(seconds[f"{name} jax"], seconds[f"{name} torch"], strict=True)
    return [theirs / ours for ours, theirs in pairs]


def speed_row(name: str, seconds: dict[str, list[float]], apart: float) -> str:
    ours, theirs = seconds[f"{name} jax"], seconds[f"{name} torch"]
    ratios = speed_ratios(name, seconds)
    cells = [f"{fastest_ratio(name, seconds):.2f}", spread(ratios, 2), f"{apart:.0e}"]
    return f"| `{name}` | {spread(ours)} | {spread(theirs)} | " + " | ".join(cells) + " |"


def products(name: str, rows: int) -> dict[str, Callable]:
    """CHAIN matrix products in a row, on both sides: of [rows, n] by [n, n], n = WIDTH or rows if that is SQUARE."""
    n = SQUARE if rows == SQUARE else WIDTH
    x, w = (np.ones(shape, np.float32) / n for shape in ((rows, n), (n, n)))
    x_torch, w_torch, x, w = (
        torch.from_numpy(x),
        torch.from_numpy(w),
        jnp.asarray(x),
        jnp.asarray(w),
    )

    def chain(x, w):
        for _ in range(CHAIN):
            x = x @ w
        return x

    compiled = jax.jit(chain)
    return {f"{name} jax": lambda: compiled(x, w), f"{name} torch": lambda: chain(x_torch, w_torch)}


def rate(name: str, side: str, seconds) -> float:
    """FLOP/s of the products."""
    rows = PRODUCTS[name]
    n = SQUARE if rows == SQUARE else WIDTH
    return CHAIN * 2 * rows * n**2 / min(seconds[f"{name} {side}"])


def peak(seconds) -> float:
    """The machine's FLOP/s: the highest rate of bare products."""
    return max(rate(name, side, seconds) for name in PRODUCTS for side in ("jax", "torch"))


def roofline_row(title: str, side: str, names, seconds, flops: int) -> str:
    own = [f"{rate(name, side, seconds) / 1e9:.0f}" for name in PRODUCTS]
    done = lambda name: N_STEPS * flops / min(seconds[f"{name} {side}"])
    share = lambda name: done(name) / peak(seconds)
    return f"| {title} | " + " | ".join([*own, *(f"{share(n):.0%}" for n in names)]) + " |"


def overhead() -> dict[str, str]:
    """Rows of the U-Net's sampling time over that of its evaluations, and how noisy they are."""
    process = sde.vp()
    net = nets.UNet(channels=32, multipliers=(1, 2, 2), blocks=1, attention=(7,), dropout=0.0)
    model = models.denoiser(net, process, output="v")
    params = perturbed(model.init(jax.random.key(0), (28, 28, 1)))
    x = jax.random.normal(jax.random.key(2), (IMAGES, 28, 28, 1))
    times = jnp.linspace(1.0, 0.01, IMAGE_STEPS + 1)
    network = jax.jit(model.predict)

    def alone():
        for t in times[:-1]:
            out = jax.block_until_ready(network(params, x, jnp.full(IMAGES, t)))
        return out

    functions = {"alone": alone}
    for name in ("ddim", "dpmpp_2m", "ancestral"):
        fn = program(model, samplers.SAMPLERS[name].make(process), times)
        functions[name] = lambda fn=fn: fn(params, x)
    seconds = interleaved(functions, IMAGE_ROUNDS)
    rows = "\n".join(overhead_row(name, seconds) for name in list(functions)[1:])
    return dict(overhead=rows, noise=noise("the network alone", seconds["alone"]))


def noise(title: str, seconds: list[float]) -> str:
    """How far the rounds are apart, and what follows."""
    slowest = max(seconds) / min(seconds)
    text = f"The slowest round of {title} took {slowest:.2f} times as long as the fastest"
    if slowest < BUSY:
        return text + "."
    return text + ":\nthe machine was busy with other work, and the medians say little."


def median_error(values: list[float]) -> float:
    """Bootstrap standard error of the median."""
    drawn = np.random.default_rng(0).choice(values, (2000, len(values)))
    return float(np.std(np.median(drawn, axis=1)))


def overhead_row(name: str, seconds: dict[str, list[float]]) -> str:
    whole, alone = seconds[name], seconds["alone"]
    ratios = [a / b - 1 for a, b in zip(whole, alone, strict=True)]
    middle = statistics.median(ratios)
    return (
        f"| `{name}` | {spread(whole, 2)} | {spread(alone, 2)} "
        f"| {middle:+.1%} +- {median_error(ratios):.1%} ({min(ratios):+.1%} to {max(ratios):+.1%}) |"
    )


def main():
    load, measured = os.getloadavg()[0], compare_with_torch() | overhead()
    page = PAGE.format(
        cores=os.cpu_count(),
        jax=jax.__version__,
        torch=torch.__version__.partition("+")[0],
        diffusers=diffusers.__version__,
        rounds=ROUNDS,
        n=N_SAMPLES,
        steps=N_STEPS,
        depth=DEPTH,
        width=WIDTH,
        of_time=2 + DEPTH,
        products=2 + 3 * DEPTH,
        square=SQUARE,
        images=IMAGES,
        image_steps=IMAGE_STEPS,
        image_rounds=IMAGE_ROUNDS,
        load=load,
        load_after=os.getloadavg()[0],
        **measured,
    )
    path = Path(__file__).parent.parent / "docs" / "sampling_speed.md"
    path.write_text(page)
    print(path)


if __name__ == "__main__":
    main()
