"""Runs of several processes on this machine, over loopback."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import several_processes
from conftest import QUICK_TO_COMPILE

from score_jax import distributed

CHECKOUT = Path(__file__).parent.parent
TOY = dict(
    seed=3,
    data=dict(name="toy2d", shape="gaussians", n=1000),
    sde=dict(name="vp"),
    net=dict(name="mlp", width=16, depth=2, dropout=0.3),
    loss=dict(name="denoising"),
    optim=dict(name="adam", lr=1e-3),
    train=dict(
        steps=400,
        batch_size=16,
        log_every=1,
        eval_every=0,
        sample_every=0,
        save_every=0,
        ema=(0.9,),
    ),
    sample=dict(name="ddim", n_steps=2),
    eval=dict(batch_size=64, elbo_times=2),
)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("elsewhere")
    text = f"from configs import common\n\ndef get_config():\n    return common.config(**{TOY!r})\n"
    (folder / "toy.py").write_text(text)
    return folder


def launch(home, devices, commands):
    """Processes of the checkout's Python files, each with so many virtual devices."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    env = kept | {
        "XLA_FLAGS": f"{QUICK_TO_COMPILE} --xla_force_host_platform_device_count={devices}",
        "JAX_COMPILATION_CACHE_DIR": str(home / "cache"),
        "JAX_PLATFORMS": "cpu",
    }
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return [
        subprocess.Popen([sys.executable, CHECKOUT / file, *rest], cwd=home, env=env, **pipes)
        for file, *rest in commands
    ]


def coordinator():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def start(home, workdir, n_processes, devices, last=()):
    """The processes of a run of scripts/train.py; the last one has these options too."""
    command = ["scripts/train.py", "--config=toy.py", f"--workdir={workdir}"]
    if n_processes == 1:
        return launch(home, devices, [command])
    command += [f"--coordinator={coordinator()}", f"--processes={n_processes}"]
    commands = [[*command, f"--process={i}"] for i in range(n_processes)]
    commands[-1] += last
    return launch(home, devices, commands)


def ended(processes, code=0):
    """What each printed and complained, after all ended with that code."""
    said = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [code] * len(processes), said
    return said


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").open()]


def assert_same_losses(found, exact, n):
    assert len(found) == len(exact) == n
    for a, b in zip(found, exact, strict=True):
        assert a.keys() == b.keys() and a["step"] == b["step"]
        np.testing.assert_allclose([a[k] for k in a], [b[k] for k in a], rtol=1e-6)


def test_two_processes_train_the_unet_of_one(home, tmp_path):
    """Two devices in each, and four in this process: losses, gradients and what is random in every example."""
    shared = ["tests/several_processes.py", "unet", coordinator(), "2"]
    ended(launch(home, 2, [[*shared, "0"], [*shared, "1"]]))
    assert_same_losses(rows(home / "unet"), several_processes.losses(tmp_path / "unet"), 13)


def test_a_signal_to_any_process_stops_all_at_one_step_and_they_go_on_as_if_there_was_none(home):
    """Eight devices, four in each process, and then eight in one: a run may go on on another number of processes."""
    processes = start(home, "toy_2", 2, 4)
    for line in processes[0].stdout:
        if line.startswith("step 5/"):
            processes[1].send_signal(signal.SIGTERM)
            break
    said = ended(processes, code=75)
    assert "toy_2: stopped and saved" in said[0][0]
    (saved,) = [int(path.name) for path in (home / "toy_2" / "checkpoints").iterdir()]
    assert 5 <= saved < 400
    assert rows(home / "toy_2")[-1]["step"] == saved

    ended(start(home, "toy_2", 1, 8))
    found = rows(home / "toy_2")
    assert {"val_loss", "val_elbo"} < found[-1].keys()
    ended(start(home, "toy_1", 1, 1))
    assert_same_losses(found, rows(home / "toy_1"), 401)


def test_processes_with_different_options_refuse_to_train_together(home):
    others = start(home, "differ", 2, 1, ["--config.optim.lr=1e-2"])
    for _, err in ended(others, code=2):
        (line,) = [line for line in err.splitlines() if line.startswith("train.py: ")]
        assert "the config of process 1 is not that of process 0" in line
    assert not (home / "differ").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(coordinator="a:1"), "--processes is missing; a run of several processes wants"),
        (dict(n_processes=2, process=0), "--coordinator is missing"),
        (dict(coordinator="a", n_processes=2, process=0), "'a'; it must be HOST:PORT"),
        (dict(coordinator="a:1", n_processes=2, process=2), "at least 0 and less than --proc.*2$"),
    ],
)
def test_flags_that_do_not_make_a_group_of_processes_are_refused_in_one_line(options, message):
    with pytest.raises(ValueError, match=message) as raised:
        distributed.initialize(**options)
    assert "\n" not in str(raised.value)


def test_a_process_alone_is_the_first_and_agrees_with_itself():
    distributed.initialize()
    assert distributed.is_first()
    assert distributed.first(lambda: 5) == 5
    with pytest.raises(OSError, match="as it is"):
        distributed.first(lambda: (_ for _ in ()).throw(OSError("as it is")))
    distributed.check_same(config={"a": 1}, step=3)
