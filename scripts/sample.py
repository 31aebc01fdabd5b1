"""Draws samples from a run.

    python scripts/sample.py --workdir=runs/vp_digits --n=64 --out=samples.png
    python scripts/sample.py --workdir=runs/vp_digits --sampler=dpmpp_2m --steps=15
    python scripts/sample.py --list

A .png shows them; a .npz holds them as array `x` (integer levels of images, coordinates of points),
with their labels. The config is the run's own; --config.sample.OPTION=VALUE overrides how samples
are drawn, as --config.sample.grid=power; --sampler and --steps are short for its `name`, which drops
the options of another sampler, and `n_steps`.
"""

import json
import math
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from score_jax import build, catalogue, cli, files, grids, gridsearch, picture, run, sampling
from score_jax.build import ConfigError
from score_jax.model import bind
from score_jax.sde import SDE


class ListFlag(flags.BooleanFlag):
    """Prints the samplers and ends the program, as --help does."""

    def parse(self, argument):
        super().parse(argument)
        if self.value:
            print(catalogue.table())
            sys.exit(0)


WORKDIR = flags.DEFINE_string("workdir", None, "the run's folder; required")
N = flags.DEFINE_integer("n", 64, "how many samples", lower_bound=1)
OUT = flags.DEFINE_string("out", "samples.png", "file to write, .png or .npz")
LABEL = flags.DEFINE_integer(
    "label", None, "class of all samples; default: the classes in turn", lower_bound=0
)
EMA = flags.DEFINE_string(
    "ema", None, "of which average of the parameters, as of eval.py; default: the first"
)
SAMPLER = flags.DEFINE_string("sampler", None, "short for --config.sample.name; see --list")
STEPS = flags.DEFINE_integer("steps", None, "short for --config.sample.n_steps", lower_bound=1)
TEMPERATURE = flags.DEFINE_float(
    "temperature", 1.0, "factor of the starts' standard deviation; for samplers without noise"
)
SEARCH = flags.DEFINE_bool(
    "search_grid", False, "draw along a grid searched for the model; kept in WORKDIR/eval"
)
flags.DEFINE_flag(ListFlag("list", False, "print the samplers and what each costs, and end"))


def short(flag: flags.FlagHolder, option: str, overrides: list[str]) -> list[str]:
    """The overrides with the one that a flag is short for, if it is given."""
    if flag.value is None:
        return overrides
    prefix = f"{cli.PREFIX}sample.{option}="
    for item in overrides:
        if item.startswith(prefix) and item != f"{prefix}{flag.value}":
            raise ConfigError(f"--{flag.name}={flag.value} contradicts {item}; give one of them")
    return [*overrides, f"{prefix}{flag.value}"]


def refuse_noise(flag: str, why: str, experiment: build.Experiment, sample: dict, sde: SDE):
    """Raises ConfigError for a sampler whose noise a flag is not made for, naming it and what makes it noisy."""
    if gridsearch.has_noise(experiment.draw, sde):
        levels = (f"{k}={sample[k]}" for k in ("eta", "noise", "churn") if sample.get(k))
        named = ", ".join([f"config.sample.name={sample['name']}", *levels])
        raise ConfigError(f"{flag}: {named} draws with noise, {why}; take one without, as ddim")


def kept(file: Path, settings: dict) -> dict | None:
    """What a search with these settings left in a file; None if there is none, or it is damaged."""
    try:
        saved = json.loads(file.read_text())
        errors = saved["error"], *saved["errors"].values()
        log_snrs = np.asarray(saved["log_snrs"], float)
        whole = log_snrs.ndim == 1 and np.all(np.diff(log_snrs) > 0) and len(log_snrs) > 1
        whole = whole and len(errors) > 1 and np.all(np.isfinite([*errors, *log_snrs]))
        return saved if whole and saved["settings"] == settings else None
    except (FileNotFoundError, ValueError, LookupError, TypeError, AttributeError):
        return None


def searched(folder: Path, experiment: build.Experiment, sample: dict, step: int, params):
    """The grid that is best for this model, sampler and number of steps: read from the run, or found."""
    name, n_steps = sample["name"], sample["n_steps"]
    if n_steps is None or name == "annealed_langevin":
        raise ConfigError("--search_grid needs a sampler with a fixed number of steps; set --steps")
    file, settings = folder / "eval" / f"grid_{name}_{n_steps}.json", {"step": step} | sample
    if (saved := kept(file, settings)) is None:
        model, data = experiment.model, experiment.data
        n = picture.count(data.shape)
        sde, pair = model.sde(params), jax.random.split(jax.random.key(experiment.seed), (2, n))
        refuse_noise("--search_grid", "so no error to search by", experiment, sample, sde)
        ending = {option: sample[option] for option in ("denoise", "threshold", "percentile")}
        found = gridsearch.of_draw(
            pair[0],
            experiment.draw,
            sampling.probability_flow(rtol=1e-5, atol=1e-5, **ending),
            sde,
            partial(bind, model),
            params,
            sampling.prior(pair[1], sde, data.shape),
            jnp.arange(n) % data.n_classes if experiment.labels else None,
            n_parts=min(n_steps, 10),
        )
        saved = found._asdict() | {"settings": settings}
        file.parent.mkdir(exist_ok=True)
        files.write_text(file, json.dumps(saved, indent=2))
    before = saved["errors"].get(sample["grid"], min(saved["errors"].values()))
    print(f"{file}: error {saved['error']:.2g} instead of {before:.2g} on grid {sample['grid']}")
    return grids.piecewise(saved["log_snrs"])


def main(overrides: list[str]) -> int:
    with cli.user_errors():
        folder, out = Path(WORKDIR.value), Path(OUT.value)
        if out.suffix not in (".png", ".npz") or out.is_dir():
            raise ConfigError(f"--out={out} must be a file that ends in .png or .npz")
        if SAMPLER.value is not None and SAMPLER.value not in sampling.DRAWS:
            choices = build.choose(SAMPLER.value, sampling.DRAWS)
            raise ConfigError(f"--sampler={SAMPLER.value} is no sampler; {choices}")
        if not (math.isfinite(TEMPERATURE.value) and TEMPERATURE.value >= 0):
            raise ConfigError(
                f"--temperature={TEMPERATURE.value:g} must be finite and at least 0; 1 is the prior's"
            )
        overrides = short(SAMPLER, "name", short(STEPS, "n_steps", overrides))
        config = cli.load_run(folder, overrides, "sample")
        experiment = build.experiment(config)
        data = experiment.data
        if experiment.no_samples:
            raise ConfigError(f"--workdir={folder}: {experiment.no_samples}")
        if LABEL.value is not None and not (experiment.labels and LABEL.value < data.n_classes):
            classes = data.n_classes if experiment.labels else 0
            raise ConfigError(
                f"--label={LABEL.value}, but the run's model knows {classes} classes, from 0"
            )
        if EMA.value == "all":
            raise ConfigError("--ema=all is for eval.py; name one average")
        step, params = run.averaged_params(folder, experiment, EMA.value)
        if TEMPERATURE.value != 1:
            flag, sde = f"--temperature={TEMPERATURE.value:g}", experiment.model.sde(params)
            refuse_noise(flag, "where it has no effect", experiment, config["sample"], sde)
        out.parent.mkdir(parents=True, exist_ok=True)
        draw = sampling.tempered(experiment.draw, TEMPERATURE.value)
        if SEARCH.value:
            draw = partial(draw, grid=searched(folder, experiment, config["sample"], step, params))

    result = run.draw(experiment._replace(draw=draw))(params, N.value, LABEL.value)
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
