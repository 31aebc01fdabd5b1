"""Sweeps: which trials there are, that each is run once, what became of it, and many of them as one program."""

import csv
import io
import json
import math
import os
import shlex
import signal
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import test_cli
from rich.console import Console
from test_cli import call, write_config

from score_jax import build, cli, ranking, run, sweep, trials, vmapped, workdir
from score_jax.data.order import batch_indices
from score_jax.trials import Last, Status

CHECKOUT = Path(__file__).parent.parent
TOY = dict(
    data=dict(name="toy2d", n=200),
    sde=dict(name="vp"),
    net=dict(name="mlp", width=8, depth=1),
    loss=dict(name="denoising"),
    optim=dict(name="adam", lr=1e-3, warmup=2, decay="linear"),
    sample=dict(name="ddim", n_steps=2),
    train=dict(
        steps=6,
        batch_size=8,
        ema=(0.9,),
        ema_warmup=1.0,
        eval_images=8,
        log_every=3,
        eval_every=3,
        sample_every=0,
        save_every=2,
    ),
    eval=dict(batch_size=8, solver="heun", n_steps=2, elbo_times=2),
)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """The current folder of each test, with the config toy.py in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    write_config("toy.py", TOY)
    return tmp_path


# which trials there are


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ({"optim.lr": 0.0003, "net.width": 8}, "net.width=8,optim.lr=0.0003"),
        ({"seed": 2}, "seed=2"),
        ({"train.ema": (0.99,)}, "train.ema=0.99"),
        ({"net.multipliers": (1, 2)}, "net.multipliers=1x2"),
        ({"sde.name": "sub_vp", "train.flip": True}, "sde.name=sub_vp,train.flip=True"),
        ({"eval.t_min": None}, "eval.t_min=None"),
        ({}, "base"),
    ],
)
def test_a_trial_is_named_after_its_overrides_in_any_order(overrides, name):
    assert sweep.name(overrides) == name
    assert sweep.name(dict(reversed(overrides.items()))) == name


def test_no_two_trials_share_a_name_and_each_is_safe_as_a_folder():
    texts = ["a/b", "a b", "a-b", "../x", "None", "1", "1,b=2", "é", "", "x" * 300, "x" * 301]
    values = [None, 1, 1.5, True, False, (1,), (1, 2), (), *texts]
    found = [{"a": value} for value in values if value != (1,)] + [{"a": 1, "b": 2}, {"b": 1}]
    names = [sweep.name(overrides) for overrides in found]
    assert len(set(names)) == len(names)
    for name in names:
        assert len(name) <= 110 and name[0] not in ".-"
        assert not set(name) - set("~.,=+-_") - set(map(chr, range(48, 123)))
        assert "/" not in name and name == shlex.quote(name).strip("'")


def test_a_grid_is_the_product_of_its_words_also_after_a_space():
    arguments = [
        "--grid",
        "a.b=1e-4,3e-4",
        "c.d=10,20",
        "--jobs",
        "2",
        "--grid=e.f=(1, 2),(3,)",
        "g.h=x",
    ]
    assert sweep.gathered(arguments) == [
        *("--grid=a.b=1e-4,3e-4", "--grid=c.d=10,20", "--jobs", "2"),
        *("--grid=e.f=(1, 2),(3,)", "--grid=g.h=x"),
    ]
    assert sweep.grid(["a.b=1e-4,3e-4", "c.d=10,20"]) == [
        {"a.b": "1e-4", "c.d": "10"},
        {"a.b": "1e-4", "c.d": "20"},
        {"a.b": "3e-4", "c.d": "10"},
        {"a.b": "3e-4", "c.d": "20"},
    ]
    assert [t["e.f"] for t in sweep.grid(["e.f=(1, 2),(3,)"])] == ["(1, 2)", "(3,)"]


def test_random_trials_are_those_of_their_seed_and_more_of_them_begin_with_the_same():
    words = ["lr=1e-5..1e-2", "beta=10:20", "width=8,16", "n=1..100"]
    found = sweep.random(words, 20, 0)
    assert found == sweep.random(words, 20, 0) == sweep.random(words, 30, 0)[:20]
    assert found != sweep.random(words, 20, 1)
    assert all(trial["n"].isdecimal() and trial["width"] in ("8", "16") for trial in found)


def test_ranges_are_log_uniform_or_uniform():
    """The mean of n uniform numbers on [0, 1] has the standard error (12 n)^(-1/2)."""
    n = 1000
    found = sweep.random(["lr=1e-5..1e-2", "beta=-10:20"], n, 0)
    lr, beta = ([float(trial[key]) for trial in found] for key in ("lr", "beta"))
    for u in ((np.log10(lr) + 5) / 3, (np.array(beta) + 10) / 30):
        assert abs(np.mean(u) - 0.5) < 4 / math.sqrt(12 * n)
        assert -1e-3 < min(u) < 0.05 and 0.95 < max(u) < 1.001


def test_a_file_yields_trials_which_have_the_values_of_their_configs():
    path = CHECKOUT / "configs" / "sweeps" / "lr_ema.py"
    found = sweep.read("configs/sweeps/lr_ema.py", CHECKOUT)
    assert found == sweep.read(str(path), Path()) and len(found) == 9
    made = sweep.trials("toy.py", ["--config.train.steps=4"], found[:2], "val_elbo")
    assert made[1].name == "optim.lr=0.001,train.ema=0.99"
    assert made[1].overrides == {"optim.lr": 0.001, "train.ema": (0.99,)}
    config = made[1].config
    assert (config["train"]["ema"], config["train"]["steps"]) == ((0.99,), 4)
    # another way to write the same trial
    (again,) = sweep.trials("toy.py", [], [{"train.ema": "0.99", "optim.lr": "1e-3"}], "val_loss")
    assert again.name == made[1].name


REFUSED = {
    "no trials": ([], "say what the trials are", "--sweep=FILE", "--grid"),
    "two kinds of trials": (["--sweep=x.py", "--grid", "seed=1"], "one of --sweep"),
    "no sweep file": (["--sweep=lr_em.py"], "no sweep file lr_em.py", "configs/sweeps/lr_ema.py"),
    "sweep file without a generator": (["--sweep=toy.py"], "must define get_overrides()"),
    "sweep file that fails": (["--sweep=bad.py"], "sweep file bad.py: ZeroDivisionError"),
    "random of a file": (["--sweep=bad.py", "--random=2"], "--random draws from --grid"),
    "no value": (["--grid", "optim.lr"], "'optim.lr' is no SECTION.OPTION=VALUE"),
    "a key twice": (["--grid", "seed=1", "seed=2"], "seed twice"),
    "range of a grid": (["--grid", "optim.lr=1e-4..1e-3"], "is a range", "--random=N"),
    "range downwards": (["--random=1", "--grid", "optim.lr=1..0.1"], "optim.lr=1..0.1 must go up"),
    "range from 0": (["--random=1", "--grid", "optim.lr=0..0.1"], "from above 0"),
    "too few": (["--random=5", "--grid", "seed=1,2"], "only 2 different trials"),
    "unknown section": (["--grid", "optm.lr=1"], "trial 1 (optm.lr=1)", "no section 'optm'"),
    "unknown option, in the last": (
        ["--sweep=last.py"],
        "trial 3 (optim.lrr=0.1): config.optim.lrr is no option of adam; did you mean lr?",
    ),
    "value out of range": (["--grid", "optim.lr=1e-3,0"], "trial 2 (optim.lr=0): config.optim.lr"),
    "combination": (["--grid", "net.name=mlp,unet"], "trial 2 (net.name=unet)", "needs images"),
    "twins": (["--grid", "optim.lr=1e-3,0.001"], "trial 2 is another's twin: optim.lr=0.001"),
    "override of all and one": (
        ["--grid", "optim.lr=1e-3", "--config.optim.lr=1"],
        "trial 1 overrides 'optim.lr'",
    ),
    "test metric": (["--grid", "seed=1", "--metric=test_bpd"], "not of the validation split"),
    "metric that is not there": (
        ["--grid", "seed=1", "--config.train.coupling=optimal", "--config.loss.name=flow_matching"],
        "--metric=val_elbo, but no ELBO",
        "--metric=val_loss",
    ),
    "widths in one program": (
        ["--vmap", "--grid", "net.width=8,16"],
        "trials differ in config.net.width",
        "seed, optim.lr, train.ema",
    ),
    "convolutions in one program": (
        ["--vmap", "--grid", "seed=1,2", "--config.data.name=digits", "--config.net.name=unet"],
        "--vmap is for config.net.name='mlp', not 'unet'",
        "2 to 3 times as long",
    ),
    "best of nothing": (["--best", "--workdir=nowhere"], "no sweep in nowhere", "--config=FILE"),
    "best without a folder": (["--best"], "--workdir is missing"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_before_the_first_trial_starts(case, here, capsys, monkeypatch):
    arguments, *pieces = REFUSED[case]
    Path("bad.py").write_text("def get_overrides():\n    yield {'seed': 1}\n    1 / 0\n")
    yields = "\n".join(f"    yield {{'optim.{key}': 0.1}}" for key in ("b1", "lr", "lrr"))
    Path("last.py").write_text(f"def get_overrides():\n{yields}\n")
    monkeypatch.delattr(trials, "Process")
    monkeypatch.delattr(vmapped, "run_all")
    code = call("sweep", "--config=toy.py", *arguments)
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1), err
    test_cli.assert_holds(err, ["sweep.py: ", *pieces])
    assert not (here / "runs").exists()


# what becomes of them; the trials are stand-ins that leave what train.py leaves

STAND_IN = """
import json, pathlib, signal, sys, time
folder, steps, lr, seconds, code = sys.argv[1:]
folder, lr = pathlib.Path(folder), float(lr)
folder.mkdir(parents=True, exist_ok=True)
signal.signal(signal.SIGTERM, lambda *_: ((folder / "saved").touch(), sys.exit(75)))
(folder / "ready").touch()
with (folder / "calls").open("a") as file: file.write(f"{time.time()} ")
time.sleep(float(seconds))
with (folder / "calls").open("a") as file: file.write(f"{time.time()}\\n")
if int(code):
    print("trace", file=sys.stderr); print(f"train.py: {lr} is too high\\n", file=sys.stderr)
    sys.exit(int(code))
for step in (1, int(steps)):
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "loss": 9.0}) + "\\n")
        values = {"step": step, "val_elbo": lr * step, "val_loss": lr}
        file.write(json.dumps(values) + "\\n")
(folder / "timings.jsonl").write_text('{"step": 1, "seconds": 2.5}\\n{"step": 2, "seconds": 1.0}\\n')
(folder / "checkpoints" / steps).mkdir(parents=True)
"""
LRS = {"a": 0.3, "b": 0.1, "c": 0.2, "d": 0.05}


@pytest.fixture
def stand_ins(here):
    """stand_ins(seconds={}, codes={}) -> the folder, and commands of trials of four learning rates."""
    (here / "stand_in.py").write_text(STAND_IN)
    folder = here / "sweep"

    def make(seconds=None, codes=None):
        return folder, {
            name: shlex.join(
                map(
                    str,
                    [
                        *(sys.executable, "-S", here / "stand_in.py", folder / name, 4, lr),
                        *((seconds or {}).get(name, 0), (codes or {}).get(name, 0)),
                    ],
                )
            )
            for name, lr in LRS.items()
        }

    return make


def statuses(folder, running=()):
    entry = lambda lr: {"overrides": {"optim.lr": lr}, "steps": 4}
    return [trials.status(folder, name, entry(lr), running) for name, lr in LRS.items()]


def spans(folder, name):
    return [tuple(map(float, line.split())) for line in (folder / name / "calls").open()]


def test_a_trial_that_fails_stops_no_other_and_its_last_line_is_in_the_table(stand_ins):
    folder, commands = stand_ins(codes={"d": 1})
    with trials.StopSignals() as stop:
        trials.run(folder, commands, 2, stop, lambda running: None)
    found = statuses(folder)
    assert [s.state for s in found] == ["finished", "finished", "finished", "failed"]
    assert [s.error for s in found] == ["", "", "", "train.py: 0.05 is too high"]
    ranking.write(folder, found, "val_elbo")
    heads, *rows = csv.reader((folder / "results.csv").open())
    of_metrics = [
        f"val_{m}{which}" for m in ("elbo", "loss") for which in ("", "_best", "_best_step")
    ]
    assert heads == ["trial", "state", "step", "optim.lr", *of_metrics, "seconds", "error"]
    assert rows[0] == [
        "a",
        "finished",
        "4",
        "0.3",
        "1.2",
        "0.3",
        "1",
        "0.3",
        "0.3",
        "1",
        "3.500",
        "",
    ]
    assert rows[3] == ["d", "failed", "0", "0.05", *[""] * 6, "0.000", "train.py: 0.05 is too high"]
    ranking.plot(folder, found, "val_elbo")
    assert (folder / "results.png").stat().st_size > 1000


def test_at_most_so_many_run_at_once_and_only_what_is_not_finished_runs_again(stand_ins):
    folder, commands = stand_ins(seconds=dict.fromkeys("abcd", 0.3), codes={"b": 1})
    most = 0

    def tell(running):
        nonlocal most
        most = max(most, len(running))

    with trials.StopSignals() as stop:
        trials.run(folder, commands, 2, stop, tell)
        times = sorted(span for name in LRS for span in spans(folder, name))
        overlapping = [sum(a <= begin < b for a, b in times) for begin, _ in times]
        assert most == 2 and max(overlapping) == 2
        again = {name: c for name, c in commands.items() if not trials.is_finished(folder, name, 4)}
        assert list(again) == ["b"]
        trials.run(folder, {"b": stand_ins()[1]["b"]}, 2, stop, tell)
    assert [s.state for s in statuses(folder)] == ["finished"] * 4
    assert [len(spans(folder, name)) for name in LRS] == [1, 2, 1, 1]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_and_the_trials_save(stand_ins, signum):
    folder, commands = stand_ins(seconds=dict.fromkeys("abcd", 60))
    start = time.monotonic()

    def tell(running):
        if all((folder / name / "ready").exists() for name in "ab") and stop.asked is None:
            os.kill(os.getpid(), signum)

    with trials.StopSignals() as stop:
        trials.run(folder, commands, 2, stop, tell)
    assert time.monotonic() - start < 30 and stop.asked == signum
    assert [s.state for s in statuses(folder)] == ["stopped", "stopped", "waiting", "waiting"]
    assert [(folder / name / "saved").exists() for name in LRS] == [True, True, False, False]


def test_a_trial_that_was_killed_is_told_from_one_that_failed(stand_ins):
    folder, commands = stand_ins(seconds=dict.fromkeys("abcd", 60))
    process = trials.Process(folder, "a", commands["a"])
    assert not process.ended() and statuses(folder, {"a"})[0].state == "running"
    process._process.kill()
    assert process.wait() == -9
    found = statuses(folder)[0]
    assert (found.state, found.error) == ("failed", "killed by signal 9")


def test_what_an_earlier_attempt_said_is_not_this_ones_error(stand_ins):
    folder, commands = stand_ins(codes={"a": 1})
    trials.Process(folder, "a", commands["a"]).wait()
    assert statuses(folder)[0].error == "train.py: 0.3 is too high"
    trials.Process(folder, "a", "sh -c 'exit 3'").wait()
    assert statuses(folder)[0].error == "exit code 3"


def made(name, state, last, best=0.0, key=0.1):
    metrics = {"val_elbo": Last(last, best, 2)}
    return Status(name, {"optim.lr": key, "sde.name": "vp"}, state, 4, 4, metrics, 1.0, "")


def test_the_best_has_the_least_validation_metric_of_the_weights_that_are_left():
    found = [
        made("early", "finished", 3.0, best=0.5),  # good at a step whose weights are gone
        made("best", "finished", 2.0, best=1.9),
        made("running", "running", 1.0),
        made("nan", "finished", math.nan),
    ]
    assert ranking.best(found, "val_elbo").name == "best"
    with pytest.raises(ValueError, match="--metric=val_loss: none of 4 .* choose from val_elbo"):
        ranking.best(found, "val_loss")
    with pytest.raises(ValueError, match="none of 1 trials has finished"):
        ranking.best(found[2:3], "val_elbo")


def test_a_narrow_terminal_cuts_the_error_and_nothing_else():
    failed = made("a", "failed", math.nan)._replace(error="a long story " * 20)
    console = Console(width=90, file=io.StringIO())
    console.print(ranking.table([made("b", "finished", 2.0), failed], "val_elbo", 90))
    head, first, second = console.file.getvalue().splitlines()
    assert head.split() == [
        "optim.lr",
        "sde.name",
        "state",
        "step",
        "val_elbo",
        "best",
        "seconds",
        "error",
    ]
    assert first.split()[:5] == ["0.1", "vp", "failed", "4/4", "0.0000"] and "a long st" in first
    assert second.split() == ["0.1", "vp", "finished", "4/4", "2.0000", "0.0000", "1"]


def test_plots_show_the_metric_by_what_varies_and_the_best_so_far():
    values, keys = [3.0, 1.0, 2.0], [1e-4, 1e-3, 1e-2]
    found = [made(str(v), "finished", v, key=key) for v, key in zip(values, keys, strict=True)]
    by_lr, so_far = ranking.figure(found, "val_elbo").axes  # sde.name does not vary
    points = [tuple(line.get_xydata()[0]) for line in by_lr.lines]
    assert points == list(zip(keys, values, strict=True))
    assert (by_lr.get_xscale(), by_lr.get_xlabel(), by_lr.get_ylabel()) == (
        "log",
        "optim.lr",
        "val_elbo",
    )
    np.testing.assert_array_equal(so_far.lines[1].get_ydata(), [3.0, 1.0, 1.0])


def test_another_sweep_adds_trials_and_one_of_another_config_is_refused(here):
    folder, base = here / "sweep", cli.load_config("toy.py", [])

    def keep(base, seeds):
        found = sweep.trials("toy.py", [], [{"seed": seed} for seed in seeds], "val_elbo")
        return sweep.keep(folder, base, found, {t.name: f"run {t.name}" for t in found})

    keep(base, [1, 2])
    held = keep(base | {"data": base["data"]}, [2, 3])
    assert list(held["trials"]) == ["seed=1", "seed=2", "seed=3"] and held == sweep.load(folder)
    assert held["trials"]["seed=3"] == {
        "overrides": {"seed": 3},
        "steps": 6,
        "command": "run seed=3",
    }
    with pytest.raises(ValueError, match="sweep over config.train.steps = 6, not 8; give another"):
        keep(base | {"train": base["train"] | {"steps": 8}}, [4])
    assert sweep.load(folder) == held
    (folder / "sweep.json").write_text("{")
    with pytest.raises(ValueError, match="sweep.json is damaged"):
        sweep.load(folder)


def test_jobs_are_submitted_once_and_leave_what_processes_here_leave(stand_ins):
    pytest.importorskip("submitit")
    folder, commands = stand_ins(codes={"b": 1})
    few = {name: commands[name] for name in "ab"}
    jobs = trials.submit(folder, few, 2, cluster="local", timeout_min=5)
    assert list(jobs) == ["a", "b"]
    until = time.monotonic() + 60
    while {s.state for s in statuses(folder)[:2]} != {"finished", "failed"}:
        assert time.monotonic() < until
        time.sleep(0.1)
    assert statuses(folder)[1].error == "train.py: 0.1 is too high"
    with pytest.raises(ValueError, match="--slurm: Could not detect"):
        trials.submit(folder, few, 2)


def test_a_job_whose_time_is_over_saves_and_is_queued_again(stand_ins):
    pytest.importorskip("submitit")
    folder, commands = stand_ins(seconds={"a": 60})
    job = trials.Job(folder, "a", commands["a"])
    job._process = trials.Process(folder, "a", commands["a"])
    while not (folder / "a" / "ready").exists():
        time.sleep(0.01)
    again = job.checkpoint().function
    assert (folder / "a" / "saved").exists() and statuses(folder)[0].state == "stopped"
    assert again._arguments == (folder, "a", commands["a"]) and again._process is None


def test_a_sweep_runs_its_trials_and_the_winning_command_is_printed(here, capsys, monkeypatch):
    """Two trainings in processes of their own, of which one fails."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(here / "cache"))
    arguments = ["--config=toy.py", "--grid", "optim.lr=1e30,1e-3", "--jobs=2"]
    assert call("sweep", *arguments) == 1
    folder = Path("runs/toy_grid")
    out, err = capsys.readouterr()
    assert (
        out.startswith("runs/toy_grid: 2 trials, 0 of them finished\n") and "Traceback" not in err
    )
    failed, good = csv.DictReader((folder / "results.csv").open())
    assert (failed["state"], good["state"], good["step"]) == ("failed", "finished", "6")
    assert " at step " in failed["error"] and failed["error"] in err
    rows = [json.loads(line) for line in (folder / good["trial"] / "metrics.jsonl").open()]
    values = [row["val_elbo"] for row in rows if "val_elbo" in row]
    assert [float(good["val_elbo"]), float(good["val_elbo_best"])] == [values[-1], min(values)]
    assert call("sweep", "--best", f"--workdir={folder}") == 0
    command = capsys.readouterr().out.strip()
    held = json.loads((folder / good["trial"] / "run.json").read_text())["command"]
    assert (
        command
        == f"{sys.executable} {held}"
        == sweep.load(folder)["trials"][good["trial"]]["command"]
    )
    # the finished one is not run again; the failed one is, and another sweep may not
    before = (folder / good["trial"] / "run.json").stat().st_mtime_ns
    ran = {}
    monkeypatch.setattr(trials, "run", lambda folder, commands, *_: ran.update(commands))
    assert call("sweep", *arguments) == 1
    assert list(ran) == [failed["trial"]]
    assert (folder / good["trial"] / "run.json").stat().st_mtime_ns == before
    capsys.readouterr()
    with workdir.lock(folder):
        assert call("sweep", *arguments) == 2
    assert "in use" in capsys.readouterr().err


# many trials as one program


class StopAfter(trials.StopSignals):
    """Asks to stop when something has been written so often."""

    def __init__(self, n):
        self.asked, self._left = None, n

    def tell(self, running):
        self._left -= bool(running)
        self.asked = signal.SIGTERM if self._left <= 0 else None


@pytest.fixture
def compiled_once():
    """Programs that several runs have in common, as the validation's, are taken from the cache."""
    option = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, option)
    jax.config.update(option, 0.0)
    yield
    jax.config.update(option, before)


def test_a_trial_in_one_program_with_others_is_its_single_run(here, compiled_once):
    """Stopped and resumed, with another seed, rate and averages; beside a trial that fails; on four devices."""
    overrides = [
        {"seed": 1, "optim.lr": 3e-3, "train.ema": (0.5, 0.9)},
        {"seed": 0, "optim.lr": 1e30, "train.ema": (0.9, 0.5)},
        {"seed": 2, "optim.lr": 1e-3, "train.ema": (0.8, 0.9)},
    ]
    shared = ["--config.train.save_every=4"]
    write_config("toy.py", TOY | {"train": TOY["train"] | {"ema": (0.9, 0.5)}})
    found = sweep.trials("toy.py", shared, overrides, "val_elbo")
    vmapped.check(found)
    folder = here / "sweep"
    stop = StopAfter(2)  # when they begin, and at step 3
    vmapped.run_all(folder, found, stop, stop.tell)
    state_of = lambda t: trials.status(folder, t.name, {"overrides": {}, "steps": 6})
    assert [state_of(t).state for t in found] == ["stopped", "failed", "stopped"]
    assert " is nan at step 2; no checkpoint was saved yet" in state_of(found[1]).error
    with workdir.lock(folder / found[1].name):
        vmapped.run_all(folder, found, StopAfter(100), lambda running: None)
    assert [state_of(t).state for t in found] == ["finished", "failed", "finished"]
    assert "is in use" in state_of(found[1]).error

    trial, single = found[2], here / "single"
    experiment = build.experiment(trial.config)
    workdir.claim(single, trial.config, "")
    checkpoints = run.checkpoints_of(single, experiment)
    run.fit(single, experiment, run.start_state(experiment, checkpoints), checkpoints)
    folders = single, folder / trial.name
    states = [run.start_state(experiment, run.checkpoints_of(f, experiment)) for f in folders]
    assert all(int(state.step) == 6 for state in states)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8), *states)
    one, many = ([json.loads(line) for line in (f / "metrics.jsonl").open()] for f in folders)
    assert [row.keys() for row in one] == [row.keys() for row in many]
    for row, other in zip(one, many, strict=True):
        np.testing.assert_allclose(list(row.values()), list(other.values()), rtol=1e-5)
    assert workdir.load_config(folder / trial.name) == trial.config


def test_an_epoch_of_orders_at_once_is_that_of_single_steps():
    found = sweep.trials(
        "toy.py", ["--config.train.steps=60"], [{"seed": s} for s in (3, 4)], "val_elbo"
    )
    members = [
        vmapped.Member(t.name, Path(), build.experiment(t.config), 1e-3, None) for t in found
    ]
    orders = list(vmapped.orders(members, 7))
    assert len(orders) == 53
    for step, indices in enumerate(orders, 7):
        for m, own in zip(members, indices, strict=True):
            np.testing.assert_array_equal(own, batch_indices(m.experiment.seed, step, 200, 8))
