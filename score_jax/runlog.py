"""What a run writes as it goes: a progress display, metrics.jsonl, timings.jsonl, TensorBoard.

metrics.jsonl holds only what the run computes, so that a resumed run writes the bytes of an
uninterrupted one; how long it took lies beside it in timings.jsonl. A file that cannot be written,
as on a full disk, is a `files.WriteError` in the call that wrote to it.
"""

import contextlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TimeRemainingColumn

from score_jax import files
from score_jax.board import Board


class RunLog:
    """Writes into a workdir. Use `running` around the loop and the other methods inside it."""

    def __init__(self, workdir: Path):
        self._metrics = workdir / "metrics.jsonl"
        self._timings = workdir / "timings.jsonl"
        self._skipped = workdir / "skipped.jsonl"
        self._board_folder = workdir / "tensorboard"

    @contextlib.contextmanager
    def running(self, start: int, steps: int, batch_size: int, rows: int | None = None):
        """Opens the log at step `start`; rows that an earlier process wrote after it are dropped.

        Args:
          rows: how many there were (`rows`) when the state of step `start` was saved, or None for all
            up to that step.
        """
        until_start = lambda row: row["step"] <= start
        self.rows = _cut(self._metrics, until_start, rows)
        self.skipped = _cut(self._skipped, until_start)
        _cut(self._timings, lambda row: True)
        self._board = Board(self._board_folder, start)
        self._batch_size, self._steps = batch_size, steps
        self._last = (start, time.perf_counter())
        self._display = _Bar(start, steps) if sys.stdout.isatty() else _Lines(steps)
        with self._display:
            yield self

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
        self._board.add(step, {"examples_per_second": timing["examples_per_second"]})
        self._display.show(
            step, metrics["loss"], timing["examples_per_second"], (self._steps - step) / rate
        )

    def validation(self, step: int, metrics: dict[str, float]):
        """Metrics of the validation split."""
        self._write(step, metrics)
        self._display.say(f"step {step}  " + "  ".join(f"{k} {v:.4f}" for k, v in metrics.items()))

    def skip(self, step: int, why: str, indices: np.ndarray):
        """A step whose update was left out, and the examples of its batch; `skipped` counts them."""
        _append(self._skipped, {"step": step, "why": why, "indices": indices.tolist()})
        self.skipped += 1
        self._display.say(f"step {step} is skipped: {why}")

    def restart_clock(self, step: int):
        """What was done since the last row of `train` is not counted as training."""
        self._last = (step, time.perf_counter())

    def _write(self, step: int, metrics: dict[str, float]):
        _append(self._metrics, {"step": step, **{k: float(v) for k, v in metrics.items()}})
        self.rows += 1
        self._board.add(step, metrics)

    def sync(self):
        """Returns when the rows so far are on the disk; may be called from another thread."""
        for path in (self._metrics, self._skipped):
            if path.exists():
                files.sync(path)
        files.sync(self._metrics.parent)


class Listener:
    """A RunLog for a process that writes nothing, beside the one that does; it counts alike."""

    def __init__(self, workdir: Path):
        self._skipped = workdir / "skipped.jsonl"

    @contextlib.contextmanager
    def running(self, start: int, steps: int, batch_size: int, rows: int | None = None):
        """Reads what counts of an earlier process's log at step `start`."""
        self.rows = 0
        self.skipped = len(_until(self._skipped, lambda row: row["step"] <= start)[0])
        yield self

    def skip(self, step: int, why: str, indices: np.ndarray):
        """Counts the step."""
        self.skipped += 1

    def _nothing(self, *args):
        pass

    train = validation = restart_clock = sync = _nothing


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
    files.append(path, (json.dumps(row) + "\n").encode())


def _cut(path: Path, holds: Callable[[dict], bool], most: int | None = None) -> int:
    """Rewrites the rows of `_until`; returns how many."""
    kept, text = _until(path, holds, most)
    if "".join(kept) != text:
        files.write_text(path, "".join(kept))
    return len(kept)


def _until(
    path: Path, holds: Callable[[dict], bool], most: int | None = None
) -> tuple[list[str], str]:
    """The rows for which `holds`, up to the first that is none, and the whole file.

    A line cut short by a crash ends them too.
    """
    text, kept = path.read_text(errors="replace") if path.exists() else "", []
    for line in text.splitlines(keepends=True)[:most]:
        try:
            if not line.endswith("\n") or not holds(json.loads(line)):
                break
        except (ValueError, TypeError, KeyError):
            break
        kept.append(line)
    return kept, text
