"""What control costs and gives: guided samples by scale before a judge, and images drawn again from measurements.

    python benchmarks/control.py --model=runs/conditional --guide=runs/guide --judge=runs/judge
    python benchmarks/control.py --model=... --guide=... --judge=... --rgb=runs/cifar
    python benchmarks/control.py --model=... --guide=... --judge=... --quick --out=/tmp/quick

The model is class-conditional, trained with label dropout; guide and judge are classifiers, trained apart.
Samples are kept in --rows, one file for each setting: a run that was killed goes on with the next
one, and a setting whose run or options have changed is drawn again. Writes control.md and its pictures
into docs/ or --out. Wants scikit-image.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

import control_guidance as guided
import control_page as pages
import control_restoration as restoration
import jax
import jax.numpy as jnp
import numpy as np
from control_runs import Kept, Run, as_levels, load_classifier, load_model

from score_jax import cli, measurement
from score_jax.build import ConfigError

N_SHOWN = 8  # images in a picture of restoration


class Size(NamedTuple):
    """How much is drawn.

    Attributes:
      n, n_test: samples of each scale, and test images to hold them against.
      evaluations: of the network for an image, a multiple of 20.
    """

    scales: tuple[float, ...] = (0.0, 1.0, 2.0, 4.0, 8.0)
    n: int = 160
    n_test: int = 4000
    n_steps: int = 25
    images: int = 32
    rgb_images: int = 8
    evaluations: int = 100
    grey_tasks: tuple[str, ...] = ("inpaint", "super_resolution", "deblur")
    colour_tasks: tuple[str, ...] = ("inpaint", "colorize")


QUICK = Size((0.0, 1.0, 4.0), 20, 100, 3, 2, 2, 20, ("deblur",), ("colorize",))


def guidance_part(model: Run, guide: Run, judge: Run, size: Size, options) -> tuple[str, float]:
    """The section on guidance, with its pictures written, and the seconds of sampling."""
    data = model.experiment.data
    found = guided.samples(model, guide, size.scales, size.n, size.n_steps, options.rows)
    by_setting, test = guided.judge(found, model, guide, judge, size.n_test)
    pictures = []
    for kind in guided.KINDS:
        columns = [found[kind, scale].x[: data.n_classes] for scale in size.scales]
        images = as_levels(np.stack(columns, axis=1), data.levels)
        path = options.out / f"control_{kind}.png"
        titles = [f"scale {scale:g}" for scale in size.scales]
        pages.plate(path, images, titles, list(data.class_names), data.levels)
        pictures.append(path)
    text = pages.guidance_section(
        by_setting,
        test,
        pictures,
        data=model.data_name,
        n=size.n,
        n_test=size.n_test,
        n_steps=size.n_steps,
        dropout=model.experiment.train.label_dropout,
        model_step=model.made_of["step"],
        **{
            f"{name}_step": run.made_of["step"]
            for name, run in (("judge", judge), ("guide", guide))
        },
        judge_seed=judge.experiment.seed,
        guide_seed=guide.experiment.seed,
        difference=pages.difference(judge.made_of["config"], guide.made_of["config"]),
    )
    drawn = {id(kept): kept for kept in found.values()}  # scale 0 is there twice
    return text, sum(kept.seconds for kept in drawn.values())


def restoration_part(model: Run, tasks, n: int, size: Size, options) -> tuple[str, float]:
    """The section on a data set's images, with its pictures written, and the seconds of sampling."""
    data = model.experiment.data
    found = restoration.restored(model, tasks, n, size.evaluations, options.rows)
    scores, pictures = {}, []
    for task, by_method in found.items():
        scores[task] = {
            name: restoration.scores(task, model, kept.x) for name, kept in by_method.items()
        }
        path = options.out / f"control_{model.data_name}_{task}.png"
        pages.plate(path, *_columns(task, model, by_method, n), data.levels)
        pictures.append(path)
        unusable = sum(np.sum(~np.isfinite(kept.x)) for kept in by_method.values())
        if unusable:
            print(f"{task}: {unusable} pixels are not finite, and count as black", flush=True)
    text = pages.restoration_section(
        scores,
        pictures,
        data=model.data_name,
        n=n,
        evaluations=size.evaluations,
        step=model.made_of["step"],
    )
    each = (kept.seconds for by_method in found.values() for kept in by_method.values())
    return text, sum(each)


def _columns(task: str, model: Run, by_method: dict[str, Kept], n: int):
    """Images [rows, columns, h, w, c] in levels, and the titles of columns and rows."""
    data = model.experiment.data
    a, truth, y = restoration.measured(task, data, n)
    # a measurement that is an image of the same size is shown itself
    is_image = y.shape[1:3] == truth.shape[1:3]
    shown = jnp.broadcast_to(y, truth.shape) if is_image else measurement.pseudo_inverse(a, y)
    drawn = {name: kept.x for name, kept in by_method.items() if name != restoration.TRIVIAL}
    images = {"truth": truth, "measured": shown} | drawn
    rows = min(n, N_SHOWN)
    stacked = np.stack([np.asarray(x)[:rows] for x in images.values()], axis=1)
    label = restoration.test_images(data, n)[1]
    titles = [data.class_names[k] if data.class_names else "" for k in label[:rows]]
    return as_levels(stacked, data.levels), list(images), titles


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, what in (
        ("model", "a class-conditional run"),
        ("guide", "a run of a classifier that guides"),
        ("judge", "a run of another classifier that judges"),
    ):
        parser.add_argument(f"--{name}", type=Path, required=True, help=what)
    parser.add_argument("--rgb", type=Path, help="a run on colour images")
    parser.add_argument(
        "--quick", action="store_true", help="few samples and steps: whether it runs"
    )
    root = Path(__file__).parent.parent
    parser.add_argument("--rows", type=Path, default=root / "runs" / "control")
    parser.add_argument("--out", type=Path, default=root / "docs")
    return parser.parse_args(argv)


def command(options: argparse.Namespace) -> str:
    """How the page was made, the runs by their names alone."""
    given = ((name, getattr(options, name)) for name in ("model", "guide", "judge", "rgb"))
    words = [f"--{name}=runs/{folder.resolve().name}" for name, folder in given if folder]
    return " ".join(["python benchmarks/control.py", *words, *["--quick"] * options.quick])


def load(options: argparse.Namespace) -> tuple[Run, Run, Run, Run | None]:
    """Model, guide, judge and the run on colour images.

    Raises:
      ConfigError, FileNotFoundError: one line on which does not fit.
    """
    model = load_model(options.model)
    if not model.experiment.labels or not model.experiment.train.label_dropout:
        raise ConfigError(
            f"the run in {options.model} is not class-conditional with label dropout; train one with "
            "config.model.class_conditional=true and config.train.label_dropout=0.1"
        )
    if options.guide.resolve() == options.judge.resolve():
        raise ConfigError(
            f"--guide and --judge are both {options.guide}; the judge must be another run"
        )
    name = model.experiment.data.name
    guide, judge = (load_classifier(folder, name) for folder in (options.guide, options.judge))
    rgb = None if options.rgb is None else load_model(options.rgb)
    if rgb is not None and rgb.experiment.data.shape[-1] != 3:
        raise ConfigError(f"the run in {options.rgb} makes no colour images; leave --rgb out")
    return model, guide, judge, rgb


def main(argv: list[str]):
    options = arguments(argv)
    size, begun = QUICK if options.quick else Size(), time.time()
    cli.use_compilation_cache()
    with cli.user_errors():
        for folder in (options.rows, options.out):
            folder.mkdir(parents=True, exist_ok=True)
        model, guide, judge, rgb = load(options)
    parts = [guidance_part(model, guide, judge, size, options)]
    jax.clear_caches()  # the programs of one part are of no use to the next
    parts.append(restoration_part(model, size.grey_tasks, size.images, size, options))
    jax.clear_caches()
    if rgb is not None:
        parts.append(restoration_part(rgb, size.colour_tasks, size.rgb_images, size, options))
    text = pages.page(
        [section for section, _ in parts],
        command=command(options),
        minutes=sum(seconds for _, seconds in parts) / 60,
        cores=os.cpu_count(),
        jax=jax.__version__,
    )
    (options.out / "control.md").write_text(text)
    print(f"{options.out / 'control.md'}, after {(time.time() - begun) / 60:.1f} minutes")


if __name__ == "__main__":
    main(sys.argv[1:])
