"""A sweep's trials on this machine or on a SLURM cluster: each a process of its own, and what became of it.

What is known of a trial is read from its folder, whoever ran it, and from what `end` leaves in the
sweep's folder:

    sweep.json  results.csv  results.png  lock  TRIAL/  logs/TRIAL.out  logs/TRIAL.err  logs/TRIAL.json
"""

import contextlib
import json
import math
import os
import shlex
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from score_jax.checkpoint import Checkpoints
from score_jax.files import write_text

# exit codes of a training that saved and ended because it was asked to, or had nothing to save yet
STOPPED = {75, 130, -signal.SIGINT, -signal.SIGTERM}
_POLL = 0.1  # seconds


class Last(NamedTuple):
    """A validation metric of a trial: the newest value, and the least, both nan if none is finite."""

    last: float
    best: float
    best_step: int


class Status(NamedTuple):
    """What is known of a trial.

    Attributes:
      state: "waiting", "running", "started" (not by this sweep, or killed), "stopped", "failed" or
        "finished".
      step, steps: the newest step that was logged, and the last of the run.
      metrics: by name, those of the validation split.
      seconds: of training steps, without compilation and validation, over all its processes.
      error: the last line on stderr of a trial that failed.
    """

    name: str
    overrides: dict[str, Any]
    state: str
    step: int
    steps: int
    metrics: dict[str, Last]
    seconds: float
    error: str


def status(folder: Path, name: str, entry: dict[str, Any], running: Iterable[str] = ()) -> Status:
    """Reads what is known of a trial.

    Args:
      entry: the trial's, of `sweep.load`.
      running: the names of those whose processes run.
    """
    rows = _rows(folder / name / "metrics.jsonl")
    values = {}
    for row in rows:
        for key in row:
            if key.startswith("val_"):
                values.setdefault(key, []).append((row[key], row["step"]))
    ended = _ended(folder, name)
    if name in running:
        state = "running"
    elif is_finished(folder, name, entry["steps"]):
        state = "finished"
    elif ended is not None:
        state = "stopped" if ended["code"] in STOPPED else "failed"
    else:
        state = "started" if rows else "waiting"
    seconds = sum(row.get("seconds", 0.0) for row in _rows(folder / name / "timings.jsonl"))
    return Status(
        name,
        entry["overrides"],
        state,
        max((row["step"] for row in rows), default=0),
        entry["steps"],
        {key: _last(pairs) for key, pairs in values.items()},
        seconds,
        ended["error"] if ended is not None and state == "failed" else "",
    )


def _last(pairs: list[tuple[float, int]]) -> Last:
    best, step = min((pair for pair in pairs if math.isfinite(pair[0])), default=(math.nan, 0))
    last = pairs[-1][0]
    return Last(last if math.isfinite(last) else math.nan, best, step)


def is_finished(folder: Path, name: str, steps: int) -> bool:
    """Whether a trial's last step is saved, and nothing is left to do after it."""
    checkpoints = Checkpoints(folder / name / "checkpoints")
    if max(checkpoints.steps(), default=0) < steps:
        return False
    ended = _ended(folder, name)
    if ended is not None and ended["code"] == 0:
        return True
    try:  # stopped in its last validation?
        return not checkpoints.notes(steps).get("owed")
    except (ValueError, OSError):  # damaged: train.py knows what to do
        return False


def _rows(path: Path) -> list[dict]:
    """The whole lines of a file that may be written to meanwhile."""
    rows = []
    with contextlib.suppress(OSError):
        for line in path.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict) and isinstance(row.get("step"), int):
                    rows.append(row)
    return rows


def _log(folder: Path, name: str, ending: str) -> Path:
    return folder / "logs" / f"{name}.{ending}"


def _ended(folder: Path, name: str) -> dict | None:
    try:
        found = json.loads(_log(folder, name, "json").read_text())
        return {"code": int(found["code"]), "error": str(found["error"])}
    except (OSError, ValueError, LookupError, TypeError):
        return None


def begin(folder: Path, name: str):
    """Forgets how a trial ended before."""
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    _log(folder, name, "json").unlink(missing_ok=True)


def end(folder: Path, name: str, code: int, error: str):
    """Writes how a trial ended."""
    text = json.dumps({"code": code, "error": error}) + "\n"
    write_text(_log(folder, name, "json"), text)


class Process:
    """The process of a trial, its output appended to logs/TRIAL.out and .err.

    Args:
      command: as the shell takes it.
      env: its environment variables; by default those of this process.
    """

    def __init__(self, folder: Path, name: str, command: str, env: dict[str, str] | None = None):
        begin(folder, name)
        self._folder, self._name = folder, name
        self._before = _size(_log(folder, name, "err"))
        with _log(folder, name, "out").open("ab") as out, _log(folder, name, "err").open("ab") as e:
            # in a session of its own: Ctrl-C in the terminal is for the sweep, which passes it on once;
            # a second signal would end the training before it is saved
            self._process = subprocess.Popen(
                shlex.split(command),
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=e,
                start_new_session=True,
            )

    def stop(self):
        """Asks it to save and end."""
        self._process.terminate()

    def ended(self) -> bool:
        """Whether it has ended; how, is then written down."""
        if self._process.poll() is None:
            return False
        self.wait()
        return True

    def wait_in_signal(self):
        """Returns when it has ended: for a signal's handler, which may have interrupted `wait`.

        That holds a lock of the process, for which the handler would wait for ever.
        """
        with contextlib.suppress(ChildProcessError):  # `wait` was told already
            end = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
            self._note(end.si_status if end.si_code == os.CLD_EXITED else -end.si_status)

    def wait(self) -> int:
        """Its exit code, when it has ended; how it ended is then written down."""
        code = self._process.wait()
        self._note(code)
        return code

    def _note(self, code: int):
        with _log(self._folder, self._name, "err").open("rb") as file:
            file.seek(self._before)
            lines = file.read().decode(errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        # a process that is killed says nothing of it
        error = "" if code == 0 else how if code < 0 or not said else said[-1]
        end(self._folder, self._name, code, error)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


class StopSignals:
    """While active, SIGINT and SIGTERM are kept in `asked`, None before, instead of ending the process.

    A second one ends it.
    """

    def __enter__(self):
        self.asked = None
        self._previous = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _ask(self, signum, frame):
        self.asked = signum
        self.__exit__()

    def __exit__(self, *exc):
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)


def run(
    folder: Path,
    commands: dict[str, str],
    jobs: int,
    stop: StopSignals,
    tell: Callable[[set[str]], None],
    env: dict[str, str] | None = None,
):
    """Runs trials, at most `jobs` at once, until all have ended; a signal stops them when they have saved.

    Args:
      commands: of the trials, by name.
      tell: called with the names of the running trials, often.
    """
    waiting, running, stopped = deque(commands.items()), {}, False
    try:
        while waiting or running:
            if stop.asked is not None and not stopped:
                stopped = True
                waiting.clear()
                for process in running.values():
                    process.stop()
            while waiting and len(running) < jobs:
                name, command = waiting.popleft()
                running[name] = Process(folder, name, command, env)
            for name, process in list(running.items()):
                if process.ended():
                    del running[name]
            tell(set(running))
            time.sleep(_POLL if running else 0.0)
    except BaseException:  # a full disk: no trial is left to run alone
        for process in running.values():
            process.stop()
        for process in running.values():
            process.wait_in_signal()
        raise


class Job:
    """A trial as submitit takes it: what it calls on the machine where the trial runs.

    Only this module's names are pickled by submitit; what the trial leaves is read from its folder.
    """

    def __init__(self, folder: Path, name: str, command: str):
        self._arguments = folder, name, command
        self._process = None

    def __call__(self) -> int:
        # submitit's signals are for this process, which passes them on
        self._process = Process(*self._arguments)
        return self._process.wait()

    def checkpoint(self):
        """Before the time is over, or another job takes the place: saves, and is put into the queue again."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None:
            self._process.stop()
            self._process.wait_in_signal()
        return DelayedSubmission(Job(*self._arguments))


def submit(
    folder: Path, commands: dict[str, str], jobs: int, *, cluster: str = "slurm", **options: Any
) -> dict[str, str]:
    """Submits trials as one array of jobs, at most `jobs` of them at once; returns the jobs' names by trial.

    Trials whose job of an earlier call has not ended are left to it.

    Args:
      cluster: of submitit; "local" runs them here, as a test.
      options: of submitit's executor; those that are None are left to the cluster.
    Raises:
      ValueError: submitit or SLURM is not there, or SLURM refuses.
    """
    try:
        import submitit
    except ImportError as error:
        raise ValueError("--slurm needs submitit; pip install 'score_jax[sweep]'") from error
    here = folder.resolve() / "slurm"
    known = here / "jobs.json"
    held = json.loads(known.read_text()) if known.exists() else {}
    job_of = {"slurm": submitit.SlurmJob, "local": submitit.LocalJob}[cluster]
    try:
        executor = submitit.AutoExecutor(folder=here, cluster=cluster)
        queued = [name for name in commands if name in held and not job_of(here, held[name]).done()]
        todo = {name: command for name, command in commands.items() if name not in queued}
        if not todo:
            return {}
        given = {name: value for name, value in options.items() if value is not None}
        executor.update_parameters(name=folder.name, slurm_array_parallelism=jobs, **given)
        # absolute: the folder is read on another machine, by a process that starts elsewhere
        made = [Job(folder.resolve(), name, command) for name, command in todo.items()]
        jobs_made = executor.submit_array(made)
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        raise ValueError(f"--slurm: {' '.join(str(error).split())}") from error
    ids = dict(zip(todo, (job.job_id for job in jobs_made), strict=True))
    write_text(known, json.dumps(held | ids, indent=2) + "\n")
    return ids
