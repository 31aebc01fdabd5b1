"""Every sampler on problems with exact answers: its order of convergence, and W2 to the truth against evaluations.

    python benchmarks/accuracy.py
    python benchmarks/accuracy.py --spectrum=eigenvalues.npy --out=.

Writes accuracy.md and accuracy.png into docs/ or --out, in about eight minutes on two CPU cores.
"""

import argparse
import itertools
import math
import os
import time
from pathlib import Path

import accuracy_page as pages
import affine
import jax
import measure
import methods
import numpy as np
from accuracy_page import (
    BOUNDARY_N_STEPS,
    BOUNDARY_VARIANCE,
    BUDGETS,
    MORE_STEPS,
    N_STEPS,
    OTHER_BUDGETS,
    OTHER_N_STEPS,
    cell,
    table,
)
from affine import Gaussian
from measure import RATIO_END, TOLERANCE, Spectrum
from methods import Method

from score_jax import cli, grids, samplers, sampling
from score_jax import sde as sdes
from score_jax.sde import SDE

N_SAMPLES, N_BATCHES = 2000, 20
# its second-order term needs signal at the start, which this t_max leaves
SMALL_TERM, LATE_T_MAX = "seeds_2", 0.6
OTHER_SDES = {
    "sub_vp": sdes.sub_vp,
    "ve": sdes.ve,
    "edm": sdes.edm,
    "cosine": sdes.cosine,
    "ddpm": sdes.ddpm,
    "linear": sdes.linear,
}
GRIDS = {"power": grids.power, "quadratic": grids.quadratic, "uniform": grids.uniform}
# Pierret & Galerne 2025, arXiv 2405.14250, at 50, 250, 500 and 1000 evaluations
PUBLISHED_BUDGETS = (50, 250, 500, 1000)
PUBLISHED = {
    "euler_maruyama": ("Euler-Maruyama", (4.78, 0.66, 0.32, 0.16)),
    "ancestral, variance=large": ("DDPM", (6.82, 0.97, 0.47, 0.23)),
    "euler_maruyama, noise=0": ("Euler, ODE", (1.78, 0.44, 0.26, 0.17)),
}

# by sampling: name -> draws, with their evaluations or tolerances
SAMPLED = {
    **{
        f"reverse_diffusion + {corrector}, snr 0.16, {n} steps": sampling.predictor_corrector(
            grid=grids.log_snr, n_steps=n, corrector=corrector, denoise=False
        )
        for corrector in ("langevin", "annealed_langevin")
        for n in (2, 5, 10, 25, 125, 500)
    },
    **{
        f"diffrax {solver}, adaptive, tolerance {tolerance:g}": sampling.probability_flow(
            solver=solver, rtol=tolerance, atol=tolerance
        )
        for solver in ("heun", "tsit5", "dopri5")
        for tolerance in (1e-2, 1e-4)
    },
    **{
        f"diffrax shark (SDE), adaptive, tolerance {tolerance:g}": sampling.reverse_sde(
            n_steps=None, rtol=tolerance, atol=tolerance
        )
        for tolerance in (3e-1, 1e-1)
    },
    **{
        f"ddim, threshold={threshold}, {n} steps": sampling.DRAWS["ddim"](
            n_steps=n, threshold=threshold
        )
        for threshold in ("none", "static", "dynamic")
        for n in BUDGETS
    },
}


def with_exact_law(chosen: dict[str, Method], sde: SDE, spectrum: Spectrum) -> dict[str, Method]:
    """Without those whose maps are not affine; diffrax's explicit methods are by their construction."""
    data = Gaussian(np.full_like(spectrum.values, measure.MEAN), spectrum.values)
    own = lambda name: not name.startswith("diffrax")
    return {
        name: method
        for name, method in chosen.items()
        if method.law and (not own(name) or affine.is_affine(method.draw(4), sde, 4, data))
    }


def compare(chosen: dict[str, Method], sde: SDE, spectrum: Spectrum, budgets, grid=grids.log_snr):
    """Method -> W2 at each budget."""
    found = {}
    for name, method in chosen.items():
        found[name] = [measure.exact_w2(method, sde, spectrum, b, grid) for b in budgets]
        print(f"W2 of {name}: " + ", ".join(map(cell, found[name])), flush=True)
    return found


def for_each_sde(chosen: dict[str, Method], prepare) -> str:
    """A table of prepare(sde)(method), one column for each SDE; a dash where a sampler is not defined."""
    rows = {name: [f"`{name}`"] for name in chosen}
    for sde_name, make in OTHER_SDES.items():
        fill = prepare(make())
        for name, method in chosen.items():
            try:
                rows[name].append(fill(method))
            except ValueError:
                rows[name].append("-")
        print(f"{sde_name}: " + ", ".join(row[-1] for row in rows.values()), flush=True)
    return table(["", *OTHER_SDES], list(rows.values()))


def w2_of_sde(spectrum: Spectrum):
    def prepare(sde):
        found = lambda method: (measure.exact_w2(method, sde, spectrum, b) for b in OTHER_BUDGETS)
        return lambda method: " / ".join(map(cell, found(method)))

    return prepare


def order_of_sde(spectrum: Spectrum):
    def prepare(sde):
        errors = measure.order_errors(sde, spectrum, OTHER_N_STEPS)
        return lambda method: pages.order_cell(method, errors(method))

    return prepare


def marked(errors: dict, chosen: dict[str, Method], sde: SDE, spectrum: Spectrum) -> str:
    """What the marked rows do when the steps are halved further."""
    off = [name for name in errors if measure.is_off(chosen[name], errors[name])]
    if not off:
        return "No row is marked."
    errors_of = measure.order_errors(sde, spectrum, (N_STEPS[-1], *MORE_STEPS))
    rates, rows = {}, []
    for name in off:
        parts = [measure.rates(e) for e in (errors[name][-1], errors_of(chosen[name])[-1])]
        rates[name] = list(itertools.chain(*parts))
        rows.append([f"`{name}`", chosen[name].order, *map(cell, rates[name])])
    note = ""
    if SMALL_TERM in off:
        late = sde._replace(t_max=LATE_T_MAX)
        late_errors = measure.order_errors(late, spectrum, (*N_STEPS, *MORE_STEPS))
        cut = measure.rates(late_errors(chosen[SMALL_TERM])[-1])
        title = f"`{SMALL_TERM}`, t_max = {LATE_T_MAX}"
        rows.append([title, chosen[SMALL_TERM].order, *map(cell, cut)])
        note = "\n\n" + pages.small_term(SMALL_TERM, LATE_T_MAX, rates[SMALL_TERM], cut)
    header = ["marked", "expected", *map(str, (*N_STEPS[1:], *MORE_STEPS))]
    return pages.MARKED + table(header, rows) + note


def boundary_rates(method: Method) -> list[float]:
    """Orders of the covariance under VE from sigma = 50 to 0.01, of one eigenvalue."""
    sde, one = measure.until(sdes.ve(), RATIO_END), Spectrum(*np.array([[BOUNDARY_VARIANCE], [1]]))
    errors = measure.weak_errors(method, sde, one, BOUNDARY_N_STEPS)[-1]
    return measure.rates(errors)[::2]


def sampled_rows(sde: SDE, spectrum: Spectrum) -> list[list[str]]:
    eigenvalues, rows = np.repeat(*spectrum), []
    for name, draw in SAMPLED.items():
        x, nfe = measure.sample(draw, sde, eigenvalues, N_SAMPLES)
        square, error = measure.sampled_w2(x, eigenvalues, N_BATCHES)
        if square > 2 * error:  # sqrt's derivative
            value = f"{math.sqrt(square):.3g} +- {error / (2 * math.sqrt(square)):.1g}"
        else:
            value = f"< {math.sqrt(max(square, 0) + 2 * error):.2g}"
        rows.append([f"`{name}`", f"{nfe:.1f}".removesuffix(".0"), value])
        print(*rows[-1], flush=True)
    return rows


def published_rows(chosen: dict[str, Method], sde: SDE, spectrum: Spectrum) -> list[list[str]]:
    rows = []
    for name, (title, printed) in PUBLISHED.items():
        here = [
            measure.exact_w2(chosen[name], sde, spectrum, b, grids.uniform)
            for b in PUBLISHED_BUDGETS
        ]
        pairs = zip(here, printed, strict=True)
        rows.append([f"`{name}`", title, *(f"{cell(a)} / {b:g}" for a, b in pairs)])
    return rows


def compare_grids(chosen: dict[str, Method], sde: SDE, spectrum: Spectrum, found):
    """Method -> grid -> W2 at OTHER_BUDGETS; those of log_snr are in `found`."""
    values = {}
    for name, method in chosen.items():
        values[name] = {"log_snr": [found[name][BUDGETS.index(b)] for b in OTHER_BUDGETS]}
        for word, grid in GRIDS.items():
            values[name][word] = [
                measure.exact_w2(method, sde, spectrum, b, grid) for b in OTHER_BUDGETS
            ]
        print(f"grids for {name}: {values[name]}", flush=True)
    return values


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--spectrum", help="a .npy file of eigenvalues of the data's covariance, 1-D"
    )
    parser.add_argument("--out", type=Path, help="folder for accuracy.md and accuracy.png")
    return parser.parse_args()


def described(path: str | None, spectrum: Spectrum) -> str:
    n = int(spectrum.counts.sum())
    if path is None:
        return f"Gaussian, the {n} eigenvalues of 16x16 images of power 1 / k^2 with a pixel variance of 0.25"
    return f"Gaussian, the {n} eigenvalues of `{Path(path).name}`"


def main():
    started, options = time.time(), arguments()
    with cli.user_errors():
        spectrum = measure.read_spectrum(options.spectrum)
        out = options.out or Path(__file__).parent.parent / "docs"
        out.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_enable_x64", True)
    cli.use_compilation_cache()

    chosen, sde = methods.all_methods(), sdes.vp()
    compared = with_exact_law(chosen, sde, spectrum)
    table_of = {name: chosen[name] for name in samplers.SAMPLERS}
    found = compare(compared, sde, spectrum, BUDGETS)
    gridded = compare_grids(table_of, sde, spectrum, found)
    errors = measure.orders(sde, chosen, spectrum, N_STEPS)
    scale = math.sqrt(np.sum(spectrum.values * spectrum.counts))
    floor = measure.start_error(sde, spectrum)
    pages.plot(out / "accuracy.png", found, chosen, 2 * scale)
    page = pages.PAGE.format(
        command="python benchmarks/accuracy.py" + (" --spectrum=..." if options.spectrum else ""),
        cores=os.cpu_count(),
        jax=jax.__version__,
        picture="accuracy.png",
        advice=pages.advice(found, chosen, floor),
        data=described(options.spectrum, spectrum),
        scale=scale,
        w2=table(["sampler", *map(str, BUDGETS)], pages.w2_rows(found)),
        floor=floor,
        other_budgets=" and ".join(map(str, OTHER_BUDGETS)),
        other_w2=for_each_sde(table_of, w2_of_sde(spectrum)),
        grid_w2=pages.grid_table(gridded),
        grid_advice=pages.grid_advice(gridded),
        published=table(
            ["", "there", *map(str, PUBLISHED_BUDGETS)], published_rows(chosen, sde, spectrum)
        ),
        sampled=table(["sampler", "evaluations", "W2"], sampled_rows(sde, spectrum)),
        n_samples=N_SAMPLES,
        n_batches=N_BATCHES,
        clipped=measure.share_outside(np.repeat(*spectrum)),
        ratio=RATIO_END,
        steps=", ".join(map(str, N_STEPS)),
        rounding=measure.ROUNDING,
        tolerance=TOLERANCE,
        orders=pages.order_table(errors, chosen),
        marked=marked(errors, chosen, sde, spectrum),
        boundary=pages.boundary(boundary_rates(chosen["euler_maruyama"])),
        other_steps=OTHER_N_STEPS[-1],
        other_orders=for_each_sde(table_of, order_of_sde(spectrum)),
        minutes=(time.time() - started) / 60,
    )
    (out / "accuracy.md").write_text(page)
    print(out / "accuracy.md")


if __name__ == "__main__":
    main()
