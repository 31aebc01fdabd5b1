"""The page and the picture that benchmarks/objectives.py writes: text, tables, and advice drawn from the numbers."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from low_density import RATIO, SIZE, START
from objectives_measure import LOG_SNRS

# name -> what `objectives.row_of` found
Rows = dict[str, dict[str, Any]]

PAGE = """# Which objective

Written by `{command}` in {minutes:.0f} minutes on {cores} CPU cores, jax {jax}. One small network, one
data set, one batch size, one number of optimiser steps: rows differ by `config.loss`, and by the few
sections that an objective cannot do without. At so few steps the numbers tell how fast an objective
learns as much as where it ends.

{advice}

![score errors by noise level; score matching on the data and with noise]({picture})

## The objectives

{descriptions}

{sections}"""

TOY = """## Eight Gaussians in the plane

{setting}
Each number is the median of {seeds} seeds, and its `+-` half their range: of a network this small some seeds
learn a loss and some do not.

### Error of the score

|| s - s* || / || s* ||, root mean squares over {n} noised test points, at each log-SNR; s* is the true
score (`exact.mixture`). 1 is what s = 0 has. An objective at one noise level learns nothing of the
others. Under a coupling of data and noise, and of a consistency model, there is no score to compare.

{scores}

### Density, samples, cost

`KL` is -log p by the probability-flow ODE with the exact trace, less the true one, in nats, mean of {n}
test points. `W2` is that of {n} samples to as many test points along directions of the plane (root
mean square over directions), from DDIM's steps, uniform in log-SNR (in t on the linear path), or from
consistency sampling; training data themselves have {floor}. `ms` is the median time of a step,
`compile` what compiling it takes in seconds, and `MiB` what a step needs in memory beside parameters
and data.

{costs}

"""

DIGITS = """## Digits

{setting}
Uniform dequantization; bits/dim of all test images by the probability-flow ODE, with one probe of signs. One
seed; the `+-` is one standard error over images.

{costs}

"""

DENSITY = """## Where there are no data

Two Gaussians of mass 0.8 and 0.2, twenty of their standard deviations apart (Song & Ermon 2019,
[1907.05600](https://arxiv.org/abs/1907.05600), section 3.2). A network is trained by sliced score matching
on the data themselves (`config.loss.level=0`), another by denoising at all noise levels.

Over the plane, corners at {size:g}, the first has an error of {error_data}, root mean square over that of
the true score: it knows the score where the data are, in the picture's dark spots, and guesses
elsewhere. The second has {error_noise} at sigma = {ratio:g} alpha, where noise fills the plane.
Nor does the true score help Langevin dynamics, which cannot cross the empty region: it keeps the
proportions of its starts, N(0, {start:g}^2 I), which lie half on either side. Starting from much
noise and lowering it brings them near the data's.

{shares}

"""

SAMPLERS = {
    "data": "test data",
    "langevin": "Langevin dynamics, score matched on the data",
    "langevin_exact": "Langevin dynamics, the data's true score",
    "annealed": "annealed Langevin dynamics, denoising at all noise levels",
    "ode": "the ODE (DDIM), denoising at all noise levels",
}


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def pm(pair: list[float] | None, digits: int = 3) -> str:
    """A mean and its standard error; a dash where there is none."""
    if pair is None:
        return "-"
    return f"{pair[0]:.{digits}f} +- {pair[1]:.{digits}f}"


def number(value: float) -> str:
    """Three significant digits, without an exponent below 10,000."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def page(rows: dict[str, Rows], density: dict | None, what: dict[str, str], **facts) -> str:
    """The text of objectives.md.

    Args:
      rows: data set -> rows.
      density: numbers of `low_density.measure`, or None.
      what: name -> what the objective is.
      facts: configs (data set -> resolved config of the plain objective), seeds (data set -> their
        number), sample_steps, n, command, cores, jax, picture.
    """
    toy, digits = rows.get("toy", {}), rows.get("digits", {})
    each = [row for of in rows.values() for row in of.values()] + ([density] if density else [])
    sections = ""
    if toy:
        sections += TOY.format(
            setting=setting(facts["configs"]["toy"]),
            seeds=facts["seeds"]["toy"],
            n=facts["n"],
            scores=score_table(toy),
            costs=cost_table(toy, facts["sample_steps"]),
            floor=next((number(row["w2_data"]) for row in toy.values() if "w2_data" in row), "-"),
        )
    if digits:
        setting_of = setting(facts["configs"]["digits"])
        sections += DIGITS.format(setting=setting_of, costs=digits_table(digits))
    if density:
        sections += DENSITY.format(
            size=SIZE,
            ratio=RATIO,
            start=START,
            error_data=number(density["error_data"]),
            error_noise=number(density["error_noise"]),
            shares=share_table(density["shares"]),
        )
    return PAGE.format(
        minutes=sum(row["seconds"] for row in each) / 60,
        advice=advice(toy, digits, facts["sample_steps"]),
        descriptions=table(["name", ""], [[f"`{name}`", text] for name, text in what.items()]),
        sections=sections.rstrip() + "\n",
        **{key: facts[key] for key in ("command", "cores", "jax", "picture")},
    )


def setting(config: dict) -> str:
    """What all rows of a data set have in common."""
    net, options, optim = config["net"], config["train"], config["optim"]
    size = (
        f"{net['depth']} blocks of width {net['width']}"
        if net["name"] == "mlp"
        else f"{net['channels']} channels, one resolution"
    )
    return (
        f"`{net['name']}` of {size}, read as `{config['model']['output']}` under the SDE "
        f"`{config['sde']['name']}` where the objective does not ask for another; "
        f"{options['steps']} steps of {options['batch_size']} examples, Adam at {optim['lr']:g} decaying to 0, "
        f"average of rate {options['ema'][0]:g}."
    )


def score_table(rows: Rows) -> str:
    header = ["log-SNR", *(f"{value:g}" for value in LOG_SNRS)]
    scored = {name: row["score"] for name, row in rows.items() if "score" in row}
    return table(header, [[f"`{name}`", *map(pm, score)] for name, score in scored.items()])


def cost_table(rows: Rows, sample_steps) -> str:
    header = ["", "KL", *(f"W2, {n}" for n in sample_steps), "ms", "compile", "MiB"]
    lines = []
    for name, row in rows.items():
        w2 = map(number, row["w2"]) if "w2" in row else ["-"] * len(sample_steps)
        lines.append([f"`{name}`", pm(row.get("above")), *w2, *cost_cells(row)])
    return table(header, lines)


def digits_table(rows: Rows) -> str:
    lines = [[f"`{name}`", pm(row.get("nll")), *cost_cells(row)] for name, row in rows.items()]
    return table(["", "bits/dim", "ms", "compile", "MiB"], lines)


def cost_cells(row: dict[str, Any]) -> list[str]:
    return [
        number(1e3 * row["step_seconds"]),
        number(row["compile_seconds"]),
        number(row["mib"]),
    ]


def share_table(shares: dict[str, list[float]]) -> str:
    lines = []
    for name, text in SAMPLERS.items():
        share, n = shares[name]
        lines.append([text, pm([share, math.sqrt(share * (1 - share) / n)])])
    return table(["samples of", "share of the heavier"], lines)


def best(values: dict[str, float]) -> str:
    return min(values, key=values.get)


def within(values: dict[str, list[float]]) -> list[str]:
    """Names by value, of those whose mean is within two standard errors of the least."""
    least = min(pair[0] for pair in values.values())
    close = {name: pair[0] for name, pair in values.items() if pair[0] <= least + 2 * pair[1]}
    return sorted(close, key=close.get)


def names(found: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in found)


def ratio(rows: Rows, name: str, other: str, key: str = "step_seconds") -> str:
    return f"{rows[name][key] / rows[other][key]:.1f}"


def advice(toy: Rows, digits: Rows, sample_steps) -> str:
    """When to use which: a sentence for each comparison whose rows are there."""
    has = lambda rows, *wanted: all(name in rows for name in wanted)
    points = []
    densities = {name: row["nll"] for name, row in digits.items() if "nll" in row}
    if len(densities) > 1:
        close = within(densities)
        points.append(
            f"**For likelihood**: on digits `{close[0]}` is first with {pm(densities[close[0]])} bits/dim; "
            f"not told apart from it by these test images: {names(close[1:]) or 'none'}. The likelihood's own "
            "weight is that of `denoising`, `second_moment`, `vdm` and `vdm_learned`, which differ in the "
            "noise of the same loss, not in its minimum. In a run this short it counts more how soon a loss "
            "learns; where the times lie can be chosen apart from the weight (`config.loss.grid`)."
        )
    if has(toy, "denoising", "edm", "ddpm", "min_snr"):
        ends = {
            name: (row["score"][0][0], row["score"][-1][0])
            for name, row in toy.items()
            if "score" in row and "nll" in row and name != "explicit"
        }
        little, much = (best({name: pair[i] for name, pair in ends.items()}) for i in (0, 1))
        points.append(
            "**For pictures** the weight decides which noise levels the network's capacity goes to: here the "
            f"score at little noise (log-SNR {LOG_SNRS[0]:g}) is best by `{little}`, at much "
            f"(log-SNR {LOG_SNRS[-1]:g}) by `{much}`. `min_snr` has {ends['min_snr'][0]:.2f} and "
            f"{ends['min_snr'][1]:.3f} there, `denoising` {ends['denoising'][0]:.2f} and "
            f"{ends['denoising'][1]:.3f}: the one leaves out detail that is not seen, and with it likelihood "
            f"(KL {pm(toy['min_snr']['above'])} against {pm(toy['denoising']['above'])}), for what is seen first."
        )
    if has(toy, "denoising", "sliced", "sliced_vr", "finite_difference") and has(
        digits, "sliced_vr", "denoising"
    ):
        points.append(
            "**Without a kernel in closed form** (a non-linear SDE, or points alone) the sliced losses "
            f"remain. Their noise is what they cost: KL {pm(toy['sliced_vr']['above'])} by `sliced_vr` and "
            f"{pm(toy['sliced']['above'])} by `sliced` against {pm(toy['denoising']['above'])} on the toy, "
            f"{pm(digits['sliced_vr']['nll'])} against {pm(digits['denoising']['nll'])} bits/dim on digits, "
            f"where a step takes {ratio(digits, 'sliced_vr', 'denoising')} times as long"
            + (
                f"; `finite_difference` takes {ratio(digits, 'finite_difference', 'denoising')} and no Jacobian "
                "product. "
                if "finite_difference" in digits
                else ". "
            )
            + "Where the kernel is known, it is the better teacher."
        )
    if has(toy, "sliced", "sliced_gaussian", "sliced_sphere"):
        points.append(
            f"**Directions** of random signs: KL {pm(toy['sliced']['above'])}, where Gaussian ones have "
            f"{pm(toy['sliced_gaussian']['above'])} and those on the sphere {pm(toy['sliced_sphere']['above'])}."
        )
    if has(toy, "explicit", "implicit", "denoising"):
        points.append(
            f"`explicit` (KL {pm(toy['explicit']['above'])}) and `implicit` ({pm(toy['implicit']['above'])}) are "
            "for tests and for few dimensions: the one needs the answer, the other a Jacobian product for each "
            "dimension."
        )
    few, many = sample_steps[0], sample_steps[-1]
    if has(toy, "flow_matching", "flow_ot", "denoising"):
        first = {name: toy[name]["w2"][0] for name in ("flow_matching", "flow_ot", "denoising")}
        points.append(
            f"**For few evaluations**: with {few} steps W2 is {number(first['denoising'])} by `denoising`, "
            f"{number(first['flow_matching'])} by `flow_matching` and {number(first['flow_ot'])} by `flow_ot`, whose "
            f"step takes {ratio(toy, 'flow_ot', 'flow_matching')} times as long and which has no score"
            + (
                f"; `consistency` has {number(toy['consistency']['w2'][0])} with {few} steps, "
                f"{number(toy['consistency']['w2'][-1])} with {many}, and no density either."
                if "consistency" in toy
                else "."
            )
        )
    if has(toy, "energy", "denoising"):
        points.append(
            f"**For an energy**: a conservative score costs {ratio(toy, 'energy', 'denoising')} times the step on "
            f"the toy, and KL {pm(toy['energy']['above'])} against {pm(toy['denoising']['above'])}; take it if "
            "the energy itself is wanted."
        )
    if has(toy, "one_level"):
        near, far = toy["one_level"]["score"][1][0], toy["one_level"]["score"][2][0]
        points.append(
            f"**One noise level**: the error is {near:.3f} at log-SNR {LOG_SNRS[1]:g}, where `one_level` is "
            f"trained, and {far:.2g} at {LOG_SNRS[2]:g}, of which it is told nothing: for denoising, not for "
            "sampling."
        )
    return "\n".join(f"- {point}" for point in points)


def plot(path: Path, toy: Rows, density: tuple[dict, dict[str, np.ndarray]] | None):
    """The score's error by noise level, and below it the low-density story in five panels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 9), dpi=100, layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1.6, 1))
    plot_scores(upper.subplots(), {n: row["score"] for n, row in toy.items() if "score" in row})
    if density:
        plot_density(figure, lower.subplots(1, 5), *density)
    figure.savefig(path)


def plot_scores(axes, scores: dict[str, list[list[float]]]):
    from matplotlib import colormaps

    dark_first = [*range(0, 20, 2), *range(1, 20, 2)]
    for i, (name, pairs) in enumerate(scores.items()):
        axes.errorbar(
            LOG_SNRS,
            [pair[0] for pair in pairs],
            # down to a tenth at most: the axis is logarithmic
            yerr=[[min(e, 0.9 * m) for m, e in pairs], [e for _, e in pairs]],
            color=colormaps["tab20"](dark_first[i % 20]),
            marker="os^vDP*X<>hd"[i % 12],
            markersize=5,
            linewidth=1.2,
            label=name,
        )
    axes.set(yscale="log", xlabel="log-SNR", ylabel="relative error of the score")
    axes.set(title="Eight Gaussians", xticks=LOG_SNRS)
    axes.grid(alpha=0.3)
    if scores:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), ncols=2, fontsize=8)


def plot_density(figure, panels, numbers: dict, arrays: dict[str, np.ndarray]):
    extent = (-SIZE, SIZE, -SIZE, SIZE)
    maps = {
        "map_data": "error, matched on the data",
        "map_noise": f"error, sigma = {RATIO:g} alpha",
    }
    for axes, (name, title) in zip(panels[:2], maps.items(), strict=True):
        shown = axes.imshow(
            np.clip(arrays[name], 0, 1), origin="lower", extent=extent, vmin=0, vmax=1
        )
        points = arrays["data"][:300]
        axes.plot(*points.T, ".", color="white", markersize=1, alpha=0.5)
        axes.set_title(title, fontsize=9)
    figure.colorbar(shown, ax=panels[:2], shrink=0.7, label="over the true score's rms")
    samples = {"langevin": "Langevin", "annealed": "annealed Langevin", "ode": "ODE"}
    for axes, (name, title) in zip(panels[2:], samples.items(), strict=True):
        axes.plot(*arrays[name][:1000].T, ".", markersize=1.5)
        share = numbers["shares"][name][0]
        axes.set_title(f"{title}: {share:.2f} (true 0.80)", fontsize=9)
        axes.set(xlim=extent[:2], ylim=extent[2:], aspect="equal")
