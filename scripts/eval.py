"""Computes bits per dimension of a run's test split: the number, its errors, and a table of the images.

    python scripts/eval.py --workdir=runs/vp_digits --metric=bpd
    python scripts/eval.py --workdir=runs/vp_digits --steps=all --ema=all

WORKDIR/eval/bpd.json has the numbers, bpd.csv a row for each image, bpd_again.csv those images that
were evaluated again for the error bars. Killed, the same command goes on. Other checkpoints and
other averages of the parameters have such files in WORKDIR/eval/by_step, and a curve in
bpd_by_step.csv and .png. The config is the run's own; --config.eval.OPTION=VALUE overrides how it
is evaluated. Continuous data are measured in nats per example. The exit code is 1 if the solver
failed on an example.
"""

import itertools
from pathlib import Path

import numpy as np
from absl import flags

from score_jax import bits, build, cli, files, run
from score_jax.build import ConfigError
from score_jax.checkpoint import Checkpoints
from score_jax.data import base
from score_jax.data.fingerprint import fingerprint

WORKDIR = flags.DEFINE_string("workdir", None, "the run's folder; required")
METRIC = flags.DEFINE_enum("metric", "bpd", ["bpd"], "what to compute")
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


def main(overrides: list[str]) -> int:
    with cli.user_errors():
        folder = Path(WORKDIR.value)
        config = cli.load_run(folder, overrides, "eval")
        experiment = build.experiment(config)
        split = getattr(experiment.data, SPLIT.value)
        size = len(split.x)
        if N.value is not None and N.value > size:
            raise ConfigError(f"--n={N.value}, but the {SPLIT.value} split has {size} examples")
        split = base.take(split, np.arange(N.value or size))
        if experiment.no_bits:
            raise ConfigError(f"--metric=bpd: {experiment.no_bits}")
        checkpoints = run.checkpoints_of(folder, experiment)
        steps = chosen_steps(folder, checkpoints)
        weights = run.weights(folder, experiment, EMA.value)
        states = {step: run.start_state(experiment, checkpoints, step) for step in steps[:1]}
        (folder / "eval").mkdir(exist_ok=True)

    part = "" if SPLIT.value == "test" else f"_{SPLIT.value}"
    part += f"_first_{N.value}" if N.value else ""  # never in the place of the whole number
    sweep = STEPS.value is not None or EMA.value is not None
    options = {key: value for key, value in config["eval"].items() if key not in FREE}
    results = []
    for step, name in itertools.product(steps, weights):
        if step not in states:
            with cli.user_errors():
                states = {step: run.start_state(experiment, checkpoints, step)}
        facts = {"split": SPLIT.value, "size": size, "step": step, "weights": name}
        dequantize = experiment.eval.dequantize
        has_noise = experiment.data.levels or dequantize != "uniform"
        facts["dequantization"] = dequantize if has_noise else None
        made_for = facts | {"n": len(split.x), "data": fingerprint(experiment.data)}
        made_for |= {"eval": options} | {
            key: config[key] for key in ("seed", "sde", "net", "model")
        }
        stem = f"bpd_step_{step}_{name.replace(' ', '_')}{part}" if sweep else f"bpd{part}"
        path = folder / "eval" / ("by_step" if sweep else "") / f"{stem}.csv"
        with cli.user_errors():
            params = weights[name](states[step])
        result = run.bits_per_dim(experiment, params, split, path, made_for)
        result |= facts | {"conditional": experiment.labels, "settings": config["eval"]}
        files.write_text(path.with_suffix(".json"), bits.to_json(result))
        results.append(result)
        print("\n".join(bits.report(result)))
        print(path.with_suffix(".json"), flush=True)
    if sweep:
        path = folder / "eval" / f"bpd_by_step{part}.csv"
        bits.write_curve(path, results)
        print(path)
    return int(any(result["failed"] for result in results))


if __name__ == "__main__":
    cli.run(main, required=WORKDIR)
