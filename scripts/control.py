"""Draws from a run's model what was asked for: of a class, given a measurement of an image, or between two.

    python scripts/control.py --workdir=runs/cifar --task=class --label=3 --option=scale=3
    python scripts/control.py --workdir=runs/cifar --task=class --method=and --label=3 --not=7
    python scripts/control.py --workdir=runs/cifar --task=inpaint --mask=center --input=img.png --n=16
    python scripts/control.py --workdir=runs/cifar --task=deblur --width=1.5 --method=ddrm --std=0.05 --index=3
    python scripts/control.py --workdir=runs/cifar --task=sdedit --level=0.8 --input=img.png
    python scripts/control.py --workdir=runs/cifar --task=interpolate --input=a.png --input=b.png --n=8
    python scripts/control.py --list

Tasks `class` and `sdedit` draw by the run's own sampler, which --config.sample.OPTION=VALUE
overrides. An input is the whole image, from a file or by its --index in the test split; a measurement
is taken of it, with noise of --std in units where data are in [-1, 1]. A .png shows what was given
and the samples, or the row from one input to the other; a .npz holds them as arrays `input`,
`measured`, `label` and `x`. A measurement of another shape than the data's is shown by the simplest
example that agrees with it. Of an example of the test split the class is known, and is the default of
--label.
"""

import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from score_jax import (
    build,
    cli,
    control,
    files,
    guided,
    interpolation,
    measurement,
    options,
    picture,
    posterior,
    run,
    workdir,
)
from score_jax.build import ConfigError
from score_jax.control import Compute, Judge, Loaded
from score_jax.data import example
from score_jax.posterior.tasks import MASKS, TASKS, named_mask


class ListFlag(flags.BooleanFlag):
    """Prints tasks and methods and ends the program, as --help does."""

    def parse(self, argument):
        super().parse(argument)
        if self.value:
            print(listing())
            sys.exit(0)


WORKDIR = flags.DEFINE_string("workdir", None, "the run's folder; required")
TASK = flags.DEFINE_string("task", "inpaint", "what to draw; see --list")
METHOD = flags.DEFINE_string("method", None, "how; see --list")
OPTION = flags.DEFINE_multi_string("option", [], "of the method, as --option=eta=0.5; repeatable")
INPUT = flags.DEFINE_multi_string("input", [], "an image file, or a .npy of the data's shape")
INDEX = flags.DEFINE_multi_integer("index", [], "an example of the test split for the input")
MASK = flags.DEFINE_string(
    "mask", "center", f"what inpaint hides: {', '.join(MASKS)}, or a grey image, black hidden"
)
SHARE = flags.DEFINE_float("share", 0.2, "of pixels that random_mask observes")
FACTOR = flags.DEFINE_integer("factor", 4, "of super_resolution")
WIDTH = flags.DEFINE_float("width", 1.0, "of deblur's filter, its standard deviation in pixels")
STD = flags.DEFINE_float("std", 0.0, "of the measurement's noise")
LEVEL = flags.DEFINE_float("level", 1.0, "sigma / alpha at which sdedit starts")
N = flags.DEFINE_integer("n", 16, "how many samples", lower_bound=1)
STEPS = flags.DEFINE_integer(
    "steps", None, "of the sampler; default: 100, or the run's own", lower_bound=1
)
LABEL = flags.DEFINE_multi_integer(
    "label", [], "class, for a model that knows classes; repeatable", lower_bound=0
)
NOT = flags.DEFINE_multi_integer("not", [], "class not to be of; repeatable", lower_bound=0)
CLASSIFIER = flags.DEFINE_string("classifier", None, "folder of a classifier's run")
SEED = flags.DEFINE_integer("seed", 0, "of the noise", lower_bound=0, upper_bound=2**32 - 1)
EMA = flags.DEFINE_string(
    "ema", None, "of which average of the parameters, as of eval.py; default: the first"
)
OUT = flags.DEFINE_string("out", "control.png", "file to write, .png or .npz")
flags.DEFINE_flag(ListFlag("list", False, "print tasks and methods, and end"))


class Kind(NamedTuple):
    """A kind of task.

    Attributes:
      prepare: prepare(loaded, method, overrides) refuses what cannot work, and compiles nothing; it
        returns the computation.
      flags: that it reads, beside those that all tasks have.
      methods, default: by name, and which is taken without --method.
      sampler: whether it draws by the run's own.
      what: in words, of a task that is alone of its kind.
    """

    prepare: Callable[[Loaded, Any, list[str]], Compute]
    flags: tuple[str, ...]
    methods: Mapping[str, Any] = MappingProxyType({})
    default: str | None = None
    sampler: bool = False
    what: str = ""


def given_inputs(loaded: Loaded, n: int) -> tuple[np.ndarray, list[int | None]]:
    """The n inputs as they are stored, [n, *event], files first, and their classes if they are known."""
    data = loaded.experiment.data
    if len(INPUT.value) + len(INDEX.value) != n:
        many = "one of" if n == 1 else f"{n} in all of"
        raise ConfigError(f"give {many} --input=FILE and --index=NUMBER")
    pairs = [(example.from_file(Path(path), data), None) for path in INPUT.value]
    pairs += [example.from_test(index, data) for index in INDEX.value]
    stored, labels = zip(*pairs, strict=True)
    return np.stack(stored), list(labels)


def one_label(loaded: Loaded, known: int | None = None) -> int | None:
    """The class to draw, None for a model without, and for no class of one that has seen that too."""
    if len(LABEL.value) > 1:
        raise ConfigError(
            f"--task={TASK.value} takes one --label, and {len(LABEL.value)} are given"
        )
    experiment = loaded.experiment
    n_classes = experiment.data.n_classes if experiment.labels else 0
    label = LABEL.value[0] if LABEL.value else known
    if LABEL.value and label >= n_classes:
        raise ConfigError(f"--label={label}, but the run's model knows {n_classes} classes, from 0")
    if n_classes and label is None and not experiment.train.label_dropout:
        raise ConfigError(f"the run's model knows {n_classes} classes; give --label, from 0")
    return label if n_classes else None


def masked(shape: tuple[int, ...]) -> np.ndarray:
    """True where the input is observed."""
    if len(shape) != 3:
        raise ConfigError(f"inpaint needs images, and the run's data have shape {shape}")
    if MASK.value in MASKS:
        return named_mask(MASK.value, shape)
    if not Path(MASK.value).is_file():
        raise ConfigError(f"--mask={MASK.value} is no file; {build.choose(MASK.value, MASKS)}")
    return example.mask_from_file(Path(MASK.value), shape)


def measurement_of(shape: tuple[int, ...]) -> measurement.Measurement:
    """The task's, with the flags that it asks for."""
    if not (math.isfinite(STD.value) and STD.value >= 0):
        raise ConfigError(f"--std={STD.value:g} must be finite and at least 0")
    task = TASKS[TASK.value]
    values = {
        "mask": lambda: masked(shape),
        "share": lambda: SHARE.value,
        "seed": lambda: SEED.value,
        "factor": lambda: FACTOR.value,
        "width": lambda: WIDTH.value,
    }
    return task.make(shape, std=STD.value, **{name: values[name]() for name in task.options})


def measured(loaded: Loaded, method: posterior.Method, overrides: list[str]) -> Compute:
    """Samples given a measurement of the input."""
    given, (known,) = given_inputs(loaded, 1)
    label, operator = one_label(loaded, known), measurement_of(loaded.experiment.data.shape)
    drawn = dict(n=N.value, n_steps=STEPS.value or 100, seed=SEED.value)
    return control.measured(loaded, method, operator, given, label, **drawn)


def read_classifier(loaded: Loaded, overrides: list[str]) -> Judge:
    """The classifier of --classifier, if it is one and of the run's data."""
    if CLASSIFIER.value is None:
        raise ConfigError("--method=classifier needs --classifier=FOLDER of a classifier's run")
    folder, where = Path(CLASSIFIER.value), f"--classifier={CLASSIFIER.value}"
    data_only = [item for item in overrides if _key(item) in workdir.FREE]
    config = cli.load_run(folder, data_only, "eval")
    if config["loss"]["name"] != "cross_entropy":
        raise ConfigError(
            f"{where} is no classifier's run, its config.loss.name is {config['loss']['name']!r}; "
            "train one: configs/classifier_fashion_mnist.py"
        )
    judge, data = build.experiment(config), loaded.experiment.data
    if judge.data.shape != data.shape:
        raise ConfigError(
            f"{where} knows examples of shape {judge.data.shape}, and the run's are {data.shape}; "
            "take one of the same data"
        )
    if data.n_classes and judge.data.n_classes != data.n_classes:
        raise ConfigError(
            f"{where} knows {judge.data.n_classes} classes, and the run's data {data.n_classes}; "
            "take one of the same data"
        )
    same_sde = config["sde"] == loaded.config["sde"] and config["sde"]["name"] != "learned"
    _, params = run.averaged_params(folder, judge)
    return Judge(judge.model, params, judge.data.n_classes, same_sde)


def _key(item):
    return item.removeprefix(cli.PREFIX).partition("=")[0]


def of_class(loaded: Loaded, guide: guided.Guide, overrides: list[str]) -> Compute:
    """Samples of classes, by a guided model and the run's own sampler."""
    name, judge = METHOD.value or CLASS.default, None
    if loaded.config["loss"]["name"] == "consistency" and name != "conditional":
        why = loaded.experiment.no_bits
        raise ConfigError(f"--method={name} adds scores, and {why}; take --method=conditional")
    if guided.METHODS[name].classifier:
        judge = read_classifier(loaded, overrides)
    elif CLASSIFIER.value is not None:
        raise ConfigError(f"--classifier={CLASSIFIER.value} is for --method=classifier, not {name}")
    asked = tuple(LABEL.value), tuple(NOT.value)
    return control.of_class(loaded, name, guide, *asked, judge, n=N.value, seed=SEED.value)


def edited(loaded: Loaded, method: None, overrides: list[str]) -> Compute:
    """Samples from the input noised to a level, by the run's own sampler."""
    if loaded.config["sample"]["name"] == "langevin":
        raise ConfigError(
            "config.sample.name is 'langevin', which has no times to begin in the middle of; take "
            "another for --task=sdedit, as ddim"
        )
    given, (known,) = given_inputs(loaded, 1)
    label, drawn = one_label(loaded, known), dict(n=N.value, seed=SEED.value)
    return control.edited(loaded, given, label, level=LEVEL.value, **drawn)


def interpolated(loaded: Loaded, make: interpolation.MakeRow, overrides: list[str]) -> Compute:
    """A row from one input to the other."""
    if N.value < 2:
        raise ConfigError(f"--n={N.value}, but a row has two ends; give --n=2 or more")
    given, _ = given_inputs(loaded, 2)
    return control.between(loaded, make, given, one_label(loaded), n=N.value)


ONE_INPUT = "input", "index", "label"
MEASURE = Kind(measured, (*ONE_INPUT, "std", "steps", "seed"), posterior.METHODS, "pigdm")
CLASS = Kind(
    of_class,
    ("label", "not", "classifier", "steps", "seed"),
    guided.METHODS,
    "classifier_free",
    sampler=True,
    what="of a class, of several at once, or not of one",
)
EDIT = Kind(
    edited,
    (*ONE_INPUT, "level", "steps", "seed"),
    sampler=True,
    what="the input noised to --level, and sampled from there (Meng et al. 2022, arXiv 2108.01073)",
)
BETWEEN = Kind(
    interpolated,
    ONE_INPUT,
    interpolation.METHODS,
    "slerp",
    what="a row of --n examples from one input to another",
)
KINDS = {name: MEASURE for name in TASKS}
KINDS |= {"class": CLASS, "sdedit": EDIT, "interpolate": BETWEEN}


def flags_of(task: str) -> list[str]:
    """Those that the task reads, beside those that all tasks have."""
    kind = KINDS[task]
    own = TASKS[task].options if task in TASKS else ()
    methods = ("method", "option") if kind.methods else ()
    return [*(name for name in own if name not in kind.flags), *kind.flags, *methods]


def listing() -> str:
    """Tasks with their flags, and the methods of each kind with their options."""
    lines = ["TASKS"]
    for name, kind in KINDS.items():
        lines.append(f"  {name:<18}{kind.what or TASKS[name].what}")
        own = " --config.sample.OPTION" if kind.sampler else ""
        lines.append(f"  {'':<18}{' '.join(f'--{flag}' for flag in flags_of(name))}{own}")
    for kind in (MEASURE, CLASS, BETWEEN):
        tasks = ", ".join(name for name, other in KINDS.items() if other is kind)
        lines.append(f"METHODS of {tasks}; default {kind.default}")
        for name, entry in kind.methods.items():
            lines.append(f"  {name:<18}{entry.what} ({entry.source})")
            written = " ".join(options.listed(entry.make))
            lines += [f"  {'':<18}--option: {written}"] if written else []
    lines.append("TEMPERATURE, of whole samples: scripts/sample.py --temperature=0.8")
    return "\n".join(lines)


def check_flags(overrides: list[str]):
    """Raises ConfigError for an unknown task, and for flags that it does not read."""
    name = TASK.value
    if name not in KINDS:
        raise ConfigError(f"--task={name} is no task; {build.choose(name, KINDS)}")
    read, every = flags_of(name), {flag for task in KINDS for flag in flags_of(task)}
    for flag in sorted(every - set(read)):
        if flags.FLAGS[flag].present:
            takes = ", ".join(f"--{each}" for each in read)
            raise ConfigError(f"--{flag} is not for --task={name}, which takes {takes}")
    for item in overrides:
        if _key(item).startswith("sample.") and not KINDS[name].sampler:
            raise ConfigError(f"{item} has no effect here; --list shows methods, --steps how many")
        if _key(item) == "sample.n_steps" and STEPS.value:
            raise ConfigError(f"--steps={STEPS.value} is short for {item}; give one of them")


def method_of(kind: Kind):
    """The method with its options, None for a task that has no methods."""
    if not kind.methods:
        return None
    name = METHOD.value or kind.default
    if name not in kind.methods:
        raise ConfigError(
            f"--method={name} is no method of {TASK.value}; {build.choose(name, kind.methods)}"
        )
    make = kind.methods[name].make
    return make(**options.read("option", name, make, OPTION.value))


def load(overrides: list[str]) -> Loaded:
    """The run of --workdir; refuses one from which nothing can be drawn that is asked for."""
    folder = Path(WORKDIR.value)
    if KINDS[TASK.value].sampler and STEPS.value:
        overrides = [*overrides, f"{cli.PREFIX}sample.n_steps={STEPS.value}"]
    config = cli.load_run(folder, overrides, "sample")
    experiment = build.experiment(config)
    if experiment.no_samples:
        raise ConfigError(f"--workdir={folder}: {experiment.no_samples}")
    if experiment.no_bits and TASK.value != "class":
        raise ConfigError(f"--task={TASK.value} needs a score at every time; {experiment.no_bits}")
    if EMA.value == "all":
        raise ConfigError("--ema=all is for eval.py; name one average")
    step, params = run.averaged_params(folder, experiment, EMA.value)
    if experiment.model.sde(params).force is not None:
        raise ConfigError("the run's SDE has a force, under which x_t is no noised x0")
    return Loaded(config, experiment, step, params)


def main(overrides: list[str]) -> int:
    with cli.user_errors():
        out = Path(OUT.value)
        check_flags(overrides)
        kind = KINDS[TASK.value]
        method = method_of(kind)
        if out.suffix not in (".png", ".npz") or out.is_dir():
            raise ConfigError(f"--out={out} must be a file that ends in .png or .npz")
        loaded = load(overrides)
        compute = kind.prepare(loaded, method, overrides)
        out.parent.mkdir(parents=True, exist_ok=True)

    result = compute()
    if failed := int(np.sum(~result.ok)):
        print(
            f"control.py: the method failed on {failed} of {N.value} samples; take more --steps, or "
            "another --option",
            file=sys.stderr,
        )
        return 1
    if out.suffix == ".npz":
        files.write(out, lambda part: np.savez_compressed(part, **result.arrays))
    else:
        picture.save(out, result.shown, loaded.experiment.data.levels)
    how = f" by {METHOD.value or kind.default}" if kind.methods else ""
    print(f"{N.value} samples at step {loaded.step}, {TASK.value}{how}: {out}")
    return 0


if __name__ == "__main__":
    cli.run(main, required=WORKDIR)
