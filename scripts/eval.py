"""Computes bits per dimension of a run's test split, or how well its classes are told: the number and its errors.

    python scripts/eval.py --workdir=runs/vp_digits --metric=bpd
    python scripts/eval.py --workdir=runs/vp_digits --steps=all --ema=all
    python scripts/eval.py --workdir=runs/vp_fashion_mnist_conditional --metric=class --n=200

WORKDIR/eval/bpd.json has the numbers, bpd.csv a row for each image, bpd_again.csv those images that
were evaluated again for the error bars. Killed, the same command goes on. Other checkpoints and
other averages of the parameters have such files in WORKDIR/eval/by_step, and a curve in
bpd_by_step.csv and .png. Continuous data are measured in nats per example.

--metric=class asks p(class | x) of a class-conditional model, by Bayes' rule from the ELBO or, with
--by=ode, from log p(x | class) of the ODE, and the training split's class frequencies; or of a
classifier, at several noise levels. WORKDIR/eval/class.json, or class_ode.json, has accuracy, log-loss
and calibration, before and after a temperature that is fitted on validation examples, --n of them if
that is given; class.png the reliability, and class.csv, but for a classifier, a row for each image and
class.

The config is the run's own; --config.eval.OPTION=VALUE overrides how it is evaluated. The exit code
is 1 if a number of an example that is judged is not finite, as where the solver failed.
"""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from score_jax import bits, build, cli, files, reliability, run
from score_jax.build import ConfigError
from score_jax.checkpoint import Checkpoints
from score_jax.data.base import Split, take
from score_jax.data.fingerprint import fingerprint

WORKDIR = flags.DEFINE_string("workdir", None, "the run's folder; required")
METRIC = flags.DEFINE_enum("metric", "bpd", ["bpd", "class"], "what to compute")
BY = flags.DEFINE_enum(
    "by",
    None,
    ["elbo", "ode"],
    "of --metric=class: what stands for log p(x | class); default: elbo",
)
SPLIT = flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "of which split")
N = flags.DEFINE_integer(
    "n", None, "only the first n examples, for a quick look; default: all", lower_bound=1
)
STEPS = flags.DEFINE_string(
    "steps", None, "of which checkpoints: steps with commas between, or all; default: the newest"
)
EMA = flags.DEFINE_string(
    "ema",
    None,
    "of which average of the parameters: its place from 0, raw for none, all, or one that is made of "
    "snapshots: power:SIGMA_REL or exponential:RATE",
)
# options that change no number of the table of images
FREE = "batch_size", "check_images"


def chosen_steps(folder: Path, checkpoints: Checkpoints) -> list[int]:
    """The steps that --steps names."""
    saved = run.saved_steps(folder)
    if STEPS.value in (None, "all"):
        return saved if STEPS.value else [checkpoints.latest()]
    for word in STEPS.value.split(","):
        if not word.isdecimal() or int(word) not in saved:
            choices = ", ".join(map(str, saved))
            raise ConfigError(
                f"--steps={STEPS.value}: the run has no checkpoint {word!r}; choose from {choices}, or all"
            )
    return sorted({int(word) for word in STEPS.value.split(",")})


def chosen_examples(experiment: build.Experiment, name: str) -> Split:
    """A split's examples, the first --n of them; of the validation split, for the temperature, at most as many."""
    split = getattr(experiment.data, name)
    size = len(split.x)
    if N.value is not None and N.value > size and name == SPLIT.value:
        raise ConfigError(f"--n={N.value}, but the {name} split has {size} examples")
    return take(split, np.arange(min(N.value or size, size)))


def check_metric(folder: Path, experiment: build.Experiment) -> str | None:
    """What stands for log p(x | class), or None; raises ConfigError if the run has no such metric."""
    if METRIC.value == "bpd":
        if BY.value is not None:
            raise ConfigError(f"--by={BY.value} is of --metric=class; leave it out")
        if experiment.no_bits:
            raise ConfigError(f"--metric=bpd: {experiment.no_bits}")
        return None
    if not experiment.labels:
        raise ConfigError(
            f"--metric=class: the model of {folder} knows no classes; train one with "
            "config.model.class_conditional=True, or a classifier as configs/classifier_fashion_mnist.py"
        )
    if experiment.model.class_logp is not None:
        if BY.value is not None:
            raise ConfigError(
                f"--by={BY.value}: the model of {folder} is a classifier, without log p(x | class); "
                "leave it out"
            )
        return None
    if experiment.no_bits:
        raise ConfigError(f"--metric=class: {experiment.no_bits}")
    by = BY.value or "elbo"
    if by == "elbo" and experiment.no_elbo:
        raise ConfigError(f"--metric=class: {experiment.no_elbo}; add --by=ode")
    return by


def main(overrides: list[str]) -> int:
    with cli.user_errors():
        folder = Path(WORKDIR.value)
        config = cli.load_run(folder, overrides, "eval")
        experiment = build.experiment(config)
        examples = {SPLIT.value: chosen_examples(experiment, SPLIT.value)}
        by = check_metric(folder, experiment)
        checkpoints = run.checkpoints_of(folder, experiment)
        steps = chosen_steps(folder, checkpoints)
        weights = run.weights(folder, experiment, EMA.value)
        states = {step: run.start_state(experiment, checkpoints, step) for step in steps[:1]}
        (folder / "eval").mkdir(exist_ok=True)

    # on the validation split a temperature would be fitted on what it is judged by
    if METRIC.value == "class" and SPLIT.value != "validation":
        examples["validation"] = chosen_examples(experiment, "validation")
    sweep = STEPS.value is not None or EMA.value is not None
    page = bits if METRIC.value == "bpd" else reliability
    metric = METRIC.value + ("_ode" if by == "ode" else "")
    options = {key: value for key, value in config["eval"].items() if key not in FREE}
    # never in the place of the whole number
    part = lambda of: f"_{of}" * (of != "test") + (f"_first_{N.value}" if N.value else "")

    def facts(of: str, step: int, name: str) -> dict[str, Any]:
        dequantize = experiment.eval.dequantize
        has_noise = experiment.data.levels or dequantize != "uniform"
        size = len(getattr(experiment.data, of).x)
        found = {"split": of, "size": size, "step": step, "weights": name}
        return found | {"dequantization": dequantize if has_noise else None}

    def task(of: str, step: int, name: str) -> tuple[Split, Path, dict[str, Any]]:
        """Examples of a split, their table, and what it is made for."""
        made_for = {"n": len(examples[of].x), "data": fingerprint(experiment.data)}
        made_for |= facts(of, step, name) | {"eval": options}
        made_for |= {key: config[key] for key in ("seed", "sde", "net", "model")}
        stem = f"{metric}_step_{step}_{name.replace(' ', '_')}" if sweep else metric
        path = folder / "eval" / ("by_step" if sweep else "") / f"{stem}{part(of)}.csv"
        path.parent.mkdir(exist_ok=True)
        return examples[of], path, made_for

    results = []
    for step, name in itertools.product(steps, weights):
        with cli.user_errors():
            if step not in states:
                states = {step: run.start_state(experiment, checkpoints, step)}
            params = weights[name](states[step])
        tasks = [task(of, step, name) for of in examples]
        path = tasks[0][1]
        if METRIC.value == "bpd":
            result = run.bits_per_dim(experiment, params, *tasks[0])
        else:
            result = run.class_probabilities(experiment, params, tasks, by)
        result |= facts(SPLIT.value, step, name)
        result |= {"conditional": experiment.labels, "settings": config["eval"]}
        files.write_text(path.with_suffix(".json"), bits.to_json(result))
        if page is reliability:
            reliability.write_picture(path.with_suffix(".png"), result)
        results.append(result)
        print("\n".join(page.report(result)))
        print(path.with_suffix(".json"), flush=True)
    if sweep:
        path = folder / "eval" / f"{metric}_by_step{part(SPLIT.value)}.csv"
        page.write_curve(path, results)
        print(path)
    return int(any(result["failed"] for result in results))


if __name__ == "__main__":
    cli.run(main, required=WORKDIR)
