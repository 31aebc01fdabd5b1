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

import jax
import jax.numpy as jnp
import optax
from jax import Array

from score_jax import (
    adaptive,
    augment,
    combinations,
    coupling,
    dequantize,
    elbo,
    ema,
    evaluate,
    grids,
    likelihood,
    losses,
    optim,
    parallel,
    predict,
    samplers,
    sampling,
    schedule,
    score_matching,
    sde,
    solve,
    train,
    variational,
    vdm,
    whiten,
)
from score_jax import model as models
from score_jax.combinations import ConfigError
from score_jax.consistency import consistency
from score_jax.cross_entropy import cross_entropy
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
from score_jax.nets.classifier import Classifier
from score_jax.nets.dequantizer import CouplingFlow
from score_jax.nets.dit import DiT
from score_jax.nets.mlp import MLP
from score_jax.types import LossFn

# section -> option -> number, string, boolean, None or tuple of them; `seed` is a number
Config = dict[str, Any]


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
    """The model section (see `model.denoiser`); class_conditional gives the labels to the network.

    With output "class" the model is `model.classifier`, to which the labels are what it is to say.
    """

    output: str = "eps"
    conditioning: str = "log_snr"
    sigma_data: float | None = None
    class_conditional: bool = False
    conservative: bool = False


GRIDS = {
    "uniform": grids.uniform,
    "log_snr": grids.log_snr,
    "quadratic": grids.quadratic,
    "power": grids.power,
    "log_normal": grids.log_normal,
    # for 8-bit images: nearly all of it between the width of a level and the size of the data
    "log_normal_wide": partial(grids.log_normal, mean=-2.5, std=2.0),
    "logit_normal": grids.logit_normal,
}
WEIGHTS = {
    "simple": losses.simple,
    "likelihood": losses.likelihood,
    "edm": losses.edm_weight(),
    "min_snr": losses.min_snr_weight(),
    "soft_min_snr": losses.soft_min_snr_weight(),
    "sigmoid": losses.sigmoid_weight(),
}
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
        "anharmonic": sde.anharmonic,
        "learned": schedule.learned,
    },
    "net": {
        "unet": unet.UNet,
        "ddpm": families.ddpm,
        "ddpmpp": families.ddpmpp,
        "ddpmpp_deep": families.ddpmpp_deep,
        "ncsnpp": families.ncsnpp,
        "ncsnpp_deep": families.ncsnpp_deep,
        "vdm": families.vdm,
        "dit": DiT,
        "mlp": MLP,
        "classifier": Classifier,
    },
    "model": ModelOptions,
    "dequantize": {"uniform": NoOptions, "lattice": NoOptions, "flow": FlowOptions},
    "loss": {
        "denoising": losses.denoising,
        "ddpm": losses.ddpm,
        "ncsn": losses.ncsn,
        "edm": losses.edm,
        "min_snr": losses.min_snr,
        "soft_min_snr": losses.soft_min_snr,
        "sigmoid": losses.sigmoid,
        "flow_matching": losses.flow_matching,
        "vdm": vdm.vdm,
        "consistency": consistency,
        "cross_entropy": cross_entropy,
        "explicit": score_matching.explicit,
        "implicit": score_matching.implicit,
        "sliced": score_matching.sliced,
        "sliced_vr": score_matching.sliced_vr,
        "finite_difference": score_matching.finite_difference,
    },
    "optim": {"adam": optim.adam},
    "train": train.Options,
    "sample": sampling.DRAWS,
    "eval": EvalOptions,
}

# the `name` of a section that a config may leave out
_DEFAULT_NAMES = {"dequantize": "uniform"}

# choices in the configs of older runs
_FORMER_NAMES = {"hutchinson": "rademacher"}

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
    "projection": score_matching.PROJECTIONS,
    "decoder": {name: name for name in vdm.DECODERS},
    "coupling": coupling.COUPLINGS,
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
            "steps_per_call",
        }
        | {
            "n_projections",
            "simulation_steps",
            "consistency.s0",
            "consistency.s1",
            "heads",
            "patch",
        }
        | {"multipliers", "blocks", "attention", "groups", "depth", "size", "corrector_steps"},
    ),
    (
        "at least 0",
        lambda v: v >= 0,
        {"log_every", "eval_every", "sample_every", "save_every", "warmup", "clip", "weight_decay"}
        | {"check_images", "skip_nan", "snapshot_every", "ema_warmup", "level", "time_bins"}
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
        | {
            "langevin.level",
            "gamma",
            "std",
            "huber",
            "rho",
            "mlp_ratio",
            "start",
            "anharmonic.width",
        },
    ),
    # where float32 still has a finite log-SNR at both ends
    (
        "greater than 0 and at most 150",
        lambda v: 0 < v <= 150,
        {"beta_min", "beta_max"},
    ),
    ("at least 1e-12 and at most 1e12", lambda v: 1e-12 <= v <= 1e12, {"sigma_min", "sigma_max"}),
    ("at least 1e-12 and less than 1", lambda v: 1e-12 <= v < 1, {"t_min"}),
    ("greater than 0 and at most 0.999999", lambda v: 0 < v <= 0.999999, {"t_max"}),
    (
        "at least 0 and less than 1",
        lambda v: 0 <= v < 1,
        {"ema", "dropout", "b1", "b2"} | {"validation_fraction", "test_fraction"},
    ),
    (
        "at least 0 and at most 1",
        lambda v: 0 <= v <= 1,
        {"eta", "label_dropout", "augment"},
    ),
    (
        "greater than 0 and less than 1",
        lambda v: 0 < v < 1,
        {"ddpm.beta_min", "ddpm.beta_max", "floor"},
    ),
    (
        "greater than 0 and at most 0.288",  # the square root of 1 / 12
        lambda v: 0 < v <= ema.LARGEST_SIGMA_REL,
        {"ema_profiles"},
    ),
    ("even and at least 4", lambda v: v >= 4 and v % 2 == 0, {"channels", "width"}),
    ("at least 2", lambda v: v >= 2, {"flow.depth"}),
    ("at least 0 and less than 2**32", lambda v: 0 <= v < 2**32, {"seed"}),
    ("at least 10", lambda v: v >= 10, {"toy2d.n"}),  # a tenth of it is validation
    ("at least 2", lambda v: v >= 2, {"n_betas", "n_levels", "n_times", "n_knots"}),
    ("greater than 0 and at most 100", lambda v: 0 < v <= 100, {"percentile"}),
    ("at least 2 and at most 256", lambda v: 2 <= v <= 256, {"levels"}),
    ("1 or 3", lambda v: v in (1, 3), {"folder.channels"}),
    ("at least 0 and at most 16", lambda v: 0 <= v <= 16, {"input_frequencies"}),
    ("any number", math.isfinite, {"mean", "bias", "strength"}),
    ("at least -80 and at most 80", lambda v: abs(v) <= 80, {"log_snr_max", "log_snr_min"}),
)

# arguments of networks that their section does not set: flax's own, what follows from the data,
# and what the train section sets
_NOT_OPTIONS = {
    "net": {"parent", "name", "n_classes", "n_augment", "frequencies", "dtype", "remat", "outputs"}
}


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


def _make(config: Config, section: str, *args, supplied: Config | None = None, **extra):
    """Calls the section's constructor with the section's values; config must be resolved.

    Of `supplied`, a constructor gets the arguments that it asks for.
    """
    values = dict(config[section])
    name = values.pop("name", None)
    constructor = _constructor(section, name)
    asked = inspect.signature(constructor).parameters
    extra |= {key: value for key, value in (supplied or {}).items() if key in asked}
    for option, parameter in _parameters(section, constructor).items():
        if _choices(name, option) is not None and not isinstance(parameter.default, str):
            values[option] = _choices(name, option)[values[option]]
    return constructor(*args, **values, **extra)


class Experiment(NamedTuple):
    """All that a config stands for, as functions and records.

    Attributes:
      loss_state: what the loss carries from step to step, before the first.
      labels: whether batches carry them, for the network or for a classifier's loss.
      points: of `dequantize.POINTS`.
      frozen: the folder and the sections of the run whose score model is kept (`FlowOptions`).
      no_bits, no_elbo, no_samples: why the model has no bits/dim, no bound on them, or no samples;
        None if it has.
    """

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
    loss_state: Any = ()
    frozen: tuple[Path, dict[str, Any]] | None = None
    no_bits: str | None = None
    no_elbo: str | None = None
    no_samples: str | None = None


def experiment(config: Config) -> Experiment:
    """Builds everything that a resolved config names; reads the data; compiles nothing.

    Raises:
      ConfigError: a combination that cannot work.
    """
    config = _as_trained(config)
    options, data, noising = (_make(config, section) for section in ("train", "data", "sde"))
    is_learned = isinstance(noising, schedule.Schedule)
    ends = (0.0, 1.0) if is_learned else (noising.t_min, noising.t_max)
    combinations.check(config, data, ends)
    if options.steps_per_call > 1 and data.train.x.nbytes > options.resident_gib * 2**30:
        raise ConfigError(
            f"config.train.steps_per_call is {options.steps_per_call}, but the training split, larger "
            f"than config.train.resident_gib = {options.resident_gib:g}, is read step by step; set it "
            "to 1, or resident_gib higher"
        )
    model_options = _make(config, "model")
    is_classifier = model_options.output == "class"
    labels = model_options.class_conditional or is_classifier
    net = _make(config, "net", n_classes=data.n_classes if labels else 0)
    if options.augment:
        net = net.clone(n_augment=augment.N_CONDITIONS)
    if model_options.output == "levels":
        net = net.clone(outputs=data.levels)

    def denoiser(net):
        inputs = dict(conditioning=model_options.conditioning, sigma_data=model_options.sigma_data)

        def under(sde):
            if is_classifier:
                return models.classifier(net, sde, **inputs)
            return models.denoiser(
                net,
                sde,
                output=model_options.output,
                **inputs,
                n_levels=data.levels,
                conservative=model_options.conservative,
            )

        return schedule.attach(under, noising) if is_learned else under(noising)

    def loss_of(model, **options):
        supplied = {"noised_logp": data.noised_logp, "levels": data.levels}
        supplied |= {"steps": config["train"]["steps"]}
        return _make(config | {"loss": config["loss"] | options}, "loss", model, supplied=supplied)

    model = denoiser(net)
    in_training = denoiser(net.clone(dtype=DTYPES[options.compute], remat=options.remat))
    loss = loss_of(in_training)
    # a single example at a time says nothing of where the loss is large
    time_bins = config["loss"].get("time_bins", 0)
    validation_loss = loss_of(models.deterministic(model), **{"time_bins": 0} if time_bins else {})
    noise, frozen = config["dequantize"]["name"], None
    if noise == "flow":
        flow = _make(config, "dequantize")
        dequantizer = variational.flow(CouplingFlow(flow.width, flow.depth))
        model = variational.attach(model, dequantizer)
        if flow.frozen is not None:
            # the score model that is evaluated, so without dropout
            loss = variational.frozen(loss_of(models.deterministic(in_training)))
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
        loss_state=adaptive.init(time_bins) if time_bins else (),
        frozen=frozen,
        no_bits=combinations.no_bits(config),
        no_elbo=combinations.no_elbo(config),
        no_samples=combinations.no_samples(config),
    )


def _as_trained(config: Config) -> Config:
    """The config with the evaluation's dequantization and decoder that fit the training, where it says "as_trained"."""
    trained, options = config["dequantize"]["name"], dict(config["eval"])
    if options["dequantize"] == "as_trained":
        options["dequantize"] = combinations.FITTING[trained][0]
    if options["elbo_decoder"] == "as_trained":
        options["elbo_decoder"] = "lattice" if trained == "lattice" else "gaussian"
    return config | {"eval": options}


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


def check_steps_per_call(config: Config):
    """Raises ConfigError unless several steps can be one program; a single one always can.

    In a loop XLA's compiler for the CPU makes the gradient of a convolution many times slower (jax
    issue 12868). What the steps between events are not multiples of would happen in mid-call.
    """
    options = config["train"]
    k, name = options["steps_per_call"], config["net"]["name"]
    if k == 1:
        return
    set_it = "config.train.steps_per_call"
    if jax.default_backend() == "cpu" and name not in ("mlp", "dit"):
        raise ConfigError(
            f"{set_it} is {k}, but on the CPU a loop makes the convolutions of config.net.name={name} "
            "many times slower; set it to 1"
        )
    events = "log_every", "eval_every", "sample_every", "save_every", "snapshot_every", "steps"
    for event in events:
        if options[event] % k:
            raise ConfigError(
                f"config.train.{event} is {options[event]}, no multiple of {set_it} = {k}; set it to "
                f"{-(-options[event] // k) * k}, or {set_it} to 1"
            )
