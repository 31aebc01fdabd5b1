"""What a guided step costs beside the gradient that it needs; writes the last section of docs/posterior_accuracy.md.

    python benchmarks/guided_step.py

Under two minutes on two CPU cores.
"""

import os
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from score_jax import measurement as measurements
from score_jax import model as models
from score_jax import nets, posterior
from score_jax import sde as sdes
from score_jax.files import write_text
from score_jax.posterior.guide import through
from score_jax.posterior.pigdm import gaussian

PAGE = Path(__file__).parent.parent / "docs" / "posterior_accuracy.md"
SHAPE, BATCH, CHANNELS, MULTIPLIERS = (16, 16, 1), 8, 32, (1, 2)
STEPS, ROUNDS = 5, 7
TITLE = "## What a guided step costs"
BODY = """`pigdm` takes the gradient of the network with respect to x in each step. On the CPU that
gradient is slow inside of a compiled loop, so that there Python drives the steps, each of them one call
of a compiled program (`samplers.run_jitted`). Written by `python benchmarks/guided_step.py`: milliseconds
on {cores} CPU cores shared with other work, jax {jax}, for a U-Net of {channels} and {more} channels on {batch}
images of {height}x{width}; the median of {rounds} rounds of {steps} steps each, interleaved, and the least.

| | median | least | of the gradient, median | least |
| --- | --- | --- | --- | --- |
{rows}
"""


def section(page: Path) -> str:
    """What this script has written into the page; empty if it has not."""
    text = page.read_text() if page.is_file() else ""
    return TITLE + text.split(TITLE)[1] if TITLE in text else ""


def runners() -> dict:
    """Name -> a function that takes STEPS steps, or as many gradients."""
    sde = sdes.vp()
    net = nets.UNet(channels=CHANNELS, multipliers=MULTIPLIERS, blocks=1, attention=(), dropout=0.0)
    model = models.denoiser(net, sde)
    measurement = measurements.average_pool(SHAPE, 2, std=0.05)
    params = model.init(jax.random.key(0), SHAPE)
    keys = jax.random.split(jax.random.key(1), BATCH)
    x = jax.random.normal(jax.random.key(2), (BATCH, *SHAPE))
    y = measurement.apply(x)

    @jax.jit
    def gradient(params, x, y, t):
        twist = gaussian(sde, measurement, y, 1.0)
        predict = models.bind(model, params)
        return through(lambda x, t: predict(x, t), twist, x, jnp.full(BATCH, t))

    def gradients():
        # each starts where the one before ends, as steps do
        at = x
        for t in np.linspace(sde.t_max, sde.t_min, STEPS, dtype=np.float32):
            _, _, at = gradient(params, at, y, t)
        return at

    def draws(is_from_python):
        method = posterior.pigdm()._replace(gradients=is_from_python)
        of_params = lambda params: (sde, models.bind(model, params))
        draw = posterior.drawer(method, of_params, measurement, n_steps=STEPS)
        return lambda: draw(keys, params, y)

    return {
        "the gradient, outside of a loop": gradients,
        "a step, driven from Python": draws(True),
        "a step in a compiled loop": draws(False),
    }


def measure(found: dict) -> dict[str, list[float]]:
    """Seconds of one step in each round."""
    seconds = {name: [] for name in found}
    for i in range(ROUNDS + 1):
        for name, run in found.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            if i:  # the first compiles
                seconds[name].append((time.perf_counter() - start) / STEPS)
    return seconds


def main():
    seconds = measure(runners())
    (alone, *_), rows = seconds.values(), []
    for name, values in seconds.items():
        middle, least = statistics.median(values), min(values)
        rows.append(
            f"| {name} | {1e3 * middle:.1f} | {1e3 * least:.1f} "
            f"| {middle / statistics.median(alone):.2f} | {least / min(alone):.2f} |"
        )
        print(rows[-1], flush=True)
    body = BODY.format(
        cores=os.cpu_count(),
        jax=jax.__version__,
        channels=CHANNELS,
        more=CHANNELS * MULTIPLIERS[-1],
        batch=BATCH,
        height=SHAPE[0],
        width=SHAPE[1],
        rounds=ROUNDS,
        steps=STEPS,
        rows="\n".join(rows),
    )
    page = PAGE.read_text() if PAGE.is_file() else ""
    write_text(PAGE, page.split(TITLE)[0].rstrip("\n") + f"\n\n{TITLE}\n\n{body}")
    print(PAGE)


if __name__ == "__main__":
    main()
