"""Kills training processes at random times, starts them again, and compares with runs that were never killed.

    python tests/reliability/kill.py --kills=50

Two small runs, points and images, on one device and on four. A kill is SIGKILL, at a random time
after something that can be seen from outside: the first line, a row, a save or a picture that
begins. When a run has had its kills it is left to finish, and then every array of its last
checkpoint, its metrics.jsonl and its pictures must be those of the run that was never killed, byte
for byte.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import orbax.checkpoint as ocp

CHECKOUT = Path(__file__).parent.parent.parent
TRAIN = "eval_images=16, ema=(0.9, 0.99), keep=2"
CONFIGS = {
    "points": f"""
from configs import common

def get_config():
    return common.config(
        data=dict(name="toy2d", shape="moons", n=500),
        sde=dict(name="vp"),
        net=dict(name="mlp", width=16, depth=2),
        train=dict(
            steps=2000, batch_size=16, log_every=7, eval_every=400, sample_every=1000, save_every=300,
            {TRAIN},
        ),
        sample=dict(name="ddim", n_steps=2),
        eval=dict(elbo_times=2),
    )
""",
    "images": f"""
from configs import common

def get_config():
    return common.config(
        data=dict(name="digits"),
        sde=dict(name="vp"),
        net=dict(name="unet", channels=8, multipliers=(1,), blocks=1, attention=(), dropout=0.2),
        model=dict(class_conditional=True),
        train=dict(
            steps=120, batch_size=8, log_every=7, eval_every=30, sample_every=60, save_every=25,
            flip=True, {TRAIN},
        ),
        sample=dict(name="ddim", n_steps=2),
        eval=dict(elbo_times=2),
    )
""",
}
SECONDS = 1.0  # the longest time between what is seen and the kill
LIMIT = 300.0  # seconds that a process may take


class Run(NamedTuple):
    """A run: the name of its config, its number of devices, and its folder."""

    config: str
    devices: int
    folder: Path

    @property
    def saved(self) -> Path:
        return self.folder / "checkpoints"


def start(home: Path, run: Run, shell: str = "") -> subprocess.Popen:
    """A training process; what compiles is kept in `home`, where the configs are written.

    Args:
      shell: a command for the shell that becomes the process, as "ulimit -f 100".
    """
    (home / f"{run.config}.py").write_text(CONFIGS[run.config])
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    quick = {
        # compiling takes most of the time
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
        f"--xla_force_host_platform_device_count={run.devices}",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(home / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = ["sh", "-c", f'{shell or ":"} && exec "$@"', "sh"]
    command += [sys.executable, CHECKOUT / "scripts" / "train.py"]
    command += [f"--config={home / run.config}.py", f"--workdir={run.folder}"]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command, cwd=home, env=kept | quick, **pipes)


def finish(process: subprocess.Popen, code: int = 0) -> str:
    """What a process printed, on stdout if the code is 0 and else on stderr; it must end with that code."""
    out, err = process.communicate(timeout=LIMIT)
    if process.returncode != code or "Traceback" in err:
        raise AssertionError(f"train.py ended with {process.returncode}, not {code}: {err}")
    return err if code else out


def begins(run: Run) -> dict[str, Callable[[], bool]]:
    """What can be seen from outside after a process has said that it trains, as questions."""
    metrics, steps = run.folder / "metrics.jsonl", {*run.saved.glob("[0-9]*")}
    size = metrics.stat().st_size if metrics.exists() else 0
    return {
        "start": lambda: True,
        "row": lambda: metrics.exists() and metrics.stat().st_size > size,
        "save": (run.saved / ".part").exists,
        "saved": lambda: bool({*run.saved.glob("[0-9]*")} - steps),
        "picture": lambda: any((run.folder / "samples").glob(".part-*")),
    }


def kill(home: Path, run: Run, rng: random.Random) -> str | None:
    """Kills a process of the run at a random time, and says in what; None if it had finished before."""
    process = start(home, run)
    while "training from" not in (line := process.stdout.readline()):
        if not line:
            finish(process)
            return None
    what = rng.choice(["start", "row", "save", "saved", "saved", "picture"])
    # short for what is short, so that the kill falls into it
    delay = rng.uniform(0, SECONDS if what in ("start", "row", "saved") else 0.3)
    seen = begins(run)[what]
    patience = time.monotonic() + 10 * SECONDS
    while not seen() and process.poll() is None and time.monotonic() < patience:
        time.sleep(0.0005)
    time.sleep(delay)
    if process.poll() is not None:
        finish(process)
        return None
    process.kill()
    process.communicate()
    if (run.saved / ".part").exists():
        return "in a save"
    if any((run.folder / "samples").glob(".part-*")):
        return "in writing a picture"
    return "between saves" if any(run.saved.glob("[0-9]*")) else "before the first save"


def compare(run: Run, reference: Run):
    """Raises AssertionError, with a name, if the last checkpoint, the metrics or a picture differ."""
    leaves, expected = _leaves(run), _leaves(reference)
    _same(leaves.keys(), expected.keys(), f"{run}: the names of the arrays")
    for name, value in expected.items():
        _same(leaves[name], value, f"{run}: {name}")
    files = ["metrics.jsonl", *(path.name for path in (reference.folder / "samples").iterdir())]
    for name in files:
        found, wanted = (
            r.folder / ("" if name == "metrics.jsonl" else "samples") / name
            for r in (run, reference)
        )
        _same(found.read_bytes(), wanted.read_bytes(), f"{run}: {name}")


def _same(found, expected, what: str):
    if found != expected:
        raise AssertionError(f"{what} differ from those of the run that was never killed")


def _leaves(run: Run) -> dict[str, tuple]:
    newest = max(run.saved.glob("[0-9]*"), key=lambda path: int(path.name))
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as orbax:
        tree = orbax.restore(newest / "state")
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    named = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    return {name: (a.dtype, a.shape, a.tobytes()) for name, a in named.items()} | {
        "step": newest.name
    }


def never_killed(home: Path, config: str, devices: int) -> Run:
    """A run that is left alone, in a folder of `home`."""
    run = Run(config, devices, home / f"{config}_{devices}")
    finish(start(home, run))
    return run


def survive(home: Path, reference: Run, kills: int, rng: random.Random) -> Counter:
    """Kills runs like the reference that often in all, lets them finish, and compares; counts of where."""
    where = Counter()
    while where.total() < kills:
        folder = home / f"{reference.folder.name}_killed"
        shutil.rmtree(folder, ignore_errors=True)
        run = reference._replace(folder=folder)
        # a run that has finished can be killed no more: another one is begun
        while where.total() < kills and (place := kill(home, run, rng)) is not None:
            where[place] += 1
        finish(start(home, run))
        compare(run, reference)
    return where


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="how many, over all runs")
    parser.add_argument("--seed", type=int, default=0, help="of the times of the kills")
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    rng, total = random.Random(options.seed), Counter()
    kinds = [(config, devices) for config in CONFIGS for devices in (1, 4)]
    with tempfile.TemporaryDirectory() as home:
        for i, (config, devices) in enumerate(kinds):
            share = (options.kills + i) // len(kinds)
            began = time.monotonic()
            where = survive(Path(home), never_killed(Path(home), config, devices), share, rng)
            total += where
            seconds = time.monotonic() - began
            print(f"{config}, {devices} devices: {_text(where)}; {seconds:.0f} s", flush=True)
    print(f"survived with the same bytes: {_text(total)}")


def _text(where: Counter) -> str:
    places = ", ".join(f"{n} {place}" for place, n in where.most_common())
    return f"{where.total()} kills ({places})"


if __name__ == "__main__":
    main()
