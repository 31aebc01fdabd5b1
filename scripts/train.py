"""Trains a config in a folder; the same command again resumes, and does nothing to a finished run.

    python scripts/train.py --config=configs/vp_digits.py --workdir=runs/vp_digits

--config.SECTION.OPTION=VALUE overrides any value, as --config.optim.lr=1e-3 or --config.sde.name=ve.
One process at a time trains in a folder. Exit codes: 0 finished; 75 stopped by SIGTERM and saved,
for a scheduler to start it again; 130 the same by SIGINT; 1 a loss that is not finite, or a full
disk; 2 input that cannot work, a folder that cannot be written or that another process trains in.
Compiled programs are kept in ~/.cache/score_jax/xla; the environment variable
JAX_COMPILATION_CACHE_DIR chooses another folder, JAX_ENABLE_COMPILATION_CACHE=false turns that off.
"""

import os
import signal
import sys
from pathlib import Path

from absl import flags

from score_jax import build, cli, run, workdir
from score_jax.data.fingerprint import fingerprint
from score_jax.files import WriteError

CONFIG = flags.DEFINE_string("config", None, "config file, e.g. configs/vp_digits.py; required")
WORKDIR = flags.DEFINE_string("workdir", None, "the run's folder; default runs/NAME_OF_CONFIG")
ALLOW = flags.DEFINE_bool("allow_config_change", False, "go on in the folder with another config")
# SIGTERM is a scheduler's, which starts a job that failed for the time being again
STOPPED = {signal.SIGTERM: os.EX_TEMPFAIL, signal.SIGINT: 130}


def main(overrides: list[str]) -> int:
    with cli.user_errors():
        config = cli.load_config(CONFIG.value, overrides)
        build.check_batch_size(config["train"]["batch_size"], config["train"]["accumulate"])
        experiment = build.experiment(config)
        folder = Path(WORKDIR.value or Path("runs") / Path(CONFIG.value).stem)
        data = fingerprint(experiment.data)
        workdir.claim(folder, config, data, allow_change=ALLOW.value, complete=build.resolve)
        lock = workdir.lock(folder)  # held until the process ends
        checkpoints = run.checkpoints_of(folder, experiment)
        state = run.start_state(experiment, checkpoints)
        start, steps = int(state.step), experiment.train.steps
        # a run that was stopped in its last step's validation has that left to do
        finished = start >= steps and not checkpoints.notes(start).get("owed")
        if not finished:  # a finished run keeps the record of what made it
            workdir.record(folder, config, data)

    if finished:
        print(f"{folder}: finished at step {start}")
        return 0
    print(f"{folder}: training from step {start} to {steps}; the first step compiles", flush=True)
    try:
        stopped = run.fit(folder, experiment, state, checkpoints)
    except FloatingPointError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 1
    except WriteError as error:
        print(
            f"train.py: {error}; {checkpoints.kept()}; make room there, and the same command goes on",
            file=sys.stderr,
        )
        return 1
    finally:
        lock.close()
    if stopped:
        print(f"{folder}: stopped and saved; the same command goes on from there")
        return STOPPED[stopped]
    print(f"{folder}: finished at step {steps}")
    return 0


if __name__ == "__main__":
    cli.run(main, required=CONFIG)
