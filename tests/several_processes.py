"""One of the processes of a run, for test_distributed.py: trains a small U-Net and prints its losses, no more.

python tests/several_processes.py FOLDER COORDINATOR N_PROCESSES PROCESS
"""

import json
import sys
from pathlib import Path

import jax

from score_jax import build, distributed, parallel, run, train
from score_jax.checkpoint import Checkpoints
from score_jax.runlog import Listener, RunLog

UNET = dict(
    data=dict(name="digits"),
    sde=dict(name="vp"),
    net=dict(name="unet", channels=4, multipliers=(1,), blocks=1, attention=(), dropout=0.3),
    model=dict(class_conditional=True),
    loss=dict(name="denoising"),
    optim=dict(name="adam", lr=1e-3, warmup=4),
    train=dict(steps=12, batch_size=8, log_every=1, ema=(0.9,), flip=True, label_dropout=0.2),
    sample=dict(name="ddim", n_steps=2),
)


def losses(folder: Path) -> list[dict[str, float]]:
    """The metrics of each step, on all devices of all processes; without validation and pictures."""
    experiment = build.experiment(build.resolve(UNET))
    folder.mkdir(exist_ok=True)
    checkpoints = Checkpoints(folder / "checkpoints")
    train.fit(
        run.start_state(experiment, checkpoints),
        run.train_step(experiment, parallel.AXIS),
        experiment.data.train,
        jax.random.key(0),
        0,
        experiment.train,
        checkpoints,
        RunLog(folder) if distributed.is_first() else Listener(folder),
        validate=lambda params: {},
        draw=lambda params, step: None,
    )
    return [json.loads(line) for line in (folder / "metrics.jsonl").open()]


if __name__ == "__main__":
    folder, coordinator, n_processes, process = sys.argv[1:]
    distributed.initialize(coordinator, int(n_processes), int(process))
    losses(Path(folder))
