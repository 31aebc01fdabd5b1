"""How good a run's p(class | x) is: the numbers of the class metric, what is printed and what is written of them.

A result names each probability that the run knows (`run.class_log_probabilities`) and has its
calibration, the temperature fitted on other examples, and its calibration with that temperature.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from score_jax import classify, files
from score_jax.classify import Assessed

# of a probability as it is and with the temperature, in a result
_KINDS = "plain", "tempered"
_HOW = {
    "elbo": "by Bayes' rule from the ELBO of each class",
    "ode": "by Bayes' rule from log p(x | class) of the ODE",
    None: "of the classifier",
}
# why examples are left out, of which there is no number
_FAILED = (
    "the model's numbers are not finite on {} of them, which are left out; take another checkpoint"
)
_UNSOLVED = (
    "the solver failed on {} of them, which are left out; loosen config.eval.rtol and atol, or set "
    "config.eval.n_steps"
)


def summary(
    found: dict[str, np.ndarray],
    label: np.ndarray,
    others: tuple[dict[str, np.ndarray], np.ndarray] | None = None,
) -> dict[str, Any]:
    """The "probabilities" by name, "n" examples, those of them that "failed" and are left out, and "fitted_on".

    The last are the examples that temperatures are fitted on, without those that failed.

    Args:
      found: log p(class | x), [n, classes], by name; nan where it failed.
      others: the same of the examples on which temperatures are fitted, and their labels.
    """

    def assessed(name):
        other = None if others is None else (others[0][name], others[1])
        return _entry(classify.assess(found[name], label, other))

    failed = lambda found: np.any([np.isnan(p).any(axis=1) for p in found.values()], axis=0)
    return {
        "probabilities": {name: assessed(name) for name in sorted(found, key=_noise_level)},
        "n": len(label),
        "failed": int(np.sum(failed(found))),
        "fitted_on": 0 if others is None else int(np.sum(~failed(others[0]))),
    }


def _noise_level(name: str) -> float:
    return 0.0 if name in ("bayes", "t_min") else float(name)


def _entry(found: Assessed) -> dict[str, Any]:
    tempered = None if found.tempered is None else classify.to_json(found.tempered)
    return {
        "plain": classify.to_json(found.plain),
        "temperature": found.temperature,
        "tempered": tempered,
    }


def report(result: dict[str, Any]) -> list[str]:
    """What was asked, and of each probability the numbers before and after the temperature.

    Of a single one also the reliability tables.

    Args:
      result: `summary` and what scripts/eval.py adds to it.
    """
    n, size = result["n"], result["size"]
    examples = f"{n} examples" if n == size else f"the first {n} of {size} examples"
    of = f"{examples}; step {result['step']}, {result['weights']}"
    lines = [f"{result['split']} p(class | x) {_HOW[result['by']]} ({of})"]
    if result["failed"]:
        why = _UNSOLVED if result["by"] == "ode" else _FAILED
        lines.append(why.format(result["failed"]))
    if result["fitted_on"]:
        lines.append(f"temperatures are fitted on {result['fitted_on']} validation examples")
    alone = len(result["probabilities"]) == 1
    for name, entry in result["probabilities"].items():
        for kind in _KINDS:
            if entry[kind] is not None:
                where = f"{_where(name)}: " if _where(name) else ""
                lines.append(f"{where}{_tempered(kind, entry)}{_numbers(entry[kind])}")
                lines += _table(entry[kind]["bins"]) if alone else []
    return lines


def _where(name: str) -> str:
    return {"bayes": "", "t_min": "at t_min"}.get(name, f"at sigma / alpha = {name}")


def _tempered(kind: str, entry: dict[str, Any]) -> str:
    return f"temperature {entry['temperature']:.4g}: " if kind == "tempered" else ""


def _numbers(found: dict[str, Any]) -> str:
    accuracy, nll = (
        f"{found[name]['mean']:.4f} +- {found[name]['stderr']:.4f}" for name in ("accuracy", "nll")
    )
    return f"accuracy {accuracy}  nll {nll}  ece {found['ece']:.4f}"


def _table(bins: Sequence[dict[str, Any]]) -> list[str]:
    """Bins as lines of text; empty ones are left out."""
    row = "({low:.3f}, {high:.3f}]  {count:10d}  {confidence:10.4f}  {accuracy:8.4f}"
    rows = [row.format(**entry) for entry in bins if entry["count"]]
    return ["confidence in         count  confidence  accuracy", *rows]


def write_curve(path: Path, results: Iterable[dict[str, Any]]):
    """Writes a CSV file, a row for each result's probabilities, by step and weights."""
    names = "accuracy", "accuracy_stderr", "nll", "nll_stderr", "ece"
    header = ["step", "weights", "probability", *names, "temperature"]
    header += [f"tempered_{name}" for name in names]

    def numbers(found):
        if found is None:
            return [""] * len(names)
        means = [found[name][key] for name in ("accuracy", "nll") for key in ("mean", "stderr")]
        return [*means, found["ece"]]

    rows = []
    for result in results:
        for name, entry in result["probabilities"].items():
            rows.append([result["step"], result["weights"], name, *numbers(entry["plain"])])
            rows[-1] += [entry["temperature"] or "", *numbers(entry["tempered"])]
    lines = [",".join(map(str, row)) for row in (header, *rows)]
    files.write_text(path, "\n".join(lines) + "\n")


def write_picture(path: Path, result: dict[str, Any]):
    """Writes a PNG file: accuracy by confidence, a panel for each probability, before and after the temperature."""
    files.write(path, lambda part: _figure(result["probabilities"]).savefig(part))


def _figure(probabilities: dict[str, dict[str, Any]]):
    from matplotlib.figure import Figure

    columns = min(len(probabilities), 3)
    rows = -(-len(probabilities) // columns)
    figure = Figure(figsize=(1 + 3 * columns, 3.2 * rows), dpi=128, layout="tight")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel in panels[len(probabilities) :]:
        panel.set_axis_off()
    for panel, (name, entry) in zip(panels, probabilities.items(), strict=False):
        panel.plot([0, 1], [0, 1], color="0.7", linewidth=1)
        for i, kind in enumerate(_KINDS):
            if entry[kind] is None:
                continue
            bins = [b for b in entry[kind]["bins"] if b["count"]]
            confidence, accuracy, count = (
                np.array([b[key] for b in bins]) for key in ("confidence", "accuracy", "count")
            )
            # of as many independent examples
            stderr = np.sqrt(accuracy * (1 - accuracy) / count)
            label = f"{_tempered(kind, entry)}ece {entry[kind]['ece']:.3f}"
            style = dict(color=f"C{i}", marker="o", markersize=3, capsize=2, label=label)
            panel.errorbar(confidence, accuracy, yerr=stderr, **style)
        panel.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy")
        panel.set_title(_where(name), fontsize=8)
        panel.legend(fontsize=6, loc="lower right")
    return figure
