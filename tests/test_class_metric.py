"""The class metric: what is written and printed, and eval.py with it."""

import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest
import test_cli

from score_jax import build, classify, cli, reliability, run
from score_jax.checkpoint import Checkpoints

CONDITIONAL = dict(
    data=dict(name="toy2d", shape="gaussians", n=100),
    sde=dict(name="vp"),
    net=dict(name="mlp", width=8, depth=1),
    model=dict(class_conditional=True),
    loss=dict(name="denoising"),
    optim=dict(name="adam"),
    sample=dict(name="ddim"),
    eval=dict(batch_size=40, elbo_times=2),
)


def log_probabilities(confidence, share, n=40):
    """n two-class predictions with a confidence in class 0, which is right in that share of them."""
    log_p = np.log(np.tile([confidence, 1 - confidence], (n, 1)))
    return log_p, (np.arange(n) >= round(share * n)).astype(int)


FACTS = {"split": "test", "size": 5000, "step": 60, "weights": "ema 0.9", "by": "elbo"}


def test_a_single_probability_is_printed_with_its_tables_and_several_in_lines():
    """0.9 that is right in 60 %, fitted on the same shares: the temperature brings it to 0.6."""
    log_p, label = log_probabilities(0.9, 0.6)
    log_p[0] = np.nan
    others = {"bayes": log_probabilities(0.9, 0.6)[0]}, log_probabilities(0.9, 0.6)[1]
    result = reliability.summary({"bayes": log_p}, label, others) | FACTS
    logit = lambda p: math.log(p / (1 - p))
    temperature = logit(0.9) / logit(0.6)
    right = 23 / 39
    assert result["failed"] == 1 and result["fitted_on"] == 40
    lines = reliability.report(result)
    assert lines[0] == (
        "test p(class | x) by Bayes' rule from the ELBO of each class "
        "(the first 40 of 5000 examples; step 60, ema 0.9)"
    )
    assert lines[1].startswith(
        "the model's numbers are not finite on 1 of them, which are left out"
    )
    unsolved = reliability.report(result | {"by": "ode"})[1]
    assert unsolved.startswith("the solver failed on 1 of them, which are left out; loosen")
    assert lines[2] == "temperatures are fitted on 40 validation examples"
    assert lines[3].startswith(f"accuracy {right:.4f} +- ")
    assert lines[3].endswith(f"ece {0.9 - right:.4f}")
    assert lines[5].split() == ["(0.867,", "0.933]", "39", "0.9000", f"{right:.4f}"]
    assert lines[6].startswith(f"temperature {temperature:.4g}: accuracy {right:.4f}")
    assert lines[8].split()[2:] == ["39", "0.6000", f"{right:.4f}"] and len(lines) == 9

    both = {"t_min": log_p, "0.3": log_p}
    several = reliability.report(reliability.summary(both, label) | FACTS | {"by": None})
    assert len(several) == 4 and " of the classifier (" in several[0]
    assert several[2].startswith("at t_min: accuracy") and several[2].endswith(lines[3])
    assert several[3] == f"at sigma / alpha = 0.3: {lines[3]}"
    failed_too = reliability.summary({"bayes": log_p}, label, ({"bayes": log_p}, label))
    assert failed_too["fitted_on"] == 39


def test_the_curve_has_a_row_for_each_probability_at_each_step(tmp_path):
    log_p, label = log_probabilities(0.9, 0.6)
    found = {"t_min": log_p, "0.3": log_p}
    plain = reliability.summary(found, label) | FACTS
    fitted = reliability.summary(found, label, (found, label)) | FACTS | {"step": 80}
    reliability.write_curve(tmp_path / "curve.csv", [plain, fitted])
    rows = np.genfromtxt(tmp_path / "curve.csv", delimiter=",", names=True, dtype=None)
    assert list(rows["step"]) == [60, 60, 80, 80]
    assert list(rows["probability"]) == ["t_min", "0.3"] * 2
    np.testing.assert_allclose(rows["ece"], 0.3)
    np.testing.assert_array_equal(np.isnan(rows["temperature"]), [True, True, False, False])
    np.testing.assert_allclose(rows["tempered_ece"][2:], 0.0, atol=1e-4)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, where `saved` puts a run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "use_compilation_cache", lambda: None)
    return tmp_path


def save(config):
    """A run that was not trained, its parameters moved off zero, with a checkpoint at step 3; its experiment."""
    resolved = build.resolve(config)
    Path("run").mkdir()
    Path("run", "config.json").write_text(json.dumps(resolved))
    experiment = build.experiment(resolved)
    state = run.start_state(experiment, Checkpoints(Path("none")))
    moved = jax.tree.map(
        lambda a: a + 0.3 * jax.random.normal(jax.random.key(1), a.shape), state.emas
    )
    with run.checkpoints_of(Path("run"), experiment) as checkpoints:
        checkpoints.save(3, state._replace(step=state.step + 3, emas=moved), [])
    return experiment


def test_the_command_writes_what_it_prints_and_goes_on_after_a_kill(folder, capsys):
    """Of ten points, under eight classes: the table is cut within a row of the second batch of 40."""
    save(CONDITIONAL)
    assert test_cli.call("eval", "--workdir=run", "--metric=class") == 0
    written = folder / "run" / "eval"
    names = ["class.csv", "class.csv.json", "class.json", "class.png"]
    names += ["class_validation.csv", "class_validation.csv.json"]
    assert sorted(path.name for path in written.iterdir()) == names
    result = json.loads((written / "class.json").read_text())
    assert (result["n"], result["fitted_on"], result["step"], result["by"]) == (10, 10, 3, "elbo")
    *lines, last = capsys.readouterr().out.splitlines()
    assert lines == reliability.report(result) and last == "run/eval/class.json"

    found = np.genfromtxt(written / "class.csv", delimiter=",", names=True)
    logp = -found["elbo"].reshape(10, 8)
    label = build.experiment(build.resolve(CONDITIONAL)).data.test.label
    expected = classify.calibration(classify.posterior(logp, np.log(result["prior"])), label)
    plain = result["probabilities"]["bayes"]["plain"]
    assert plain["nll"]["mean"] == pytest.approx(expected.nll.mean, rel=1e-6)
    assert plain["accuracy"]["mean"] == expected.accuracy.mean

    whole = (written / "class.csv").read_bytes()
    (written / "class.csv").write_bytes(whole[: int(0.7 * len(whole))])
    json_before = (written / "class.json").read_bytes()
    (written / "class.json").unlink()
    assert test_cli.call("eval", "--workdir=run", "--metric=class") == 0
    assert (written / "class.csv").read_bytes() == whole
    assert (written / "class.json").read_bytes() == json_before

    # on the validation split there is nothing to fit the temperature on; its table is there already
    table = (written / "class_validation.csv").read_bytes()
    capsys.readouterr()
    assert test_cli.call("eval", "--workdir=run", "--metric=class", "--split=validation") == 0
    alone = json.loads((written / "class_validation.json").read_text())
    assert alone["fitted_on"] == 0 and alone["probabilities"]["bayes"]["tempered"] is None
    assert (written / "class_validation.csv").read_bytes() == table
    assert "begins" not in capsys.readouterr().out


CLASSIFIER = dict(
    data=dict(name="digits"),
    net=dict(name="classifier"),
    model=dict(output="class"),
    loss=dict(name="cross_entropy"),
)


@pytest.mark.parametrize(
    ("changed", "flags", "pieces"),
    [
        ({"model": {}}, "--metric=class", ["knows no classes", "class_conditional=True"]),
        ({}, "--by=ode", ["--by=ode is of --metric=class"]),
        (CLASSIFIER, "--metric=class --by=elbo", ["--by=elbo", "is a classifier"]),
        (
            {
                "sde": dict(name="anharmonic"),
                "loss": dict(name="sliced"),
                "sample": dict(name="reverse_sde"),
            },
            "--metric=class",
            ["--metric=class: no ELBO", "add --by=ode"],
        ),
        ({}, "--metric=class --n=11", ["--n=11, but the test split has 10 examples"]),
        ({}, "--metric=class", ["no checkpoint"]),
    ],
)
def test_what_the_metric_cannot_be_asked_of_is_one_line(folder, capsys, changed, flags, pieces):
    Path("run").mkdir()
    Path("run", "config.json").write_text(json.dumps(build.resolve(CONDITIONAL | changed)))
    assert test_cli.call("eval", "--workdir=run", *flags.split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("eval.py: ")
    assert all(piece in err for piece in pieces), err
