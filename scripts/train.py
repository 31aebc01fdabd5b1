"""Trains a config in a folder; the same command again resumes, and does nothing to a finished run.

    python scripts/train.py --config=configs/vp_digits.py --workdir=runs/vp_digits

--config.SECTION.OPTION=VALUE overrides any value, as --config.optim.lr=1e-3 or --config.sde.name=ve.
One process at a time trains in a folder. Exit codes: 0 finished; 75 stopped by SIGTERM and saved,
for a scheduler to start it again; 130 the same by SIGINT; 1 a loss that is not finite, or a full
disk; 2 input that cannot work, a folder that cannot be written or that another process trains in.
Several processes train one run together if each is started with the same command and --distributed
(srun, mpirun, a TPU pod), or with --coordinator=HOST:PORT --processes=N --process=I.
Compiled programs are kept in ~/.cache/score_jax/xla; the environment variable
JAX_COMPILATION_CACHE_DIR chooses another folder, JAX_ENABLE_COMPILATION_CACHE=false turns that off.
"""

import os
import signal
import sys
from pathlib import Path
from typing import TextIO

import jax
from absl import flags

from score_jax import build, cli, distributed, run, workdir
from score_jax.build import ConfigError
from score_jax.data.fingerprint import fingerprint
from score_jax.files import WriteError

CONFIG = flags.DEFINE_string("config", None, "config file, e.g. configs/vp_digits.py; required")
WORKDIR = flags.DEFINE_string("workdir", None, "the run's folder; default runs/NAME_OF_CONFIG")
ALLOW = flags.DEFINE_bool("allow_config_change", False, "go on in the folder with another config")
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "one of several processes, as SLURM, Open MPI or a TPU pod started them"
)
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, with a free port")
PROCESSES = flags.DEFINE_integer("processes", None, "how many processes train the run together")
PROCESS = flags.DEFINE_integer("process", None, "which of them this is, from 0")
# SIGTERM is a scheduler's, which starts a job that failed for the time being again
STOPPED = {signal.SIGTERM: os.EX_TEMPFAIL, signal.SIGINT: 130}


def claim(folder: Path, config: build.Config, data: str) -> TextIO:
    """The folder, made or found to hold this run, and taken."""
    workdir.claim(folder, config, data, allow_change=ALLOW.value, complete=build.resolve)
    return workdir.lock(folder)


def join():
    """Joins the run's other processes, if there are any."""
    distributed.initialize(
        COORDINATOR.value, PROCESSES.value, PROCESS.value, detect=DISTRIBUTED.value
    )


def main(overrides: list[str]) -> int:
    # before the loop there is nothing to save
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(os.EX_TEMPFAIL))
    with cli.user_errors():
        config = cli.load_config(CONFIG.value, overrides)
        build.check_batch_size(config["train"]["batch_size"], config["train"]["accumulate"])
        build.check_steps_per_call(config)
        experiment = build.experiment(config)
        folder = Path(WORKDIR.value or Path("runs") / Path(CONFIG.value).stem)
        data = fingerprint(experiment.data)
        same = {key: v for key, v in workdir.flat(config).items() if key not in workdir.FREE}
        devices = jax.local_device_count()
        distributed.check_same(config=same, data=data, workdir=str(folder), devices=devices)
        lock = distributed.first(lambda: claim(folder, config, data))  # held until the process ends
        checkpoints = run.checkpoints_of(folder, experiment)
        state = run.start_state(experiment, checkpoints)
        start, steps = int(state.step), experiment.train.steps
        distributed.check_same(checkpoint=start)
        if start % experiment.train.steps_per_call:
            raise ConfigError(
                f"{folder} is at step {start}, no multiple of config.train.steps_per_call = "
                f"{experiment.train.steps_per_call}; set that to 1"
            )
        # a run that was stopped in its last step's validation has that left to do
        finished = start >= steps and not checkpoints.notes(start).get("owed")
        if not finished:  # a finished run keeps the record of what made it
            distributed.first(lambda: workdir.record(folder, config, data))

    say = print if distributed.is_first() else lambda *args, **options: None
    if finished:
        say(f"{folder}: finished at step {start}")
        return 0
    say(f"{folder}: training from step {start} to {steps}; the first step compiles", flush=True)
    try:
        stopped = run.fit(folder, experiment, state, checkpoints)
    except FloatingPointError as error:  # on all processes alike
        if distributed.is_first():
            print(f"train.py: {error}", file=sys.stderr)
        return 1
    except WriteError as error:
        print(
            f"train.py: {error}; {checkpoints.kept()}; make room there, and the same command goes on",
            file=sys.stderr,
        )
        if jax.process_count() > 1:
            # the others are in a step that this one does not take; they end when it is gone, and
            # would wait for minutes if it waited for them
            sys.stderr.flush()
            os._exit(1)
        return 1
    finally:
        if lock is not None:
            lock.close()
    if stopped:
        say(f"{folder}: stopped and saved; the same command goes on from there")
        return STOPPED[stopped]
    say(f"{folder}: finished at step {steps}")
    return 0


if __name__ == "__main__":
    cli.run(main, required=CONFIG, start=join)
