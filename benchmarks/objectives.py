"""Every objective on the same small network, data, batch and number of steps: what it costs and what it learns.

    python benchmarks/objectives.py
    python benchmarks/objectives.py --data=toy --objectives=denoising,sliced --rows=/tmp/rows --out=/tmp
    python benchmarks/objectives.py --quick --rows=/tmp/quick --out=/tmp/quick

Writes objectives.md and objectives.png into docs/ or --out, from one file for each objective and data
set in --rows: a run that was killed goes on with the next one, and a row whose config has changed is
measured again. Rows differ by `config.loss` and the few sections that an objective needs, no more.
"""

import argparse
import itertools
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import low_density
import numpy as np
import objectives_page as pages
from objectives_measure import LOG_SNRS, draws, fit, likelihood, score_errors, sliced_w2

from score_jax import build, cli
from score_jax.build import Config
from score_jax.files import write_text

LEVEL = math.exp(-0.5 * LOG_SNRS[1])  # sigma / alpha, of those that train at one noise level
SAMPLE_STEPS = (2, 64)
SEEDS = {"toy": 3, "digits": 1}
N_TEST = 2000  # points of the toy, and samples
QUICK = dict(steps=20, n=200)


class Objective(NamedTuple):
    """What an objective is, for the page, and the sections of the config that make it.

    Attributes:
      data: the sets on which it is measured.
      is_score: whether the model has a score of the noised data, to be held against the true one.
      is_density: whether it is trained at all noise levels and has a density by the ODE.
    """

    what: str
    sections: Config
    data: tuple[str, ...] = ("toy", "digits")
    is_score: bool = True
    is_density: bool = True


def _loss(name: str, **options) -> Config:
    return {"loss": dict(name=name) | options}


_TOY = ("toy",)
# the steps of DDIM are then Euler's along the straight path
_LINEAR = dict(sde=dict(name="linear"), sample=dict(name="ddim", grid="uniform"))
_LEARNED = dict(sde=dict(name="learned", log_snr_max=13.8, log_snr_min=-10.0))
_ENERGY = dict(model=dict(output="v", conservative=True))
# such a model has no other samples
_ONE_LEVEL = dict(sample=dict(name="langevin", level=LEVEL))
_CONSISTENCY = dict(
    model=dict(output="consistency", sigma_data=0.5), sample=dict(name="consistency")
)
OBJECTIVES = {
    "denoising": Objective("likelihood weighting, uniform in log-SNR", _loss("denoising")),
    "second_moment": Objective(
        "the same, times by their second moment", _loss("denoising", time_bins=32)
    ),
    "ddpm": Objective("DDPM: 1000 times, eps unweighted", _loss("ddpm")),
    "ncsn": Objective("NCSN: ten noise levels", _loss("ncsn")),
    "edm": Objective("EDM: log-normal noise levels", _loss("edm")),
    "min_snr": Objective("min-SNR", _loss("min_snr")),
    "soft_min_snr": Objective("soft min-SNR", _loss("soft_min_snr")),
    "sigmoid": Objective("sigmoid weighting", _loss("sigmoid")),
    "vdm": Objective("VDM's bound, the schedule fixed", _loss("vdm")),
    "vdm_learned": Objective(
        "VDM's bound, the schedule learned", _loss("vdm", grid="uniform") | _LEARNED
    ),
    "flow_matching": Objective("flow matching, linear path", _loss("flow_matching") | _LINEAR),
    "flow_cosine": Objective(
        "flow matching, cosine path", _loss("flow_matching") | dict(sde=dict(name="cosine"))
    ),
    "flow_ot": Objective(
        "flow matching, noise coupled by optimal transport",
        _loss("flow_matching") | _LINEAR | dict(train=dict(coupling="optimal")),
        _TOY,
        is_score=False,
    ),
    "energy": Objective("denoising, gradient of a scalar", _loss("denoising") | _ENERGY),
    "explicit": Objective("explicit: the true score is known", _loss("explicit"), _TOY),
    "implicit": Objective("implicit: exact trace", _loss("implicit"), _TOY),
    # on digits their steps are long: a few of them there
    "sliced": Objective("sliced, one direction of signs", _loss("sliced")),
    "sliced_4": Objective("sliced, four directions", _loss("sliced", n_projections=4), _TOY),
    "sliced_gaussian": Objective(
        "sliced, a Gaussian direction", _loss("sliced", projection="gaussian"), _TOY
    ),
    "sliced_sphere": Objective(
        "sliced, a direction on the sphere", _loss("sliced", projection="sphere"), _TOY
    ),
    "sliced_vr": Objective("sliced, variance reduced", _loss("sliced_vr")),
    "finite_difference": Objective("sliced by finite differences", _loss("finite_difference")),
    "sliced_energy": Objective("sliced, gradient of a scalar", _loss("sliced_vr") | _ENERGY, _TOY),
    "one_level": Objective(
        f"denoising at log-SNR {LOG_SNRS[1]:g} alone",
        _loss("denoising", level=LEVEL, weight="simple") | _ONE_LEVEL,
        _TOY,
        is_density=False,
    ),
    "sliced_one_level": Objective(
        f"sliced at log-SNR {LOG_SNRS[1]:g} alone",
        _loss("sliced_vr", level=LEVEL) | _ONE_LEVEL,
        _TOY,
        is_density=False,
    ),
    "consistency": Objective(
        "consistency training",
        _loss("consistency") | _CONSISTENCY,
        _TOY,
        is_score=False,
        is_density=False,
    ),
}

_OPTIM = dict(name="adam", lr=3e-3, b2=0.99, warmup=100, decay="cosine")
_PLANE = dict(
    net=dict(name="mlp", width=64, depth=3),
    optim=_OPTIM,
    # the assignment of optimal transport takes seconds for batches that are much larger
    train=dict(steps=4000, batch_size=128, ema=(0.99,)),
    eval=dict(batch_size=1000, trace="exact", solver="adams4", n_steps=60),
)
BASE: dict[str, Config] = {
    "toy": _PLANE | dict(data=dict(name="toy2d", shape="gaussians")),
    "unequal": _PLANE | dict(data=dict(name="toy2d", shape="unequal")),
    "digits": dict(
        data=dict(name="digits"),
        net=dict(name="unet", channels=32, multipliers=(1,), blocks=1, attention=(), dropout=0.0),
        optim=_OPTIM,
        train=dict(steps=800, batch_size=32, ema=(0.99,)),
        eval=dict(batch_size=120, solver="adams4", n_steps=40),
    ),
}
_COMMON = dict(
    sde=dict(name="vp"), model=dict(output="v"), sample=dict(name="ddim", grid="log_snr")
)


def config_of(data: str, sections: Config, steps: int | None = None, seed: int = 0) -> Config:
    """The resolved config of an objective's sections on a data set.

    Raises:
      build.ConfigError: they do not go together.
    """
    merged = (
        {"seed": seed} | _COMMON | BASE[data] | {k: v for k, v in sections.items() if k != "train"}
    )
    merged["train"] = merged["train"] | sections.get("train", {})
    if steps is not None:
        merged["train"] = merged["train"] | dict(steps=steps)
    if merged["loss"]["name"] == "vdm":
        # all rows spread the digits' levels over boxes; the toy has none
        decoder = "uniform" if data == "digits" else "gaussian"
        merged["loss"] = merged["loss"] | dict(decoder=decoder)
    return build.resolve(merged)


def row_of(data: str, objective: Objective, config: Config, n: int) -> dict[str, Any]:
    """What the page says of an objective on a data set: its cost; score, likelihood and samples as they apply.

    Args:
      n: test points and samples of the toy.
    """
    experiment = build.experiment(config)
    trained = fit(experiment)
    params = trained.state.averaged()
    found = {
        "step_seconds": trained.step_seconds,
        "compile_seconds": trained.compile_seconds,
        "mib": trained.mib,
    }
    if objective.is_density:
        found |= likelihood(experiment, params, n if data == "toy" else None)
    if data == "toy" and objective.is_score:
        found["score"] = score_errors(experiment, params, n)
    if data == "toy" and (objective.is_density or not objective.is_score):
        test, train = experiment.data.test.x[:n], experiment.data.train.x[:n]
        found["w2"] = [
            sliced_w2(draws(config, params, n, n_steps=steps), test) for steps in SAMPLE_STEPS
        ]
        found["w2_data"] = sliced_w2(train, test)  # a perfect sampler's
    return found


def kept(path: Path, made_for: Any, measure) -> dict[str, Any]:
    """What `measure()` found, from the file if it is there and was made for the same; a row takes its "seconds" too."""
    made_for = json.loads(json.dumps(made_for))
    if path.exists():
        saved = json.loads(path.read_text())
        if saved["made_for"] == made_for:
            return saved["found"]
    begun = time.time()
    found = measure()
    found = json.loads(json.dumps(found | {"seconds": time.time() - begun}))
    write_text(path, json.dumps({"made_for": made_for, "found": found}))
    return found


def rows_of(data: str, chosen: dict[str, Objective], folder: Path, steps: int | None, n: int):
    """Name -> row (`median`), of those of the chosen that are for this data set."""
    rows = {name: [] for name, objective in chosen.items() if data in objective.data}
    for seed, name in itertools.product(range(SEEDS[data]), rows):
        objective = chosen[name]
        config = config_of(data, objective.sections, steps, seed)
        measure = lambda o=objective, c=config: row_of(data, o, c, n)
        rows[name].append(kept(folder / f"{data}_{name}_{seed}.json", [config, n], measure))
        print(f"{data} {name} {seed}: " + json.dumps(rows[name][-1]), flush=True)
        jax.clear_caches()  # the programs of one row are of no use to the next
    return {name: median(each) for name, each in rows.items()}


def median(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One row for several seeds: medians, and for the error of a mean half the range of the means.

    The row itself, if there is one seed. Of times the least, which other work on the machine has
    lengthened least; "seconds" add up.
    """
    if len(rows) == 1:
        return rows[0]
    found = {}
    for key in rows[0]:
        values = np.array([row[key] for row in rows])
        middle = np.median(values, axis=0)
        if key in ("nll", "above", "score"):  # pairs of a mean and its error
            middle[..., 1] = 0.5 * np.ptp(values[..., 0], axis=0)
        found[key] = (np.min(values) if key.endswith("_seconds") else middle).tolist()
    return found | {"seconds": sum(row["seconds"] for row in rows)}


def low_density_of(folder: Path, steps: int | None, n: int):
    """`low_density.measure`'s numbers and arrays."""
    configs = {
        name: config_of("unequal", sections, steps)
        for name, sections in low_density.SECTIONS.items()
    }
    arrays_path = folder / "low_density.npz"

    def measure():
        numbers, arrays = low_density.measure(configs, n)
        np.savez(arrays_path, **arrays)
        return numbers

    numbers = kept(folder / "low_density.json", [configs, n], measure)
    print("low density: " + json.dumps(numbers), flush=True)
    with np.load(arrays_path) as arrays:
        return numbers, dict(arrays)


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="toy,digits", help="of toy, digits")
    parser.add_argument("--objectives", help="names, separated by commas; all if not given")
    parser.add_argument("--steps", type=int, help="optimiser steps, for both data sets")
    parser.add_argument("--quick", action="store_true", help="20 steps: whether it runs")
    root = Path(__file__).parent.parent
    parser.add_argument("--rows", type=Path, default=root / "runs" / "objectives")
    parser.add_argument("--out", type=Path, default=root / "docs")
    options = parser.parse_args(argv)
    names = (options.objectives or ",".join(OBJECTIVES)).split(",")
    for value, known in ((options.data.split(","), ("toy", "digits")), (names, OBJECTIVES)):
        for unknown in (word for word in value if word not in known):
            parser.error(f"no {unknown!r}; {build.choose(unknown, known)}")
    options.chosen = {name: OBJECTIVES[name] for name in names}
    return options


def main(argv: list[str]):
    options = arguments(argv)
    steps, n = (QUICK["steps"], QUICK["n"]) if options.quick else (options.steps, N_TEST)
    # without the cache of compiled programs, whose hits would pass for quick compilations
    with cli.user_errors():
        for folder in (options.rows, options.out):
            folder.mkdir(parents=True, exist_ok=True)
        # all configs before the first row: an objective that cannot be built is known at once
        for data in options.data.split(","):
            for objective in options.chosen.values():
                if data in objective.data:
                    build.experiment(config_of(data, objective.sections, steps))
    rows = {
        data: rows_of(data, options.chosen, options.rows, steps, n)
        for data in options.data.split(",")
    }
    density = low_density_of(options.rows, steps, n) if "toy" in rows else None
    pages.plot(options.out / "objectives.png", rows.get("toy", {}), density)
    page = pages.page(
        rows,
        density and density[0],
        {name: objective.what for name, objective in options.chosen.items()},
        configs={data: config_of(data, _loss("denoising"), steps) for data in rows},
        sample_steps=SAMPLE_STEPS,
        n=n,
        command=" ".join(["python benchmarks/objectives.py", *argv]),
        seeds=SEEDS,
        cores=os.cpu_count(),
        jax=jax.__version__,
        picture="objectives.png",
    )
    (options.out / "objectives.md").write_text(page)
    print(options.out / "objectives.md")


if __name__ == "__main__":
    main(sys.argv[1:])
