"""What a run shows and writes: the bar of a terminal, the lines of a pipe, the rows of its two files."""

import contextlib
import io
import json
import re
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from score_jax import files, runlog
from score_jax.runlog import RunLog


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def on_terminal(monkeypatch):
    """on_terminal(fn) -> what fn() sends to a terminal of 120 columns, without colours and cursor moves."""
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "120", "LINES": "25"}.items():
        monkeypatch.setenv(name, value)

    def shown(fn):
        with contextlib.redirect_stdout(Terminal()) as stdout:
            fn()
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stdout.getvalue())

    return shown


@pytest.fixture
def clock(monkeypatch):
    """The time in seconds that the log reads, to be set by the test."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(runlog, "time", SimpleNamespace(perf_counter=lambda: now.seconds))
    return now


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def log_two_windows(folder, clock):
    """From step 5 of 25 with 10 examples each: 4 steps in 2 s, a validation of 50 s, 4 steps in 1 s."""
    with RunLog(folder).running(5, 25, 10) as log:
        clock.seconds += 2
        log.train(9, {"loss": 0.5, "grad_norm": 3.0})
        clock.seconds += 50
        log.validation(9, {"val_loss": 0.25})
        log.restart_clock(9)
        clock.seconds += 1
        log.train(13, {"loss": 0.125, "grad_norm": 2.0})


def test_a_terminal_shows_a_bar_with_the_step_and_the_loss(on_terminal, clock, tmp_path):
    shown = on_terminal(lambda: log_two_windows(tmp_path, clock))
    last = shown.rstrip().splitlines()[-1]
    assert "step 13/25" in last and "loss 0.1250" in last and "40 examples/s" in last
    assert "step 9  val_loss 0.2500" in shown.splitlines()


def test_the_bar_of_a_resumed_run_starts_at_its_step(on_terminal, tmp_path):
    def fn():
        with RunLog(tmp_path).running(5, 25, 10):
            pass

    assert "step 5/25" in on_terminal(fn)


def test_a_pipe_gets_a_plain_line_a_row(clock, tmp_path, capsys):
    """4 steps of 10 in 2 s are 20 examples/s and leave 16 steps, 8 s."""
    log_two_windows(tmp_path, clock)
    assert capsys.readouterr().out.splitlines() == [
        "step 9/25  loss 0.5000  20 examples/s  8 s left",
        "step 9  val_loss 0.2500",
        "step 13/25  loss 0.1250  40 examples/s  3 s left",
    ]


def test_what_a_run_computes_and_how_long_it_took_are_kept_apart(clock, tmp_path):
    """So that a run's metrics are the same bytes however fast the machine."""
    log_two_windows(tmp_path, clock)
    assert rows(tmp_path / "metrics.jsonl") == [
        {"step": 9, "loss": 0.5, "grad_norm": 3.0},
        {"step": 9, "val_loss": 0.25},
        {"step": 13, "loss": 0.125, "grad_norm": 2.0},
    ]
    assert rows(tmp_path / "timings.jsonl") == [
        {"step": 9, "seconds": 2.0, "examples_per_second": 20.0},
        {"step": 13, "seconds": 1.0, "examples_per_second": 40.0},
    ]


GOOD = '{"step": 4, "loss": 0.5}\n{"step": 5, "loss": 0.25}\n{"step": 5, "val_loss": 0.75}\n'
LATER = '{"step": 8, "loss": 0.125}\n'
LEFT_BEHIND = {
    "nothing": "",
    "rows after the restored step": LATER + '{"step": 12, "loss": 0.1}\n',
    "a later row cut short": LATER + '{"step": 9, "lo',
    "an earlier row cut short": '{"step": 5, "val_elbo": 1.',
    "a whole row without its newline": '{"step": 5, "val_elbo": 1.5}',
    "a garbled row": '{"step": 5, "lo\n',
    "a garbled row and what follows it": "\0\0\0\0\n" + '{"step": 5, "val_elbo": 1.5}\n',
    "two rows run together": '{"step": 5, "lo{"step": 5, "loss": 0.1}\n',
    "an empty line": "\n",
}


@pytest.mark.parametrize("case", LEFT_BEHIND)
def test_a_resumed_run_goes_on_after_the_last_whole_row_of_its_step(case, tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    path.write_text(GOOD + LEFT_BEHIND[case])
    with RunLog(tmp_path).running(5, 25, 10) as log:
        assert path.read_text() == GOOD
        log.train(9, {"loss": 0.5})
    assert path.read_text() == GOOD + '{"step": 9, "loss": 0.5}\n'


def test_a_run_from_the_start_empties_the_log_of_one_that_saved_nothing(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(GOOD)
    with RunLog(tmp_path).running(0, 25, 10):
        assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_rows_after_those_that_a_checkpoint_counted_go_also_if_they_are_of_its_step(tmp_path):
    """The process that saved step 5 was then killed in, or after, the validation of step 5."""
    path = tmp_path / "metrics.jsonl"
    path.write_text(GOOD)
    with RunLog(tmp_path).running(5, 25, 10, rows=2) as log:
        assert path.read_text() == GOOD[: GOOD.index('{"step": 5, "val')] and log.rows == 2
        log.validation(5, {"val_loss": 0.75})
        assert log.rows == 3
    assert path.read_text() == GOOD
    # without a count, all rows up to the step are its own
    with RunLog(tmp_path).running(5, 25, 10) as log:
        assert path.read_text() == GOOD and log.rows == 3


def test_skipped_steps_are_kept_with_their_examples_and_counted_when_a_run_goes_on(
    tmp_path, capsys
):
    with RunLog(tmp_path).running(0, 25, 10) as log:
        log.skip(3, "loss is nan", np.array([4, 1]))
        log.skip(8, "grad_norm is inf", np.array([0, 2]))
        assert log.skipped == 2
    assert rows(tmp_path / "skipped.jsonl") == [
        {"step": 3, "why": "loss is nan", "indices": [4, 1]},
        {"step": 8, "why": "grad_norm is inf", "indices": [0, 2]},
    ]
    assert "step 3 is skipped: loss is nan" in capsys.readouterr().out.splitlines()
    with RunLog(tmp_path).running(5, 25, 10) as log:
        assert log.skipped == 1
    assert [row["step"] for row in rows(tmp_path / "skipped.jsonl")] == [3]


def test_a_timing_that_was_cut_short_goes_and_those_of_earlier_processes_stay(tmp_path):
    path = tmp_path / "timings.jsonl"
    path.write_text('{"step": 9, "seconds": 2.0}\n{"step": 13, "sec')
    with RunLog(tmp_path).running(5, 25, 10):
        assert path.read_text() == '{"step": 9, "seconds": 2.0}\n'


def events(path):
    """The events of a file of TFRecords, whose checksums must be right."""
    data, found = path.read_bytes(), []
    while data:
        length = struct.unpack("<Q", data[:8])[0]
        parts = data[:8], data[12 : 12 + length]
        checksums = data[8:12], data[12 + length : 16 + length]
        assert [struct.pack("<I", masked_crc32c(part)) for part in parts] == list(checksums)
        found.append(event_pb2.Event.FromString(parts[1]))
        data = data[16 + length :]
    return found


def test_tensorboard_gets_the_scalars_at_once_and_forgets_what_came_after_the_start(
    clock, tmp_path, capsys
):
    log_two_windows(tmp_path, clock)
    (path,) = (tmp_path / "tensorboard").iterdir()
    assert path.name.startswith("events.out.tfevents.")
    version, begin, *rest = events(path)
    assert version.file_version == "brain.Event:2"
    # what earlier files have from this step on is not shown
    assert begin.step == 6 and begin.session_log.status == event_pb2.SessionLog.START
    found = [
        (event.step, value.tag, value.simple_value)
        for event in rest
        for value in event.summary.value
    ]
    assert found == [
        (9, "loss", 0.5),
        (9, "grad_norm", 3.0),
        (9, "examples_per_second", 20.0),
        (9, "val_loss", 0.25),
        (13, "loss", 0.125),
        (13, "grad_norm", 2.0),
        (13, "examples_per_second", 40.0),
    ]


@pytest.mark.parametrize("name", ["metrics.jsonl", "timings.jsonl", "tensorboard"])
def test_a_full_disk_is_an_error_that_names_the_file_wherever_it_is_met(
    name, tmp_path, monkeypatch, capsys
):
    """Writing to the file in question is writing to the device /dev/full."""
    original = files.append
    full = lambda path: name in str(path.relative_to(tmp_path))

    def append(path, data):
        with files.naming(path):
            original(Path("/dev/full") if full(path) else path, data)

    log = RunLog(tmp_path)
    with log.running(0, 25, 10):
        monkeypatch.setattr(files, "append", append)
        with pytest.raises(files.WriteError, match="No space left on device"):
            log.train(5, {"loss": 0.5})
