"""Samples of classes: `METHODS` lists how, `attach` makes of a model one whose predictions are guided, for any sampler.

The samplers are those of `sampling`; `draw` says who runs their loops.
"""

import sys
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from score_jax import guidance, run
from score_jax.build import Experiment
from score_jax.guidance import LogProb
from score_jax.model import Model, bind
from score_jax.sde import SDE
from score_jax.types import PredictFn


class Asked(NamedTuple):
    """What is asked for.

    Attributes:
      labels, unwanted: classes that samples are to be of, and not of.
      n_classes: of the model; also its label of "no class".
    """

    labels: tuple[int, ...]
    unwanted: tuple[int, ...]
    n_classes: int


# guide(sde, predict, log_prob, asked) -> predict(x, t, label); log_prob is None without a classifier
Guide = Callable[[SDE, PredictFn, LogProb | None, Asked], PredictFn]


class Entry(NamedTuple):
    """A method: make(**options) -> Guide, what it does in words, its paper, and what it needs.

    Attributes:
      labels: how few and how many classes it is given; with none that may be one, each sample has
        one in turn.
      unwanted: likewise of classes not to be of.
      classes, no_class, classifier: whether the model must know classes, and also "no class", and
        whether there must be a classifier, through which gradients are taken.
    """

    make: Callable[..., Guide]
    what: str
    source: str
    labels: tuple[int, int] = (0, 1)
    unwanted: tuple[int, int] = (0, 0)
    classes: bool = True
    no_class: bool = True
    classifier: bool = False


def conditional() -> Guide:
    """The model that is told the class."""
    return lambda sde, predict, log_prob, asked: predict


def classifier_free(
    *, scale: float = 2.0, interval: tuple[float, float] | None = None, rescale: float = 0.0
) -> Guide:
    """`guidance.classifier_free`."""
    if interval is not None and not interval[0] < interval[1]:
        low, high = interval
        raise ValueError(f"interval = {low:g},{high:g} must be two noise levels, the lower first")
    if not 0 <= rescale <= 1:
        raise ValueError(f"rescale = {rescale:g} is a share, at least 0 and at most 1")
    return lambda sde, predict, log_prob, asked: guidance.classifier_free(
        sde, predict, asked.n_classes, scale, interval=interval, rescale=rescale
    )


def classifier(*, scale: float = 1.0) -> Guide:
    """`guidance.classifier`, on the model that is told the class if it knows classes."""
    return lambda sde, predict, log_prob, asked: guidance.classifier(sde, predict, log_prob, scale)


def all_of(*, weight: float = 1.0, not_weight: float = 1.0) -> Guide:
    """`guidance.conjunction` of the classes, and of the negation of each that is unwanted.

    Args:
      weight, not_weight: guidance scale of each class, and of each that is unwanted.
    """

    def guide(sde, predict, log_prob, asked):
        free, given, unwanted = _models(predict, asked)
        terms = [*given, *(guidance.negation(free, [each]) for each in unwanted)]
        weights = [weight] * len(given) + [not_weight] * len(unwanted)
        return guidance.conjunction(free, terms, weights)

    return guide


def none_of(*, weight: float = 1.0) -> Guide:
    """`guidance.negation` of the unwanted classes."""

    def guide(sde, predict, log_prob, asked):
        free, _, unwanted = _models(predict, asked)
        return guidance.negation(free, unwanted, [weight] * len(unwanted))

    return guide


def product(*, weight: float = 1.0) -> Guide:
    """`guidance.product` of the classes' densities, each to the power weight / number of classes.

    At t_max all are the prior, so that 1 in all is what the samplers start from.
    """

    def guide(sde, predict, log_prob, asked):
        _, given, _ = _models(predict, asked)
        return guidance.product(sde, given, [weight / len(given)] * len(given))

    return guide


def _models(predict, asked):
    of = lambda labels: [guidance.of_class(predict, k) for k in labels]
    return guidance.of_class(predict, asked.n_classes), of(asked.labels), of(asked.unwanted)


_MANY = sys.maxsize
_LIU = "Liu et al. 2022, arXiv 2206.01714"
METHODS = {
    "conditional": Entry(
        conditional,
        "a model that is told the class, without guidance",
        "Dhariwal & Nichol 2021, arXiv 2105.05233, section 3",
        no_class=False,
    ),
    "classifier_free": Entry(
        classifier_free,
        "from no class through that of --label; an interval of noise levels, a rescaling",
        "Ho & Salimans 2022, arXiv 2207.12598; Kynkaanniemi et al. 2024, arXiv 2404.07724; "
        "Lin et al. 2023, arXiv 2305.08891",
    ),
    "classifier": Entry(
        classifier,
        "pushed by the gradient of a --classifier of x_t; a model that knows classes is told too",
        "Dhariwal & Nichol 2021, arXiv 2105.05233, section 4",
        classes=False,
        no_class=False,
        classifier=True,
    ),
    "and": Entry(
        all_of,
        "of every --label at once, and of no --not",
        _LIU,
        labels=(1, _MANY),
        unwanted=(0, _MANY),
    ),
    "not": Entry(
        none_of,
        "anything, the less probable the more it is of a --not",
        _LIU,
        labels=(0, 0),
        unwanted=(1, _MANY),
    ),
    "product": Entry(
        product,
        "between the classes of several --label: the product of their densities",
        "Du et al. 2023, arXiv 2302.11552",
        labels=(2, _MANY),
        no_class=False,
    ),
}


def check(name: str, asked: Asked, *, knows_classes: bool, label_dropout: float) -> None:
    """Raises ValueError for what a method cannot do: of the classes asked for, and of the model."""
    entry = METHODS[name]
    if entry.classes and not knows_classes:
        raise ValueError(
            f"--method={name} needs a model that knows classes, and the run's does not; take "
            "--method=classifier, or a run with config.model.class_conditional=True"
        )
    if entry.no_class and not label_dropout:
        raise ValueError(
            f"--method={name} asks for no class too, which the run's model never saw; take "
            "--method=conditional, or a run with config.train.label_dropout=0.1"
        )
    for flag, (fewest, most) in {"label": entry.labels, "not": entry.unwanted}.items():
        values = asked.labels if flag == "label" else asked.unwanted
        if not fewest <= len(values) <= most:
            how = f"at least {fewest}" if most == _MANY else f"at most {most}" if most else "no"
            raise ValueError(
                f"--method={name} takes {how} --{flag}, and {len(values)} are given; --list shows "
                "which method takes how many"
            )
        for value in values:
            if value >= asked.n_classes:
                raise ValueError(
                    f"--{flag}={value}, but there are {asked.n_classes} classes, from 0"
                )


def attach(
    model: Model,
    guide: Guide,
    asked: Asked,
    *,
    knows_classes: bool = True,
    judge: Model | None = None,
    same_sde: bool = False,
) -> Model:
    """The model whose predictions are guided; its parameters are the pair of the model's and the classifier's.

    Args:
      knows_classes: whether the model takes labels.
      judge: the classifier, of `model.classifier`.
      same_sde: whether it was trained under the model's own SDE, or is to be asked `across`.
    """

    def log_prob(sde, params):
        fn = guidance.of_label(lambda x, t: judge.class_logp(params, x, t))
        return fn if same_sde else guidance.across(sde, judge.sde(params), fn)

    def predict_fn(params, x, t, label=None, **options):
        own, of_judge = params
        told = bind(model, own)
        predict = told if knows_classes else lambda x, t, label=None: told(x, t)
        sde = model.sde(own)
        judged = None if judge is None else log_prob(sde, of_judge)
        return guide(sde, predict, judged, asked)(x, t, label)

    return Model(model.init, lambda params: model.sde(params[0]), predict_fn)


def draw(experiment: Experiment, *, gradients: bool) -> Callable[..., dict[str, np.ndarray]]:
    """`run.draw`; with predictions that take gradients of a network, on the CPU, the same by Python's loops.

    There XLA is 5 to 20 times slower at gradients of convolutions inside a compiled loop (see
    `samplers.run_jitted`). A loop under vmap, of diffrax with steps for each sample, stays compiled.
    """
    if not (gradients and jax.default_backend() == "cpu"):
        return run.draw(experiment)
    return run.draw(experiment._replace(model=compiled(experiment.model)), compiled=False)


def compiled(model: Model) -> Model:
    """The model whose predictions are compiled also where `jax.disable_jit` rules."""
    evaluate = jax.jit(model.predict)

    def predict_fn(*args, **options):
        with jax.disable_jit(False):
            return evaluate(*args, **options)

    return model._replace(predict=predict_fn)
