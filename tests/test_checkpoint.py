"""Checkpoints: what is damaged is found and named, what is being written is not there, and saving blocks no one."""

import errno
import os
import random
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from score_jax import checkpoint, files, manifest
from score_jax.checkpoint import Checkpoints
from score_jax.files import WriteError


class State(NamedTuple):
    step: Any
    params: dict
    opt_state: Any


def state(step):
    """Of several dtypes and shapes, an empty tuple and named tuples in it, other numbers at each step."""
    weights = jax.random.normal(jax.random.key(step), (8, 3))
    params = {"kernel": weights, "half": weights[0].astype(jnp.bfloat16)}
    return State(jnp.asarray(step, jnp.int32), params, optax.adam(0.1).init(params))


def save(folder, *steps, keep=2):
    checkpoints = Checkpoints(folder, keep)
    with checkpoints:
        for step in steps:
            checkpoints.save(step, state(step), [{"loss": 0.1 * step}])
            checkpoints.wait()
    return checkpoints


@pytest.fixture
def folder(tmp_path):
    """With whole checkpoints of the steps 5 and 10."""
    save(tmp_path / "run" / "checkpoints", 5, 10)
    return tmp_path / "run" / "checkpoints"


def assert_restores(checkpoints, step):
    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(step, state(0)), state(step))


def array_file(folder, step):
    """The largest file of a step's arrays."""
    return max((folder / str(step)).rglob("d/*"), key=lambda path: path.stat().st_size)


def test_what_is_saved_comes_back_bitwise_with_its_structure_and_its_notes(tmp_path):
    rows = [{"loss": 0.1}, {"loss": 1 / 3}]
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, state(5), rows, owed=["picture"], rows=7)
    again = Checkpoints(tmp_path)
    restored = again.restore(again.latest(), state(0))
    assert jax.tree.structure(restored) == jax.tree.structure(state(5))
    assert restored.params["half"].dtype == jnp.bfloat16
    assert_restores(again, 5)
    assert again.notes(5)["unlogged"] == rows
    assert again.notes(5) == {"unlogged": rows, "owed": ["picture"], "rows": 7}
    assert again.notes(0) == {}


def test_notes_are_changed_in_a_checkpoint_that_stays_whole(folder):
    Checkpoints(folder).change_notes(10, owed=[])
    again = Checkpoints(folder)
    assert again.latest() == 10 and again.notes(10) == {"unlogged": [{"loss": 1.0}], "owed": []}


def truncate(path):
    os.truncate(path, path.stat().st_size - 1)


def flip(path, bit=0):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


DAMAGES = {
    "truncated": (truncate, "state/.*d/[0-9a-f]+ has [0-9]+ bytes instead of [0-9]+"),
    "emptied": (lambda path: path.write_bytes(b""), "state/.* has 0 bytes instead of [0-9]+"),
    "a bit flipped": (flip, "state/.*d/[0-9a-f]+ has other bytes than were written"),
    "missing": (Path.unlink, "state/.*d/[0-9a-f]+ is missing"),
    "additional": (lambda path: path.with_name("x").touch(), "state/.*d/x is not in manifest.json"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(folder, capsys, damage):
    do, message = DAMAGES[damage]
    do(array_file(folder, 10))
    checkpoints = Checkpoints(folder)
    assert checkpoints.latest() == 5
    err = capsys.readouterr().err
    assert err.startswith(f"checkpoint {folder}/10 is damaged: ") and err.count("\n") == 1
    assert err.endswith("; step 5 is used\n")
    with pytest.raises(ValueError, match=f"checkpoint {folder}/10 is damaged: {message}; choose"):
        checkpoints.restore(10, state(0))
    assert_restores(checkpoints, 5)


def test_a_bit_flipped_in_any_file_is_found(folder, capsys):
    rng = random.Random(0)
    for path in sorted(path for path in (folder / "10").rglob("*") if path.is_file()):
        whole = path.read_bytes()
        for _ in range(3):
            flip(path, rng.randrange(8 * len(whole)))
            # in the manifest, a space may have become another one
            assert Checkpoints(folder).latest() == 5 or path.name == manifest.NAME
            path.write_bytes(whole)
    assert Checkpoints(folder).latest() == 10


@pytest.mark.parametrize(
    ("old", "new"), [("float32", "float64"), ("[8, 3]", "[8, 4]"), ("{", "["), ('"files"', '"fil"')]
)
def test_a_manifest_that_was_changed_is_not_believed(folder, capsys, old, new):
    path = folder / "10" / manifest.NAME
    path.write_text(path.read_text().replace(old, new))
    assert Checkpoints(folder).latest() == 5
    assert "manifest.json is not as it was written; step 5" in capsys.readouterr().err


def test_a_folder_without_a_manifest_is_not_whole(folder, capsys):
    (folder / "10" / manifest.NAME).unlink()
    assert Checkpoints(folder).latest() == 5
    assert "10 is damaged: manifest.json is missing; step 5 is used" in capsys.readouterr().err


def test_if_none_is_good_all_are_named_in_one_line(folder):
    flip(array_file(folder, 10))
    truncate(array_file(folder, 5))
    with pytest.raises(ValueError) as error:
        Checkpoints(folder).latest()
    text = str(error.value)
    assert text.startswith(f"no good checkpoint in {folder}: in that of step 10 state/")
    assert "other bytes than were written, in that of step 5 state/" in text
    assert text.endswith("; bring one back from a copy, or give another --workdir")
    assert "\n" not in text


def test_without_any_there_is_none(tmp_path):
    assert Checkpoints(tmp_path / "none").latest() is None
    assert not (tmp_path / "none").exists()  # who only reads makes nothing


def test_a_step_that_is_damaged_is_replaced_and_a_later_one_goes(folder):
    """The run went on from step 5 and saves 7, then 10 again."""
    flip(array_file(folder, 10))
    checkpoints = save(folder, 7)
    assert checkpoints.steps() == [5, 7]
    save(folder, 10)
    assert Checkpoints(folder).latest() == 10
    assert_restores(Checkpoints(folder), 10)


@pytest.mark.parametrize("keep", [1, 2])
def test_an_old_checkpoint_is_deleted_when_a_newer_one_is_on_the_disk(tmp_path, monkeypatch, keep):
    seen = []
    original = manifest.write

    def write(folder, facts):
        seen.append(Checkpoints(tmp_path).latest())  # while a newer one is written
        original(folder, facts)

    monkeypatch.setattr(manifest, "write", write)
    checkpoints = save(tmp_path, 1, 2, 3, 4, keep=keep)
    assert seen == [None, 1, 2, 3]
    assert checkpoints.steps() == [1, 2, 3, 4][-keep:]
    assert not list(tmp_path.glob(".*"))


def test_saving_returns_while_the_disk_is_slow_and_leaves_out_what_it_cannot_take(
    tmp_path, monkeypatch, capsys
):
    """The disk takes its time: as long as the test wants."""
    go, begun, original = threading.Event(), threading.Event(), files.sync

    def sync(path):
        begun.set()
        assert go.wait(60)
        original(path)

    monkeypatch.setattr(files, "sync", sync)
    rows = [{"loss": 0.5}]
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state(1), [])
        assert begun.wait(60)
        for step in (2, 3, 4):
            checkpoints.save(step, state(step), rows)
        rows.append({"loss": 0.25})  # of the steps that are taken meanwhile
        assert checkpoints.steps() == []
        err = capsys.readouterr().err
        assert (
            err.startswith("no checkpoint of step 2, nor of others to come: the disk of")
            and err.count("\n") == 1
        )
        go.set()
    assert checkpoints.steps() == [1, 4]
    assert checkpoints.notes(4)["unlogged"] == [{"loss": 0.5}]
    assert_restores(Checkpoints(tmp_path), 4)


def test_what_was_saved_is_the_state_of_the_call_also_if_its_memory_is_used_again(tmp_path):
    """As the next step does, which takes the state as a donation."""
    donating = jax.jit(lambda s: jax.tree.map(lambda a: a + 1, s), donate_argnums=0)
    current = state(1)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, current, [])
        for _ in range(3):
            current = donating(current)
    assert_restores(Checkpoints(tmp_path), 1)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_save_that_fails_leaves_the_last_good_checkpoint_and_says_which(
    folder, monkeypatch, code
):
    checkpoints = Checkpoints(folder)
    assert checkpoints.latest() == 10
    with monkeypatch.context() as patch:
        patch.setattr(manifest.files, "sync", refuse(code))
        checkpoints.save(15, state(15), [])
        with pytest.raises(WriteError, match=f"cannot save step 15: {os.strerror(code)}"):
            checkpoints.wait()
    assert checkpoints.kept() == f"the last good checkpoint is of step 10 in {folder}"
    assert sorted(path.name for path in folder.iterdir()) == ["10", "5"]
    checkpoints.wait()  # a failure is said once
    assert_restores(Checkpoints(folder), Checkpoints(folder).latest())


def refuse(code):
    def fn(*args):
        raise OSError(code, os.strerror(code))

    return fn


def test_the_next_save_tells_of_one_that_failed(folder, monkeypatch):
    checkpoints = Checkpoints(folder)
    monkeypatch.setattr(manifest.files, "sync", refuse(errno.ENOSPC))
    checkpoints.save(15, state(15), [])
    with checkpoints._turn:
        checkpoints._turn.wait_for(lambda: checkpoints._thread is None, 60)
    with pytest.raises(WriteError, match="cannot save step 15: No space left on device"):
        checkpoints.save(20, state(20), [])


def test_what_ended_a_run_is_not_hidden_by_a_save_that_fails_too(folder, monkeypatch):
    monkeypatch.setattr(manifest.files, "sync", refuse(errno.ENOSPC))
    with pytest.raises(FloatingPointError), Checkpoints(folder) as checkpoints:
        checkpoints.save(15, state(15), [])
        raise FloatingPointError


def test_the_words_of_the_operating_system_are_found_in_those_of_orbax():
    error = ValueError(
        "INTERNAL: Error writing\n 'a' [OS error 28: ENOSPC No space left on device]"
    )
    assert checkpoint._reason(error) == "No space left on device"
    assert checkpoint._reason(ValueError("two\nlines")) == "ValueError: two lines"


def test_what_goes_with_a_checkpoint_is_on_the_disk_before_it_counts(tmp_path):
    seen = []
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state(1), [], first=lambda: seen.append(checkpoints.steps()))
    assert seen == [[]] and checkpoints.steps() == [1]


def test_what_a_killed_process_left_behind_is_no_checkpoint_and_goes_with_the_next_save(folder):
    for name in (".part", ".old-3", "12.orbax-checkpoint-tmp"):
        (folder / name).mkdir()
        (folder / name / "half").touch()
    assert Checkpoints(folder).latest() == 10
    save(folder, 15)
    assert sorted(path.name for path in folder.glob(".*")) == []


def test_a_checkpoint_that_is_deleted_while_it_is_read_gives_way_to_the_newer_one(
    folder, monkeypatch
):
    original = manifest.check

    def check(path):
        if path.name == "10":  # the run that saves here is faster
            monkeypatch.setattr(manifest, "check", original)
            save(folder, 15, 20)
        return original(path)

    monkeypatch.setattr(manifest, "check", check)
    assert Checkpoints(folder).latest() == 20


def test_a_checkpoint_of_something_else_is_refused_by_name(folder):
    other = state(0)._replace(params=state(0).params | {"kernel": jnp.zeros((8, 4))})
    message = "does not fit this config: params/kernel is float32.8, 3. there, float32.8, 4. here"
    with pytest.raises(ValueError, match=message):
        Checkpoints(folder).restore(10, other)
    fewer = state(0)._replace(params={"kernel": state(0).params["kernel"]})
    with pytest.raises(ValueError, match="params/half is bfloat16.3. there, absent here"):
        Checkpoints(folder).restore(10, fewer)
    adam, empty = state(0).opt_state
    nested = state(0)._replace(opt_state=(adam, {"inner": empty}))
    with pytest.raises(ValueError, match="10 has not this version's structure; use the version in"):
        Checkpoints(folder).restore(10, nested)


_unpickled, _listening = [], threading.Event()
sys.addaudithook(
    lambda event, args: (
        _unpickled.append(args) if event == "pickle.find_class" and _listening.is_set() else None
    )
)


def test_restoring_unpickles_nothing(folder):
    """The interpreter says when an unpickler asks for a class or a function, in whatever library."""
    _listening.set()
    try:
        checkpoints = Checkpoints(folder)
        assert_restores(checkpoints, checkpoints.latest())
    finally:
        _listening.clear()
    assert _unpickled == []


def test_a_kill_while_notes_are_changed_leaves_the_checkpoint_whole(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(10, {"a": np.arange(3.0)}, [], owed=["picture"])
    checkpoints.wait()
    # what is left of a file that was being written
    (tmp_path / "10" / ".part-123-manifest.json").write_text('{"files": {')
    again = Checkpoints(tmp_path)
    assert again.latest() == 10
    again.change_notes(10, owed=[])
    assert Checkpoints(tmp_path).notes(10)["owed"] == []


def test_a_checkpoint_that_cannot_be_read_now_is_not_taken_for_a_damaged_one(tmp_path, monkeypatch):
    """Else the run would go on from the one before, and delete it."""
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, {"a": np.arange(3.0)}, [])
        checkpoints.wait()

    def broken(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(manifest, "_digest", broken)
        with pytest.raises(OSError, match="cannot be read: Input/output error; try again, or move"):
            Checkpoints(tmp_path).latest()
    assert Checkpoints(tmp_path).latest() == 2
