"""From a config to the functions and records that it names: the only module that reads a config.

A section with a `name` is that constructor's name in the section's table and its keyword arguments;
a section without is the arguments of one constructor. `resolve` writes out every default, so that a
saved config is complete and each of its values can be overridden by name.
"""

import difflib
import inspect
import math
import sys
import types
import typing
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from score_jax import (
    dequantize,
    elbo,
    evaluate,
    grids,
    likelihood,
    losses,
    optim,
    parallel,
    predict,
    samplers,
    sampling,
    sde,
    solve,
    train,
    variational,
    whiten,
)
from score_jax import model as models
from score_jax.data.array import array
from score_jax.data.base import DataSet
from score_jax.data.cifar10 import cifar10
from score_jax.data.digits import digits
from score_jax.data.fashion_mnist import fashion_mnist
from score_jax.data.folder import ON_BAD_IMAGE, folder
from score_jax.data.tfds import tfds
from score_jax.data.toy2d import SHAPES, toy2d
from score_jax.model import Model
from score_jax.nets import families, unet
from score_jax.nets.dequantizer import CouplingFlow
from score_jax.nets.mlp import MLP
from score_jax.types import LossFn

# section -> option -> number, string, boolean, None or tuple of them; `seed` is a number
Config = dict[str, Any]


class ConfigError(ValueError):
    """A config that cannot be built: one line naming the value, the rule and the choices."""


class EvalOptions(NamedTuple):
    """The eval section: how bits/dim are computed.

    Attributes:
      batch_size: examples per call, over all devices together; it changes no result beyond rounding.
      dequantize: how levels become points, one of `dequantize.DEQUANTIZATIONS`, or "as_trained".
      t_min: where the density is taken and the ELBO ends, not before the SDE's own t_min, which None
        stands for; later it wants the dequantization "decoder".
      trace, n_probes: of the divergence, one of `likelihood.TRACES`, and of how many probes.
      whiten: the Gaussian near the data that the solver uses, one of `whiten.WHITENINGS`.
      grid, solver, n_steps, rtol, atol: of the probability-flow ODE (`solve.ode`); n_steps = None
        adapts the steps.
      importance: samples of the importance-weighted bound; 1 is the plain one.
      fit_grid: steps where the model needs them (`steps`), found on training images.
      elbo_times, elbo_form, elbo_decoder: times at which each example's ELBO is evaluated, and of
        `elbo.FORMS` and `evaluate.DECODERS`.
      check_images: examples, chosen at random, whose numbers are computed again with other
        dequantization noise, another probe and a refined solve, for the error bars.
    """

    batch_size: int = 100
    dequantize: str = "as_trained"
    t_min: float | None = None
    trace: str = "rademacher"
    n_probes: int = 1
    whiten: str = "none"
    grid: Callable[[sde.SDE], grids.Grid] = grids.log_snr
    solver: str = "tsit5"
    n_steps: int | None = None
    rtol: float = 1e-4
    atol: float = 1e-4
    importance: int = 1
    fit_grid: bool = False
    elbo_times: int = 32
    elbo_form: str = "vdm"
    elbo_decoder: str = "as_trained"
    check_images: int = 32


class NoOptions(NamedTuple):
    """Of a choice that has none."""


class FlowOptions(NamedTuple):
    """The dequantize section with name "flow": noise from a flow that is trained too (`variational`).

    Attributes:
      width, depth: of `nets.dequantizer.CouplingFlow`.
      frozen: the folder of a finished run, whose averaged score model is taken and kept as it is.
        None: score model and flow are trained together.
    """

    width: int = 32
    depth: int = 4
    frozen: str | None = None


class ModelOptions(NamedTuple):
    """The model section (see `model.denoiser`); class_conditional gives the labels to the network."""

    output: str = "eps"
    conditioning: str = "log_snr"
    sigma_data: float | None = None
    class_conditional: bool = False


GRIDS = {
    "uniform": grids.uniform,
    "log_snr": grids.log_snr,
    "quadratic": grids.quadratic,
    "power": grids.power,
    "log_normal": grids.log_normal,
    # for 8-bit images: nearly all of it between the width of a level and the size of the data
    "log_normal_wide": partial(grids.log_normal, mean=-2.5, std=2.0),
}
WEIGHTS = {"simple": losses.simple, "likelihood": losses.likelihood}
DTYPES = {"float32": None, "bfloat16": jnp.bfloat16}

# section -> the constructors that its `name` chooses from, or its one constructor
SECTIONS: dict[str, Any] = {
    "data": {
        "digits": digits,
        "fashion_mnist": fashion_mnist,
        "cifar10": cifar10,
        "toy2d": toy2d,
        "folder": folder,
        "array": array,
        "tfds": tfds,
    },
    "sde": {
        "vp": sde.vp,
        "sub_vp": sde.sub_vp,
        "ve": sde.ve,
        "linear": sde.linear,
        "edm": sde.edm,
        "cosine": sde.cosine,
        "ddpm": sde.ddpm,
    },
    "net": {
        "unet": unet.UNet,
        "ddpm": families.ddpm,
        "ddpmpp": families.ddpmpp,
        "ddpmpp_deep": families.ddpmpp_deep,
        "ncsnpp": families.ncsnpp,
        "ncsnpp_deep": families.ncsnpp_deep,
        "mlp": MLP,
    },
    "model": ModelOptions,
    "dequantize": {"uniform": NoOptions, "lattice": NoOptions, "flow": FlowOptions},
    "loss": {"denoising": losses.denoising},
    "optim": {"adam": optim.adam},
    "train": train.Options,
    "sample": sampling.DRAWS,
    "eval": EvalOptions,
}

# the `name` of a section that a config may leave out
_DEFAULT_NAMES = {"dequantize": "uniform"}

# choices in the configs of older runs
_FORMER_NAMES = {"hutchinson": "rademacher"}

# the evaluations that fit what a model was trained on, of levels dequantized by name; first the default
_FITTING = {
    "uniform": ("uniform", "decoder", "denoised"),
    "lattice": ("truncated_normal", "lattice_decoder"),
    "flow": ("flow", "uniform", "decoder", "denoised"),
}

# options that are names: [constructor.]option -> choices
CHOICES: dict[str, dict[str, Any]] = {
    "grid": GRIDS,
    "weight": WEIGHTS,
    "target": predict.KINDS,
    "output": models.OUTPUTS,
    "conditioning": models.CONDITIONING,
    "decay": optim.DECAYS,
    "compute": DTYPES,
    "trace": likelihood.TRACES,
    "dequantize": {"as_trained": None} | dequantize.DEQUANTIZATIONS,
    "whiten": whiten.WHITENINGS,
    "elbo_form": elbo.FORMS,
    "elbo_decoder": {name: name for name in ("as_trained", *evaluate.DECODERS)},
    "solver": solve.ODE_SOLVERS | solve.MULTISTEP,
    "reverse_sde.solver": solve.SDE_SOLVERS,
    "predictor": sampling.PREDICTORS,
    "corrector": sampling.CORRECTORS,
    "variance": samplers.VARIANCES,
    "threshold": sampling.THRESHOLDS,
    "toy2d.shape": SHAPES,
    "on_bad_image": ON_BAD_IMAGE,
} | unet.CHOICES

# what numbers, and each number of a tuple, must be: in words, as a test, and the [constructor.]options
RULES: tuple[tuple[str, Callable[[float], bool], set[str]], ...] = (
    (
        "at least 1",
        lambda v: v >= 1,
        {
            "steps",
            "batch_size",
            "keep",
            "eval_images",
            "accumulate",
            "n_steps",
            "elbo_times",
            "n_probes",
            "importance",
            "n_validation",
        }
        | {"multipliers", "blocks", "attention", "groups", "depth", "size", "corrector_steps"},
    ),
    (
        "at least 0",
        lambda v: v >= 0,
        {"log_every", "eval_every", "sample_every", "save_every", "warmup", "clip", "weight_decay"}
        | {"check_images"}
        | {"noise", "pad", "resident_gib", "workers", "cosine.s", "n_test"}
        | {"churn", "s_min", "s_noise"},
    ),
    (
        "greater than 0",
        lambda v: v > 0,
        {
            "lr",
            "eps",
            "rtol",
            "atol",
            "sigma_data",
            "snr",
            "fourier_scale",
            "step",
            "t_end",
            "s_max",
        }
        | {"beta_min", "beta_max", "sigma_min", "sigma_max"},
    ),
    (
        "at least 0 and less than 1",
        lambda v: 0 <= v < 1,
        {"ema", "dropout", "b1", "b2"} | {"validation_fraction", "test_fraction"},
    ),
    ("at least 0 and at most 1", lambda v: 0 <= v <= 1, {"eta"}),
    (
        "greater than 0 and less than 1",
        lambda v: 0 < v < 1,
        {"t_min", "t_max", "ddpm.beta_min", "ddpm.beta_max"},
    ),
    ("even and at least 4", lambda v: v >= 4 and v % 2 == 0, {"channels", "width"}),
    ("at least 2", lambda v: v >= 2, {"flow.depth"}),
    ("at least 0 and less than 2**32", lambda v: 0 <= v < 2**32, {"seed"}),
    ("at least 10", lambda v: v >= 10, {"toy2d.n"}),  # a tenth of it is validation
    ("at least 2", lambda v: v >= 2, {"n_betas", "n_levels"}),
    ("greater than 0 and at most 100", lambda v: 0 < v <= 100, {"percentile"}),
    ("at least 2 and at most 256", lambda v: 2 <= v <= 256, {"levels"}),
    ("1 or 3", lambda v: v in (1, 3), {"folder.channels"}),
)

# of an implicit solver, which takes one evaluation for each dimension
_LARGEST_JACOBIAN = 256

# arguments of networks that their section does not set: flax's own, what follows from the data,
# and what the train section sets
_NOT_OPTIONS = {"net": {"parent", "name", "n_classes", "frequencies", "dtype", "remat", "outputs"}}


def choose(word: str, choices: Iterable[str]) -> str:
    """The end of an error message on a word that is none of the choices."""
    choices = list(choices)
    near = difflib.get_close_matches(word, choices, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{hint}choose from {', '.join(choices)}"


def _choices(name: str | None, option: str) -> dict | None:
    return CHOICES.get(f"{name}.{option}", CHOICES.get(option))


def _parameters(section: str, constructor: Callable) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(constructor).parameters.items()
    not_options = _NOT_OPTIONS.get(section, ())
    return {k: p for k, p in parameters if p.default is not p.empty and k not in not_options}


def _constructor(section: str, name: Any) -> Callable:
    table = SECTIONS[section]
    return (
        table[_chosen(f"config.{section}.name", name, table)] if isinstance(table, dict) else table
    )


def resolve(raw: Config) -> Config:
    """The config with every default written out and every name, key, type and range checked.

    Raises:
      ConfigError: one line that names the section, the value and the choices.
    """
    for section in sorted(raw.keys() - SECTIONS.keys() - {"seed"}):
        raise ConfigError(f"config has no section {section!r}; {choose(section, SECTIONS)}, seed")
    resolved = {"seed": _checked("config.seed", raw.get("seed", 0), int)}
    _check_range("config.seed", resolved["seed"], None, "seed")
    for section in SECTIONS:
        resolved[section] = _resolve_section(section, raw.get(section, {}))
    return resolved


def _resolve_section(section: str, values: Any) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise ConfigError(
            f"config.{section} is a section, not {values!r}; set its options, as config.{section}.OPTION"
        )
    name = values.get("name", _DEFAULT_NAMES.get(section))
    parameters = _parameters(section, _constructor(section, name))
    for option in sorted(values.keys() - parameters.keys() - ({"name"} if name else set())):
        of = f" of {name}" if name else ""
        raise ConfigError(
            f"config.{section}.{option} is no option{of}; {choose(option, parameters)}"
        )
    resolved = {"name": name} if name else {}
    for option, parameter in parameters.items():
        where, choices = f"config.{section}.{option}", _choices(name, option)
        value = values.get(option, parameter.default)
        if choices is None:
            resolved[option] = _checked(where, value, parameter.annotation)
            _check_range(where, resolved[option], name, option)
        else:
            named = (key for key, choice in choices.items() if choice is value)
            resolved[option] = _chosen(where, next(named, value), choices)
    for low in resolved:
        high = low.removesuffix("min") + "max"
        ends = resolved[low], resolved.get(high)
        if low.endswith("_min") and ends[1] is not None and not ends[0] < ends[1]:
            raise ConfigError(
                f"config.{section}.{low} is {resolved[low]}; it must be less than {high}, {resolved[high]}"
            )
    return resolved


def _chosen(where: str, value: Any, choices: dict) -> str:
    value = _FORMER_NAMES.get(value, value) if isinstance(value, str) else value
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(f"{where} is {value!r}; {choose(str(value), choices)}")
    return value


_WORDS = {
    int: "an integer",
    float: "a number",
    bool: "True or False",
    str: "a string",
    types.NoneType: "None",
}


def _checked(where: str, value: Any, annotation: Any) -> Any:
    """The value if it is of the annotated type, integers read as floats where a float is due."""
    kinds = (
        typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    )
    for kind in kinds:
        if kind is float and type(value) in (int, float):
            if not abs(value) <= sys.float_info.max:
                raise ConfigError(f"{where} is {value}; it must be a finite number")
            return float(value)
        if kind in _WORDS and type(value) is kind:
            return value
        if typing.get_origin(kind) is tuple and isinstance(value, (tuple, list)):
            return tuple(_checked(where, entry, typing.get_args(kind)[0]) for entry in value)
    words = " or ".join(_WORDS.get(kind, "a tuple") for kind in kinds)
    raise ConfigError(f"{where} is {value!r}; it must be {words}")


def rules(name: str | None, option: str) -> list[tuple[str, Callable[[float], bool]]]:
    """What an option's numbers must be, in words and as a test: of its constructor, else of the option anywhere."""

    def named(key):
        return [(words, holds) for words, holds, options in RULES if key in options]

    return named(f"{name}.{option}") or named(option)


def _check_range(where: str, value: Any, name: str | None, option: str):
    for words, holds in rules(name, option):
        for entry in value if isinstance(value, tuple) else (value,):
            if entry is not None and not holds(entry):
                raise ConfigError(f"{where} is {value!r}; it must be {words}")


def _make(config: Config, section: str, *args, **extra):
    """Calls the section's constructor with the section's values; config must be resolved."""
    values = dict(config[section])
    name = values.pop("name", None)
    constructor = _constructor(section, name)
    for option, parameter in _parameters(section, constructor).items():
        if _choices(name, option) is not None and not isinstance(parameter.default, str):
            values[option] = _choices(name, option)[values[option]]
    return constructor(*args, **values, **extra)


class Experiment(NamedTuple):
    """All that a config stands for, as functions and records."""

    seed: int
    data: DataSet
    model: Model
    loss: LossFn
    validation_loss: LossFn
    optimizer: optax.GradientTransformation
    train: train.Options
    eval: EvalOptions
    draw: Callable[..., sampling.Draws]
    labels: bool
    points: Callable[..., Array]
    frozen: tuple[Path, dict[str, Any]] | None = None


def experiment(config: Config) -> Experiment:
    """Builds everything that a resolved config names; reads the data; compiles nothing.

    Raises:
      ConfigError: a combination that cannot work.
    """
    config = _as_trained(config)
    options, data = _make(config, "train"), _make(config, "data")
    model_options = _make(config, "model")
    _check_combination(config, options, model_options, data)
    labels = model_options.class_conditional
    net = _make(config, "net", n_classes=data.n_classes if labels else 0)
    if model_options.output == "levels":
        net = net.clone(outputs=data.levels)
    denoiser = partial(
        models.denoiser,
        sde=_make(config, "sde"),
        output=model_options.output,
        conditioning=model_options.conditioning,
        sigma_data=model_options.sigma_data,
        n_levels=data.levels,
    )
    model = denoiser(net)
    _check_t_min(config, model.sde(None))
    in_training = denoiser(net.clone(dtype=DTYPES[options.compute], remat=options.remat))
    loss = _make(config, "loss", in_training)
    validation_loss = _make(config, "loss", models.deterministic(model))
    noise, frozen = config["dequantize"]["name"], None
    if noise == "flow":
        flow = _make(config, "dequantize")
        dequantizer = variational.flow(CouplingFlow(flow.width, flow.depth))
        model = variational.attach(model, dequantizer)
        if flow.frozen is not None:
            # the score model that is evaluated, so without dropout
            loss = variational.frozen(_make(config, "loss", models.deterministic(in_training)))
            fixed = {name: config[name] for name in ("sde", "net", "model")}
            frozen = Path(flow.frozen), fixed | {"dequantize": {"name": "uniform"}}
        loss, validation_loss = (
            variational.joint(fn, dequantizer, data.levels) for fn in (loss, validation_loss)
        )
    return Experiment(
        seed=config["seed"],
        data=data,
        model=model,
        loss=loss,
        validation_loss=validation_loss,
        optimizer=_make(config, "optim", options.steps),
        train=options,
        eval=_make(config, "eval"),
        draw=_make(config, "sample"),
        labels=labels,
        points=dequantize.POINTS[noise],
        frozen=frozen,
    )


def _as_trained(config: Config) -> Config:
    """The config with the evaluation's dequantization and decoder that fit the training, where it says "as_trained"."""
    trained, options = config["dequantize"]["name"], dict(config["eval"])
    if options["dequantize"] == "as_trained":
        options["dequantize"] = _FITTING[trained][0]
    if options["elbo_decoder"] == "as_trained":
        options["elbo_decoder"] = "lattice" if trained == "lattice" else "gaussian"
    return config | {"eval": options}


def _check_t_min(config: Config, built: sde.SDE):
    t_min = config["eval"]["t_min"]
    if t_min is not None and not built.t_min <= t_min < built.t_max:
        raise ConfigError(
            f"config.eval.t_min is {t_min}; it must be at least the SDE's t_min, {built.t_min}, and less "
            f"than its t_max, {built.t_max}; None takes the former"
        )


def check_batch_size(batch_size: int, accumulate: int):
    """Raises ConfigError unless the devices can share a training batch; evaluation takes any number of them."""
    devices = parallel.count()
    n = devices * accumulate
    if batch_size % n:
        parts = f" times config.train.accumulate = {accumulate}" if accumulate > 1 else ""
        raise ConfigError(
            f"config.train.batch_size is {batch_size}, not divisible by the {devices} devices{parts}; "
            f"set it to {-(-batch_size // n) * n}"
        )


def _check_combination(config, options: train.Options, model_options: ModelOptions, data: DataSet):
    is_image, net = len(data.shape) == 3, config["net"]
    if net["name"] != "mlp":
        if not is_image:
            raise ConfigError(
                f"config.net.name is {net['name']!r}, which needs images, but {data.name} has shape "
                f"{data.shape}; use 'mlp'"
            )
        if not net["multipliers"]:
            raise ConfigError("config.net.multipliers is (); it needs one number per level")
        try:
            unet.check_image_size(*data.shape[:2], net["multipliers"])
        except ValueError as error:
            raise ConfigError(f"config.net.multipliers: {error}") from error
        if net.get("combine") == "cat" and net["progressive_input"] != "input_skip":
            raise ConfigError(
                f"config.net.combine is 'cat', which is for config.net.progressive_input='input_skip', "
                f"not {net['progressive_input']!r}; set it to 'sum'"
            )
    conditioning = model_options.conditioning
    if net.get("embedding") == "fourier" and conditioning not in ("log_sigma", "edm"):
        raise ConfigError(
            f"config.model.conditioning is {conditioning!r}, but config.net.embedding is 'fourier', made "
            "for a logarithm of sigma; set conditioning to log_sigma, or embedding to positional"
        )
    if options.flip and not is_image:
        raise ConfigError(
            f"config.train.flip is True, but {data.name} has no images; set it to False"
        )
    if model_options.class_conditional and not data.n_classes:
        raise ConfigError(
            f"config.model.class_conditional is True, but {data.name} has no labels; set it to False"
        )
    if model_options.output == "edm" and model_options.sigma_data != predict.SIGMA_DATA:
        raise ConfigError(
            f"config.model.sigma_data is {model_options.sigma_data}; output 'edm' is made for "
            f"{predict.SIGMA_DATA}"
        )
    trained, evaluated = config["dequantize"]["name"], config["eval"]["dequantize"]
    if data.levels is None and trained != "uniform":
        raise ConfigError(
            f"config.dequantize.name is {trained!r}, but {data.name} has no levels; set it to 'uniform', "
            "which leaves such data as they are"
        )
    fitting = _FITTING[trained] if data.levels else ("uniform", "denoised")
    if evaluated not in fitting:
        of = (
            f"of {data.name}, which has no levels"
            if data.levels is None
            else f"after {trained!r} training"
        )
        raise ConfigError(
            f"config.eval.dequantize is {evaluated!r}, which does not fit a model {of}; "
            f"choose from {', '.join(fitting)}"
        )
    decoders = {"lattice"} if trained == "lattice" else {"gaussian", "uniform"}
    decoders = decoders if data.levels else {"gaussian"}
    if (decoder := config["eval"]["elbo_decoder"]) not in decoders:
        raise ConfigError(
            f"config.eval.elbo_decoder is {decoder!r}, which does not fit these data and this training; "
            f"choose from {', '.join(sorted(decoders))}"
        )
    if trained == "flow":
        if (config["loss"]["weight"], config["loss"]["target"]) != ("likelihood", "eps"):
            raise ConfigError(
                "config.dequantize.name is 'flow', whose loss is a likelihood; set config.loss.weight to "
                "'likelihood' and config.loss.target to 'eps'"
            )
        if config["dequantize"]["frozen"] is not None and config["optim"]["weight_decay"]:
            raise ConfigError(
                f"config.optim.weight_decay is {config['optim']['weight_decay']}, which would move the "
                "frozen score model; set it to 0"
            )
    if model_options.output == "levels":
        if trained != "uniform":
            raise ConfigError(
                "config.model.output is 'levels', which are boxes filled evenly, but "
                f"config.dequantize.name is {trained!r}; set it to 'uniform'"
            )
        if data.levels is None:
            raise ConfigError(
                f"config.model.output is 'levels', but {data.name} has none; choose another output"
            )
        if net.get("progressive_output") == "output_skip":
            raise ConfigError(
                "config.net.progressive_output is 'output_skip', which adds up images, and "
                "config.model.output is 'levels'; set progressive_output to 'none' or 'residual'"
            )
    options = config["eval"]
    if options["trace"] == "exact" and options["n_probes"] > 1:
        raise ConfigError(
            f"config.eval.n_probes is {options['n_probes']}, but config.eval.trace is 'exact', which needs "
            "no probes; set n_probes to 1"
        )
    if options["fit_grid"] and options["grid"] != "log_snr":
        raise ConfigError(
            f"config.eval.grid is {options['grid']!r}, but config.eval.fit_grid finds one; set fit_grid "
            "to False"
        )
    sample = config["sample"]
    if sample.get("predictor") == sample.get("corrector", "") == "none":
        raise ConfigError(
            "config.sample.predictor and corrector are both 'none', which draws nothing; set one of them"
        )
    if (t_end := sample.get("t_end")) is not None:
        built = _make(config, "sde")
        if not built.t_min < t_end < built.t_max:
            raise ConfigError(
                f"config.sample.t_end is {t_end}; it must be between the SDE's t_min, {built.t_min}, "
                f"and t_max, {built.t_max}; None ends at t_min"
            )
    for section in ("sample", "eval"):
        grid = config[section]["grid"]
        if grid.startswith("log_normal"):
            others = ", ".join(name for name in GRIDS if not name.startswith("log_normal"))
            raise ConfigError(
                f"config.{section}.grid is {grid!r}, a density of training times; choose from {others}"
            )
        solver, n_steps = config[section].get("solver", ""), config[section].get("n_steps", 1)
        if n_steps is None and not solve.adapts(solver):
            raise ConfigError(
                f"config.{section}.solver is {solver!r}, which cannot adapt its steps; "
                f"set config.{section}.n_steps"
            )
        size = math.prod(data.shape)
        if size > _LARGEST_JACOBIAN and solve.is_implicit(solver):
            raise ConfigError(
                f"config.{section}.solver is {solver!r}, whose Jacobian would have {size} columns; "
                f"it is for at most {_LARGEST_JACOBIAN} dimensions; choose 'tsit5'"
            )
    if sample["threshold"] != "none" and data.levels is None:
        raise ConfigError(
            f"config.sample.threshold is {sample['threshold']!r}, for images in [-1, 1], which "
            f"{data.name} has not; set it to 'none'"
        )
