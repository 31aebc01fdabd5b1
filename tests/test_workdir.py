"""A run's folder: whose it is, and what is written beside the checkpoints."""

import importlib.metadata
import json
import sys

import pytest

from score_jax import workdir

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


def test_another_config_is_refused_by_the_option_that_differs(folder):
    before = {path.name: path.read_text() for path in folder.iterdir()}
    with pytest.raises(ValueError, match="config.optim.lr = 0.001, not 0.5; .*allow_config_change"):
        workdir.claim(folder, changed(lr=0.5), DATA)
    with pytest.raises(ValueError, match="config.optim.clip = 1.0, not 2.0 .2 options differ"):
        workdir.claim(folder, changed(lr=0.5, clip=2.0), DATA)
    with pytest.raises(ValueError, match="config.optim.b1 = None, not 0.9"):
        workdir.claim(folder, changed(b1=0.9), DATA)
    assert {path.name: path.read_text() for path in folder.iterdir()} == before


def test_the_run_goes_on_where_the_data_have_moved_and_with_other_workers(folder):
    moved = CONFIG | dict(data=dict(path="elsewhere", workers=0), train=dict(resident_gib=0.0))
    workdir.claim(folder, moved, DATA)
    with pytest.raises(ValueError, match="config.train.steps = None, not 7;"):
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
