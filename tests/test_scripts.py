"""The scripts end to end, each in a process of its own, on a network of 8 channels that trains for 6 steps."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import test_cli
from conftest import QUICK_TO_COMPILE
from PIL import Image
from test_bits import RESULT

from score_jax import cli, picture, workdir
from score_jax import run as run_module

CHECKOUT = Path(__file__).parent.parent
TINY = """
from configs import common

def get_config():
    return common.config(
        data=dict(name="digits"),
        sde=dict(name="vp"),
        net=dict(name="unet", channels=8, multipliers=(1,), blocks=1, attention=(), dropout=0.0),
        model=dict(class_conditional=True),
        train=dict(
            steps=6, batch_size=8, ema=(0.9,), eval_images=8,
            log_every=2, eval_every=0, sample_every=0, save_every=2,
        ),
        sample=dict(name="ddim", n_steps=2),
        eval=dict(batch_size=64, solver="heun", n_steps=2, elbo_times=2),
    )
"""


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """The folder that the scripts are called from, outside the checkout."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "tiny.py").write_text(TINY)
    return folder


def start(home, script, *args, devices=1, **env):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    quick = {
        "XLA_FLAGS": f"{QUICK_TO_COMPILE} --xla_force_host_platform_device_count={devices}",
        "JAX_COMPILATION_CACHE_DIR": str(home / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen(
        [sys.executable, str(CHECKOUT / "scripts" / f"{script}.py"), *args],
        cwd=home,
        env=kept | quick | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def call(home, script, *args, code=0, **options):
    """What a script printed, after it ended with that code; on success it must not complain."""
    process = start(home, script, *args, **options)
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    assert "Traceback" not in err
    return out if code == 0 else err


@pytest.fixture(scope="session")
def run(home):
    """A trained run in home / "runs/tiny", where train.py puts it on its own."""
    out = call(home, "train", "--config=tiny.py", "--config.optim.warmup=2")
    assert out.endswith("runs/tiny: finished at step 6\n")
    return home / "runs" / "tiny"


def test_training_leaves_config_provenance_metrics_and_the_newest_checkpoints(run):
    config = workdir.load_config(run)
    assert (config["optim"]["warmup"], config["optim"]["lr"], config["net"]["multipliers"]) == (
        2,
        2e-4,
        (1,),
    )
    provenance = json.loads((run / "run.json").read_text())
    assert provenance["command"].endswith("train.py --config=tiny.py --config.optim.warmup=2")
    assert "jax" in provenance["packages"]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6, 6]
    assert "loss" in rows[0] and "val_loss" in rows[-1]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["4", "6"]
    assert (run / "samples" / "step_0000006.png").exists()
    assert not list(run.rglob("*.part"))


def test_the_same_command_again_does_not_train_again(home, run):
    before = (run / "metrics.jsonl").read_text()
    out = call(home, "train", "--config=tiny.py", "--config.optim.warmup=2")
    assert out == "runs/tiny: finished at step 6\n"
    assert (run / "metrics.jsonl").read_text() == before


def test_a_change_that_does_not_fit_the_checkpoint_leaves_the_config_alone(home, run):
    before = (run / "config.json").read_text()
    args = ["--config=tiny.py", "--config.optim.warmup=2", "--config.net.channels=4"]
    err = call(home, "train", *args, "--allow_config_change", code=2)
    assert err.count("\n") == 1 and "does not fit this config" in err
    assert (run / "config.json").read_text() == before


def test_eval_writes_the_bits_per_dim_of_every_test_image_and_how_they_were_computed(home, run):
    out = call(home, "eval", "--workdir=runs/tiny", "--config.eval.n_steps=3")
    result = json.loads((run / "eval" / "bpd.json").read_text())
    bpd, elbo, errors = result["bpd"], result["elbo"], result["errors"]
    assert (bpd["n"], elbo["n"], result["step"], result["split"]) == (360, 360, 6, "test")
    assert result["nfe"] == 6  # Heun evaluates twice a step
    assert (result["dequantization"], result["t_min"]) == ("uniform", 1e-5)
    assert (result["weights"], result["unit"], result["failed"]) == ("ema 0.9", "bits/dim", 0)
    assert result["conditional"]
    assert result["settings"] == workdir.load_config(run)["eval"] | {"n_steps": 3}
    assert 0 < bpd["stderr"] < bpd["mean"] and 0 < elbo["stderr"] < elbo["mean"]
    first, second, third, path = out.splitlines()
    assert first == (
        f"test {bpd['mean']:.4f} +- {bpd['stderr']:.4f} bits/dim "
        f"(360 examples; probe {errors['probe']:.4f}, dequantization "
        f"{errors['dequantization']:.4f}, solver {errors['solver']['mean']:+.4f}; 6 evaluations; "
        "uniform dequantization; given the class; step 6, ema 0.9)"
    )
    assert second.startswith(f"by the ELBO at most {elbo['mean']:.4f} +- {elbo['stderr']:.4f}")
    assert third.startswith("log p at t_min = 1e-05, not corrected to t = 0; the prior at t_max")
    assert path == "runs/tiny/eval/bpd.json"
    rows = columns(run / "eval" / "bpd.csv")
    np.testing.assert_array_equal(rows["index"], np.arange(360))
    np.testing.assert_allclose(np.mean(rows["bpd"]), bpd["mean"], rtol=1e-9)
    np.testing.assert_allclose(np.mean(rows["elbo"]), elbo["mean"], rtol=1e-9)


def columns(path):
    return np.genfromtxt(path, delimiter=",", names=True)


def test_an_evaluation_that_is_killed_goes_on_and_leaves_the_same_bytes(home, run):
    """By SIGKILL, after some of 15 batches, and then not at all."""
    args = ["--workdir=runs/tiny", "--config.eval.batch_size=8", "--n=120"]
    file = run / "eval" / "bpd_first_120.csv"
    call(home, "eval", *args)
    whole, result = file.read_bytes(), (run / "eval" / "bpd_first_120.json").read_bytes()
    for path in (run / "eval").glob("bpd*"):
        path.unlink()
    process = start(home, "eval", *args)
    while process.poll() is None and (not file.exists() or file.stat().st_size < 500):
        time.sleep(0.001)
    process.kill()
    process.communicate()
    killed = file.read_bytes()
    assert 500 <= len(killed) < len(whole) and not (run / "eval" / "bpd_first_120.json").exists()
    assert "begins" not in call(home, "eval", *args)
    assert file.read_bytes() == whole
    assert (run / "eval" / "bpd_first_120.json").read_bytes() == result


def test_a_sweep_goes_over_the_checkpoints_and_the_averages(home, run):
    args = ["--workdir=runs/tiny", "--n=20", "--config.eval.check_images=0"]
    out = call(home, "eval", *args, "--steps=all", "--ema=all")
    assert out.endswith("\nruns/tiny/eval/bpd_by_step_first_20.csv\n")
    lines = (run / "eval" / "bpd_by_step_first_20.csv").read_text().splitlines()
    found = [line.split(",") for line in lines[1:]]
    names = [(row[0], row[1]) for row in found]
    assert names == [("4", "ema 0.9"), ("4", "raw"), ("6", "ema 0.9"), ("6", "raw")]
    assert len({row[2] for row in found}) == 4  # each has parameters of its own
    assert (run / "eval" / "bpd_by_step_first_20.png").exists()
    # the newest checkpoint's average is what is evaluated by default, here on the first 20
    call(home, "eval", *args)
    alone = json.loads((run / "eval" / "bpd_first_20.json").read_text())
    assert found[2][2] == str(alone["bpd"]["mean"])
    assert f"step 6, raw)\nby the ELBO at most {float(found[3][5]):.4f}" in out


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--steps=4,5", "the run has no checkpoint '5'; choose from 4, 6, or all"),
        (
            "--ema=1",
            "the run has no such average; choose from 0 (ema 0.9), raw, all, or one made of snapshots, as "
            "power:0.1",
        ),
    ],
)
def test_a_checkpoint_or_an_average_that_is_not_there_is_one_line(home, run, flag, message):
    err = call(home, "eval", "--workdir=runs/tiny", flag, code=2)
    assert err == f"eval.py: {flag}: {message}\n"


def test_a_failed_solve_is_said_and_makes_the_exit_code_1(run, monkeypatch, capsys):
    """The numbers are made up; what fails them is tested with `run.bits_per_dim`."""
    result = RESULT | {"failed": 2, "bpd": RESULT["bpd"] | {"n": 358}}
    monkeypatch.setattr(run_module, "bits_per_dim", lambda *args: result)
    monkeypatch.setattr(cli, "use_compilation_cache", lambda: None)
    assert test_cli.call("eval", f"--workdir={run}", "--split=validation") == 1
    assert "the solver failed on 2 of them, which are left out" in capsys.readouterr().out
    assert json.loads((run / "eval" / "bpd_validation.json").read_text())["failed"] == 2


def sample(home, out, n, *args):
    printed = call(home, "sample", "--workdir=runs/tiny", f"--n={n}", f"--out={out}", *args)
    assert printed == f"{n} samples at step 6, 2 evaluations each: {out}\n"
    return home / out


def test_samples_are_the_same_in_a_file_in_a_picture_and_in_a_smaller_number(home, run):
    with np.load(sample(home, "new/eight.npz", 8)) as file:
        x, label = file["x"], file["label"]
    assert x.shape == (8, 8, 8, 1) and x.dtype == np.uint8 and 0 < x.max() <= 16
    np.testing.assert_array_equal(label, np.arange(8))
    assert len({image.tobytes() for image in x}) == 8

    with np.load(sample(home, "four.npz", 4)) as file:
        np.testing.assert_array_equal(file["x"], x[:4])

    # 3 x 3 tiles of 8 + 1 pixels, each pixel enlarged to 512 // 26 = 19
    pixels = np.asarray(Image.open(sample(home, "eight.png", 8)))
    assert pixels.shape == (26 * 19, 26 * 19)
    pixels = pixels[9::19, 9::19]
    for i, image in enumerate(x[..., 0]):
        row, column = 9 * (i // 3), 9 * (i % 3)
        tile = pixels[row : row + 8, column : column + 8]
        np.testing.assert_array_equal(np.round(tile / 255 * 16), image)


def test_a_sampler_and_its_steps_may_be_given_in_short(home, run):
    args = ["--workdir=runs/tiny", "--n=4"]
    short = call(home, "sample", *args, "--out=short.npz", "--sampler=dpmpp_2m", "--steps=3")
    assert short == "4 samples at step 6, 3 evaluations each: short.npz\n"
    long = ["--config.sample.name=dpmpp_2m", "--config.sample.n_steps=3"]
    call(home, "sample", *args, "--out=long.npz", *long, "--steps=3")
    with np.load(home / "short.npz") as one, np.load(home / "long.npz") as other:
        np.testing.assert_array_equal(one["x"], other["x"])


def test_a_temperature_of_0_starts_all_samples_of_a_class_alike(home, run):
    args = ["--workdir=runs/tiny", "--n=3", "--label=1", "--out=cold.npz", "--temperature=0"]
    call(home, "sample", *args)
    with np.load(home / "cold.npz") as file:
        assert len({image.tobytes() for image in file["x"]}) == 1


def test_a_searched_grid_is_kept_with_the_run_and_used_again(home, run):
    args = ["--workdir=runs/tiny", "--n=4", "--out=grid.npz", "--search_grid"]
    first = call(home, "sample", *args)
    file = run / "eval" / "grid_ddim_2.json"
    saved, written = json.loads(file.read_text()), file.stat().st_mtime_ns
    assert saved["error"] <= min(saved["errors"].values())
    assert len(saved["log_snrs"]) == 3 and saved["settings"]["step"] == 6
    assert first.startswith(f"runs/tiny/eval/grid_ddim_2.json: error {saved['error']:.2g} instead")
    assert call(home, "sample", *args) == first
    assert file.stat().st_mtime_ns == written


def test_a_run_is_sampled_on_more_devices_than_its_batch_divides_into(home, run):
    args = ["--workdir=runs/tiny", "--n=4", "--label=3", "--out=three.npz"]
    call(home, "sample", *args, devices=3)
    with np.load(home / "three.npz") as file:
        x, label = file["x"].astype(int), file["label"]
    np.testing.assert_array_equal(label, [3, 3, 3, 3])
    with np.load(sample(home, "one.npz", 4, "--label=3")) as file:
        assert np.abs(x - file["x"]).max() <= 1  # by rounding, a pixel may fall into the next level


@pytest.fixture(scope="session")
def stopped(home):
    """Points: a run without end, stopped by SIGTERM and then again; its folder."""
    args = ["--config=configs/vp_toy2d.py", "--workdir=runs/stopped", "--config.net.width=8"]
    args += ["--config.net.depth=1", "--config.train.batch_size=16", "--config.train.log_every=20"]
    args += ["--config.data.n=200", "--config.train.steps=10000000"]
    args += ["--config.eval.solver=heun", "--config.eval.n_steps=4", "--config.sample.n_steps=2"]

    def train_until_it_logs():
        process = start(home, "train", *args)
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("step"):
                break
        process.send_signal(signal.SIGTERM)
        rest, err = process.communicate(timeout=300)
        assert process.returncode == 75, err
        assert "Traceback" not in err
        last = "runs/stopped: stopped and saved; the same command goes on from there\n"
        assert rest.endswith(last)
        return lines[0]

    assert train_until_it_logs().startswith("runs/stopped: training from step 0 to 10000000")
    step = newest(home / "runs" / "stopped")
    assert train_until_it_logs().startswith(f"runs/stopped: training from step {step} to")
    assert newest(home / "runs" / "stopped") > step
    return home / "runs" / "stopped"


def newest(folder):
    return max(int(path.name) for path in (folder / "checkpoints").iterdir())


def test_sigterm_saves_and_the_same_command_goes_on(stopped):
    rows = [json.loads(line) for line in (stopped / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows]
    assert steps == list(range(20, steps[-1] + 1, 20)) and newest(stopped) >= steps[-1]


def test_points_are_evaluated_and_drawn_too(home, stopped):
    out = call(home, "eval", "--workdir=runs/stopped", "--split=validation")
    result = json.loads((stopped / "eval" / "bpd_validation.json").read_text())
    assert result["bpd"]["n"] == 20 and result["step"] == newest(stopped)
    assert result["dequantization"] is None and "dequantization" not in out
    assert out.startswith("validation ") and " nats (20 examples; probe " in out
    call(home, "sample", "--workdir=runs/stopped", "--n=5", "--out=points.npz")
    with np.load(home / "points.npz") as file:
        assert file["x"].shape == (5, 2) and file["x"].dtype == np.float32 and "label" not in file
        picture.save(home / "points.png", file["x"], None)
    assert min(Image.open(home / "points.png").size) > 100


def test_an_installed_package_is_whole_and_the_scripts_use_it(home, tmp_path):
    source, target = tmp_path / "source", tmp_path / "site"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(CHECKOUT / "score_jax", source / "score_jax", ignore=ignore)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, source)
    options = "--quiet --no-deps --no-compile"
    pip = [sys.executable, "-m", "pip", "install", *options.split()]
    subprocess.run([*pip, "--target", target, source], check=True)
    files = lambda folder: {path.relative_to(folder) for path in folder.rglob("*.py")}
    assert files(target / "score_jax") == files(source / "score_jax")

    # a config's error says which package was imported
    (home / "where.py").write_text(
        "import score_jax\ndef get_config(): raise ValueError(score_jax.__file__)"
    )
    err = call(home, "train", "--config=where.py", code=2, PYTHONPATH=str(target))
    assert str(target / "score_jax" / "__init__.py") in err
    args = ["--config=configs/vp_digits.py", "--config.optim.lr=0"]
    assert "lr is 0.0" in call(home, "train", *args, code=2, PYTHONPATH=str(target))


def test_more_devices_than_cores_do_not_wait_for_each_other_for_ever(home):
    """Without waiting for each step, XLA's CPU client aborts within the first 300."""
    args = ["--config=configs/vp_toy2d.py", "--workdir=runs/devices", "--config.train.steps=300"]
    args += [
        "--config.train.eval_images=4",
        "--config.eval.elbo_times=1",
        "--config.sample.n_steps=2",
    ]
    assert "finished at step 300" in call(home, "train", *args, devices=4)


def test_a_platform_that_is_not_there_is_one_line(home):
    args = ["--config=configs/vp_toy2d.py"]
    err = call(home, "train", *args, code=2, JAX_PLATFORMS="tpu")
    assert "JAX cannot start the platform 'tpu'" in err and err.count("\n") == 1
