"""What a run writes as it goes: a progress display, metrics.jsonl, timings.jsonl, TensorBoard.

metrics.jsonl holds only what the run computes, so that a resumed run writes the bytes of an
uninterrupted one; how long it took lies beside it in timings.jsonl.
"""

import contextlib
import json
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TimeRemainingColumn
from tensorboardX import SummaryWriter

from score_jax.files import write_text


class RunLog:
    """Writes into a workdir. Use `running` around the loop and the other methods inside it."""

    def __init__(self, workdir: Path):
        self._metrics = workdir / "metrics.jsonl"
        self._timings = workdir / "timings.jsonl"
        self._board_folder = workdir / "tensorboard"

    @contextlib.contextmanager
    def running(self, start: int, steps: int, batch_size: int):
        """Opens the log at step `start`; rows that an earlier process wrote after it are dropped."""
        _drop_after(self._metrics, start)
        self._board = SummaryWriter(str(self._board_folder), purge_step=start + 1)
        self._batch_size, self._steps = batch_size, steps
        self._last = (start, time.perf_counter())
        self._display = _Bar(start, steps) if sys.stdout.isatty() else _Lines(steps)
        try:
            with self._display:
                yield self
        finally:
            self._board.close()

    def train(self, step: int, metrics: dict[str, float]):
        """Means of the training metrics since the last call."""
        (last_step, last), now = self._last, time.perf_counter()
        rate = (step - last_step) / (now - last)
        self._last = (step, now)
        self._write(step, metrics)
        timing = {
            "step": step,
            "seconds": round(now - last, 3),
            "examples_per_second": rate * self._batch_size,
        }
        _append(self._timings, timing)
        self._board.add_scalar("examples_per_second", timing["examples_per_second"], step)
        self._display.show(
            step, metrics["loss"], timing["examples_per_second"], (self._steps - step) / rate
        )

    def validation(self, step: int, metrics: dict[str, float]):
        """Metrics of the validation split."""
        self._write(step, metrics)
        self._display.say(f"step {step}  " + "  ".join(f"{k} {v:.4f}" for k, v in metrics.items()))

    def restart_clock(self, step: int):
        """What was done since the last row of `train` is not counted as training."""
        self._last = (step, time.perf_counter())

    def _write(self, step: int, metrics: dict[str, float]):
        _append(self._metrics, {"step": step, **{k: float(v) for k, v in metrics.items()}})
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)


class _Bar(Progress):
    """A live bar, for a terminal."""

    def __init__(self, start: int, steps: int):
        columns = (
            "step {task.completed}/{task.total}",
            BarColumn(),
            "{task.fields[text]}",
            TimeRemainingColumn(),
        )
        super().__init__(*columns, console=Console())
        self._task = self.add_task("train", total=steps, completed=start, text="")

    def show(self, step, loss, rate, left):
        self.update(self._task, completed=step, text=f"loss {loss:.4f}  {rate:.0f} examples/s")

    def say(self, line):
        self.console.print(line, highlight=False)


class _Lines(contextlib.nullcontext):
    """Plain lines, for a pipe or a file."""

    def __init__(self, steps: int):
        super().__init__()
        self._steps = steps

    def show(self, step, loss, rate, left):
        text = (
            f"step {step}/{self._steps}  loss {loss:.4f}  {rate:.0f} examples/s  {left:.0f} s left"
        )
        self.say(text)

    def say(self, line):
        print(line, flush=True)


def _append(path: Path, row: dict):
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def _drop_after(path: Path, step: int):
    """Rewrites the rows up to `step`; a line cut short by a crash, and what follows it, goes too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(errors="replace").splitlines(keepends=True):
        try:
            if not line.endswith("\n") or json.loads(line)["step"] > step:
                break
        except (ValueError, TypeError, KeyError):
            break
        kept.append(line)
    write_text(path, "".join(kept))
