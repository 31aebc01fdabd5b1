"""Trains one config many times, each time with other overrides, and says which is best.

    python scripts/sweep.py --config=configs/vp_digits.py --sweep=configs/sweeps/lr_ema.py
    python scripts/sweep.py --config=configs/vp_digits.py --grid optim.lr=1e-4,3e-4 sde.beta_max=10,20 --jobs=2
    python scripts/sweep.py --config=configs/vp_toy2d.py --random=20 --grid optim.lr=1e-5..1e-2 net.width=64,128
    python scripts/sweep.py --workdir=runs/vp_digits_lr_ema --best

With --random, LOW..HIGH is a log-uniform number and LOW:HIGH a uniform one. --config.SECTION.OPTION=VALUE
holds for all trials. Each is a run of train.py in a folder of its own under --workdir, whose command
is in sweep.json. The same command again goes on: finished trials are not run again, stopped and failed
ones resume, and those of another --grid, --random or --sweep of the same config are added.

Trials are compared by --metric, of the validation split, at their last step, less being better; the
test split is never read. results.csv and results.png in the folder have all trials and metrics.

--vmap trains all trials as one program, if they are MLPs that differ in seed, optim.lr and train.ema
alone. --slurm submits the trials as an array of jobs; --show then says how far they are.

Exit code 0: all trials have finished (with --slurm: are submitted); 1: one has not; 2: the input
cannot work, and no trial was started; 130 and 75: stopped by SIGINT and SIGTERM, after the trials
were stopped in the same way and had saved.
"""

import shlex
import signal
import sys
from pathlib import Path

import jax
from absl import flags
from rich.console import Console

from score_jax import cli, ranking, sweep, trials, vmapped, workdir
from score_jax.build import ConfigError
from score_jax.files import WriteError, naming

CONFIG = flags.DEFINE_string("config", None, "config file of all trials; required")
WORKDIR = flags.DEFINE_string("workdir", None, "the sweep's folder; default runs/CONFIG_SWEEP")
SWEEP = flags.DEFINE_string(
    "sweep", None, "file whose get_overrides() yields a dict for each trial"
)
GRID = flags.DEFINE_multi_string("grid", [], "SECTION.OPTION=VALUE,VALUE ...: their product")
RANDOM = flags.DEFINE_integer("random", None, "draw so many trials from --grid", lower_bound=1)
RANDOM_SEED = flags.DEFINE_integer("random_seed", 0, "of these draws", lower_bound=0)
METRIC = flags.DEFINE_string("metric", "val_elbo", "of the validation split, by which to compare")
JOBS = flags.DEFINE_integer("jobs", 1, "how many trials to run at once", lower_bound=1)
VMAP = flags.DEFINE_bool("vmap", False, "train all trials as one program")
BEST = flags.DEFINE_bool("best", False, "print the command of the best trial in --workdir, and end")
SHOW = flags.DEFINE_bool("show", False, "print the trials in --workdir, and end")
SLURM = flags.DEFINE_bool("slurm", False, "submit the trials to SLURM by submitit, and end")
PARTITION = flags.DEFINE_string("slurm_partition", None, "where to run them")
MINUTES = flags.DEFINE_integer("slurm_minutes", 1440, "until a trial is saved and queued again")
GPUS = flags.DEFINE_integer("slurm_gpus", 1, "of each trial", lower_bound=0)
CPUS = flags.DEFINE_integer("slurm_cpus", 4, "of each trial", lower_bound=1)
CODES = {signal.SIGINT: 130, signal.SIGTERM: 75}
CHECKOUT = Path(__file__).resolve().parent.parent


def given_trials() -> list[sweep.Overrides]:
    """What the flags say of each trial."""
    if (SWEEP.value is None) == (not GRID.value):
        raise ConfigError(
            "say what the trials are, by one of --sweep=FILE and --grid KEY=VALUE,VALUE"
        )
    if SWEEP.value is not None:
        if RANDOM.value is not None:
            raise ConfigError("--random draws from --grid, not from --sweep; leave one of them out")
        return sweep.read(SWEEP.value, CHECKOUT)
    if RANDOM.value is not None:
        return sweep.random(GRID.value, RANDOM.value, RANDOM_SEED.value)
    return sweep.grid(GRID.value)


def main(overrides: list[str]) -> int:
    with cli.user_errors():
        metric = METRIC.value
        if not metric.startswith("val_"):
            raise ConfigError(
                f"--metric={metric} is not of the validation split; choose val_elbo or val_loss"
            )
        if BEST.value or SHOW.value:
            return show(Path(WORKDIR.value), metric)
        if VMAP.value and SLURM.value:
            raise ConfigError("--vmap trains in this process; leave out --slurm")
        found = given_trials()
        made = sweep.trials(CONFIG.value, overrides, found, metric)
        base = cli.load_config(CONFIG.value, overrides)
        kind = Path(SWEEP.value).stem if SWEEP.value else "random" if RANDOM.value else "grid"
        folder = Path(WORKDIR.value or f"runs/{Path(CONFIG.value).stem}_{kind}")
        if VMAP.value:
            vmapped.check(made)
        with naming(folder):
            folder.mkdir(parents=True, exist_ok=True)
        lock = workdir.lock(folder)
        held = sweep.keep(folder, base, made, {t.name: command(folder, t, overrides) for t in made})
        left = {
            t.name: held["trials"][t.name]["command"]
            for t in made
            if not trials.is_finished(folder, t.name, t.config["train"]["steps"])
        }
        print(f"{folder}: {len(made)} trials, {len(made) - len(left)} of them finished", flush=True)
        if SLURM.value:
            return submit(folder, left)

    read = lambda running=(): [
        trials.status(folder, name, entry, running) for name, entry in held["trials"].items()
    ]
    try:
        with lock, trials.StopSignals() as stop, ranking.live(folder, read, metric) as tell:
            if VMAP.value:
                vmapped.run_all(folder, [t for t in made if t.name in left], stop, tell)
            else:
                trials.run(folder, left, JOBS.value, stop, tell)
        ranking.plot(folder, read(), metric)
    except WriteError as error:
        print(f"sweep.py: {error}; make room there, and the same command goes on", file=sys.stderr)
        return 1
    if stop.asked is not None:
        print(f"{folder}: stopped and saved; the same command goes on from there")
        return CODES[stop.asked]
    finished = report(folder, [s for s in read() if s.name in {t.name for t in made}], metric)
    return 0 if finished else 1


def command(folder: Path, trial: sweep.Trial, shared: list[str]) -> str:
    """What trains a trial, by hand too."""
    script = Path(__file__).resolve().with_name("train.py")
    # absolute: it may be run from anywhere
    place = (folder / trial.name).resolve()
    flags_of_train = [f"--config={Path(CONFIG.value).resolve()}", f"--workdir={place}", *shared]
    own = sweep.arguments(trial.overrides)
    return shlex.join([sys.executable, str(script), *flags_of_train, *own])


def submit(folder: Path, commands: dict[str, str]) -> int:
    jobs = trials.submit(
        folder,
        commands,
        JOBS.value,
        slurm_partition=PARTITION.value,
        timeout_min=MINUTES.value,
        gpus_per_node=GPUS.value,
        cpus_per_task=CPUS.value,
    )
    print(f"{folder}: {len(jobs)} jobs submitted; --workdir={folder} --show says how far they are")
    return 0


def report(folder: Path, statuses: list[trials.Status], metric: str) -> bool:
    """Prints how the trials ended; whether all have finished."""
    failed = [s for s in statuses if s.state != "finished"]
    for s in failed:
        print(f"sweep.py: {ranking.line(s, metric)}", file=sys.stderr)
    try:
        best = ranking.best(statuses, metric)
        print(
            f"{folder}: {len(statuses) - len(failed)} of {len(statuses)} finished, of which the best"
        )
        print(ranking.line(best, metric))
    except ValueError as error:
        print(f"sweep.py: {error}", file=sys.stderr)
    return not failed


def show(folder: Path, metric: str) -> int:
    held = sweep.load(folder)["trials"]
    statuses = [trials.status(folder, name, entry) for name, entry in held.items()]
    ranking.write(folder, statuses, metric)
    ranking.plot(folder, statuses, metric)
    if SHOW.value:
        console = Console()
        console.print(ranking.table(statuses, metric, console.width))
    if BEST.value:
        print(held[ranking.best(statuses, metric).name]["command"])
    return 0


if __name__ == "__main__":
    sys.argv[1:] = sweep.gathered(sys.argv[1:])
    words = {word.lstrip("-").partition("=")[0] for word in sys.argv[1:]}
    if "vmap" not in words:  # the trials need the accelerators for themselves
        jax.config.update("jax_platforms", "cpu")
    cli.run(main, required=WORKDIR if words & {"best", "show"} else CONFIG)
