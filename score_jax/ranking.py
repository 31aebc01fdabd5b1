"""What a sweep's trials came to: the table, results.csv, the plots, and the best of them.

Trials are compared by a metric of the validation split, of which less is better, at the last step
that each has evaluated: that is of the weights which eval.py and sample.py take. The test split is
never read.
"""

import csv
import io
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from score_jax import files
from score_jax.trials import Last, Status

_NONE = Last(math.nan, math.nan, 0)
_SECONDS = 1.0  # between two looks at the folders, on a terminal


def best(statuses: Iterable[Status], metric: str) -> Status:
    """The finished trial whose last value of the metric is least.

    Raises:
      ValueError: there is none.
    """
    statuses = list(statuses)
    finished = [s for s in statuses if s.state == "finished"]
    known = [s for s in finished if math.isfinite(_value(s, metric))]
    if not known:
        names = sorted({name for s in statuses for name in s.metrics})
        choices = f"; choose from {', '.join(names)}" if names else ""
        raise ValueError(
            f"--metric={metric}: none of {len(statuses)} trials has finished with it ({len(finished)} "
            f"have finished){choices}"
        )
    return min(known, key=lambda s: _value(s, metric))


def _value(status: Status, metric: str) -> float:
    return status.metrics.get(metric, _NONE).last


def columns(statuses: Sequence[Status]) -> tuple[list[str], list[str]]:
    """The keys that any trial overrides, and the metrics that any has, in order of appearance."""
    keys = dict.fromkeys(key for s in statuses for key in s.overrides)
    return list(keys), sorted({name for s in statuses for name in s.metrics})


def write(folder: Path, statuses: Sequence[Status], metric: str):
    """Writes results.csv, a row for each trial; an override that a trial has not, or no number, is empty."""
    keys, metrics = columns(statuses)
    of_metric = lambda name: (name, f"{name}_best", f"{name}_best_step")
    heads = ["trial", "state", "step", *keys, *(h for m in metrics for h in of_metric(m))]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*heads, "seconds", "error"])
    for s in statuses:
        numbers = [number for m in metrics for number in _cells(s.metrics.get(m, _NONE))]
        overrides = [_text(s.overrides[key]) if key in s.overrides else "" for key in keys]
        row = [s.name, s.state, s.step, *overrides, *numbers, f"{s.seconds:.3f}", s.error]
        writer.writerow(row)
    files.write_text(folder / "results.csv", text.getvalue())


def _cells(found: Last) -> list[Any]:
    known = math.isfinite(found.best)
    last = found.last if math.isfinite(found.last) else ""
    return [last, found.best if known else "", found.best_step if known else ""]


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return str(value[0]) if len(value) == 1 else str(tuple(value))
    return str(value)


def table(
    statuses: Sequence[Status], metric: str, width: int = 120, most: int | None = None
) -> Table:
    """The trials for a terminal of that width: those that run or failed, then the best; at most so many."""
    keys, _ = columns(statuses)
    order = sorted(statuses, key=lambda s: _rank(s, metric))
    rows = [[*keys, "state", "step", metric, "best", "seconds", "error"]]
    for s in order[:most]:
        found = s.metrics.get(metric, _NONE)
        overrides = [_text(s.overrides[key]) if key in s.overrides else "" for key in keys]
        numbers = ["" if math.isnan(v) else f"{v:.4f}" for v in (found.last, found.best)]
        step = f"{s.step}/{s.steps}"
        rows.append([*overrides, s.state, step, *numbers, f"{s.seconds:.0f}", s.error])
    *others, _ = (max(map(len, cells)) for cells in zip(*rows, strict=True))
    # the error gives way: the whole of it is in results.csv
    room = max(width - sum(others) - 2 * len(rows[0]), 10)
    result = Table(*rows[0], box=None)
    for *cells, error in rows[1:]:
        result.add_row(*cells, error if len(error) <= room else f"{error[: room - 1]}…")
    if most is not None and len(order) > most:
        result.caption = f"and {len(order) - most} more in results.csv"
    return result


def _rank(status: Status, metric: str) -> tuple[int, float]:
    value = _value(status, metric)
    first = {"running": 0, "failed": 1, "waiting": 3}.get(status.state, 2)
    return first, value if math.isfinite(value) else math.inf


def plot(folder: Path, statuses: Sequence[Status], metric: str):
    """Writes results.png (`figure`) of the trials that have the metric; nothing if none has."""
    known = [s for s in statuses if math.isfinite(_value(s, metric))]
    if known:
        files.write(folder / "results.png", lambda part: figure(known, metric).savefig(part))


def figure(statuses: Sequence[Status], metric: str):
    """A matplotlib Figure of trials that all have the metric; unfinished ones are hollow."""
    from matplotlib.figure import Figure

    texts = {
        key: {_text(s.overrides.get(key, "")) for s in statuses} for key in columns(statuses)[0]
    }
    keys = [key for key, values in texts.items() if len(values) > 1]
    result = Figure(figsize=(4 * (len(keys) + 1), 3.5), dpi=128, layout="tight")
    plots = result.subplots(1, len(keys) + 1, sharey=True, squeeze=False)[0]
    for axes, key in zip(plots, keys, strict=False):
        shown = [s for s in statuses if key in s.overrides]
        x, is_log = _positions([s.overrides[key] for s in shown])
        for i, s in zip(x, shown, strict=True):
            filled = {} if s.state == "finished" else {"markerfacecolor": "none"}
            axes.plot(i, _value(s, metric), "o", color="C0", **filled)
        axes.set(xlabel=key, xscale="log" if is_log else "linear")
        axes.tick_params(axis="x", rotation=30 if isinstance(x[0], str) else 0)
    values = [_value(s, metric) for s in statuses]
    so_far = [min(values[: i + 1]) for i in range(len(values))]
    number = range(1, len(values) + 1)
    plots[-1].plot(number, values, "o", color="C0", alpha=0.4)
    plots[-1].step(number, so_far, color="C1", where="post", label="best so far")
    plots[-1].set(xlabel="trial")
    plots[-1].xaxis.get_major_locator().set_params(integer=True)
    plots[-1].legend(fontsize=7)
    plots[0].set(ylabel=metric)
    return result


def _positions(values: list[Any]) -> tuple[list[Any], bool]:
    """Where values are on an axis, numbers or names, and whether it is logarithmic."""
    values = [v[0] if isinstance(v, (list, tuple)) and len(v) == 1 else v for v in values]
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        return [_text(v) for v in values], False
    return values, min(values) > 0 and max(values) >= 8 * min(values)


@contextmanager
def live(
    folder: Path, read: Callable[[Iterable[str]], list[Status]], metric: str
) -> Iterator[Callable[[set[str]], None]]:
    """tell(running) keeps results.csv and the terminal up to date: a live table, or lines if it is a pipe.

    Args:
      read: read(running) -> the statuses.
    """
    console = Console()
    shown = Live(console=console, auto_refresh=False) if console.is_terminal else None
    states, looked = {}, -math.inf

    def tell(running):
        nonlocal states, looked
        changed = running != {name for name, state in states.items() if state == "running"}
        if states and not changed and (shown is None or time.monotonic() - looked < _SECONDS):
            return
        statuses = read(running)
        write(folder, statuses, metric)
        if shown is not None:
            shown.update(
                table(statuses, metric, console.width, max(console.height - 3, 1)), refresh=True
            )
        for s in statuses:
            if shown is None and states and states.get(s.name) != s.state:
                print(line(s, metric), flush=True)
        states, looked = {s.name: s.state for s in statuses}, time.monotonic()

    tell(set())
    if shown is None:
        yield tell
    else:
        with shown:
            yield tell


def line(status: Status, metric: str) -> str:
    """A trial's state in a line."""
    value = _value(status, metric)
    what = status.error or ("" if math.isnan(value) else f"{metric} {value:.4f}")
    return f"{status.name}: {status.state} at step {status.step}" + (f", {what}" if what else "")
