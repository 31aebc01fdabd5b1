"""From a config to the functions and records that it names: the only module that sees a ConfigDict.

A section with a `name` is that constructor's name in the section's table and its keyword arguments;
a section without is the arguments of one constructor. `resolve` writes out every default, so that a
saved config is complete and each of its values can be overridden by name.
"""

import inspect
import types
import typing
from collections.abc import Callable
from typing import Any, NamedTuple

import optax
from ml_collections import ConfigDict

from score_jax import (
    grids,
    likelihood,
    losses,
    optim,
    parallel,
    predict,
    sampling,
    sde,
    solve,
    train,
)
from score_jax import model as models
from score_jax.data.base import DataSet
from score_jax.data.cifar10 import cifar10
from score_jax.data.digits import digits
from score_jax.data.fashion_mnist import fashion_mnist
from score_jax.data.toy2d import SHAPES, toy2d
from score_jax.model import Model
from score_jax.nets.mlp import MLP
from score_jax.nets.unet import UNet, check_image_size
from score_jax.types import LossFn


class ConfigError(ValueError):
    """A config that cannot be built: one line naming the value, the rule and the choices."""


class EvalOptions(NamedTuple):
    """The eval section: how bits/dim are computed.

    Attributes:
      batch_size: examples per call, over all devices together; it does not change the result.
      trace: of the divergence, one of `likelihood.TRACES`.
      grid, solver, n_steps, rtol, atol: of the probability-flow ODE (`solve.ode`); n_steps = None
        adapts the steps.
      elbo_times: times at which each example's ELBO is evaluated.
    """

    batch_size: int = 100
    trace: str = "hutchinson"
    grid: Callable[[sde.SDE], grids.Grid] = grids.log_snr
    solver: str = "tsit5"
    n_steps: int | None = None
    rtol: float = 1e-4
    atol: float = 1e-4
    elbo_times: int = 32


class ModelOptions(NamedTuple):
    """The model section (see `model.denoiser`); class_conditional gives the labels to the network."""

    output: str = "eps"
    conditioning: str = "log_snr"
    sigma_data: float | None = None
    class_conditional: bool = False


GRIDS = {"uniform": grids.uniform, "log_snr": grids.log_snr, "power": grids.power}
WEIGHTS = {"simple": losses.simple, "likelihood": losses.likelihood}

# section -> the constructors that its `name` chooses from, or its one constructor
SECTIONS: dict[str, Any] = {
    "data": {"digits": digits, "fashion_mnist": fashion_mnist, "cifar10": cifar10, "toy2d": toy2d},
    "sde": {"vp": sde.vp, "sub_vp": sde.sub_vp, "ve": sde.ve, "linear": sde.linear},
    "net": {"unet": UNet, "mlp": MLP},
    "model": ModelOptions,
    "loss": {"denoising": losses.denoising},
    "optim": {"adam": optim.adam},
    "train": train.Options,
    "sample": {
        "ddim": sampling.ddim,
        "euler_maruyama": sampling.euler_maruyama,
        "probability_flow": sampling.probability_flow,
        "reverse_sde": sampling.reverse_sde,
    },
    "eval": EvalOptions,
}

# options that are names: [constructor.]option -> choices
CHOICES: dict[str, dict[str, Any]] = {
    "grid": GRIDS,
    "weight": WEIGHTS,
    "target": predict.KINDS,
    "output": predict.KINDS,
    "conditioning": models.CONDITIONING,
    "decay": optim.DECAYS,
    "trace": likelihood.TRACES,
    "solver": solve.ODE_SOLVERS,
    "reverse_sde.solver": solve.SDE_SOLVERS,
    "toy2d.shape": SHAPES,
}

# arguments of constructors that are not for the config to set: flax's own, and what follows from
# the data
_NOT_OPTIONS = {"parent", "name", "n_classes"}


def _option_name(choices: dict, value: Any) -> Any:
    """The name of a default that is an object, or the value."""
    return next((name for name, choice in choices.items() if choice is value), value)


def _choices(name: str | None, option: str) -> dict | None:
    return CHOICES.get(f"{name}.{option}", CHOICES.get(option))


def _parameters(constructor: Callable) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(constructor).parameters.items()
    return {k: p for k, p in parameters if p.default is not p.empty and k not in _NOT_OPTIONS}


def _constructor(section: str, values: dict) -> Callable:
    table = SECTIONS[section]
    if not isinstance(table, dict):
        return table
    name = values.get("name")
    if name not in table:
        raise ConfigError(f"config.{section}.name is {name!r}; choose one of {', '.join(table)}")
    return table[name]


def resolve(config: ConfigDict) -> ConfigDict:
    """The config with every default written out and every name, key and type checked.

    Raises:
      ConfigError: one line that names the section, the value and the choices.
    """
    raw = config.to_dict()
    unknown = sorted(raw.keys() - SECTIONS.keys() - {"seed"})
    if unknown:
        raise ConfigError(
            f"config has no section {unknown[0]!r}; choose from seed, {', '.join(SECTIONS)}"
        )
    resolved = {"seed": _checked("config.seed", raw.get("seed", 0), int)}
    for section in SECTIONS:
        values = raw.get(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"config.{section} is {values!r}; it must be a dict of options")
        constructor = _constructor(section, values)
        name = values.get("name")
        parameters = _parameters(constructor)
        unknown = sorted(values.keys() - parameters.keys() - ({"name"} if name else set()))
        if unknown:
            of = f" of {name}" if name else ""
            choices = ", ".join(parameters)
            raise ConfigError(
                f"config.{section}.{unknown[0]} is no option{of}; choose from {choices}"
            )
        resolved[section] = {"name": name} if name else {}
        for option, parameter in parameters.items():
            where, choices = f"config.{section}.{option}", _choices(name, option)
            value = values.get(option, parameter.default)
            if choices is None:
                value = _checked(where, value, parameter.annotation)
            else:
                value = _option_name(choices, value)
                if value not in choices:
                    raise ConfigError(f"{where} is {value!r}; choose one of {', '.join(choices)}")
            resolved[section][option] = value
    return ConfigDict(resolved)


def _checked(where: str, value: Any, annotation: Any) -> Any:
    """The value if it is of the annotated type, integers read as floats where a float is due."""
    kinds = (
        typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    )
    for kind in kinds:
        if kind is types.NoneType and value is None:
            return value
        if kind is float and type(value) in (int, float):
            if not abs(value) < float("inf"):
                raise ConfigError(f"{where} is {value}; it must be a finite number")
            return float(value)
        if kind in (int, bool, str) and type(value) is kind:
            return value
        if typing.get_origin(kind) is tuple and isinstance(value, (tuple, list)):
            return tuple(_checked(where, entry, typing.get_args(kind)[0]) for entry in value)
    names = " or ".join(
        "None" if k is types.NoneType else getattr(k, "__name__", str(k)) for k in kinds
    )
    raise ConfigError(f"{where} is {value!r}; it must be of type {names}")


def _make(config: ConfigDict, section: str, *args, **extra):
    """Calls the section's constructor with the section's values; config must be resolved."""
    values = config[section].to_dict()
    constructor = _constructor(section, values)
    name = values.pop("name", None)
    for option, parameter in _parameters(constructor).items():
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


def experiment(config: ConfigDict) -> Experiment:
    """Builds everything that a resolved config names; reads the data; compiles nothing.

    Raises:
      ConfigError: a combination that cannot work.
    """
    options, data = _make(config, "train"), _make(config, "data")
    model_options = _make(config, "model")
    _check_combination(config, options, model_options, data)
    labels = model_options.class_conditional
    net = _make(config, "net", n_classes=data.n_classes if labels else 0)
    model = models.denoiser(
        net,
        _make(config, "sde"),
        output=model_options.output,
        conditioning=model_options.conditioning,
        sigma_data=model_options.sigma_data,
    )
    return Experiment(
        seed=config.seed,
        data=data,
        model=model,
        loss=_make(config, "loss", model),
        validation_loss=_make(config, "loss", models.deterministic(model)),
        optimizer=_make(config, "optim", options.steps),
        train=options,
        eval=_make(config, "eval"),
        draw=_make(config, "sample"),
        labels=labels,
    )


def _check_combination(config, options: train.Options, model_options: ModelOptions, data: DataSet):
    n_devices, size = parallel.count(), options.batch_size
    if size < 1 or size % n_devices:
        raise ConfigError(
            f"config.train.batch_size is {size}, not a positive multiple of the {n_devices} devices; "
            f"set it to {max(1, size // n_devices) * n_devices}"
        )
    for rate in options.ema:
        if not 0 <= rate < 1:
            raise ConfigError(f"config.train.ema holds {rate}; rates lie in [0, 1)")
    is_image = len(data.shape) == 3
    if config.net.name == "unet":
        if not is_image:
            raise ConfigError(
                f"config.net.name is 'unet', which needs images, but {data.name} has shape {data.shape}; use 'mlp'"
            )
        try:
            check_image_size(*data.shape[:2], config.net.multipliers)
        except ValueError as error:
            raise ConfigError(f"config.net.multipliers: {error}") from error
    if config.net.name == "mlp" and is_image:
        raise ConfigError(
            f"config.net.name is 'mlp', which needs vectors, but {data.name} has images; use 'unet'"
        )
    if options.flip and not is_image:
        raise ConfigError(
            f"config.train.flip is True, but {data.name} has no images; set it to False"
        )
    if model_options.class_conditional and not data.n_classes:
        raise ConfigError(
            f"config.model.class_conditional is True, but {data.name} has no labels; set it to False"
        )
