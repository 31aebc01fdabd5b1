"""Computes bits per dimension of a run's test split and writes WORKDIR/eval/bpd.json.

    python scripts/eval.py --workdir=runs/vp_digits --metric=bpd

The config is the run's own; --config.eval.OPTION=VALUE overrides how it is evaluated.
"""

import json
import sys
from pathlib import Path

import numpy as np
from absl import flags

from score_jax import build, cli, files, run
from score_jax.build import ConfigError
from score_jax.data import base

WORKDIR = flags.DEFINE_string("workdir", None, "the run's folder; required")
METRIC = flags.DEFINE_enum("metric", "bpd", ["bpd"], "what to compute")
SPLIT = flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "of which split")
N = flags.DEFINE_integer(
    "n", None, "only the first n examples, for a quick look; default: all", lower_bound=1
)


def main(overrides: list[str]) -> int:
    with cli.user_errors():
        folder = Path(WORKDIR.value)
        config = cli.load_run(folder, overrides, "eval")
        experiment = build.experiment(config)
        step, params = run.averaged_params(folder, experiment)
        split = getattr(experiment.data, SPLIT.value)
        size = len(split.x)
        if N.value is not None and N.value > size:
            raise ConfigError(f"--n={N.value}, but the {SPLIT.value} split has {size} examples")
        split = base.take(split, np.arange(N.value or size))
        part = f"_first_{N.value}" if N.value else ""  # never in the place of the whole number
        name = "bpd" if SPLIT.value == "test" else f"bpd_{SPLIT.value}"
        path = folder / "eval" / f"{name}{part}.json"
        path.parent.mkdir(exist_ok=True)

    try:
        result = run.bits_per_dim(experiment, params, split)
    except ArithmeticError as error:
        print(f"eval.py: {error}", file=sys.stderr)
        return 1
    levels = experiment.data.levels
    result |= {
        "step": step,
        "split": SPLIT.value,
        "dequantization": "uniform" if levels else None,
        "t_min": experiment.model.sde(params).t_min,
        "settings": config["eval"],
    }
    files.write_text(path, json.dumps(result, indent=2) + "\n")

    bpd, elbo = result["bpd"], result["elbo"]
    of = f"the first {N.value} of {size}" if N.value else size
    dequantization = "; uniform dequantization" if levels else ""
    print(
        f"{SPLIT.value} {bpd['mean']:.4f} +- {bpd['stderr']:.4f} bits/dim "
        f"({of} examples; {result['nfe']:.0f} evaluations{dequantization}; step {step})"
    )
    print(f"by the ELBO at most {elbo['mean']:.4f} +- {elbo['stderr']:.4f}, with the same weights")
    if "exact" in result:
        exact = result["exact"]
        print(f"the data's own density {exact['mean']:.4f} +- {exact['stderr']:.4f}")
    print(path)
    return 0


if __name__ == "__main__":
    cli.run(main, required=WORKDIR)
