"""From configs to what they name: every default written out, every file in configs/ buildable."""

import inspect
import runpy
import sys
import types
import typing
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_jax import build, cli, workdir
from score_jax.build import ConfigError
from score_jax.data.base import DataSet, Split

CHECKOUT = Path(__file__).parent.parent
CONFIGS = sorted((CHECKOUT / "configs").glob("[a-z]*_*.py"))
NAMES = dict(
    data=dict(name="toy2d"),
    sde=dict(name="vp"),
    net=dict(name="mlp"),
    loss=dict(name="denoising"),
    optim=dict(name="adam"),
    sample=dict(name="ddim"),
)


def resolve(**sections):
    return build.resolve(NAMES | sections)


def constructors():
    for section, table in build.SECTIONS.items():
        named = table.items() if isinstance(table, dict) else [(None, table)]
        yield from (pytest.param(section, name, c, id=f"{section}-{name}") for name, c in named)


def test_names_alone_make_a_whole_config():
    config = resolve()
    assert config["seed"] == 0
    assert config["optim"] == dict(
        name="adam", lr=2e-4, warmup=1000, decay="constant", clip=1.0,
        b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0,
    )  # fmt: skip
    assert config["loss"] == dict(
        name="denoising", grid="log_snr", weight="likelihood", target="eps"
    )
    assert config["train"] == build.train.Options()._asdict()


def test_resolving_twice_changes_nothing():
    once = resolve(sde=dict(name="linear"), train=dict(ema=(0.5, 0.9)))
    assert build.resolve(once) == once


@pytest.mark.parametrize("section, name, constructor", constructors())
def test_every_constructor_resolves_to_its_own_defaults(section, name, constructor):
    named = {"name": name} if name else {}
    options = resolve(**{section: named})[section]
    assert options.pop("name", None) == name
    parameters = inspect.signature(constructor).parameters
    for option, value in options.items():
        default = parameters[option].default
        choices = build.CHOICES.get(f"{name}.{option}", build.CHOICES.get(option))
        assert value == default or choices[value] is default, option
    # jax keys, models and schedules come from the program, not from the config
    left = {k for k, p in parameters.items() if p.default is not p.empty} - options.keys()
    assert left <= {"n_classes", "name", "parent"}


def is_number(annotation):
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is tuple:
        return any(map(is_number, typing.get_args(annotation)))
    return annotation in (int, float)


@pytest.mark.parametrize("section, name, constructor", constructors())
def test_every_number_of_a_config_has_one_rule(section, name, constructor):
    """If this fails for a new option, add it to `build.RULES`: a number is checked before it is used."""
    for option in resolve(**{section: {"name": name} if name else {}})[section]:
        annotation = inspect.signature(constructor).parameters.get(option)
        if annotation is not None and is_number(annotation.annotation):
            names = {option, f"{name}.{option}"}
            rules = [words for words, _, options in build.RULES if names & options]
            assert len(rules) == 1, f"{option} has the rules {rules}"


def test_an_integer_is_read_as_a_float_where_a_float_is_due():
    config = resolve(sde=dict(name="vp", beta_max=12), train=dict(ema=[0]))
    assert type(config["sde"]["beta_max"]) is float
    assert config["train"]["ema"] == (0.0,) and type(config["train"]["ema"][0]) is float


def test_a_constructor_in_place_of_its_name_is_saved_as_the_name():
    config = resolve(loss=dict(name="denoising", grid=build.grids.uniform))
    assert config["loss"]["grid"] == "uniform"
    assert build.experiment(config).eval.grid is build.grids.log_snr


def test_the_values_of_a_config_reach_what_it_names():
    config = resolve(
        sde=dict(name="ve", sigma_min=0.25, sigma_max=4.0),
        data=dict(name="toy2d", shape="gaussians", n=40),
        net=dict(name="mlp", width=6, depth=2),
        model=dict(class_conditional=True),
        train=dict(steps=7),
        eval=dict(grid="uniform", solver="heun", n_steps=3),
    )
    experiment = build.experiment(config)
    params = jax.eval_shape(lambda key: experiment.model.init(key, (2,)), jax.random.key(0))
    sde = experiment.model.sde(params)
    np.testing.assert_allclose(sde.sigma(jnp.array([0.0, 0.5, 1.0])), [0.25, 1.0, 4.0], rtol=1e-6)
    assert len(experiment.data.train.x) == 40
    assert params["dense_in"]["kernel"].shape == (2, 6) and "block_1_norm" in params
    assert params["embedding"]["label"]["embedding"].shape == (9, 6)  # 8 classes and "no class"
    assert experiment.train.steps == 7 and experiment.labels
    assert (experiment.eval.grid, experiment.eval.n_steps) == (build.grids.uniform, 3)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_builds_its_model(path, monkeypatch):
    """Whatever data they need: a data set that is not here is replaced by one image of its size."""
    sizes = {"cifar10": (32, 32, 3), "fashion_mnist": (28, 28, 1)}

    def one_image(name):
        def make(**options):
            pad = options.get("pad", 0)
            height, width, channels = sizes[name]
            x = np.zeros((1, height + 2 * pad, width + 2 * pad, channels), np.uint8)
            return DataSet(name, *3 * [Split(x, np.zeros(1, np.int32))], 256, 10)

        make.__signature__ = inspect.signature(build.SECTIONS["data"][name])
        return make

    table = build.SECTIONS["data"] | {name: one_image(name) for name in sizes}
    monkeypatch.setitem(build.SECTIONS, "data", table)
    monkeypatch.setattr(sys, "path", [*sys.path])
    config = cli.load_config(str(path), [])
    experiment = build.experiment(config)
    shape = experiment.data.shape

    def predict(key):
        params = experiment.model.init(key, shape)
        label = jnp.zeros(2, jnp.int32) if experiment.labels else None
        return experiment.model.predict(params, jnp.zeros((2, *shape)), jnp.full(2, 0.5), label)

    prediction = jax.eval_shape(predict, jax.random.key(0))
    assert prediction.x0.shape == prediction.eps.shape == (2, *shape)


def test_there_are_configs():
    assert {path.stem for path in CONFIGS} >= {
        "vp_digits",
        "vp_fashion_mnist",
        "subvp_fashion_mnist",
        "ve_digits",
        "flow_digits",
        "vp_toy2d",
        "vp_cifar10",
    }


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_comes_back_equal_from_a_folder(path, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(CHECKOUT), *sys.path])
    config = build.resolve(runpy.run_path(str(path))["get_config"]().to_dict())
    workdir.record(tmp_path, config)
    saved = workdir.load_config(tmp_path)
    assert saved == config
    assert build.resolve(saved) == config


@pytest.mark.parametrize("n, size", [(1, 7), (3, 6), (4, 8)])
def test_a_batch_that_the_devices_can_share_passes(n, size, monkeypatch):
    monkeypatch.setattr(build.parallel, "count", lambda: n)
    build.check_batch_size(size)


def test_a_batch_that_they_cannot_share_is_refused_with_the_next_that_they_can(monkeypatch):
    monkeypatch.setattr(build.parallel, "count", lambda: 4)
    with pytest.raises(ConfigError, match="is 6, not divisible by the 4 devices; set it to 8"):
        build.check_batch_size(6)


def test_a_run_is_evaluated_on_any_number_of_devices(monkeypatch):
    monkeypatch.setattr(build.parallel, "count", lambda: 4)
    build.experiment(resolve(train=dict(batch_size=6)))


def test_a_word_is_answered_with_the_nearest_choice():
    assert build.choose("sub-vp", ["vp", "sub_vp"]) == "did you mean sub_vp? choose from vp, sub_vp"
    assert build.choose("edm", ["vp", "sub_vp"]) == "choose from vp, sub_vp"
