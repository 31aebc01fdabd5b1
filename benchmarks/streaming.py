"""How long a device waits for a streamed batch; writes docs/streaming.md.

    python benchmarks/streaming.py

One minute. The device is a stand-in that sleeps: what it waits for is the next batch alone.
"""

import os
import tempfile
import time
from pathlib import Path

import numpy as np

from score_jax.data import stream
from score_jax.data.base import Split

BATCH = 128
STEP = 0.05  # seconds; a GPU takes about as long for a batch of DDPM's CIFAR-10 network
STEPS = 100
PAGE = """# Streaming

Written by `python benchmarks/streaming.py`: batches of {batch} images, drawn in random order from an
array of 1 GiB on a local disk, for a device that takes {ms:.0f} ms a step, on {cores} CPU cores. The share
of a run that the device spends waiting for its next batch, and what the stream gives without a device:

| images | train.workers | waiting | images/s of the stream alone |
| --- | --- | --- | --- |
{rows}

`workers=0` reads in a thread of the training process. It is the fastest where the file is in the
system's cache; processes are for disks that answer slowly.
"""


def waiting(batches, step: float) -> tuple[float, float]:
    """The share of time spent waiting for batches, and batches per second, once all workers run."""
    for _ in range(10):
        next(batches)
    start, waited, n = time.perf_counter(), 0.0, 0
    while True:
        asked = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            break
        waited += time.perf_counter() - asked
        time.sleep(step)
        n += 1
    total = time.perf_counter() - start
    return waited / total, n / total


def main():
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in (32, 256):
            shape = (2**30 // (3 * size * size), size, size, 3)
            path = Path(folder) / f"{size}.npy"
            np.save(path, np.random.default_rng(0).integers(0, 256, shape, np.uint8))
            data = Split(np.load(path, mmap_mode="r"), None)
            for workers in (0, 1, 2):
                run = lambda steps, data=data, workers=workers: stream.batches(
                    data, 0, BATCH, 0, steps, workers=workers
                )
                with run(STEPS) as batches:
                    share, _ = waiting(batches, STEP)
                with run(10 * STEPS if size == 32 else STEPS) as batches:
                    _, rate = waiting(batches, 0.0)
                rows.append(f"| {size}x{size}x3 | {workers} | {share:.2%} | {rate * BATCH:,.0f} |")
                print(rows[-1], flush=True)
    page = PAGE.format(batch=BATCH, ms=1000 * STEP, cores=os.cpu_count(), rows="\n".join(rows))
    path = Path(__file__).parent.parent / "docs" / "streaming.md"
    path.write_text(page)
    print(path)


if __name__ == "__main__":
    main()
