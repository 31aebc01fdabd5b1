"""Which parts of a config go together: every combination that cannot work is refused here, in one line.

Names, types and ranges of single options are `build`'s.
"""

import math
from typing import Any

import numpy as np

from score_jax import predict, samplers, solve
from score_jax.data.base import DataSet
from score_jax.nets import unet
from score_jax.nets.dit import check_patch


class ConfigError(ValueError):
    """A config that cannot be built: one line naming the value, the rule and the choices."""


Config = dict[str, Any]

# the evaluations that fit what a model was trained on, of levels dequantized by name; first the default
FITTING = {
    "uniform": ("uniform", "decoder", "denoised"),
    "lattice": ("truncated_normal", "lattice_decoder"),
    "flow": ("flow", "uniform", "decoder", "denoised"),
}
# densities of training times, along which no solver should step
OF_TIMES = "log_normal", "log_normal_wide", "logit_normal"
# losses that use no kernel p(x_t | x_0), only points x_t
WITHOUT_KERNEL = "implicit", "sliced", "sliced_vr", "finite_difference"
# draws that add noise, unless an option `noise` is 0
_NOISY = {name for name, entry in samplers.SAMPLERS.items() if entry.order.startswith("weak")} | {
    "predictor_corrector",
    "annealed_langevin",
    "langevin",
}
# of an implicit solver and of the exact trace, which take a product for each dimension
_LARGEST_JACOBIAN = 256
# of the noise rate over all times: alpha(1) is exp(-1/2 of it)
_LARGEST_INTEGRAL = 150.0


def no_bits(config: Config) -> str | None:
    """Why a model has no bits/dim, or None."""
    loss = config["loss"]
    if loss["name"] == "cross_entropy":
        return "config.loss.name is 'cross_entropy': a classifier knows no density"
    if loss["name"] == "consistency":
        return (
            "config.loss.name is 'consistency': such a model knows where paths end, not the score"
        )
    if loss.get("level") is not None:
        return f"config.loss.level is {loss['level']:g}: a density needs the score at every noise level"
    return None


def no_samples(config: Config) -> str | None:
    """Why a model cannot be sampled from, or None."""
    if config["loss"]["name"] == "cross_entropy":
        return "config.loss.name is 'cross_entropy': a classifier draws no samples, it guides those of another run"
    return None


def no_elbo(config: Config) -> str | None:
    """Why a model has no ELBO, or None."""
    if config["sde"]["name"] == "anharmonic":
        return "no ELBO: the SDE's kernel has no closed form"
    if config["train"]["coupling"] != "independent":
        return (
            "no ELBO: with coupled noise the network knows the velocity of the ODE, not the score"
        )
    return None


def _schedule(config: Config):
    sde = config["sde"]
    if sde["name"] == "ddpm":
        betas = np.linspace(sde["beta_min"], sde["beta_max"], sde["n_betas"])
        if -np.sum(np.log1p(-betas)) > _LARGEST_INTEGRAL:
            raise ConfigError(
                f"config.sde.beta_max is {sde['beta_max']}, with which {sde['n_betas']} steps leave nothing "
                "of the data that float32 knows: log-SNR is infinite at t = 1; lower beta_max or n_betas"
            )


def check(config: Config, data: DataSet, ends: tuple[float, float]) -> None:
    """Raises ConfigError for parts of a resolved config that do not go together.

    Args:
      ends: t_min and t_max of the SDE.
    """
    _schedule(config)
    _network(config, data)
    _classifier(config, data)
    _training(config, data)
    _dequantization(config, data)
    _loss(config, data)
    _force(config)
    _coupling(config)
    _evaluation(config, data, ends)
    _sampling(config, data, ends)


def _network(config: Config, data: DataSet):
    is_image, net, model = len(data.shape) == 3, config["net"], config["model"]
    if net["name"] != "mlp" and not is_image:
        raise ConfigError(
            f"config.net.name is {net['name']!r}, which needs images, but {data.name} has shape "
            f"{data.shape}; use 'mlp'"
        )
    if "multipliers" in net:
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
    if net["name"] == "dit":
        try:
            check_patch(*data.shape[:2], net["patch"])
        except ValueError as error:
            raise ConfigError(f"config.net.patch: {error}") from error
        unit = math.lcm(4, net["heads"])
        if net["width"] % unit:
            raise ConfigError(
                f"config.net.width is {net['width']}, not divisible by {unit}, as config.net.heads = "
                f"{net['heads']} needs it; set it to {-(-net['width'] // unit) * unit}"
            )
    conditioning = model["conditioning"]
    if net.get("embedding") == "fourier" and conditioning not in ("log_sigma", "edm"):
        raise ConfigError(
            f"config.model.conditioning is {conditioning!r}, but config.net.embedding is 'fourier', made "
            "for a logarithm of sigma; set conditioning to log_sigma, or embedding to positional"
        )
    if net.get("input_frequencies") and model["sigma_data"] is not None:
        raise ConfigError(
            f"config.net.input_frequencies is {net['input_frequencies']}, waves of x in [-1, 1], but "
            f"config.model.sigma_data is {model['sigma_data']}, which scales x; set it to None"
        )
    if model["class_conditional"] and not data.n_classes:
        raise ConfigError(
            f"config.model.class_conditional is True, but {data.name} has no labels; set it to False"
        )
    output = model["output"]
    if output in ("edm", "consistency") and model["sigma_data"] != predict.SIGMA_DATA:
        raise ConfigError(
            f"config.model.sigma_data is {model['sigma_data']}; output {output!r} is made for "
            f"{predict.SIGMA_DATA}"
        )
    if output in ("levels", "consistency") and model["conservative"]:
        raise ConfigError(
            "config.model.conservative is True, which makes a gradient of the network's output, but "
            f"config.model.output is {output!r}, which is none; choose another output"
        )
    if output == "levels":
        if config["dequantize"]["name"] != "uniform":
            raise ConfigError(
                "config.model.output is 'levels', which are boxes filled evenly, but "
                f"config.dequantize.name is {config['dequantize']['name']!r}; set it to 'uniform'"
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


def _classifier(config: Config, data: DataSet):
    net, output, loss = config["net"]["name"], config["model"]["output"], config["loss"]["name"]
    parts = net == "classifier", output == "class", loss == "cross_entropy"
    if not any(parts):
        return
    if not all(parts):
        raise ConfigError(
            f"config.net.name is {net!r}, config.model.output is {output!r} and config.loss.name is "
            f"{loss!r}; a classifier is net 'classifier', output 'class' and loss 'cross_entropy': set "
            "all three, or none"
        )
    if not data.n_classes:
        raise ConfigError(
            f"config.net.name is 'classifier', but {data.name} has no labels; choose another data set"
        )
    without = {"model": {"class_conditional": False, "conservative": False}}
    without |= {"train": {"label_dropout": 0.0, "augment": 0.0, "coupling": "independent"}}
    without |= {"dequantize": {"name": "uniform"}}
    for section, options in without.items():
        for option, value in options.items():
            if config[section][option] != value:
                raise ConfigError(
                    f"config.{section}.{option} is {config[section][option]!r}, which is not for the "
                    f"classifier that config.net.name asks for; set it to {value!r}"
                )


def _training(config: Config, data: DataSet):
    is_image, options = len(data.shape) == 3, config["train"]
    if options["flip"] and not is_image:
        raise ConfigError(
            f"config.train.flip is True, but {data.name} has no images; set it to False"
        )
    if options["label_dropout"] and not config["model"]["class_conditional"]:
        raise ConfigError(
            f"config.train.label_dropout is {options['label_dropout']}, but the network is told no "
            "labels; set it to 0, or config.model.class_conditional to True"
        )
    if options["augment"]:
        rest = "set config.train.augment to 0"
        if not is_image:
            raise ConfigError(
                f"config.train.augment is {options['augment']}, but {data.name} has no images; {rest}"
            )
        if config["model"]["output"] == "levels" or config["dequantize"]["name"] != "uniform":
            raise ConfigError(
                f"config.train.augment is {options['augment']}, which leaves no pixel at its level, but "
                f"config.model.output is {config['model']['output']!r} and config.dequantize.name "
                f"{config['dequantize']['name']!r}; {rest}"
            )
    for name in ("ema", "ema_profiles"):
        written = [f"{value:g}" for value in options[name]]
        if len({*written}) < len(written):
            raise ConfigError(
                f"config.train.{name} is {options[name]}, of which two cannot be told apart by six digits; "
                "leave one of them out"
            )
    if options["snapshot_every"] and not options["ema_profiles"]:
        raise ConfigError(
            f"config.train.snapshot_every is {options['snapshot_every']}, but there is nothing to keep; "
            "set config.train.ema_profiles, as (0.05, 0.1), or snapshot_every to 0"
        )


def _dequantization(config: Config, data: DataSet):
    trained, evaluated = config["dequantize"]["name"], config["eval"]["dequantize"]
    if data.levels is None and trained != "uniform":
        raise ConfigError(
            f"config.dequantize.name is {trained!r}, but {data.name} has no levels; set it to 'uniform', "
            "which leaves such data as they are"
        )
    fitting = FITTING[trained] if data.levels else ("uniform", "denoised")
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
        loss = config["loss"]
        plain = loss["name"] == "denoising" and loss["level"] is None and loss["n_times"] is None
        plain = plain and (loss["weight"], loss["target"]) == ("likelihood", "eps")
        if not plain:
            raise ConfigError(
                "config.dequantize.name is 'flow', whose loss is a likelihood; set config.loss.name to "
                "'denoising', config.loss.weight to 'likelihood', config.loss.target to 'eps', and "
                "level and n_times to None"
            )
        if config["dequantize"]["frozen"] is not None and config["optim"]["weight_decay"]:
            raise ConfigError(
                f"config.optim.weight_decay is {config['optim']['weight_decay']}, which would move the "
                "frozen score model; set it to 0"
            )


def _loss(config: Config, data: DataSet):
    loss, output = config["loss"], config["model"]["output"]
    name, level = loss["name"], loss.get("level")
    if (name == "consistency") != (output == "consistency"):
        raise ConfigError(
            f"config.loss.name is {name!r} and config.model.output is {output!r}; 'consistency' goes "
            "with itself alone: set both, or neither"
        )
    if name == "consistency" and loss["s1"] < loss["s0"]:
        raise ConfigError(
            f"config.loss.s1 is {loss['s1']}, the last number of intervals, which must be at least s0, "
            f"{loss['s0']}"
        )
    if name == "explicit" and data.noised_logp is None:
        raise ConfigError(
            f"config.loss.name is 'explicit', but the score of {data.name} is not known; choose from "
            f"{', '.join(WITHOUT_KERNEL)}"
        )
    if name == "explicit" and config["model"]["class_conditional"]:
        raise ConfigError(
            "config.loss.name is 'explicit', whose score is that of all classes together; set "
            "config.model.class_conditional to False"
        )
    size = math.prod(data.shape)
    if name == "implicit" and size > _LARGEST_JACOBIAN:
        raise ConfigError(
            f"config.loss.name is 'implicit', whose exact trace takes {size} products with a Jacobian; it "
            f"is for at most {_LARGEST_JACOBIAN} dimensions; choose 'sliced_vr'"
        )
    if level is not None:
        if loss.get("weight", "simple") != "simple":
            raise ConfigError(
                f"config.loss.weight is {loss['weight']!r}, over all times, but config.loss.level is "
                f"{level:g}; set weight to 'simple'"
            )
        if loss.get("n_times") is not None or loss.get("time_bins"):
            raise ConfigError(
                f"config.loss.level is {level:g}, one noise level; set config.loss.n_times to None and "
                "time_bins to 0"
            )
        if level == 0 and name not in ("explicit", *WITHOUT_KERNEL):
            raise ConfigError(
                f"config.loss.level is 0, where {name!r} has nothing to remove; choose from explicit, "
                f"{', '.join(WITHOUT_KERNEL)}, or a level above 0"
            )
        if level == 0 and output != "score":
            raise ConfigError(
                f"config.model.output is {output!r}, in units of the noise, of which there is none at "
                "config.loss.level = 0; set output to 'score'"
            )
        if level == 0 and config["dequantize"]["name"] == "lattice":
            raise ConfigError(
                "config.dequantize.name is 'lattice', points without a density, but config.loss.level is 0; "
                "set dequantize.name to 'uniform'"
            )
    if name == "vdm":
        trained, decoder = config["dequantize"]["name"], loss["decoder"]
        if data.levels is None and decoder != "gaussian":
            raise ConfigError(
                f"config.loss.decoder is {decoder!r}, but {data.name} has no levels; set it to 'gaussian'"
            )
        fitting = {"uniform": ("uniform", "gaussian")}.get(trained, (trained,))
        if data.levels is not None and decoder not in fitting:
            raise ConfigError(
                f"config.loss.decoder is {decoder!r}, but config.dequantize.name is {trained!r}; choose "
                f"from {', '.join(fitting)}, or another dequantization"
            )
        if config["train"]["augment"] and decoder != "gaussian":
            raise ConfigError(
                f"config.loss.decoder is {decoder!r}, of pixels in their boxes, but config.train.augment is "
                f"{config['train']['augment']}, which leaves none there; set the one to 'gaussian' or the "
                "other to 0"
            )
    if config["sde"]["name"] == "learned":
        if name != "vdm":
            raise ConfigError(
                f"config.sde.name is 'learned', but config.loss.name is {name!r}, which gives the schedule "
                "no gradient; set it to 'vdm'"
            )
        if loss["grid"] != "uniform":
            raise ConfigError(
                f"config.loss.grid is {loss['grid']!r}, which looks through the learned schedule; set it "
                "to 'uniform'"
            )
        if config["model"]["conditioning"] == "t":
            raise ConfigError(
                "config.model.conditioning is 't', which stands for other noise levels as the schedule is "
                "learned; set it to 'log_snr'"
            )


def _force(config: Config):
    if config["sde"]["name"] != "anharmonic":
        return
    loss, sample, evaluation = config["loss"], config["sample"], config["eval"]
    why = "config.sde.name is 'anharmonic', whose kernel has no closed form"
    if loss.get("level") is not None:
        raise ConfigError(
            f"{why}, but config.loss.level is {loss['level']:g}, a level of normal noise; set it to None"
        )
    if loss["name"] not in WITHOUT_KERNEL:
        raise ConfigError(
            f"{why}, but config.loss.name is {loss['name']!r}; choose from {', '.join(WITHOUT_KERNEL)}"
        )
    by_diffrax = sample["name"] in ("probability_flow", "reverse_sde")
    if not by_diffrax or sample["denoise"] or sample["threshold"] != "none":
        raise ConfigError(
            f"{why}; set config.sample.name to 'probability_flow' or 'reverse_sde', denoise to False and "
            "threshold to 'none'"
        )
    if evaluation["whiten"] != "none" or evaluation["dequantize"] != "uniform":
        raise ConfigError(
            f"{why}; set config.eval.whiten to 'none' and config.eval.dequantize to 'uniform'"
        )
    if config["model"]["output"] == "levels":
        raise ConfigError(f"{why}; config.model.output cannot be 'levels'; choose another output")


def _coupling(config: Config):
    coupling = config["train"]["coupling"]
    if coupling == "independent":
        return
    why = f"config.train.coupling is {coupling!r}"
    if config["model"]["class_conditional"]:
        raise ConfigError(
            f"{why}, which does not look at labels: given its label, an example's noise would not be "
            "normal; set config.model.class_conditional to False"
        )
    if config["train"]["augment"]:
        raise ConfigError(
            f"{why}, which does not look at what augmentation did: given that, an example's noise would "
            "not be normal; set config.train.augment to 0"
        )
    if config["loss"]["name"] in ("vdm", "consistency", "explicit", *WITHOUT_KERNEL):
        raise ConfigError(
            f"{why}, for paths from noise to data, but config.loss.name is {config['loss']['name']!r}; "
            "set it to 'flow_matching'"
        )
    if config["model"]["output"] == "levels" or config["dequantize"]["name"] != "uniform":
        raise ConfigError(
            f"{why}, where x_t given x0 is not normal, which config.model.output='levels' and other "
            "dequantizations than 'uniform' rest on; choose another output, and 'uniform'"
        )
    # what corrects the noise at t_min draws it anew
    if config["eval"]["dequantize"] != "uniform":
        raise ConfigError(f"{why}; set config.eval.dequantize to 'uniform'")
    sample = config["sample"]
    noise = [option for option in ("eta", "noise", "churn") if sample.get(option)]
    if (sample["name"] in _NOISY and sample.get("noise") != 0.0) or noise:
        raise ConfigError(
            f"{why}: the network knows the velocity of the ODE, not the score, but "
            f"config.sample.name is {sample['name']!r}{f' with {noise[0]}' if noise else ''}, which adds "
            "noise; take a sampler without, as probability_flow"
        )


def _evaluation(config: Config, data: DataSet, ends: tuple[float, float]):
    options = config["eval"]
    t_min = options["t_min"]
    if t_min is not None and not ends[0] <= t_min < ends[1]:
        raise ConfigError(
            f"config.eval.t_min is {t_min}; it must be at least the SDE's t_min, {ends[0]}, and less "
            f"than its t_max, {ends[1]}; None takes the former"
        )
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
    _solver(config, data, "eval")


def _sampling(config: Config, data: DataSet, ends: tuple[float, float]):
    sample, level = config["sample"], config["loss"].get("level")
    if sample.get("predictor") == sample.get("corrector", "") == "none":
        raise ConfigError(
            "config.sample.predictor and corrector are both 'none', which draws nothing; set one of them"
        )
    if (t_end := sample.get("t_end")) is not None and not ends[0] < t_end < ends[1]:
        raise ConfigError(
            f"config.sample.t_end is {t_end}; it must be between the SDE's t_min, {ends[0]}, "
            f"and t_max, {ends[1]}; None ends at t_min"
        )
    if (sample["name"] == "consistency") != (config["loss"]["name"] == "consistency"):
        raise ConfigError(
            f"config.sample.name is {sample['name']!r}, but config.loss.name is "
            f"{config['loss']['name']!r}: a consistency model is sampled by 'consistency', no other is"
        )
    if level is not None and (sample["name"] != "langevin" or (sample["level"] or 0) != level):
        raise ConfigError(
            f"config.loss.level is {level:g}, the only noise level that the model knows; set "
            f"config.sample.name to 'langevin' and config.sample.level to {level or None}"
        )
    if sample["threshold"] != "none" and data.levels is None:
        raise ConfigError(
            f"config.sample.threshold is {sample['threshold']!r}, for images in [-1, 1], which "
            f"{data.name} has not; set it to 'none'"
        )
    _solver(config, data, "sample")


def _solver(config: Config, data: DataSet, section: str):
    options, size = config[section], math.prod(data.shape)
    grid, solver = options.get("grid"), options.get("solver", "")
    if grid in OF_TIMES:
        raise ConfigError(
            f"config.{section}.grid is {grid!r}, a density of training times; choose from uniform, "
            "log_snr, quadratic, power"
        )
    if options.get("n_steps", 1) is None and not solve.adapts(solver):
        raise ConfigError(
            f"config.{section}.solver is {solver!r}, which cannot adapt its steps; "
            f"set config.{section}.n_steps"
        )
    if size > _LARGEST_JACOBIAN and solve.is_implicit(solver):
        raise ConfigError(
            f"config.{section}.solver is {solver!r}, whose Jacobian would have {size} columns; "
            f"it is for at most {_LARGEST_JACOBIAN} dimensions; choose 'tsit5'"
        )
