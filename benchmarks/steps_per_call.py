"""What several steps in one program gain for toy2d's MLP; writes a section of docs/scaling.md.

    python benchmarks/steps_per_call.py

About two minutes on two CPU cores.
"""

import os
import statistics
import time

import jax
import numpy as np
import scaling_page

from score_jax import build, parallel, run, train
from score_jax.data.order import batch_indices

BATCHES = 16, 128, 512
CALLS = 1, 10, 100
STEPS, ROUNDS = 100, 9
CONFIG = dict(
    data=dict(name="toy2d", shape="moons", n=20_000),
    sde=dict(name="vp"),
    net=dict(name="mlp", width=128, depth=3),
    loss=dict(name="denoising"),
    optim=dict(name="adam"),
    sample=dict(name="ddim"),
)
TITLE = "Several steps per call"
BODY = """`config.train.steps_per_call` takes that many steps in one program, a loop over their batches. The
results are the same up to rounding: a loop's body is another program for the compiler (for this MLP on
the CPU they are the same to the last bit). What it spares is the start of a program, a few hundred
microseconds, of each step but one: much for a small network and a small batch, nothing for a large
one. It is refused for convolutional networks on the CPU, where a loop makes their gradient many times
slower, and if the steps between two events are no multiple of it.

Written by `python benchmarks/steps_per_call.py`: microseconds a step of the MLP of
configs/vp_toy2d.py (width 128, depth 3), by the batch size, on {cores} CPU cores shared with other
work, jax {jax}: the median of {rounds} rounds of {steps} steps each, interleaved, and the least.

| batch | steps per call | median | least | of single steps, median | least |
| --- | --- | --- | --- | --- | --- |
{rows}
"""


def runner(n_batch: int, n_steps: int):
    """A function that takes STEPS steps and returns the seconds of one."""
    experiment = build.experiment(build.resolve(CONFIG | dict(train=dict(batch_size=n_batch))))
    take = parallel.train_step(run.train_step(experiment, parallel.AXIS), n_steps)
    data, optimizer = experiment.data.train, experiment.optimizer
    state = train.init_state(jax.random.key(0), experiment.model, (2,), optimizer, 1)
    carried, resident = [parallel.replicate(state)], parallel.replicate(data)
    key = jax.random.key(1)

    def timed():
        start, pending = time.perf_counter(), []
        for first in range(0, STEPS, n_steps):
            steps = range(first, first + n_steps)
            rows = [batch_indices(0, step, len(data.x), n_batch) for step in steps]
            indices = parallel.shard(np.stack(rows), axis=1)
            batch = indices if n_steps > 1 else indices[:, 0]
            carried[0], metrics = take(carried[0], resident, batch, key)
            pending.append(metrics)
            jax.block_until_ready(pending[-2:-1])
        jax.block_until_ready(carried[0])
        return (time.perf_counter() - start) / STEPS

    return timed


def main():
    runners = {(n, k): runner(n, k) for n in BATCHES for k in CALLS}
    for timed in runners.values():
        timed()  # compiles
    seconds = {name: [] for name in runners}
    for _ in range(ROUNDS):
        for name, timed in runners.items():
            seconds[name].append(timed())
    rows = []
    for (n, k), values in seconds.items():
        middle, least = statistics.median(values), min(values)
        single = seconds[n, 1]
        rows.append(
            f"| {n} | {k} | {1e6 * middle:.0f} | {1e6 * least:.0f} "
            f"| {middle / statistics.median(single):.2f} | {least / min(single):.2f} |"
        )
        print(rows[-1], flush=True)
    body = BODY.format(
        cores=os.cpu_count(), jax=jax.__version__, rounds=ROUNDS, steps=STEPS, rows="\n".join(rows)
    )
    scaling_page.write(TITLE, body)


if __name__ == "__main__":
    main()
