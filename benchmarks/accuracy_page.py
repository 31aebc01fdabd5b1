"""The page and the picture that benchmarks/accuracy.py writes: text, tables, and conclusions drawn from the numbers."""

import itertools
import math
from pathlib import Path

import measure
import numpy as np
from methods import Method

BUDGETS = (5, 10, 20, 50, 250, 1000)
OTHER_BUDGETS = (10, 50)
N_STEPS = (40, 80, 160, 320, 640)
MORE_STEPS = (1280, 2560)
OTHER_N_STEPS = (320, 640)
BOUNDARY_N_STEPS = (160, 320, 1280, 2560, 20480, 40960)  # pairs of a number of steps and twice it
BOUNDARY_VARIANCE = 0.035  # sqrt of it is well between VE's ends of sigma
AT_FLOOR = 1.1  # times the floor, below which deterministic samplers are not ranked
PAGE = """# Which sampler, and how many evaluations

Written by `{command}` in {minutes:.0f} minutes on {cores} CPU cores, jax {jax}. All numbers are of
perfect networks: the score is exact, and what is left is the sampler's own error. A trained network
adds its own, which noise corrects on the way and the ODE keeps; compare a few samplers on your model
before you trust the last digit here.

{advice}
{grid_advice} A sampler's best grid is not another's: see [Grids](#grids).

![W2 against network evaluations]({picture})

## W2 at a number of network evaluations

Data: {data}.
Their standard deviation is {scale:.2f} in norm, which is the W2 of a sampler that returns zeros; the
picture ends at twice that. SDE: `vp`, beta from 0.1 to 20. The start is N(0, sigma(t_max)^2 I), as
users have it; the end is t_min, where sigma is 1e-3, without a final denoising step; W2 is to the data
themselves. Steps are uniform in log-SNR. A sampler with several evaluations a step takes as many
steps as fit. The law of each result is Gaussian and known exactly (`benchmarks/affine.py`): these
numbers have no Monte-Carlo error.

{w2}

The ODE carries the start's error to the end, {floor:.3g} here if it is solved exactly; noise forgets
it. That is where the deterministic samplers stop. One that is below it has an error of its own that
happens to cancel a part of the start's, which is no merit.

### The same for the other SDEs

W2 at {other_budgets} evaluations.

{other_w2}

### Grids

VP, W2 at {other_budgets} evaluations. `power` is Karras et al.'s with rho 7, `quadratic` is uniform in
the square root of t, `uniform` in t. Huge values at few evaluations are steps too long to be stable.

{grid_w2}

### Against published numbers

Pierret & Galerne (ICML 2025, [2405.14250](https://arxiv.org/abs/2405.14250)) print W2 for the same SDE
from N(0, I), in steps uniform in t, for the Gaussian of CIFAR-10 (3072 dimensions, most of their
eigenvalues far smaller than here). In each cell: here, and printed; the values differ with the
spectrum. Given the eigenvalues of CIFAR-10's pixels in [-1, 1] (of images stored as JPEG) by
`--spectrum`, Euler's method for the ODE had 1.75, 0.46, 0.28 and 0.18, to the printed 1.78, 0.44, 0.26
and 0.17. The samplers with noise then had 5.66, 0.96, 0.48 and 0.25 (`euler_maruyama`) and 3.44, 0.82,
0.46 and 0.25 (`ancestral, variance=large`): near the printed values but not equal. On such a grid the
noise of the last step, which may be taken there otherwise, is most of the error.

{published}

## Samplers that are not affine in x

Correctors with a set signal-to-noise ratio, thresholding and adaptive steps have no closed law.
{n_samples} samples each; W2 is between the data and the samples' Gaussian fit in each coordinate. Its
square is estimated by products of deviations in {n_batches} different batches, which leaves the
noise of the fit out, and has the jackknife's standard error over batches. `<` is the estimate plus
two standard errors where the estimate itself is below that. Thresholding clips pixels, in an
orthonormal basis where each is spread over all coordinates, to [-1, 1]: {clipped:.1%} of this data's
pixels are outside, so that what is seen is its bias.

{sampled}

## Order of convergence

In float64, from the exact law at t_max to sigma / alpha = {ratio:g}, in {steps} equal steps of log-SNR.
Deterministic samplers: relative error of the map from x_T to x_0 on a mixture of two Gaussians in the
plane. Stochastic ones: of the mean and of the covariance of the Gaussian data above, moved to mean
0.5. An order is log2 of the ratio of the last two errors that are above {rounding:g}; the weak order is
the smaller of mean's and covariance's; an error that is zero to rounding at every n has none
(`exact`). A row that differs from the expected order by more than {tolerance} is marked.

{orders}

{marked}

### The other SDEs

The measured order at {other_steps} steps, marked where it is off. Four causes are known.

`seeds_2` hardly has its second-order term here, as told above.

Euler-Maruyama under VE is of weak order 1, but slow to show it. In equal steps of log-SNR the
first-order errors of the covariance on the way sum to an integral in closed form; for an eigenvalue L
and u = sigma^2 it is proportional to u_min / (L + u_min)^2 - u_max / (L + u_max)^2. Only the two ends
are left, which is little where u_min << L << u_max, and the second-order term is the larger one until
steps are many: {boundary}

A multi-step method has one prediction for its first step, whose error is of order 2 once; it shows
where the first step meets signal, as under VE with sigma_max = 50 (`deis_tab3`). And that sampler's
polynomial is in t, of which DDPM's schedule is not a smooth function.

{other_orders}
"""


MARKED = """The orders of the marked rows at each halving of the step, to the number of steps in the column,
until rounding ends them.

"""


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(value: float) -> str:
    """Three significant digits; a dash where there is no number."""
    if math.isnan(value):
        return "-"
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def w2_rows(values: dict[str, list[float]]) -> list[list[str]]:
    return [[f"`{name}`", *map(cell, row)] for name, row in values.items()]


def order_cell(method: Method, errors: list[list[float]]) -> str:
    text = order_text(measure.order(errors))
    return f"**{text}**" if measure.is_off(method, errors) else text


def order_text(value: float) -> str:
    return "exact" if math.isnan(value) else f"{value:.2f}"


def order_table(errors: dict[str, list[list[float]]], chosen: dict[str, Method]) -> str:
    rows = []
    for name, found in errors.items():
        method = chosen[name]
        each = ", ".join(map(order_text, map(measure.rate, found)))
        ends = (f"{found[-1][i]:.1e}" for i in (0, -1))
        rows.append(
            [f"`{name}`", method.order, order_cell(method, found), each, *ends, method.source]
        )
    first, last = (f"error at n = {N_STEPS[i]}" for i in (0, -1))
    header = ["sampler", "expected", "measured", "mean, covariance; or map", first, last, "source"]
    return table(header, rows)


def grid_table(values) -> str:
    rows = [
        [f"`{name}`", *(" / ".join(map(cell, pair)) for pair in of_grid.values())]
        for name, of_grid in values.items()
    ]
    return table(["", *next(iter(values.values()))], rows)


def grid_advice(values) -> str:
    """The best pair of sampler and grid at each of OTHER_BUDGETS."""
    sentences = []
    for i, budget in enumerate(OTHER_BUDGETS):
        pairs = [(values[name][grid][i], name, grid) for name in values for grid in values[name]]
        value, name, grid = min(pairs)
        sentences.append(f"at {budget} evaluations `{name}` on `{grid}`, with {cell(value)}")
    return "Over all grids below the best are " + ", and ".join(sentences) + "."


def boundary(rates: list[float]) -> str:
    """Orders of Euler-Maruyama's covariance under VE, one for each pair of BOUNDARY_N_STEPS."""
    fine = ", ".join(map(str, BOUNDARY_N_STEPS[1::2]))
    return f"for L = {BOUNDARY_VARIANCE} the order is {', '.join(map(order_text, rates))}\nat {fine} steps."


def small_term(name: str, t_max: float, whole: list[float], cut: list[float]) -> str:
    """Why a sampler is of a higher order here than in general; `cut` are its orders from t_max."""
    settled = [rate for rate in cut if not math.isnan(rate)][-2:]
    return (
        f"The second-order term of `{name}` vanishes with the signal in x at the start, and there is\n"
        f"almost none at t_max = 1: its order there is {cell(whole[-1])} at the last halving. Started at "
        f"t_max = {t_max:g}\nit is {' and '.join(map(order_text, settled))}, as expected. "
        "For the others, an order that rises to the expected\none is not yet asymptotic at the steps of "
        "the table."
    )


def best(found: dict[str, list[float]], names: list[str], i: int) -> str:
    return min(
        (name for name in names if not math.isnan(found[name][i])), key=lambda n: found[n][i]
    )


def best_cells(found: dict[str, list[float]], names: list[str], i: int, floor: float) -> list[str]:
    """The best sampler and its W2; none is named at the floor, where errors of two signs cancel by accident."""
    name = best(found, names, i)
    if found[name][i] <= AT_FLOOR * floor:
        return ["several, at the start's error", cell(floor)]
    return [f"`{name}`", cell(found[name][i])]


def advice(found: dict[str, list[float]], chosen: dict[str, Method], floor: float) -> str:
    """The best sampler at each budget, of each kind.

    Args:
      floor: W2 of the exact ODE, below which no deterministic sampler is better than another.
    """
    kinds = [
        [name for name in found if measure.is_stochastic(chosen[name]) == kind]
        for kind in (False, True)
    ]
    rows = []
    for i, budget in enumerate(BUDGETS):
        floors = (floor, 0.0)  # noise forgets the start
        pairs = (best_cells(found, names, i, f) for names, f in zip(kinds, floors, strict=True))
        rows.append([str(budget), *itertools.chain(*pairs), cell(found["ddim"][i])])
    header = ["evaluations", "best deterministic", "W2", "best stochastic", "W2", "`ddim`"]
    return table(header, rows) + "\n\n" + conclusion(found, *kinds)


def conclusion(found: dict[str, list[float]], ode: list[str], sde: list[str]) -> str:
    i = BUDGETS.index(20)
    first, noisy = best(found, ode, i), best(found, sde, i)
    target = found[first][i]
    enough = [b for b, value in zip(BUDGETS, found["ddim"], strict=True) if value <= target]
    ddim = f"needs {enough[0]}" if enough else f"is not as near after {BUDGETS[-1]}"
    return (
        f"At 20 evaluations `{first}` is nearest to the truth, with W2 {cell(target)}; `ddim` {ddim}. "
        f"The best sampler with noise, `{noisy}`, has {cell(found[noisy][i])} there."
    )


def plot(path: Path, found: dict[str, list[float]], chosen: dict[str, Method], top: float):
    """W2 against evaluations, without noise on the left and with noise on the right.

    Args:
      top: of the axis; above it lies what is no sample at all.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8), dpi=110, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    bottom = 0.5 * np.nanmin(list(found.values()))
    for kind, axes in enumerate(panels):
        names = [name for name in found if measure.is_stochastic(chosen[name]) == kind]
        draw_lines(axes, {name: found[name] for name in names})
        axes.set(title="with noise" if kind else "without noise", xlabel="network evaluations")
        axes.set(xscale="log", yscale="log", ylim=(bottom, top))
        axes.set_xticks(BUDGETS, [str(b) for b in BUDGETS])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3, fontsize=8)
    panels[0].set_ylabel("W2 to the data")
    figure.savefig(path)


def draw_lines(axes, found: dict[str, list[float]]):
    from matplotlib import colormaps

    dark_first = [*range(0, 20, 2), *range(1, 20, 2)]
    for i, (name, values) in enumerate(found.items()):
        axes.plot(
            BUDGETS,
            values,
            color=colormaps["tab20"](dark_first[i % 20]),
            marker="os^vDP*X<>hd"[i % 12],
            markersize=5,
            linewidth=1.3,
            label=name,
        )
