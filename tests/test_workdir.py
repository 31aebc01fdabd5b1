"""A run's folder: whose it is, and what is written beside the checkpoints."""

import errno
import importlib.metadata
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from score_jax import files, workdir

CONFIG = dict(seed=3, optim=dict(lr=1e-3, clip=1.0), eval=dict(n_steps=None), net=dict(ema=(0.9,)))

DATA = "a fingerprint"


def changed(**optim):
    return CONFIG | {"optim": CONFIG["optim"] | optim}


@pytest.fixture
def folder(tmp_path):
    """A folder that CONFIG has claimed."""
    workdir.claim(tmp_path / "runs" / "one", CONFIG, DATA)
    workdir.record(tmp_path / "runs" / "one", CONFIG, DATA)
    return tmp_path / "runs" / "one"


def test_a_saved_config_comes_back_equal_with_its_tuples_and_none(folder):
    back = workdir.load_config(folder)
    assert back == CONFIG
    assert type(back["net"]["ema"]) is tuple and back["eval"]["n_steps"] is None
    assert type(back["seed"]) is int


def test_the_same_config_claims_its_folder_again(folder):
    workdir.claim(folder, CONFIG, DATA)


def test_another_config_is_refused_with_every_option_that_differs(folder):
    before = {path.name: path.read_text() for path in folder.iterdir()}
    with pytest.raises(ValueError, match="config.optim.lr = 0.001, not 0.5; .*allow_config_change"):
        workdir.claim(folder, changed(lr=0.5), DATA)
    with pytest.raises(ValueError) as error:
        workdir.claim(folder, changed(lr=0.5, clip=2.0, b1=None) | dict(net={}, seed=4), DATA)
    assert str(error.value) == (
        f"{folder} holds a run with config.net.ema = [0.9], not absent; config.optim.b1 = absent, not "
        "None; config.optim.clip = 1.0, not 2.0; config.optim.lr = 0.001, not 0.5; config.seed = 3, "
        "not 4; give another --workdir, or --allow_config_change to go on with the new config"
    )
    assert {path.name: path.read_text() for path in folder.iterdir()} == before


def test_the_run_goes_on_where_the_data_have_moved_and_with_other_workers(folder):
    moved = CONFIG | dict(data=dict(path="elsewhere", workers=0), train=dict(resident_gib=0.0))
    workdir.claim(folder, moved, DATA)
    with pytest.raises(ValueError, match="config.train.steps = absent, not 7;"):
        workdir.claim(folder, moved | dict(train=dict(steps=7)), DATA)


def test_other_data_are_refused_unless_allowed(folder):
    with pytest.raises(ValueError, match="holds a run on other data: .*allow_config_change"):
        workdir.claim(folder, CONFIG, "another fingerprint")
    workdir.claim(folder, CONFIG, "another fingerprint", allow_change=True)


def test_a_change_that_is_allowed_is_written_once_the_checkpoint_is_known_to_fit(folder):
    workdir.claim(folder, changed(lr=0.5), DATA, allow_change=True)
    assert workdir.load_config(folder) == CONFIG
    workdir.record(folder, changed(lr=0.5), DATA)
    assert workdir.load_config(folder)["optim"]["lr"] == 0.5


def test_the_command_and_the_versions_lie_beside_the_config(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["scripts/train.py", "--workdir=my run", "--config=a.py"])
    workdir.record(tmp_path, CONFIG, DATA)
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["command"] == "scripts/train.py '--workdir=my run' --config=a.py"
    assert run["python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(run["packages"]) >= {"score_jax", "jax", "jaxlib", "flax", "optax", "diffrax"}
    for name, version in run["packages"].items():
        assert version == importlib.metadata.version(name)


def test_a_write_that_fails_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "config.json"
    workdir.write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        workdir.write_text(path, "new" * 100_000 + "\ud800")  # which UTF-8 cannot hold
    assert path.read_text() == "old"
    workdir.write_text(path, "new")
    assert path.read_text() == "new"


def test_a_write_that_the_disk_refuses_names_the_file_and_leaves_no_part_of_it(
    tmp_path, monkeypatch
):
    path = tmp_path / "config.json"
    workdir.write_text(path, "old")
    monkeypatch.setattr(files.os, "fsync", refuse(errno.ENOSPC))
    with pytest.raises(files.WriteError) as error:
        workdir.write_text(path, "new")
    assert str(error.value) == f"cannot write {path}: No space left on device"
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["config.json"]


def refuse(code):
    def fn(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    return fn


def test_a_folder_that_cannot_be_flushed_is_no_error_and_a_file_is(tmp_path, monkeypatch):
    """As on some network file systems."""
    (tmp_path / "file").touch()
    monkeypatch.setattr(files.os, "fsync", refuse(errno.EINVAL))
    files.sync(tmp_path)
    with pytest.raises(OSError, match="Invalid argument"):
        files.sync(tmp_path / "file")
    monkeypatch.setattr(files.os, "fsync", refuse(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        files.sync(tmp_path)


def test_a_disk_without_room_is_named_by_what_is_appended_to_it():
    """The device /dev/full is one."""
    with pytest.raises(files.WriteError, match="cannot write /dev/full: No space left on device"):
        files.append(Path("/dev/full"), b"row")


def test_a_read_only_folder_is_refused_in_one_line(tmp_path, monkeypatch):
    """The superuser may write anywhere but on a file system that is mounted so: what it answers is made up."""
    monkeypatch.setattr(workdir.tempfile, "TemporaryFile", refuse(errno.EROFS))
    with pytest.raises(ValueError) as error:
        workdir.claim(tmp_path, CONFIG, DATA)
    assert str(error.value) == (
        f"cannot write in {tmp_path}: Read-only file system; give another --workdir"
    )


HOLD = """
import pathlib, sys, time
from score_jax import workdir
lock = workdir.lock(pathlib.Path(sys.argv[1]))
print("held", flush=True)
time.sleep(100)
"""


def test_a_folder_is_held_by_one_process_until_it_ends_however_it_does(folder):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, folder], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(ValueError) as error:
        workdir.lock(folder)
    assert str(error.value) == (
        f"{folder} is in use: process {holder.pid} on {socket.gethostname()} trains in it; wait for "
        "it, or give another --workdir"
    )
    holder.kill()
    holder.communicate()
    with workdir.lock(folder), pytest.raises(ValueError, match=f"process {os.getpid()} on"):
        workdir.lock(folder)
    workdir.lock(folder).close()


def test_a_file_system_without_locks_is_said_and_no_obstacle(folder, monkeypatch, capsys):
    monkeypatch.setattr(workdir.fcntl, "flock", refuse(errno.ENOLCK))
    workdir.lock(folder).close()
    err = capsys.readouterr().err
    assert (
        err == f"{folder} cannot be locked: No locks available; let no other process train in it\n"
    )


def test_a_folder_without_a_run_is_answered_with_how_to_make_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no run in {tmp_path}: .*train.py --workdir"):
        workdir.load_config(tmp_path)


@pytest.mark.parametrize("content", [b'{"seed": ', b"\xff", b"[1]"])
def test_a_damaged_config_is_named(folder, content):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match="config.json is damaged: .*; restore it or"):
        workdir.load_config(folder)
    with pytest.raises(ValueError, match="config.json is damaged: .*; restore it or"):
        workdir.claim(folder, CONFIG, DATA)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot write in .*file: File exists; give another"):
        workdir.claim(tmp_path / "file", CONFIG, DATA)
