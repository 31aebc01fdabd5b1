"""Draws samples from a run.

    python scripts/sample.py --workdir=runs/vp_digits --n=64 --out=samples.png

A .png shows them; a .npz holds them as array `x` (integer levels of images, coordinates of points),
with their labels. The config is the run's own; --config.sample.OPTION=VALUE overrides how samples
are drawn, as --config.sample.n_steps=100.
"""

import sys
from pathlib import Path

import numpy as np
from absl import flags

from score_jax import build, cli, files, picture, run
from score_jax.build import ConfigError

WORKDIR = flags.DEFINE_string("workdir", None, "the run's folder; required")
N = flags.DEFINE_integer("n", 64, "how many samples", lower_bound=1)
OUT = flags.DEFINE_string("out", "samples.png", "file to write, .png or .npz")
LABEL = flags.DEFINE_integer(
    "label", None, "class of all samples; default: the classes in turn", lower_bound=0
)


def main(overrides: list[str]) -> int:
    with cli.user_errors():
        folder, out = Path(WORKDIR.value), Path(OUT.value)
        if out.suffix not in (".png", ".npz") or out.is_dir():
            raise ConfigError(f"--out={out} must be a file that ends in .png or .npz")
        config = cli.load_run(folder, overrides, "sample")
        experiment = build.experiment(config)
        data = experiment.data
        if LABEL.value is not None and not (experiment.labels and LABEL.value < data.n_classes):
            classes = data.n_classes if experiment.labels else 0
            raise ConfigError(
                f"--label={LABEL.value}, but the run's model knows {classes} classes, from 0"
            )
        step, params = run.averaged_params(folder, experiment)
        out.parent.mkdir(parents=True, exist_ok=True)

    result = run.draw(experiment)(params, N.value, LABEL.value)
    failed = int(np.sum(~result["ok"]))
    if failed:
        print(
            f"sample.py: the sampler failed on {failed} of {N.value} samples; change config.sample",
            file=sys.stderr,
        )
        return 1
    if out.suffix == ".npz":
        arrays = {name: result[name] for name in ("x", "label") if name in result}
        files.write(out, lambda part: np.savez_compressed(part, **arrays))
    else:
        picture.save(out, result["x"], data.levels)
    print(f"{N.value} samples at step {step}, {result['nfe'].mean():.0f} evaluations each: {out}")
    return 0


if __name__ == "__main__":
    cli.run(main, required=WORKDIR)
