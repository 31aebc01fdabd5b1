"""What training trials as one program gains on the plane: time of a trial's step, beside one after another.

    python benchmarks/vmap.py

Four minutes. Writes the table into docs/sweeps.md. The network and the data are those of
configs/vp_toy2d.py; the trials differ in seed and learning rate. A round times each way once, and
the table has the medians over rounds.
"""

import os
import re
import statistics
import time
from pathlib import Path

import jax
import numpy as np

from score_jax import build, cli, parallel, run, vmapped
from score_jax.data.base import Split
from score_jax.files import write_text

CHECKOUT = Path(__file__).parent.parent
PAGE = CHECKOUT / "docs" / "sweeps.md"
BEGIN, END = "<!-- written by benchmarks/vmap.py -->", "<!-- end -->"
SIZES = (32, 64), (128, 64), (128, 512)  # width and batch; the last is the config's own
COUNTS = (1, 4, 16)
ROUNDS, SECONDS = 5, 0.5  # of each timing


def members(n: int, width: int, batch_size: int) -> list[vmapped.Member]:
    """Trials of different seeds and rates."""

    def member(i):
        overrides = [f"--config.seed={i}", f"--config.optim.lr={1e-3 * 1.1**i}"]
        overrides += [f"--config.train.batch_size={batch_size}", f"--config.net.width={width}"]
        config = cli.load_config(str(CHECKOUT / "configs" / "vp_toy2d.py"), overrides)
        return vmapped.Member(str(i), Path(), build.experiment(config), 1e-3 * 1.1**i, _Fresh())

    return [member(i) for i in range(n)]


class _Fresh:
    """No checkpoints."""

    def latest(self):
        return None


class Way:
    """Takes a step of each of several trials: as one program, or one after another."""

    def __init__(self, found: list[vmapped.Member], is_one: bool):
        # the same for all, which does not matter to the time
        states = [run.start_state(found[0].experiment, found[0].checkpoints)] * len(found)
        orders, data = vmapped.orders(found, 0), found[0].experiment.data.train
        self._resident = parallel.replicate(Split(np.asarray(data.x), data.label))
        indices = [next(orders) for _ in range(8)]
        if is_one:
            stacked = vmapped.stack(found)
            self._steps = [parallel.train_step(stacked.step)]
            self._states = [parallel.replicate(vmapped.together(found, states, stacked.rates))]
            self._keys = [stacked.common]
            self._indices = [[parallel.shard(i, axis=1)] for i in indices]
        else:
            # the rate is compiled into the program, so that each trial has one of its own
            self._steps = [
                parallel.train_step(run.train_step(m.experiment, parallel.AXIS)) for m in found
            ]
            self._states = [parallel.replicate(state) for state in states]
            self._keys = [run._key(m.experiment, run._TRAIN) for m in found]
            self._indices = [[parallel.shard(one) for one in i] for i in indices]
        start = time.perf_counter()
        self.take(1)
        self.compile_seconds = time.perf_counter() - start

    def take(self, n: int):
        """Takes n steps of all trials."""
        for j, step in enumerate(self._steps):
            for i in range(n):
                indices = self._indices[i % len(self._indices)][j]
                self._states[j], metrics = step(
                    self._states[j], self._resident, indices, self._keys[j]
                )
                if i % 2:  # two steps in flight, as in training
                    jax.block_until_ready(metrics)
            jax.block_until_ready(self._states[j])


def milliseconds(way: Way, n: int, k: int) -> float:
    """Of a step of one of k trials, over n steps of all."""
    start = time.perf_counter()
    way.take(n)
    return 1000 * (time.perf_counter() - start) / (n * k)


def measure(width: int, batch_size: int, k: int) -> str:
    """A row of the table."""
    found = members(k, width, batch_size)
    # the single steps are the same program but for a constant: two of them tell the time of 16
    ways = [Way(found[:2], False), Way(found, True)]
    counts = [len(found[:2]), k]
    n_steps = [
        max(4, int(1000 * SECONDS / (milliseconds(w, 4, c) * c)))
        for w, c in zip(ways, counts, strict=True)
    ]
    rounds = [
        [milliseconds(w, n, c) for w, n, c in zip(ways, n_steps, counts, strict=True)]
        for _ in range(ROUNDS)
    ]
    single, one = (statistics.median(column) for column in zip(*rounds, strict=True))
    ratio = statistics.median(a / b for a, b in rounds)
    compile_each, compile_all = (way.compile_seconds for way in ways)
    row = (
        f"| {width} | {batch_size} | {k} | {single:.2f} | {one:.2f} | {ratio:.2f} "
        f"| {compile_each / counts[0]:.1f} | {compile_all / k:.1f} |"
    )
    print(row, flush=True)
    return row


def main():
    rows = [measure(*size, k) for size in SIZES for k in COUNTS]
    table = f"""{BEGIN}
| width | batch | trials | ms a step, one by one | together | gain | s to compile, one by one | together |
| --- | --- | --- | --- | --- | --- | --- | --- |
{chr(10).join(rows)}

All of a single trial: of several together, their time divided by their number. Medians of {ROUNDS}
interleaved rounds on {os.cpu_count()} CPU cores, jax {jax.__version__}; the gain is that of the steps.
{END}"""
    pattern = re.compile(f"{BEGIN}.*{END}", re.DOTALL)
    write_text(PAGE, pattern.sub(lambda _: table, PAGE.read_text()))
    print(PAGE)


if __name__ == "__main__":
    main()
