"""Computes bits per dimension of a run's test split and writes WORKDIR/eval/bpd.json.

    python scripts/eval.py --workdir=runs/vp_digits --metric=bpd

The config is the run's own; --config.eval.OPTION=VALUE overrides how it is evaluated.
"""

import json
import sys
from pathlib import Path

from absl import flags

from score_jax import build, cli, files, run

WORKDIR = flags.DEFINE_string("workdir", None, "the run's folder; required")
METRIC = flags.DEFINE_enum("metric", "bpd", ["bpd"], "what to compute")
SPLIT = flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "of which split")


def main(overrides: list[str]) -> int:
    with cli.user_errors():
        folder = Path(WORKDIR.value)
        config = cli.load_run(folder, overrides, "eval")
        experiment = build.experiment(config)
        step, params = run.averaged_params(folder, experiment)
        path = (
            folder / "eval" / ("bpd.json" if SPLIT.value == "test" else f"bpd_{SPLIT.value}.json")
        )
        path.parent.mkdir(exist_ok=True)

    split = getattr(experiment.data, SPLIT.value)
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
        "settings": config.eval.to_dict(),
    }
    files.write_text(path, json.dumps(result, indent=2) + "\n")

    bpd, elbo = result["bpd"], result["elbo"]
    dequantization = "; uniform dequantization" if levels else ""
    print(
        f"{SPLIT.value} {bpd['mean']:.4f} +- {bpd['stderr']:.4f} bits/dim "
        f"({bpd['n']} examples; {result['nfe']:.0f} evaluations{dequantization}; step {step})"
    )
    print(f"by the ELBO at most {elbo['mean']:.4f} +- {elbo['stderr']:.4f}, with the same weights")
    if "exact" in result:
        exact = result["exact"]
        print(f"the data's own density {exact['mean']:.4f} +- {exact['stderr']:.4f}")
    print(path)
    return 0


if __name__ == "__main__":
    cli.run(main, required=WORKDIR)
