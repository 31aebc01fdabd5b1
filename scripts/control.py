"""Draws from a run's model what fits to a measurement of an image: inpainting, colorization and others.

    python scripts/control.py --workdir=runs/cifar --task=inpaint --mask=center --input=img.png --n=16
    python scripts/control.py --workdir=runs/cifar --task=deblur --width=1.5 --method=ddrm --std=0.05 --index=3
    python scripts/control.py --workdir=runs/cifar --task=sdedit --level=0.8 --input=img.png
    python scripts/control.py --list

The input is the whole image, from a file or by its --index in the test split; the measurement is
taken of it, with noise of --std in units where data are in [-1, 1]. A .png shows the input, what was
measured, and the samples; a .npz holds them as arrays `input`, `measured` and `x`.
"""

import ast
import inspect
import math
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from score_jax import build, cli, files, measurement, picture, posterior, run, samplers
from score_jax.build import ConfigError
from score_jax.data.base import DataSet, to_levels, to_model
from score_jax.data.image import read_image
from score_jax.model import bind
from score_jax.posterior import sdedit
from score_jax.posterior.tasks import MASKS, TASKS, named_mask

SDEDIT = "sdedit"


def listing() -> str:
    """Tasks and methods in columns."""
    lines = ["TASKS"]
    lines += [f"  {name:<18}{task.what}" for name, task in TASKS.items()]
    lines += [f"  {SDEDIT:<18}the input noised to --level, and sampled from there", "METHODS"]
    lines += [f"  {name:<18}{e.what} ({e.source})" for name, e in posterior.METHODS.items()]
    return "\n".join(lines)


class ListFlag(flags.BooleanFlag):
    """Prints tasks and methods and ends the program, as --help does."""

    def parse(self, argument):
        super().parse(argument)
        if self.value:
            print(listing())
            sys.exit(0)


WORKDIR = flags.DEFINE_string("workdir", None, "the run's folder; required")
TASK = flags.DEFINE_string("task", "inpaint", "what to draw; see --list")
METHOD = flags.DEFINE_string("method", "pigdm", "how; see --list")
OPTION = flags.DEFINE_multi_string("option", [], "of the method, as --option=eta=0.5; repeatable")
INPUT = flags.DEFINE_string("input", None, "an image file, or a .npy of the data's shape")
INDEX = flags.DEFINE_integer("index", None, "an example of the test split for the input")
MASK = flags.DEFINE_string(
    "mask", "center", f"what inpaint hides: {', '.join(MASKS)}, or a grey image, black hidden"
)
SHARE = flags.DEFINE_float("share", 0.2, "of pixels that random_mask observes")
FACTOR = flags.DEFINE_integer("factor", 4, "of super_resolution")
WIDTH = flags.DEFINE_float("width", 1.0, "of deblur's filter, its standard deviation in pixels")
STD = flags.DEFINE_float("std", 0.0, "of the measurement's noise")
LEVEL = flags.DEFINE_float("level", 1.0, "sigma / alpha at which sdedit starts")
N = flags.DEFINE_integer("n", 16, "how many samples", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 100, "of the sampler", lower_bound=1)
LABEL = flags.DEFINE_integer("label", None, "class, for a model that knows classes", lower_bound=0)
SEED = flags.DEFINE_integer("seed", 0, "of the noise")
EMA = flags.DEFINE_string(
    "ema", None, "of which average of the parameters, as of eval.py; default: the first"
)
OUT = flags.DEFINE_string("out", "control.png", "file to write, .png or .npz")
flags.DEFINE_flag(ListFlag("list", False, "print tasks and methods, and end"))


def read_pixels(path: Path, data: DataSet) -> np.ndarray:
    """One example as it is stored, from a file; ConfigError on a wrong shape or range."""
    if path.suffix == ".npy":
        x = np.load(path)
    elif len(data.shape) == 3:
        try:
            x = read_image(path.read_bytes(), None, data.shape[-1])
        except ValueError as error:
            raise ConfigError(f"{path} {error}") from error
    else:
        raise ConfigError(
            f"--input={path}: the run's data are no images; give a .npy, or --index=0"
        )
    if x.shape != data.shape:
        raise ConfigError(f"{path} has shape {x.shape}; the model's is {data.shape}: resize it")
    if data.levels is None:
        if not (x.dtype.kind in "iuf" and np.all(np.isfinite(x))):
            raise ConfigError(f"{path} must hold finite numbers")
        return x.astype(np.float32)
    if x.dtype.kind not in "iu" or x.min() < 0 or x.max() >= data.levels:
        raise ConfigError(
            f"{path} has values from {x.min()} to {x.max()}; the data have integers from 0 to "
            f"{data.levels - 1}"
        )
    return x.astype(np.uint8)


def read_input(data: DataSet) -> tuple[np.ndarray, int | None]:
    """The input as it is stored, and its class if it is known."""
    if (INPUT.value is None) == (INDEX.value is None):
        raise ConfigError("give one of --input=FILE and --index=NUMBER")
    if INPUT.value is not None:
        return read_pixels(Path(INPUT.value), data), None
    n = len(data.test.x)
    if not 0 <= INDEX.value < n:
        raise ConfigError(f"--index={INDEX.value} is not in the test split, 0 to {n - 1}")
    label = data.test.label
    return data.test.x[INDEX.value], None if label is None else int(label[INDEX.value])


def read_mask(shape: tuple[int, ...]) -> np.ndarray:
    """True where the input is observed."""
    if len(shape) != 3:
        raise ConfigError(f"inpaint needs images, and the run's data have shape {shape}")
    if MASK.value in MASKS:
        return named_mask(MASK.value, shape)
    path = Path(MASK.value)
    if not path.is_file():
        raise ConfigError(f"--mask={path} is no file; {build.choose(str(path), MASKS)}")
    try:
        mask = read_image(path.read_bytes(), None, 1)[..., 0] >= 128
    except ValueError as error:
        raise ConfigError(f"--mask={path} {error}") from error
    if mask.shape != shape[:2]:
        raise ConfigError(f"--mask={path} is {mask.shape}; the model's images are {shape[:2]}")
    return mask


def measurement_of(shape: tuple[int, ...]) -> measurement.Measurement:
    """The task's, with the flags that it asks for."""
    if not (math.isfinite(STD.value) and STD.value >= 0):
        raise ConfigError(f"--std={STD.value:g} must be finite and at least 0")
    task = TASKS[TASK.value]
    values = {
        "mask": lambda: read_mask(shape),
        "share": lambda: SHARE.value,
        "seed": lambda: SEED.value,
        "factor": lambda: FACTOR.value,
        "width": lambda: WIDTH.value,
    }
    return task.make(shape, std=STD.value, **{name: values[name]() for name in task.options})


def method_of(name: str, options: list[str]) -> posterior.Method:
    """The method with its options read from NAME=VALUE."""
    if name not in posterior.METHODS:
        choices = build.choose(name, posterior.METHODS)
        raise ConfigError(f"--method={name} is no method; {choices}")
    make = posterior.METHODS[name].make
    known, given = inspect.signature(make).parameters, {}
    for item in options:
        option, equals, text = item.partition("=")
        if option not in known or not equals:
            wanted = build.choose(option, known)
            raise ConfigError(f"--option={item}: write NAME=VALUE with a name of {name}; {wanted}")
        given[option] = _number(item, text, known[option])
    return make(**given)


def _number(item, text, parameter):
    is_whole = parameter.annotation in (int, int | None)
    if parameter.annotation is str:
        if text not in samplers.VARIANCES:
            raise ConfigError(f"--option={item}: {build.choose(text, samplers.VARIANCES)}")
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = None
    if isinstance(value, bool) or not isinstance(value, int if is_whole else (int, float)):
        raise ConfigError(
            f"--option={item} must be a {'whole number' if is_whole else 'number'}, as "
            f"{parameter.name}={parameter.default or 8}"
        )
    if not math.isfinite(value) or value < 0:
        raise ConfigError(f"--option={item} must be finite and at least 0")
    return value if is_whole else float(value)


def check_task(name: str):
    if name not in (*TASKS, SDEDIT):
        choices = build.choose(name, (*TASKS, SDEDIT))
        raise ConfigError(f"--task={name} is no task; {choices}")


def label_of(experiment: build.Experiment, known: int | None) -> int | None:
    """The class to draw, None for a model without."""
    n_classes = experiment.data.n_classes if experiment.labels else 0
    if LABEL.value is not None and LABEL.value >= n_classes:
        raise ConfigError(
            f"--label={LABEL.value}, but the run's model knows {n_classes} classes, from 0"
        )
    label = known if LABEL.value is None else LABEL.value
    if n_classes and label is None:
        raise ConfigError(f"the run's model knows {n_classes} classes; give --label, from 0")
    return label if n_classes else None


def main(overrides: list[str]) -> int:
    with cli.user_errors():
        folder, out = Path(WORKDIR.value), Path(OUT.value)
        check_task(TASK.value)
        for item in overrides:
            if item.startswith(f"{cli.PREFIX}sample."):
                raise ConfigError(
                    f"{item} has no effect here; --list shows methods, --steps how many"
                )
        method = method_of(METHOD.value, OPTION.value)
        if out.suffix not in (".png", ".npz") or out.is_dir():
            raise ConfigError(f"--out={out} must be a file that ends in .png or .npz")
        experiment = build.experiment(cli.load_run(folder, overrides, "sample"))
        model, data = experiment.model, experiment.data
        given, known = read_input(data)
        label = label_of(experiment, known)
        step, params = run.averaged_params(folder, experiment, EMA.value)
        sde = model.sde(params)
        if sde.force is not None:
            raise ConfigError("the run's SDE has a force, under which x_t is no noised x0")
        middle = 0.0 if data.levels is None else 0.5
        x0 = jnp.asarray(to_model(given.astype(np.float32) + middle, data.levels))[None]
        # one row of noise for the measurement, the others for the samples
        keys = jax.random.split(jax.random.key(SEED.value), N.value + 1)
        labels = None if label is None else jnp.full(N.value, label)
        of_params = lambda params: (model.sde(params), bind(model, params))
        repeated = lambda a: jnp.repeat(a, N.value, axis=0)
        if TASK.value == SDEDIT:
            shown = x0
            draw = sdedit.drawer(of_params, level=LEVEL.value, n_steps=STEPS.value)
            sdedit.check_level(sde, LEVEL.value)
        else:
            operator = measurement_of(data.shape)
            y = measurement.measure(keys[:1], operator, x0)
            shown = measurement.pseudo_inverse(operator, y)
            # refuses what the method cannot do, before anything is computed
            method.steps(sde, bind(model, params), operator, repeated(y))
            draw = posterior.drawer(method, of_params, operator, n_steps=STEPS.value)
        out.parent.mkdir(parents=True, exist_ok=True)

    source = x0 if TASK.value == SDEDIT else y
    x = draw(keys[1:], params, repeated(source), labels)
    ok = np.asarray(jnp.all(jnp.isfinite(x.reshape(len(x), -1)), axis=1))
    if not ok.all():
        failed = f"the method failed on {np.sum(~ok)} of {N.value} samples"
        print(f"control.py: {failed}; take more --steps, or another --option", file=sys.stderr)
        return 1
    stored = lambda x: np.asarray(to_levels(x, data.levels))
    arrays = dict(input=given[None], measured=stored(shown), x=stored(x))
    if out.suffix == ".npz":
        files.write(out, partial(_savez, arrays))
    else:
        picture.save(out, np.concatenate(list(arrays.values())), data.levels)
    how = SDEDIT if TASK.value == SDEDIT else f"{TASK.value} by {METHOD.value}"
    print(f"{N.value} samples at step {step}, {how}: {out}")
    return 0


def _savez(arrays, part):
    np.savez_compressed(part, **arrays)


if __name__ == "__main__":
    cli.run(main, required=WORKDIR)
