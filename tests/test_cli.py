"""The command line: input that cannot work ends in one line with exit code 2, before anything is compiled."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from absl import flags

from score_jax import build, cli, run, workdir

CHECKOUT = Path(__file__).parent.parent
DIGITS, TOY = "--config=digits.py", "--config=toy.py"
SECTIONS = {
    "digits.py": dict(
        data=dict(name="digits"),
        sde=dict(name="vp"),
        net=dict(name="unet", channels=32, multipliers=(1, 2)),
        loss=dict(name="denoising"),
        optim=dict(name="adam", lr=2e-3),
        sample=dict(name="ddim"),
        train=dict(ema=(0.99,)),
    )
}
SECTIONS["toy.py"] = SECTIONS["digits.py"] | dict(data=dict(name="toy2d"), net=dict(name="mlp"))


def write_config(path, sections):
    text = f"from ml_collections import ConfigDict\ndef get_config(): return ConfigDict({sections})"
    Path(path).write_text(text)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """The current folder of each test, with a config for images and one for points in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name, sections in SECTIONS.items():
        write_config(name, sections)
    return tmp_path


def call(script, *args):
    """Runs a script in this process as `python scripts/SCRIPT.py ARGS` would, and returns its exit code."""
    before = set(flags.FLAGS)
    path, argv = str(CHECKOUT / "scripts" / f"{script}.py"), sys.argv
    try:
        sys.argv = [path, *map(str, args)]
        with pytest.raises(SystemExit) as end:
            runpy.run_path(path, run_name="__main__")
        return end.value.code
    finally:
        sys.argv = argv
        flags.FLAGS.unparse_flags()
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)


COMPILED = []


@jax.monitoring.register_event_duration_secs_listener
def _listen(event, duration, **kwargs):
    if event == "/jax/core/compile/backend_compile_duration":
        COMPILED.append(kwargs)


@pytest.fixture
def refused(capsys, monkeypatch):
    """refused(script, *args) -> the one line that the script wrote; it must have compiled nothing."""
    COMPILED.clear()
    monkeypatch.setattr(cli, "use_compilation_cache", lambda: None)
    for computation in ("fit", "draw", "bits_per_dim"):
        monkeypatch.delattr(run, computation)

    def check(script, *args):
        code = call(script, *args)
        out, err = capsys.readouterr()
        assert (code, out) == (2, ""), err
        assert err.count("\n") == 1 and err.startswith(f"{script}.py: "), err
        assert not COMPILED
        return err

    return check


def test_what_is_compiled_would_be_noticed():
    """The name of jax's event is no promise: without it `refused` would pass whatever was compiled."""
    COMPILED.clear()
    jax.jit(lambda x: x + 1)(1.0)
    assert COMPILED


def assert_holds(line, pieces):
    missing = [piece for piece in pieces if piece not in line]
    assert not missing, f"{missing} not in: {line}"


# overrides of digits.py -> what the line must name: section, value, choices or way out
DIGITS_OVERRIDES = {
    # names
    "unknown section": ("optm.lr=1", "section 'optm'", "did you mean optim?", "sde, net"),
    "unknown option": ("optim.lrr=1", "config.optim.lrr", "of adam", "did you mean lr?", "warmup"),
    "unknown option of no constructor": ("train.step=1", "config.train.step ", "mean steps?"),
    "option of another constructor": ("sde.sigma_max=50", "config.sde.sigma_max", "of vp", "t_min"),
    "option of the former constructor": (
        "sde.name=ve --config.sde.beta_max=9",
        "config.sde.beta_max",
        "option of ve",
        "sigma_min, sigma_max",
    ),
    "option below an option": ("optim.lr.x=1", "config.optim.lr.x", "choose from lr"),
    "option below the seed": ("seed.x=1", "config.seed is {'x': 1}", "integer"),
    "no option": ("=1", "section ''", "choose from data"),
    "a whole section": ("optim=adam", "config.optim is a section", "'adam'", "config.optim.OPTION"),
    "unknown data": ("data.name=mnist", "config.data.name is 'mnist'", "fashion_mnist, cifar10"),
    "unknown sde": ("sde.name=VP", "config.sde.name is 'VP'", "vp, sub_vp, ve, linear"),
    "unknown net": ("net.name=resnet", "config.net.name is 'resnet'", "dit, mlp"),
    "unknown loss": ("loss.name=dsm", "config.loss.name is 'dsm'", "denoising"),
    "unknown optimizer": ("optim.name=adan", "config.optim.name is 'adan'", "mean adam?"),
    "unknown sampler": ("sample.name=ddpm", "config.sample.name is 'ddpm'", "mean ddim?", "reverse_sde"),
    "unknown grid": ("loss.grid=karras", "config.loss.grid is 'karras'", "uniform, log_snr, quadratic"),
    "unknown weight": ("loss.weight=snr", "config.loss.weight is 'snr'", "simple, likelihood"),
    "unknown output": ("model.output=noise", "config.model.output is 'noise'", "eps"),
    "unknown conditioning": ("model.conditioning=sigma", "config.model.conditioning", "t, log_snr"),
    "unknown decay": ("optim.decay=step", "config.optim.decay is 'step'", "constant, linear, cosine"),
    "unknown trace": ("eval.trace=rademach", "config.eval.trace", "mean rademacher?", "exact"),
    "solver of an SDE for an ODE": ("eval.solver=shark", "config.eval.solver is 'shark'", "tsit5"),
    "solver of an ODE for an SDE": (
        "sample.name=reverse_sde --config.sample.solver=heun",
        "config.sample.solver is 'heun'",
        "shark",
    ),
    "unknown threshold": ("sample.threshold=dynamik", "'dynamik'", "mean dynamic?", "none, static"),
    "unknown variance": (
        "sample.name=ancestral --config.sample.variance=tiny",
        "config.sample.variance is 'tiny'",
        "small, large",
    ),
    "option of another sampler": ("sample.solver=heun", "config.sample.solver", "of ddim", "eta"),
    # types
    "text for a number": ("optim.lr=fast", "config.optim.lr is 'fast'", "a number"),
    "text for an integer": ("train.steps=many", "config.train.steps is 'many'", "an integer"),
    "fraction for an integer": ("train.steps=1.5", "config.train.steps is 1.5", "an integer"),
    "a float for an integer": ("train.steps=1e3", "config.train.steps is 1000.0", "an integer"),
    "misspelt bool": ("train.flip=ture", "config.train.flip is 'ture'", "True or False"),
    "number for a bool": ("train.flip=1", "config.train.flip is 1", "True or False"),
    "bool for a number": ("optim.lr=True", "config.optim.lr is True", "a number"),
    "code for a number": ("optim.lr={[]:1}", "config.optim.lr is '{[]:1}'", "a number"),
    "text for an integer or None": ("eval.n_steps=few", "'few'", "an integer or None"),
    "no value": ("optim.lr", "--config.optim.lr has no value", "--config.optim.lr=VALUE"),
    "empty value": ("optim.lr=", "config.optim.lr is ''", "a number"),
    "nan": ("optim.lr=nan", "config.optim.lr is nan", "finite"),
    "infinity": ("optim.lr=-inf", "config.optim.lr is -inf", "finite"),
    "too large for a float": ("optim.lr=1" + 400 * "0", "config.optim.lr", "finite"),
    "nan in a tuple": ("train.ema=nan", "config.train.ema is nan", "finite"),
    "longer tuple": ("train.ema=0.9,0.8", "config.train.ema", "1 value,", "(0.99,)", "config file"),
    "shorter tuple": ("net.multipliers=(1,)", "config.net.multipliers", "2 values,", "(1, 2)"),
    "text for an empty tuple": ("train.ema_profiles=a", "config.train.ema_profiles is 'a'", "(1, 2)"),
    "scalar for a tuple": ("net.multipliers=2", "config.net.multipliers is '2'", "2 values"),
    "text in a tuple": ("net.multipliers=1,b", "config.net.multipliers is '1,b'", "(1, 2)"),
    "fraction in a tuple of integers": ("net.multipliers=1,1.5", "multipliers is 1.5", "an integer"),
    # ranges
    "no steps": ("train.steps=0", "config.train.steps is 0", "at least 1"),
    "negative batch": ("train.batch_size=-128", "config.train.batch_size is -128", "at least 1"),
    "empty evaluation batch": ("eval.batch_size=0", "config.eval.batch_size is 0", "at least 1"),
    "no sampling steps": ("sample.n_steps=0", "config.sample.n_steps is 0", "at least 1"),
    "no ELBO times": ("eval.elbo_times=0", "config.eval.elbo_times is 0", "at least 1"),
    "no checkpoint kept": ("train.keep=0", "config.train.keep is 0", "at least 1"),
    "negative interval": ("train.log_every=-1", "config.train.log_every is -1", "at least 0"),
    "learning rate 0": ("optim.lr=0", "config.optim.lr is 0.0", "greater than 0"),
    "negative clip": ("optim.clip=-1", "config.optim.clip is -1.0", "at least 0"),
    "average that never moves": ("train.ema=1.0", "config.train.ema is (1.0,)", "less than 1"),
    "dropout of everything": ("net.dropout=1", "config.net.dropout is 1.0", "less than 1"),
    "percentile above 100": ("sample.percentile=101", "percentile is 101.0", "at most 100"),
    "one noise level": (
        "sample.name=annealed_langevin --config.sample.n_levels=1",
        "config.sample.n_levels is 1",
        "at least 2",
    ),
    "eta above 1": ("sample.eta=2", "config.sample.eta is 2.0", "at most 1"),
    "odd width": ("net.channels=3", "config.net.channels is 3", "even"),
    "multiplier 0": ("net.multipliers=1,0", "config.net.multipliers is (1, 0)", "at least 1"),
    "negative seed": ("seed=-1", "config.seed is -1", "at least 0", "2**32"),
    "time past the end": ("sde.t_min=1", "config.sde.t_min is 1.0", "less than 1"),
    "crossed noise rates": ("sde.beta_min=30", "config.sde.beta_min is 30.0", "beta_max, 20.0"),
    "crossed noise scales": (
        "sde.name=ve --config.sde.sigma_min=1 --config.sde.sigma_max=1",
        "config.sde.sigma_min is 1.0",
        "less than sigma_max, 1.0",
    ),
    "crossed times": (
        "sde.name=linear --config.sde.t_min=.5 --config.sde.t_max=.4",
        "config.sde.t_min is 0.5",
        "t_max, 0.4",
    ),
    # combinations
    "vectors for the U-Net": ("data.name=toy2d", "config.net.name is 'unet'", "(2,)", "'mlp'"),
    "fixed-step solver without steps": ("eval.solver=euler", "'euler'", "set config.eval.n_steps"),
    "fixed-step solver without steps, to sample": (
        "sample.name=probability_flow --config.sample.solver=euler",
        "'euler'",
        "set config.sample.n_steps",
    ),
    "fixed-step solver of an SDE without steps": (
        "sample.name=reverse_sde --config.sample.solver=euler --config.sample.n_steps=None",
        "'euler'",
        "set config.sample.n_steps",
    ),
    "no number of steps for a sampler of steps": ("sample.n_steps=None", "an integer"),
    "Jacobian of images": (
        "eval.solver=kvaerno5 --config.data.name=fashion_mnist",
        "config.eval.solver is 'kvaerno5'",
        "784 columns",
        "'tsit5'",
    ),
    # data
    "missing data folder": (
        "data.name=fashion_mnist --config.data.folder=/nowhere",
        "/nowhere",
        "set config.data.folder",
    ),
    "missing archive": (
        "data.name=cifar10 --config.data.archive=/nowhere.tar.gz",
        "no CIFAR-10 archive /nowhere.tar.gz",
        "set config.data.archive",
    ),
    "all images held out": ("data.n_validation=1437", "config.data.n_validation", "1437"),
    "no validation": ("data.n_validation=0", "config.data.n_validation is 0", "at least 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", DIGITS_OVERRIDES)
def test_an_override_that_cannot_work_is_refused_in_one_line(case, refused):
    overrides, *pieces = DIGITS_OVERRIDES[case]
    assert_holds(refused("train", DIGITS, *f"--config.{overrides}".split()), pieces)


TOY_OVERRIDES = {
    "mirrored points": ("train.flip=True", "config.train.flip is True", "toy2d_moons", "False"),
    "classes of data without labels": (
        "data.shape=checkerboard --config.model.class_conditional=true",
        "config.model.class_conditional is True",
        "toy2d_checkerboard has no labels",
    ),
    "unknown shape": ("data.shape=moon", "config.data.shape is 'moon'", "did you mean moons?"),
    "threshold of points": (
        "sample.threshold=static",
        "config.sample.threshold is 'static'",
        "toy2d_moons has not",
        "'none'",
    ),
    "too few points": ("data.n=9", "config.data.n is 9", "at least 10"),
}


@pytest.mark.parametrize("case", TOY_OVERRIDES)
def test_an_override_that_cannot_work_with_points_is_refused(case, refused):
    overrides, *pieces = TOY_OVERRIDES[case]
    assert_holds(refused("train", TOY, *f"--config.{overrides}".split()), pieces)


ARGUMENTS = {
    "config missing": ("train", [], "--config is missing", "--help"),
    "config empty": ("train", ["--config="], "--config is missing"),
    "config file missing": (
        "train",
        ["--config=configs/vp_digit.py"],
        "no config file configs/vp_digit.py",
        "did you mean configs/vp_digits.py?",
        "configs/vp_toy2d.py",
    ),
    "config is a folder": ("train", ["--config=."], "no config file .;"),
    "stray argument": ("train", [DIGITS, "optim.lr=1"], "stray argument 'optim.lr=1'", "--config."),
    "stray argument first": ("train", ["digits.py"], "stray argument 'digits.py'"),
    "value after a space": ("train", [DIGITS, "--config.optim.lr", "1"], "stray argument '1'"),
    "unknown flag": ("train", [DIGITS, "--workdr=x"], "'workdr'", "Did you mean: workdir"),
    "misspelt prefix": ("train", [DIGITS, "--confg.optim.lr=1"], "'confg.optim.lr'"),
    "flag without value": ("train", [DIGITS, "--workdir"], "workdir"),
    "eval without workdir": ("eval", [], "--workdir is missing", "--help"),
    "sample without workdir": ("sample", ["--workdir="], "--workdir is missing"),
    "eval of no run": ("eval", ["--workdir=nowhere"], "no run in nowhere", "scripts/train.py"),
    "sample of no run": ("sample", ["--workdir=nowhere"], "no run in nowhere", "scripts/train.py"),
    "unknown metric": ("eval", ["--workdir=x", "--metric=fid"], "--metric=fid", "bpd"),
    "unknown split": ("eval", ["--workdir=x", "--split=dev"], "--split=dev", "validation"),
    "no samples": ("sample", ["--workdir=x", "--n=0"], "--n=0", "positive"),
    "unknown picture format": ("sample", ["--workdir=x", "--out=a.gif"], "--out=a.gif", ".npz"),
    "unknown sampler, in short": (
        "sample",
        ["--workdir=x", "--sampler=dpmpp2m"],
        "--sampler=dpmpp2m is no sampler; did you mean dpmpp_2m?",
        "choose from ddim, ancestral",
    ),
    "two samplers": (
        "sample",
        ["--workdir=x", "--sampler=ddim", "--config.sample.name=ancestral"],
        "--sampler=ddim contradicts --config.sample.name=ancestral",
        "one of them",
    ),
    "two numbers of steps": (
        "sample",
        ["--workdir=x", "--steps=5", "--config.sample.n_steps=6"],
        "--steps=5 contradicts --config.sample.n_steps=6",
    ),
    "no steps, in short": ("sample", ["--workdir=x", "--steps=0"], "--steps=0", "positive"),
    "negative temperature": ("sample", ["--workdir=x", "--temperature=-1"], "--temperature=-1"),
    "negative label": ("sample", ["--workdir=x", "--label=-1"], "--label=-1", "non-negative"),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_arguments_that_cannot_work_are_refused_in_one_line(case, refused):
    script, args, *pieces = ARGUMENTS[case]
    assert_holds(refused(script, *args), pieces)


CONFIG_FILES = {
    "syntax error": ("def get_config(:", "SyntaxError", "line 1"),
    "no Python": ('{"data": true}', "NameError"),
    "no get_config": ("config = 1", "get_config()", "ConfigDict"),
    "get_config of the wrong type": ("def get_config(): return {}", "get_config()", "ConfigDict"),
    "failing get_config": ("def get_config(): return [][0]", "IndexError: list index out of range"),
}


@pytest.mark.parametrize("case", CONFIG_FILES)
def test_a_config_file_that_cannot_work_is_refused_in_one_line(case, refused):
    text, *pieces = CONFIG_FILES[case]
    Path("mine.py").write_text(text)
    assert_holds(refused("train", "--config=mine.py"), pieces)


# sections in place of those of a config that works
CONFIG_SECTIONS = {
    "unknown section": ("nets=dict(name='unet')", "section 'nets'", "did you mean net?"),
    "no name": ("data=dict()", "config.data.name is None", "digits, fashion_mnist"),
    "number for a section": ("data=3", "config.data is a section, not 3"),
    "list for a name": ("data=dict(name=['digits'])", "config.data.name is ['digits']", "digits,"),
    "list for a choice": ("loss=dict(name='denoising', grid=[1])", "config.loss.grid is [1]", "log_snr"),
    "sampler without a step": (
        "sample=dict(name='predictor_corrector', predictor='none', corrector='none')",
        "config.sample.predictor and corrector are both 'none'",
        "set one of them",
    ),
    "steps that end before t_min": (
        "sample=dict(name='predictor_corrector', t_end=9.9e-6)",
        "config.sample.t_end is 9.9e-06", "t_min, 1e-05, and t_max, 1.0", "None ends at t_min",
    ),
    "steps that end where they begin": (
        "sample=dict(name='predictor_corrector', t_end=1.0)", "config.sample.t_end is 1.0; it must be between",
    ),
    "solver on a density of training times": (
        "eval=dict(grid='log_normal')", "config.eval.grid is 'log_normal'", "uniform, log_snr, quadratic",
    ),
    "likelihood before t_min": (
        "eval=dict(t_min=9e-6)", "config.eval.t_min is 9e-06; it must be at least the SDE's t_min, 1e-05",
    ),
    "Adams without a number of steps": (
        "eval=dict(solver='adams4')", "config.eval.solver is 'adams4', which cannot adapt its steps",
        "set config.eval.n_steps",
    ),
    "decoder of data without levels": (
        "data=dict(name='toy2d'), net=dict(name='mlp'), eval=dict(dequantize='decoder')",
        "config.eval.dequantize is 'decoder'", "toy2d_moons, which has no levels", "uniform, denoised",
    ),
    "flow for data without levels": (
        "data=dict(name='toy2d'), net=dict(name='mlp'), dequantize=dict(name='flow')",
        "config.dequantize.name is 'flow'", "has no levels",
    ),
    "levels of data without": (
        "data=dict(name='toy2d'), net=dict(name='mlp'), model=dict(output='levels')",
        "config.model.output is 'levels'", "choose another output",
    ),
    "truncated noise for a model of boxes": (
        "eval=dict(dequantize='truncated_normal')", "does not fit a model after 'uniform' training",
        "choose from uniform, decoder, denoised",
    ),
    "boxes for a model of the lattice": (
        "dequantize=dict(name='lattice'), eval=dict(elbo_decoder='gaussian')",
        "config.eval.elbo_decoder is 'gaussian'", "choose from lattice",
    ),
    "levels that are boxes on a lattice": (
        "dequantize=dict(name='lattice'), model=dict(output='levels')",
        "config.model.output is 'levels', which are boxes", "is 'lattice'; set it to 'uniform'",
    ),
    "levels that are added up": (
        "net=dict(name='ncsnpp', embedding='positional', multipliers=(1, 1), progressive_output='output_skip')"
        ", model=dict(output='levels')",
        "config.net.progressive_output is 'output_skip'", "set progressive_output to",
    ),
    "flow with another loss than a likelihood": (
        "dequantize=dict(name='flow'), loss=dict(name='denoising', weight='simple')",
        "whose loss is a likelihood", "config.loss.weight",
    ),
    "frozen model with weight decay": (
        "dequantize=dict(name='flow', frozen='run'), optim=dict(name='adam', weight_decay=0.1)",
        "config.optim.weight_decay is 0.1", "frozen score model",
    ),
    "probes of an exact trace": (
        "eval=dict(trace='exact', n_probes=2)", "config.eval.n_probes is 2", "set n_probes to 1",
    ),
    "grid in the place of a found one": (
        "eval=dict(grid='uniform', fit_grid=True)", "config.eval.grid is 'uniform'", "set fit_grid to False",
    ),
    "Fourier features of a time": (
        "net=dict(name='ncsnpp', multipliers=(1, 1))",
        "config.model.conditioning is 'log_snr'", "embedding is 'fourier'", "set conditioning to log_sigma",
    ),
    "concatenation of nothing": (
        "net=dict(name='ncsnpp', combine='cat', multipliers=(1, 1))",
        "config.net.combine is 'cat'", "progressive_input='input_skip', not 'residual'", "set it to 'sum'",
    ),
    "vectors for a network of images": (
        "data=dict(name='toy2d'), net=dict(name='ddpmpp')",
        "config.net.name is 'ddpmpp', which needs images", "use 'mlp'",
    ),
    "no levels": ("net=dict(name='unet', multipliers=())", "config.net.multipliers is ()", "per level"),
    "image that cannot be halved so often": (
        "net=dict(name='unet', multipliers=(1, 1, 1, 1, 1))",
        "config.net.multipliers",
        "8x8",
        "divisible by 16",
        "4 multipliers at most",
    ),
    # objectives
    "schedule without an end": (
        "sde=dict(name='learned', log_snr_max=None), loss=dict(name='vdm', decoder='uniform')",
        "config.sde.log_snr_max is None", "must be a number",
    ),
    "schedule that is not learned": (
        "sde=dict(name='learned')", "config.sde.name is 'learned'", "no gradient", "set it to 'vdm'",
    ),
    "grid that looks through the schedule": (
        "sde=dict(name='learned'), loss=dict(name='vdm', decoder='uniform', grid='log_snr')",
        "config.loss.grid is 'log_snr'", "set it to 'uniform'",
    ),
    "discrete decoder of data without levels": (
        "data=dict(name='toy2d'), net=dict(name='mlp'), loss=dict(name='vdm')",
        "config.loss.decoder is 'lattice'", "toy2d_moons has no levels", "set it to 'gaussian'",
    ),
    "decoder of a lattice for boxes": (
        "loss=dict(name='vdm')", "config.loss.decoder is 'lattice'", "config.dequantize.name is 'uniform'",
    ),
    "log-SNR that is infinite at t_max": (
        "sde=dict(name='vp', beta_max=400.0)", "config.sde.beta_max is 400.0", "at most 150",
    ),
    "log-SNR that is infinite at t_min": (
        "sde=dict(name='linear', t_min=0.0)", "config.sde.t_min is 0.0", "at least 1e-12",
    ),
    "coupling that does not look at labels": (
        "sde=dict(name='linear'), model=dict(class_conditional=True), train=dict(coupling='optimal')",
        "config.train.coupling is 'optimal'", "does not look at labels", "class_conditional to False",
    ),
    "noise where there is no score": (
        "sde=dict(name='linear'), train=dict(coupling='optimal'), sample=dict(name='ancestral')",
        "config.train.coupling is 'optimal'", "'ancestral', which adds noise", "probability_flow",
    ),
    "noise by an option where there is no score": (
        "sde=dict(name='linear'), train=dict(coupling='optimal'), sample=dict(name='ddim', eta=1.0)",
        "'ddim' with eta, which adds noise",
    ),
    "coupled noise without a kernel": (
        "loss=dict(name='sliced'), train=dict(coupling='optimal')", "'sliced'", "set it to 'flow_matching'",
    ),
    "unknown score to match": (
        "loss=dict(name='explicit')", "the score of digits is not known", "implicit, sliced",
    ),
    "kernel that has no closed form": (
        "sde=dict(name='anharmonic')", "config.sde.name is 'anharmonic'", "loss.name is 'denoising'",
        "implicit, sliced",
    ),
    "step that needs a kernel": (
        "sde=dict(name='anharmonic'), loss=dict(name='sliced')", "config.sample.name", "reverse_sde",
    ),
    "consistency of another output": (
        "loss=dict(name='consistency')", "config.loss.name is 'consistency'", "set both, or neither",
    ),
    "steps of a consistency model": (
        "loss=dict(name='consistency'), model=dict(output='consistency', sigma_data=0.5)",
        "config.sample.name is 'ddim'", "sampled by 'consistency'",
    ),
    "weight over time of one noise level": (
        "loss=dict(name='denoising', level=0.1)", "config.loss.weight is 'likelihood'", "to 'simple'",
    ),
    "noise level without noise": (
        "loss=dict(name='denoising', level=0.0, weight='simple')", "config.loss.level is 0", "above 0",
    ),
    "times of one noise level": (
        "loss=dict(name='ddpm', level=0.1)", "config.loss.level is 0.1", "n_times to None",
    ),
    "steps through unknown noise levels": (
        "loss=dict(name='sliced', level=0.1)", "the only noise level", "'langevin'", "level to 0.1",
    ),
    "labels dropped that are not given": (
        "train=dict(label_dropout=0.1)", "config.train.label_dropout is 0.1", "told no labels",
    ),
    "augmentation of points": (
        "data=dict(name='toy2d'), net=dict(name='mlp'), train=dict(augment=0.1)",
        "config.train.augment is 0.1", "has no images",
    ),
    "augmentation of levels": (
        "model=dict(output='levels'), train=dict(augment=0.1)", "no pixel at its level", "augment to 0",
    ),
    "snapshots of nothing": (
        "train=dict(snapshot_every=10)", "config.train.snapshot_every is 10", "ema_profiles",
    ),
    "wide profile": ("train=dict(ema_profiles=(0.3,))", "config.train.ema_profiles", "at most 0.288"),
    "gradient of probabilities": (
        "model=dict(output='levels', conservative=True)", "config.model.conservative is True", "another output",
    ),
    "trace of an image": (
        "data=dict(name='fashion_mnist'), loss=dict(name='implicit')", "784 products", "choose 'sliced_vr'",
    ),
    "last number below the first": (
        "loss=dict(name='consistency', s1=5), model=dict(output='consistency', sigma_data=0.5)",
        "config.loss.s1 is 5", "at least s0, 10",
    ),
    "waves of a scaled input": (
        "net=dict(name='unet', multipliers=(1,), input_frequencies=(7,)), model=dict(sigma_data=0.5)",
        "config.net.input_frequencies is (7,)", "set it to None",
    ),
    "patch that does not divide": (
        "net=dict(name='dit', patch=3)", "config.net.patch: image size 8x8", "use patch 2",
    ),
    "heads that do not divide": (
        "net=dict(name='dit', width=64, heads=5)", "config.net.width is 64, not divisible by 20", "set it to 80",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIG_SECTIONS)
def test_a_section_that_cannot_work_is_refused_in_one_line(case, refused):
    sections, *pieces = CONFIG_SECTIONS[case]
    write_config("mine.py", f"{SECTIONS['digits.py']} | dict({sections})")
    assert_holds(refused("train", "--config=mine.py"), pieces)


# folders


@pytest.fixture
def saved():
    """The resolved config of digits.py, as a run's folder holds it."""
    return build.resolve(SECTIONS["digits.py"])


def write_run(saved, **changed):
    Path("run").mkdir()
    sections = {name: saved[name] | options for name, options in changed.items()}
    Path("run", "config.json").write_text(json.dumps(saved | sections))


def test_a_folder_with_another_config_is_refused_and_left_as_it_is(saved, refused):
    write_run(saved, optim={"lr": 0.5})
    before = Path("run", "config.json").read_text()
    line = refused("train", DIGITS, "--workdir=run")
    assert_holds(line, ["run holds", "config.optim.lr = 0.5, not 0.002", "--allow_config_change"])
    assert Path("run", "config.json").read_text() == before
    assert [path.name for path in Path("run").iterdir()] == ["config.json"]


@pytest.mark.parametrize("folder", ["file", "file/below", "/proc/score_jax"])
def test_a_folder_that_cannot_be_written_is_refused(folder, refused):
    Path("file").touch()
    line = refused("train", DIGITS, f"--workdir={folder}")
    assert_holds(line, [f"cannot write in {folder}:", "another --workdir"])


@pytest.mark.parametrize("script", ["eval", "sample"])
def test_a_folder_without_a_checkpoint_is_refused(script, saved, refused):
    write_run(saved)
    line = refused(script, "--workdir=run")
    assert_holds(line, ["no checkpoint in", "run/checkpoints", "scripts/train.py --workdir=run"])


@pytest.mark.parametrize(
    "content, piece", [(b'{"seed": ', "line 1"), (b"\xff", "utf-8"), (b"[1]", "no object")]
)
@pytest.mark.parametrize("script", ["eval", "sample", "train"])
def test_a_damaged_saved_config_is_named(script, content, piece, refused):
    Path("run").mkdir()
    Path("run", "config.json").write_bytes(content)
    args = [DIGITS] if script == "train" else []
    assert_holds(refused(script, *args, "--workdir=run"), ["run/config.json is damaged", piece])


def test_a_saved_config_of_another_version_is_named(saved, refused):
    write_run(saved, optim={"nesterov": True})
    line = refused("eval", "--workdir=run")
    assert_holds(line, ["run/config.json", "config.optim.nesterov", "option of adam", "run.json"])


@pytest.mark.parametrize("script, section", [("eval", "eval"), ("sample", "sample")])
@pytest.mark.parametrize("override", ["optim.lr=1", "evaluate.rtol=1", "seed=1", "net"])
def test_what_the_run_fixes_cannot_be_overridden_later(script, section, override, saved, refused):
    write_run(saved)
    line = refused(script, "--workdir=run", f"--config.{override}")
    assert_holds(
        line,
        [
            f"config.{override.split('=')[0]} is fixed",
            f"only config.{section} and where the data are can",
        ],
    )


@pytest.mark.parametrize("script, piece", [("eval", "no density"), ("sample", "no samples")])
def test_a_classifiers_run_is_neither_evaluated_in_bits_nor_sampled_from(script, piece, refused):
    classifier = dict(net=dict(name="classifier"), model=dict(output="class"))
    classifier |= dict(loss=dict(name="cross_entropy"))
    saved = build.resolve(SECTIONS["digits.py"] | classifier)
    write_run(saved)
    assert_holds(refused(script, "--workdir=run"), ["'cross_entropy': a classifier", piece])


def test_a_label_needs_a_model_that_knows_it(saved, refused):
    write_run(saved)
    line = refused("sample", "--workdir=run", "--label=3")
    assert_holds(line, ["--label=3", "the run's model knows 0 classes"])
    Path("run", "config.json").unlink()
    Path("run").rmdir()
    write_run(saved, model={"class_conditional": True})
    line = refused("sample", "--workdir=run", "--label=10")
    assert_holds(line, ["--label=10", "knows 10 classes, from 0"])


def test_a_grid_is_searched_for_a_fixed_number_of_steps(saved, refused, monkeypatch):
    monkeypatch.setattr("score_jax.run.averaged_params", lambda *args: (1, {}))
    write_run(saved)
    line = refused("sample", "--workdir=run", "--sampler=probability_flow", "--search_grid")
    assert_holds(line, ["--search_grid", "fixed number of steps", "--steps"])


def test_the_list_of_samplers_names_each_with_its_order_evaluations_and_source(capsys):
    """Needs no run; a name is what --sampler takes, one with solvers has a row for each."""
    code = call("sample", "--list")
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["SAMPLER", "ORDER", "EVALUATIONS", "A", "STEP", "SOURCE"]
    assert {row[0] for row in rows[1:]} == set(build.SECTIONS["sample"])
    by_name = {" ".join(row[:2]) if "=" in row[1] else row[0]: row for row in rows}
    assert by_name["ddim"][1:3] == ["1", "1"] and "2010.02502," in by_name["ddim"]
    assert by_name["ancestral"][1:4] == ["weak", "1", "1"]
    assert by_name["edm_heun"][1:3] == ["2", "2"]
    assert by_name["probability_flow solver=tsit5"][2:4] == ["5", "6"]
    assert by_name["reverse_sde solver=spark"][2:5] == ["weak", "2", "3"]
    solvers = {name.partition("=")[2] for name in by_name if "=" in name}
    assert solvers == {*build.CHOICES["solver"], *build.solve.SDE_SOLVERS}


@pytest.mark.parametrize("out", ["file.png/a.png", "folder.png"])
def test_a_picture_that_cannot_be_written_is_refused(out, saved, refused, monkeypatch):
    monkeypatch.setattr("score_jax.run.averaged_params", lambda *args: (1, {}))
    write_run(saved)
    Path("file.png").touch()
    Path("folder.png").mkdir()
    assert_holds(refused("sample", "--workdir=run", f"--out={out}"), [out.split("/")[0]])


# in processes of their own


def process(*args, **env):
    return subprocess.run(
        [sys.executable, *map(str, args)],
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))} | env,
    )


def test_a_process_ends_with_code_2_and_no_trace():
    args = ["--config=configs/vp_digits.py"]  # found beside the script
    done = process(CHECKOUT / "scripts/train.py", *args, "--config.optim.lr=nan")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "train.py: config.optim.lr is nan; it must be a finite number\n"


def test_the_devices_must_divide_the_batch():
    four = "--xla_force_host_platform_device_count=4"
    args = [DIGITS, "--config.train.batch_size=6", "--workdir=run"]
    done = process(CHECKOUT / "scripts/train.py", *args, XLA_FLAGS=four)
    assert done.returncode == 2
    assert done.stderr == (
        "train.py: config.train.batch_size is 6, not divisible by the 4 devices; set it to 8\n"
    )
    assert not Path("run").exists()


@pytest.mark.parametrize("flag", ["--help", "-h", "--helpfull"])
@pytest.mark.parametrize("script", ["train", "eval", "sample"])
def test_help_shows_what_the_script_does_and_its_flags(script, flag, capsys):
    code = call(script, flag)
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    doc = (CHECKOUT / "scripts" / f"{script}.py").read_text().split('"""')[1]
    assert out.startswith(doc)
    assert "--workdir: the run's folder" in out
    assert ("--flagfile" in out) == (flag == "--helpfull")


# what is read from a command line that works


def test_an_override_is_read_by_the_type_of_what_it_replaces():
    config = cli.load_config(
        "digits.py",
        [
            "--config.seed=7",
            "--config.optim.lr=1e-4",
            "--config.optim.warmup=0",
            "--config.train.flip=true",
            "--config.train.ema=0.5",
            "--config.net.multipliers=3,4",
            "--config.eval.n_steps=8",
            "--config.eval.solver=heun",
            "--config.data.n_validation=10",  # left at its default by the file
            "--config.optim.lr=3",  # the last one counts
        ],
    )
    assert (config["seed"], config["train"]["flip"], config["eval"]["n_steps"]) == (7, True, 8)
    assert (config["optim"]["lr"], type(config["optim"]["lr"])) == (3.0, float)
    assert (config["train"]["ema"], config["net"]["multipliers"]) == ((0.5,), (3, 4))
    assert (
        config["optim"]["warmup"],
        config["eval"]["solver"],
        config["data"]["n_validation"],
    ) == (0, "heun", 10)
    assert config["net"]["channels"] == 32, "what is not overridden stays"


def test_none_and_text_that_looks_like_a_number_are_read():
    config = cli.load_config(
        "digits.py",
        ["--config.data.name=cifar10", "--config.data.folder=7", "--config.data.archive=a=b"],
    )
    assert (config["data"]["folder"], config["data"]["archive"]) == ("7", "a=b")
    assert cli.override(config, ["--config.eval.n_steps=None"])["eval"]["n_steps"] is None


def test_an_override_of_a_name_drops_the_options_of_the_other_constructor():
    config = cli.load_config("digits.py", ["--config.net.width=8", "--config.net.name=mlp"])
    assert config["net"] == dict(name="mlp", width=8, depth=3, dropout=0.0)
    same = cli.load_config("digits.py", ["--config.net.name=unet"])
    assert same["net"]["channels"] == 32, "the file's own options stay if the name is the file's"


def test_a_config_may_import_from_the_folder_it_lies_in(tmp_path, monkeypatch):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "mine.py").write_text(
        "from configs import common\nfrom shared import numbers_of_mine\n"
        "def get_config(): return common.config(**numbers_of_mine.SECTIONS)"
    )
    (tmp_path / "shared" / "numbers_of_mine.py").write_text(
        "SECTIONS = dict(data=dict(name='digits'), sde=dict(name='ve'), net=dict(name='unet'))"
    )
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", [str(CHECKOUT / "scripts" / "train.py")])
        config = cli.load_config(str(tmp_path / "shared" / "mine.py"), [])
    assert config["sde"]["name"] == "ve"


def test_a_run_is_read_with_its_own_values_not_todays_defaults(tmp_path, saved):
    saved = saved | {
        "sde": saved["sde"] | {"beta_max": 12.0},
        "sample": dict(name="ddim", n_steps=3),
    }
    (tmp_path / "config.json").write_text(json.dumps(saved))
    config = cli.load_run(tmp_path, ["--config.sample.n_steps=9"], "sample")
    assert (
        config["sde"]["beta_max"],
        config["sample"]["n_steps"],
        config["net"]["multipliers"],
    ) == (12.0, 9, (1, 2))
    assert workdir.load_config(tmp_path)["sample"]["n_steps"] == 3


def test_compiled_programs_go_to_the_users_cache_unless_told_otherwise(tmp_path, monkeypatch):
    own = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("HOME", str(tmp_path))
    try:
        for cache, expected in (
            ("", f"{tmp_path}/.cache/score_jax/xla"),
            ("/x", "/x/score_jax/xla"),
        ):
            monkeypatch.setenv("XDG_CACHE_HOME", cache)
            jax.config.update("jax_compilation_cache_dir", None)
            cli.use_compilation_cache()
            assert jax.config.jax_compilation_cache_dir == expected
    finally:
        jax.config.update("jax_compilation_cache_dir", own)
    show = "from score_jax import cli; import jax; cli.use_compilation_cache(); "
    show += "print(jax.config.jax_compilation_cache_dir, jax.config.jax_enable_compilation_cache)"
    told = process("-c", show, JAX_COMPILATION_CACHE_DIR="/y", JAX_ENABLE_COMPILATION_CACHE="0")
    assert told.stdout.split() == ["/y", "False"]


def test_an_interrupt_ends_without_a_trace(capsys, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "use_compilation_cache", lambda: None)
    monkeypatch.setattr(cli, "load_config", interrupted)
    assert call("train", DIGITS) == 130
    assert capsys.readouterr().err == ""
