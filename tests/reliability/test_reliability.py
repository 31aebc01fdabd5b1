"""Training processes that are killed, stopped, refused and starved of disk; kill.py has the long version."""

import random
import signal
import socket
import time

import kill
import pytest
from kill import Run


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("reliability")


@pytest.fixture(scope="module")
def points(home):
    """A run that was never killed; what it compiled is in the cache."""
    return kill.never_killed(home, "points", 4)


@pytest.mark.parametrize(("config", "devices", "kills"), [("points", 4, 3), ("images", 1, 2)])
def test_a_run_that_is_killed_at_random_times_ends_with_the_bytes_of_one_that_is_not(
    home, points, config, devices, kills
):
    reference = points if config == "points" else kill.never_killed(home, config, devices)
    where = kill.survive(home, reference, kills, random.Random(1))
    assert where.total() == kills


def newest(run):
    return max((int(path.name) for path in run.saved.glob("[0-9]*")), default=None)


def test_one_process_trains_in_a_folder_and_a_full_disk_loses_no_checkpoint(home, points):
    """The disk is full for what is larger than a row: a limit on the size of files, which works anywhere."""
    run = Run("points", 4, home / "shared")
    process = kill.start(home, run)
    while newest(run) is None:
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGSTOP)  # it neither finishes nor lets go of the folder
    err = kill.finish(kill.start(home, run), 2)
    assert err == (
        f"train.py: {run.folder} is in use: process {process.pid} on {socket.gethostname()} trains "
        "in it; wait for it, or give another --workdir\n"
    )
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    kill.finish(process, 75)  # EX_TEMPFAIL
    step = newest(run)

    # 8 or 16 kB, by the shell: the log is smaller, checkpoints are not
    err = kill.finish(kill.start(home, run, "ulimit -f 16"), 1)
    assert err.startswith("train.py: cannot save step ") and err.count("\n") == 1
    assert f"File too large; the last good checkpoint is of step {step} in {run.saved}; " in err
    assert newest(run) == step and not (run.saved / ".part").exists()

    assert f"training from step {step} to" in kill.finish(kill.start(home, run))
    kill.compare(run, points)
