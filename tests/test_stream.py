"""Streamed batches are those of resident data; workers end when they should; arrays decoded once."""

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import grain
import numpy as np
import pytest

from score_jax.data import decoded, stream
from score_jax.data.base import Rows, Split, take
from score_jax.data.decoded import BadExampleError, decode
from score_jax.data.order import batch_indices

N = 50


@pytest.fixture
def split(tmp_path):
    """Fifty images in a memory map, image i of values i, and labels 3 i."""
    x = np.broadcast_to(np.arange(N, dtype=np.uint8)[:, None, None, None], (N, 2, 2, 3))
    np.save(tmp_path / "x.npy", x)
    return Split(np.load(tmp_path / "x.npy", mmap_mode="r"), 3 * np.arange(N))


# batches


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_resident_data_from_any_step_on(split, workers):
    """Steps 5 to 23 of 8 examples out of 50 cross epochs, and do not divide by 2 workers."""
    with stream.batches(split, 7, 8, 5, 24, workers=workers) as batches:
        found = list(batches)
    assert len(found) == 19
    for step, batch in enumerate(found, start=5):
        index = batch_indices(7, step, N, 8)
        assert type(batch.x) is np.ndarray and batch.x.dtype == np.uint8
        np.testing.assert_array_equal(batch.x[:, 0, 0, 0], index)
        np.testing.assert_array_equal(batch.label, 3 * index)


def test_a_process_reads_its_own_rows_of_each_batch_and_no_other(split):
    class Seen:
        """The array, which notes what is asked of it."""

        def __init__(self):
            self.asked, self.nbytes = [], split.x.nbytes

        def __len__(self):
            return N

        def __getitem__(self, index):
            self.asked += list(index)
            return split.x[index]

    x = Seen()
    with stream.batches(Split(x, split.label), 7, 8, 0, 3, rows=slice(4, 8), workers=0) as batches:
        found = list(batches)
    index = np.concatenate([batch_indices(7, step, N, 8)[4:] for step in range(3)])
    np.testing.assert_array_equal(np.concatenate([b.x[:, 0, 0, 0] for b in found]), index)
    np.testing.assert_array_equal(np.concatenate([b.label for b in found]), 3 * index)
    assert x.asked == index.tolist()


def test_a_part_of_a_split_without_labels_is_streamed_too(split):
    even = take(Split(split.x, None), np.arange(0, N, 2))
    with stream.batches(even, 0, 4, 0, 3, workers=0) as batches:
        for step, batch in enumerate(batches):
            assert batch.label is None
            np.testing.assert_array_equal(
                batch.x[:, 0, 0, 0], 2 * batch_indices(0, step, N // 2, 4)
            )


@pytest.mark.parametrize("kind, workers", [("array", 0), ("rows", 0), ("memory map", 2)])
def test_only_a_split_on_the_disk_is_given_to_workers(split, kind, workers, monkeypatch):
    """The others would be copied to each; a batch of 4 examples has 48 bytes."""
    in_order, asked = stream.in_order, []

    def spy(fn, start, stop, nbytes, *, workers):
        asked.append((nbytes, workers))
        return in_order(fn, start, stop, nbytes, workers=0)

    monkeypatch.setattr(stream, "in_order", spy)
    x = {"array": np.array(split.x), "rows": Rows(np.array(split.x), np.arange(N))}
    with stream.batches(Split(x.get(kind, split.x), None), 0, 4, 0, 1, workers=2) as batches:
        assert len(list(batches)) == 1
    assert asked == [(48, workers)]


# workers


def squares(i):
    if i == 5:
        raise ValueError("the value 5 is not allowed; take 6")
    return i**2


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_worker_comes_out_as_itself_after_what_came_before(workers):
    found = []
    with (
        pytest.raises(ValueError) as raised,
        stream.in_order(squares, 2, 9, 8, workers=workers) as it,
    ):
        for value in it:
            found.append(value)
    assert found == [4, 9, 16]
    assert str(raised.value) == "the value 5 is not allowed; take 6"


def pid_and_array(nbytes, i):
    return os.getpid(), np.zeros(nbytes, np.uint8)


def assert_gone(pids, seconds=10.0):
    """The processes end within some seconds; a zombie has ended."""
    end = time.monotonic() + seconds
    while alive := [pid for pid in pids if running(pid)]:
        assert time.monotonic() < end, f"{alive} still run"
        time.sleep(0.05)


def running(pid):
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def shared_memory(nbytes):
    """The segments of that size."""
    return [file.name for file in os.scandir("/dev/shm") if file.stat().st_size == nbytes]


@pytest.mark.parametrize("stop", [4, 10**9])
def test_leaving_the_context_ends_the_workers_and_frees_their_memory(stop, monkeypatch):
    """The results are larger than what a pipe holds: no worker may wait for one to be taken."""
    kind = grain.multiprocessing.SharedMemoryArray
    free = kind.close_shm_async
    monkeypatch.setattr(kind, "close_shm_async", lambda *args: time.sleep(0.1) or free(*args))
    nbytes = 10**6 + os.getpid()  # of no other process's results
    results = functools.partial(pid_and_array, nbytes)
    with stream.in_order(results, 0, stop, nbytes, workers=2) as it:
        pids = {next(it)[0] for _ in range(4)}
        assert len(pids) == 2 and os.getpid() not in pids
        assert shared_memory(nbytes)
        if stop == 4:
            assert list(it) == []
        else:
            assert all(map(running, pids))
            time.sleep(0.3)  # they have made all that they may
        start = time.monotonic()
    assert not shared_memory(nbytes)
    assert time.monotonic() - start < 10  # grain kills a worker after 25 s
    assert_gone(pids)


def test_the_signals_of_who_streams_are_as_they_were():
    mask = functools.partial(signal.pthread_sigmask, signal.SIG_BLOCK)
    before = mask(())
    with stream.in_order(squares, 0, 2, 8, workers=0) as results:
        assert list(results) == [0, 1] and mask(()) == before
    assert mask(()) == before


def test_too_little_shared_memory_is_said_and_done_without(capsys):
    free, small = shutil.disk_usage("/dev/shm").free, functools.partial(pid_and_array, 8)
    with stream.in_order(small, 0, 1, free, workers=2) as it:
        assert next(it)[0] == os.getpid()
    assert "2 workers need" in capsys.readouterr().err
    with stream.in_order(small, 0, 1, 8, workers=1) as it:
        assert next(it)[0] != os.getpid()
    assert capsys.readouterr().err == ""


SCRIPT = """
import os, signal, sys, threading, time
import jax
from absl import app, flags
from score_jax.data import stream

flags.DEFINE_integer("first", 0, "")
SIGNALS = signal.SIGINT, signal.SIGTERM  # as Ctrl-C in a terminal, and a scheduler's

def probe(i):
    from jax._src import xla_bridge
    used = xla_bridge.backends_are_initialized()
    import jax.numpy as jnp  # what a worker uses by mistake stays off the accelerators
    return i, os.getpid(), used, jnp.zeros(1).devices().pop().platform

def main(_):
    caught, started = set(), threading.Event()
    for signum in SIGNALS:
        signal.signal(signum, lambda signum, _: caught.add(signum))

    def signal_all():
        while not started.wait(0.01):
            for signum in SIGNALS:
                os.killpg(0, signum)

    threading.Thread(target=signal_all, daemon=True).start()
    first = flags.FLAGS.first
    with stream.in_order(probe, first, 10**9, 8, workers=2) as results:
        for _ in range(20):
            print(*next(results), flush=True)
        started.set()
        caught.clear()
        for signum in SIGNALS:
            os.kill(os.getpid(), signum)
        print(caught == set(SIGNALS), flush=True)
        time.sleep(60)

if __name__ == "__main__":
    app.run(main)
"""


def test_workers_of_a_script_with_flags_outlive_signals_at_any_time_but_not_the_script(tmp_path):
    """Signalled all the while from before the workers start."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    # a platform that is not there stands for the accelerator that the parent holds
    environment = os.environ | {"JAX_PLATFORMS": "cuda"}
    process = subprocess.Popen(
        [sys.executable, script, "--first=3"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment,
    )
    pids = set()
    try:
        rows = [process.stdout.readline().split() for _ in range(21)]
        pids = {int(row[1]) for row in rows[:20]}
        assert rows[0][2] == rows[1][2] == "False"  # it has used no device before this
        assert [[row[0], row[3]] for row in rows[:20]] == [[str(i), "cpu"] for i in range(3, 23)]
        assert rows[20] == ["True"]  # the script itself gets its signals
        assert len({*pids, process.pid}) == 3
    finally:
        process.kill()  # it cannot tidy up
        process.wait()
    assert_gone(pids)


TRAIN = """
from configs import common

def get_config():
    return common.config(
        data=dict(name="array", path=PATH),
        sde=dict(name="vp"),
        net=dict(name="mlp", width=8, depth=1),
        train=dict(steps=10**6, batch_size=8, eval_images=8, resident_gib=0.0, workers=2),
        sample=dict(name="ddim", n_steps=2),
        eval=dict(batch_size=8, trace="exact", solver="heun", n_steps=2, elbo_times=2),
    )
"""


def children(pid):
    """The workers of a process, that are not the one that tracks resources."""
    found = []
    for entry in os.scandir("/proc"):
        with contextlib.suppress(OSError, ValueError):
            parent = int(Path(entry, "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == pid and b"spawn_main" in Path(entry, "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def test_training_that_is_signalled_while_its_workers_start_is_saved(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((40, 2), np.float32))
    (tmp_path / "config.py").write_text(TRAIN.replace("PATH", repr(str(tmp_path / "x.npy"))))
    train = Path(__file__).parent.parent / "scripts" / "train.py"
    process = subprocess.Popen(
        [sys.executable, train, "--config=config.py", "--workdir=run"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=tmp_path,
    )
    while not (pids := children(process.pid)) and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 75, err
    assert "run: stopped and saved" in out and "Traceback" not in err
    assert (tmp_path / "run" / "checkpoints").is_dir()
    assert_gone(pids)


# decoded arrays


def image(i):
    """Example i of 20; some are bad in the tests that say so."""
    return np.full((2, 3), i, np.uint8)


def image_or_bad(i):
    if i in (0, 3, 4, 19):
        raise (ValueError if i % 2 else OSError)(f"image {i}\nis  broken")
    return image(i)


def never(i):
    raise AssertionError("decoded again")


@pytest.fixture
def small_blocks(monkeypatch):
    """Three examples a block, and workers although there are few examples."""
    monkeypatch.setattr(decoded, "_BLOCK_BYTES", 18)
    monkeypatch.setattr(decoded, "_PER_WORKER", 1)


def test_examples_are_decoded_once_in_order(tmp_path, small_blocks, capsys):
    path = tmp_path / "new" / "x.npy"
    for fetch in (image, never):
        result = decode(fetch, 20, (2, 3), path, what="images of cats")
        assert isinstance(result.x, np.memmap) and not result.x.flags.writeable
        np.testing.assert_array_equal(result.x, np.stack([image(i) for i in range(20)]))
        np.testing.assert_array_equal(result.index, np.arange(20))
        assert result.bad == {}
    assert os.listdir(tmp_path / "new") == ["x.npy"]
    assert capsys.readouterr().err == f"decoding 20 images of cats into {path}\n"


def test_bad_examples_are_left_out_and_remembered(tmp_path, small_blocks):
    path, good = tmp_path / "x.npy", [i for i in range(20) if i not in (0, 3, 4, 19)]
    for fetch in (image_or_bad, never):
        result = decode(fetch, 20, (2, 3), path, skip=True)
        np.testing.assert_array_equal(result.x[:, 0, 0], good)
        np.testing.assert_array_equal(result.index, good)
        assert result.bad == {i: f"image {i} is broken" for i in (0, 3, 4, 19)}
        assert result.bad_list.read_text().splitlines()[1] == "3\timage 3 is broken"
    with pytest.raises(BadExampleError, match="^image 0 is broken$"):
        decode(never, 20, (2, 3), path)


@pytest.mark.parametrize("found", [None, "", "0\tbroken\n", "0\t\n3\t\n4\t\n20\t\n", "x\n" * 4])
def test_an_array_without_its_list_of_bad_examples_is_made_again(tmp_path, small_blocks, found):
    """Else the rows would be taken for other examples."""
    path, good = tmp_path / "x.npy", [i for i in range(20) if i not in (0, 3, 4, 19)]
    bad_list = decode(image_or_bad, 20, (2, 3), path, skip=True).bad_list
    bad_list.unlink() if found is None else bad_list.write_text(found)
    for fetch in (image_or_bad, never):
        result = decode(fetch, 20, (2, 3), path, skip=True)
        np.testing.assert_array_equal(result.index, good)
        np.testing.assert_array_equal(result.x[:, 0, 0], good)


def test_a_list_beside_an_array_of_all_examples_is_not_its_own(tmp_path, small_blocks):
    result = decode(image, 20, (2, 3), tmp_path / "x.npy")
    result.bad_list.write_text("3\tbroken\n")
    result = decode(never, 20, (2, 3), tmp_path / "x.npy")
    np.testing.assert_array_equal(result.index, np.arange(20))
    assert result.bad == {}


@pytest.mark.parametrize("workers", [0, 2])
def test_the_first_bad_example_is_raised_and_nothing_is_written(tmp_path, small_blocks, workers):
    fetch = late_and_bad if workers else image_or_bad
    with pytest.raises(BadExampleError, match="^image 0 is broken$"):
        decode(fetch, 20, (2, 3), tmp_path / "x.npy", workers=workers)
    assert os.listdir(tmp_path) == []


def late_and_bad(i):
    """The first bad example is the last one found."""
    time.sleep(0.3 * (i == 0))
    return image_or_bad(i)


def test_a_run_that_is_interrupted_leaves_nothing(tmp_path, small_blocks):
    def interrupted(i):
        if i == 15:
            raise RuntimeError("stopped")
        return image(i)

    with pytest.raises(RuntimeError, match="stopped"):
        decode(interrupted, 20, (2, 3), tmp_path / "x.npy")
    assert os.listdir(tmp_path) == []


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from score_jax.data import decoded

decoded._BLOCK_BYTES = 18

def image(i):
    if i == 15:
        print(os.listdir(sys.argv[1]))
        os.kill(os.getpid(), signal.SIGTERM)
    return np.full((2, 3), i, np.uint8)

decoded.decode(image, 20, (2, 3), Path(sys.argv[1]) / "x.npy")
"""


def test_what_a_killed_run_leaves_is_deleted_by_the_next_one(tmp_path, small_blocks):
    for name in (".part-0-x.npy", ".part-0-x.bad.txt", ".part-0-y.npy"):
        (tmp_path / name).touch()
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path], capture_output=True, text=True
    )
    assert killed.returncode == -signal.SIGTERM, killed.stderr
    assert ".part-0-x.npy" not in killed.stdout
    assert len([name for name in os.listdir(tmp_path) if name.endswith("-x.npy")]) == 1
    decode(image_or_bad, 20, (2, 3), tmp_path / "x.npy", skip=True)
    assert sorted(os.listdir(tmp_path)) == [".part-0-y.npy", "x.bad.txt", "x.npy"]


def test_two_runs_at_once_do_not_disturb_each_other(tmp_path, small_blocks):
    together = threading.Barrier(2, timeout=20)

    def slow(i):
        if i in (0, 10, 19):
            together.wait()
        return image_or_bad(i) if i != 19 else image(i)

    results = [None, None]

    def run(k):
        results[k] = decode(slow, 20, (2, 3), tmp_path / "x.npy", skip=True)

    threads = [threading.Thread(target=run, args=(k,)) for k in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    for result in results:
        np.testing.assert_array_equal(result.x[:, 0, 0], [1, 2, *range(5, 20)])
        assert list(result.bad) == [0, 3, 4]
    assert sorted(os.listdir(tmp_path)) == ["x.bad.txt", "x.npy"]


def test_examples_of_another_shape_or_type_are_bad(tmp_path):
    odd = {1: np.zeros((3, 2), np.uint8), 2: np.zeros((2, 3), np.int32)}
    result = decode(lambda i: odd.get(i, image(i)), 4, (2, 3), tmp_path / "x.npy", skip=True)
    np.testing.assert_array_equal(result.x[:, 0, 0], [0, 3])
    assert result.bad == {
        1: "example 1 is uint8 of shape (3, 2), not uint8 of (2, 3)",
        2: "example 2 is int32 of shape (2, 3), not uint8 of (2, 3)",
    }


def test_a_set_of_bad_examples_only_is_refused_with_the_first_reason(tmp_path):
    def bad(i):
        raise OSError(f"image {i} is broken")

    with pytest.raises(
        ValueError, match="none of the 4 examples can be used; .* image 0 is broken"
    ):
        decode(bad, 4, (2, 3), tmp_path / "x.npy", skip=True)
    assert os.listdir(tmp_path) == []


def test_a_damaged_array_is_named(tmp_path):
    path = tmp_path / "x.npy"
    decode(image, 20, (2, 3), path)
    os.truncate(path, 140)
    with pytest.raises(ValueError, match="x.npy is damaged .*; delete it to decode again"):
        decode(image, 20, (2, 3), path)
