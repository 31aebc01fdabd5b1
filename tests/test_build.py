"""From configs to what they name: every default written out, every file in configs/ buildable."""

import inspect
import json
import runpy
import sys
import types
import typing
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from score_jax import build, cli, run, train, workdir
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
        name="denoising", grid="log_snr", weight="likelihood", target="eps", n_times=None,
        level=None, stratify=True, time_bins=0,
    )  # fmt: skip
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
    assert left <= {"n_classes", "name", "parent", "frequencies", "dtype", "remat"} | {
        "outputs",
        "n_augment",
    }


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
            rules = [words for words, _ in build.rules(name, option)]
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


SIZES = {"cifar10": (32, 32, 3), "fashion_mnist": (28, 28, 1), "folder": (256, 256, 3)}


def images_of_zeros(name, shape):
    """Stands for a data set that is not here, with two images of its shape."""

    def make(**options):
        split = Split(np.zeros((2, *shape), np.uint8), np.arange(2, dtype=np.int32))
        return DataSet(name, split, split, split, 256, 10)

    make.__signature__ = inspect.signature(build.SECTIONS["data"][name])
    return make


@pytest.fixture(params=CONFIGS, ids=lambda path: path.stem)
def experiment_of(request, monkeypatch):
    """experiment_of(sizes, overrides) -> a page's config and experiment; data sets in `sizes` are stood for."""

    def make(sizes, overrides):
        table = build.SECTIONS["data"]
        stand_ins = {name: images_of_zeros(name, shape) for name, shape in sizes.items()}
        monkeypatch.setitem(build.SECTIONS, "data", table | stand_ins)
        monkeypatch.setattr(sys, "path", [*sys.path])
        config = build.resolve(overrides(cli.load_config(str(request.param), [])))
        return config, build.experiment(config)

    return make


NETWORKS = ("ddpm", "ddpmpp", "ddpmpp_deep", "ncsnpp", "ncsnpp_deep")
# millions of parameters: of Song et al.'s networks by hand in test_nets, of EDM's as published
# (55.7 with an input for its augmentation, of 9 x 128 weights)
MILLIONS = {
    f"{sde}_cifar10_{net}": millions
    for sde in ("vp", "ve", "subvp")
    for net, millions in zip(NETWORKS, (35.7, 61.8, 106.6, 62.7, 107.5), strict=True)
} | {
    "ve_cifar10_ncsnpp": 62.8,  # with Fourier features, of which there are twice as many
    "ve_cifar10_ncsnpp_deep": 107.6,
    "vp_cifar10": 35.7,
    "subvp_cifar10_scoreflow": 106.6,
    "edm_cifar10": 55.7,
    "ve_folder_256": 65.6,
}


PARAMS = {}  # shapes, by what they follow from: pages of several SDEs share a network


def test_every_config_builds_its_model_at_published_width(experiment_of, request):
    config, experiment = experiment_of(SIZES, lambda config: config)
    shape, of_model = experiment.data.shape, experiment.model
    sections = json.dumps([config["net"], config["model"], config["train"]["augment"], shape])
    if sections not in PARAMS:
        init = lambda key: of_model.init(key, shape)
        PARAMS[sections] = jax.eval_shape(init, jax.random.key(0))
    params = PARAMS[sections]
    expected = MILLIONS.get(request.node.callspec.id)
    if expected is not None:
        millions = sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6
        assert round(millions, 1) == expected
    x, t, label = jnp.zeros((2, *shape)), jnp.full(2, 0.5), jnp.zeros(2, jnp.int32)
    if of_model.class_logp is not None:
        logp = jax.eval_shape(of_model.class_logp, params, x, t)
        assert logp.shape == (2, experiment.data.n_classes)
    elif expected is None:  # the same networks are traced often enough
        prediction = jax.eval_shape(of_model.predict, params, x, t, label)
        assert prediction.x0.shape == prediction.eps.shape == (2, *shape)


def narrow(config):
    """The same kind of everything, at a width that compiles in seconds."""
    net = dict(channels=8, multipliers=(1, 2), blocks=1, attention=(4,))
    narrower = config["net"] | {k: v for k, v in net.items() if k in config["net"]}
    return config | dict(net=narrower, optim=config["optim"] | dict(warmup=0))


# one page of each network, and of each loss that is not a weighted square error
COMPILED = {
    "classifier_fashion_mnist",
    "edm_cifar10",
    "energy_toy2d",
    "flow_ot_toy2d",
    "ncsn_cifar10",
    "ssm_toy2d",
    "vdm_cifar10",
    "ve_cifar10_ncsnpp",
    "ve_folder_256",
    "vp_fashion_mnist_conditional",
}


def test_every_config_takes_a_step(experiment_of, request):
    """Compiled for one page of a kind, by shapes for the others, which differ from it by an element-wise function."""
    if (name := request.node.callspec.id).endswith("_deep"):
        pytest.skip(f"narrow, {name} is {name.removesuffix('_deep')}")
    _, experiment = experiment_of({name: (8, 8, shape[2]) for name, shape in SIZES.items()}, narrow)
    state = jax.eval_shape(
        lambda key: train.init_state(
            key,
            experiment.model,
            experiment.data.shape,
            experiment.optimizer,
            len(experiment.train.ema),
            experiment.loss_state,
        ),
        jax.random.key(0),
    )
    step = run.train_step(experiment)
    data = Split(*(None if a is None else np.asarray(a[:2]) for a in experiment.data.train))
    arguments = data, np.arange(2), jax.random.key(0)
    if name not in COMPILED:
        after, metrics = jax.eval_shape(step, state, *arguments)
        strip = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
        assert strip(after) == strip(state) and metrics["loss"].shape == ()
        return
    # random weights: training starts from zeros, behind which gradients vanish
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: rng.normal(0, 0.1, p.shape).astype(p.dtype), state.params)
    zeros = jax.tree.map(lambda p: np.zeros(p.shape, p.dtype), state)
    state = zeros._replace(params=params, emas=(params,) * len(state.emas))
    after, metrics = jax.jit(step)(state, *arguments)
    assert np.isfinite(metrics["loss"]) and metrics["loss"] > 0
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), after.params, params)
    # a bias of the keys shifts all logits of a query alike, which the softmax ignores
    still = {path for path, m in flatten_dict(moved).items() if not m}
    assert {path[-2:] for path in still} <= {("key", "bias")}
    assert int(after.step) == 1


def test_there_are_configs():
    assert {path.stem for path in CONFIGS} >= COMPILED | MILLIONS.keys() | {
        "flow_cifar10",
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
    workdir.record(tmp_path, config, "a fingerprint")
    saved = workdir.load_config(tmp_path)
    assert saved == config
    assert build.resolve(saved) == config


@pytest.mark.parametrize("n, size, parts", [(1, 7, 1), (3, 6, 1), (4, 8, 2), (2, 12, 3)])
def test_a_batch_that_the_devices_can_share_passes(n, size, parts, monkeypatch):
    monkeypatch.setattr(build.parallel, "count", lambda: n)
    build.check_batch_size(size, parts)


@pytest.mark.parametrize(
    "parts, rule",
    [
        (1, "4 devices; set it to 8"),
        (3, "4 devices times config.train.accumulate = 3; set it to 12"),
    ],
)
def test_a_batch_that_they_cannot_share_is_refused_with_the_next_that_they_can(
    parts, rule, monkeypatch
):
    monkeypatch.setattr(build.parallel, "count", lambda: 4)
    with pytest.raises(ConfigError, match=f"is 6, not divisible by the {rule}$"):
        build.check_batch_size(6, parts)


SEVERAL = dict(
    steps=100, steps_per_call=5, log_every=10, eval_every=0, sample_every=0, save_every=50
)


@pytest.mark.parametrize(
    "sections, rule",
    [
        ({}, None),
        (
            dict(train=SEVERAL | dict(log_every=7)),
            "log_every is 7, no multiple of .* = 5; .* 10, or",
        ),
        (dict(train=SEVERAL | dict(steps=99)), "train.steps is 99, no multiple .* set it to 100"),
        (
            dict(net=dict(name="ddpm"), data=dict(name="digits")),
            "is 5, but on the CPU a loop .*net.name=ddpm many times slower; set it to 1$",
        ),
        (dict(net=dict(name="ddpm"), train=SEVERAL | dict(steps_per_call=1)), None),
    ],
)
def test_several_steps_per_call_want_events_between_calls_and_on_the_cpu_no_convolutions(
    sections, rule
):
    config = resolve(**(dict(train=SEVERAL) | sections))
    if rule is None:
        build.check_steps_per_call(config)
    else:
        with pytest.raises(ConfigError, match=rule):
            build.check_steps_per_call(config)


def test_several_steps_per_call_want_resident_data():
    with pytest.raises(ConfigError, match="resident_gib = 0, is read step by step; set it to 1"):
        build.experiment(resolve(train=SEVERAL | dict(resident_gib=0.0)))


def test_a_run_is_evaluated_on_any_number_of_devices(monkeypatch):
    monkeypatch.setattr(build.parallel, "count", lambda: 4)
    build.experiment(resolve(train=dict(batch_size=6)))


def test_a_word_is_answered_with_the_nearest_choice():
    assert build.choose("sub-vp", ["vp", "sub_vp"]) == "did you mean sub_vp? choose from vp, sub_vp"
    assert build.choose("edm", ["vp", "sub_vp"]) == "choose from vp, sub_vp"
