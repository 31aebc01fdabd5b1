"""The page that benchmarks/likelihood.py writes: text, and tables of the numbers."""

import math

import likelihood_cost as cost
from likelihood_cost import table

PAGE = """# Bits per dimension: what is computed, and what moves the number

Written by `{command}` in {minutes:.0f} minutes on
{cores} CPU cores that were busy with other work too, jax {jax}, from the trained run `{run}` ({name}), of which
`scripts/eval.py` printed for the whole test split

{printed}

## What is computed

**By the probability-flow ODE** (Song et al. 2021, [2011.13456](https://arxiv.org/abs/2011.13456), eq. 39). Along
dx/dt = v(x, t), the flow of the noised data's density under the trained score, from t_min to t_max,

    log p(x) at t_min  =  log N(x(t_max); 0, sigma(t_max)^2 I)  +  integral of div v dt
          logp         =              prior                     +        volume

The divergence is estimated by z . (dv/dx) z, with one probe z of random signs an image that is kept for the
whole solve; `eval.trace=exact` takes all unit vectors. Drift and divergence come from one `jax.jvp`: an
evaluation here is one of these. With `eval.whiten` the flow of a Gaussian near the data is solved in closed
form and only the rest is estimated and integrated (`likelihood.py`).

**By the ELBO** of the reverse SDE with the same score (Kingma et al. 2021,
[2107.00630](https://arxiv.org/abs/2107.00630), section 5; Song et al. 2021,
[2101.09258](https://arxiv.org/abs/2101.09258), theorem 3): prior + diffusion + reconstruction. It bounds the
bits/dim of another model, the SDE's, and neither number bounds the other. They agree for a perfect score;
where they part, the score is not that of a density's noised versions.

**In bits per dimension of levels.** A density of x becomes a bound on the probability of the levels k by

    log P(k)  >=  E_q( x | k ) [ log p(x) + log P(k | x) - log q(x | k) ]

(Theis et al. 2016, [1511.01844](https://arxiv.org/abs/1511.01844), section 3.1). `bpd` is minus the right
side, over D log 2. With uniform dequantization it is -log2 p(x) / D + log2(levels / 2), the last because
[-1, 1] has `levels` boxes of width 2 / levels: x = 2 (k + u) / levels - 1, u in [0, 1). For this model that
is {offset:.4f} bits, for 256 levels exactly 7.

## Conventions, and how much each moves the number

On the first {n} test images, by the ODE in {steps} steps of `{solver}` on the grid found for the model, each
convention with the same probes as the default, and where it has noise of the same kind with the same noise
(the two that noise the data to t_min, and the ELBO's times, draw more): "moved" is the mean of paired
differences with its standard error, in bits/dim.

{conventions}

What cannot be seen in a table of one model:

- **Scaling.** Forgetting log2(levels / 2) moves the number by {offset:.4f} here and by 7 for 8-bit images. Taking
  log2(levels) with x in [-1, 1], or the former with x in [0, 1], moves it by exactly 1. Spreading levels
  over [-1, 1] by levels - 1 in one place and by levels in the other moves it by {off_by_one:.4f} here, by 0.0057 for
  8-bit images.
- **No dequantization** gives a density at points of measure zero. It is no bound on anything, and the better
  a model knows the lattice, the lower it falls, without limit. This one was trained on uniform boxes and so
  is about flat inside them, which is why the middles look harmless. At the lower edges the noised density
  is the mean of two boxes', half of one's at the least level. Neither is a result.
- **epsilon.** The integral ends at t_min, where the model's density is that of data with noise sigma(t_min).
  A point of a uniform box near an edge then lies where some of the mass has leaked out: a perfect model would lose
  about sigma / alpha over a box's width. `decoder` and `denoised` noise the data to t_min and pay for the
  way back, so that they stay bounds and their numbers need no correction; "uniform" is stated as not corrected
  (every evaluation prints which).
- **The prior.** The noised data at t_max are taken to be N(0, sigma(t_max)^2 I). What that loses is the KL to
  it, {prior:.1g} bits/dim here by the data's mean and covariance; every evaluation prints it.

### epsilon, with and without the way back

t_min replaced at evaluation; what the network was trained on stays. "Moved" is against `uniform` at {t_min:g}.

{t_mins}

### The ELBO's forms

The same expectation in {n_times} stratified times an image, with different variances: "of an image" is the standard
deviation over images, sampling of images included. The last column is against the ODE.

{elbos}

### K samples

The importance-weighted bound (Burda et al. 2016, [1509.00519](https://arxiv.org/abs/1509.00519)) with its
-log K, on the first {n_bounds} images; two probes, the same for all K. log p is noisy, and noise inside the
log of a mean of exponentials is optimistic, by up to half its variance in nats. Shared probes cancel what the
samples have in common. The rest is estimated from how the two probes differ, and is to be added to the
number (`optimism`); to second order only, so that it is to be read as a warning.

{bounds}

## What it costs

Error in bits/dim against {reference}, with the same {n_cost} dequantized images,
evenly spaced in the test split, and the same probes. Whitening changes a probe's estimate by a closed form,
which is taken into account. Another fine solve, {check} without whitening, differs from the
reference by {gap:+.5f} in the mean and {gap_rms:.5f} rms; on a problem small enough for float64 nothing is left of
it, so that it is about the rounding of float32. "In t, at 1e-05" is the field's habit: Dormand-Prince 5(4)
in t without whitening, adapted to rtol = atol = 1e-5 (here each image for itself).

![rms error against evaluations]({picture})

The best of equal steps in each range of evaluations, an adaptive one with an rms below {target}, and the
standard:

{best}

{advice}

These are the best of many rows, on few images: where errors of two signs cancel, a small one may be luck.
{safe}
All rows are at the end of the page.

### Probes

The standard deviation of one image's number over {n_probes} probes, the share of the variance that is left
against no whitening, and the difference of the probes' mean from the exact trace (of all {d} unit vectors),
over {n_cost} images. The Gaussian's own quadratic form is a control variate of known mean.

{spreads}

{probe_advice}

## The error bars

`+-` is one standard error of the mean over images: what another test set of this size would give. It says
nothing on the model's training, another seed of which moves the number too. In brackets is what
would move the number of this very test set:

- `probe`: one standard error over the probes' signs; from their spread if there are several, else from
  `eval.check_images` images evaluated again with another probe;
- `dequantization`: the same for the noise in the boxes, from the same images with other noise;
- `solver`: a bias, with its sign: this number less that of a solve with four times the steps (or a tenth
  of the tolerances) on those images.

The first two are drawn for each image alone and are already in the `+-`; do not add them. The third is not.

## Files

`WORKDIR/eval/bpd.csv` has a row for each image, in bits/dim: `index`; `bpd` = `prior` + `volume` +
`dequantization` + `importance`; `nfe`; `solver_error`, signed, of the embedded method, nan if it has none;
`probe_stderr`, nan with one probe; `optimism`; `elbo`; `failed`, 1 if the solver did, the numbers then nan
and left out of the mean. `bpd_again.csv` has the images evaluated again: `noise`, `probe`, `refined`,
`elbo_noise`, `elbo_times`. `bpd.json` has `bpd` and `elbo` with `mean`, `stderr`, `n`; their paired difference
`elbo_minus_bpd`; `errors`; `terms`; `nfe`; `prior_mismatch`; `t_min`; and all settings. Each table has a `.json`
beside it that says what it was made for: it is continued after a kill, and begun anew for anything else.

## Comparing with published numbers

Ask of a number:

- **Which model?** By the ODE, as 2.99 of score_sde's sub-VP and of flow matching
  ([2210.02747](https://arxiv.org/abs/2210.02747)) and 2.56 of i-DODE
  ([2305.03935](https://arxiv.org/abs/2305.03935)), or a bound by the ELBO, as DDPM's 3.75 and VDM's 2.65
  (all CIFAR-10)? They are numbers of different models with the same weights.
- **Which dequantization?** Uniform (`eval.dequantize=uniform`), variational, which also trains a flow
  (`dequantize.name=flow`; ScoreFlow's 2.83), truncated-normal for a model of the lattice
  (`truncated_normal`; i-DODE), or a discrete decoder (VDM; `elbo_decoder`)? On the same weights they differ.
- **How many samples?** A K-sample bound is lower than a one-sample bound. Without -log K it is wrong by
  log2(K) / D bits/dim, and with a noisy trace it is optimistic.
- **Which epsilon, and is the way back paid?**
- **Which images?** The whole test split once; or the batches that were full (score_sde's reader drops the
  remainder and shuffles: 9,216 of 10,000 in batches of 1,024), or a repeating iterator. And which
  preprocessing: 28x28 or padded to 32x32, which of the two downsampled ImageNets, flips.
- **Which steps?** Numbers at a loose tolerance have an error that varies much from image to image.

`scripts/eval.py` with the config's default answers: ODE, uniform, one sample, t_min as trained and not
corrected, every image once. To come near others' tables:

    python scripts/eval.py --workdir={run} --config.eval.dequantize=decoder
    python scripts/eval.py --workdir={run} --config.eval.importance=16 --config.eval.n_probes=2
    python scripts/eval.py --workdir={run} --config.eval.elbo_decoder=uniform --config.eval.elbo_times=128

## The head for levels

With `model.output="levels"` the network gives for each pixel the logits of its levels, what the other
pixels say of it; the likelihood of x_t given each level is known in closed form and Bayes' rule puts the two
together (`levels.py`). So eps is exact where the noise is finer than a level, which a network that predicts
eps or v has to learn: there the score has steps as narrow as sigma. On the digits, with the same network,
data and steps (3600 of batch 32, seed 0, 1.4 minutes each), the validation ELBO is 1.9046 with output v and
1.7861 with the head, and by the ODE the test number goes from 1.911 to 1.751. It is for data dequantized
uniformly, with few enough levels that as many outputs a pixel are cheap; it asks more of the network's last
layer, and its density is that of boxes, so that nothing is learned of data without levels.

## What does not work well, and why

- **`solver_error` is an indication.** It is the sum over the steps of what the embedded method differs by,
  which in long steps is not of the size of the error: compare "own estimate" with "rms of an image" in the
  table below. Believe `solver`, from a refined solve.
- **Adaptive steps at a loose tolerance** control the error of a step, not of log p, and errors have heavy
  tails: few images carry the rms, and a mean over few images may miss them. {tails}
- **Gaussian probes** have the diagonal's variance on top: use signs.
- **The decoder's ridge.** A model without the head for levels has its P(k | x) by a tilt towards eps_hat,
  softened by a ridge chosen for errors usual in eps_hat. Any ridge gives a bound, but not the best one for your model.
- **`truncated_normal` and `lattice_decoder`** fit a model trained on the lattice (`dequantize.name=lattice`)
  only; for a model of boxes they lose log(box / noise) a dimension, and build refuses them.
- **A grid is found for one model**, one whitening and one dequantization, on 64 training images ({n_cost} in
  this page), from the local errors of one solver (`dopri5`); for another solver it is not the best.
- **One model's numbers.** The tables are of small images and a small network. Run the script on yours.

## All rows of the costs

{rows}
"""

WORDS = {
    "decoder": "dequantization: noised to t_min, way back by the decoder",
    "denoised": "dequantization: noised to t_min, way back by the denoising Gaussian",
    "middle": "dequantization: none, at the middles of the boxes (a density, wrong)",
    "edge": "dequantization: none, at the lower edges, x = 2 k / levels - 1 (a density, wrong)",
    "gaussian": "trace: a Gaussian probe for one of signs",
}


def pm(estimate, signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"{estimate.mean:{sign}.4f} +- {estimate.stderr:.4f}"


def conventions(found: dict) -> str:
    rows = [["the default: uniform in the box, one probe of signs", pm(found["base"]), ""]]
    rows += [
        [WORDS[name], pm(value), pm(moved, True)] for name, (value, moved) in found["rows"].items()
    ]
    for (name, t_min), (value, moved) in found["t_min"].items():
        if name == "uniform" and moved.mean:
            rows.append([f"t_min: {t_min:g}, uniform", pm(value), pm(moved, True)])
    for name, (value, moved, _) in found["elbo"].items():
        rows.append([f"the ELBO for the ODE: {name}", pm(value), pm(moved, True)])
    for k, (value, moved, *_) in found["bounds"].items():
        if k > 1:
            title = f"K = {k} samples, against one, on {found['n_bounds']} images"
            rows.append([title, pm(value), pm(moved, True)])
    size, whole = found["subsets"][0]
    for n, mean in found["subsets"][1:]:
        title = f"images: the first {n} of {size} (means of the whole table of `eval.py`)"
        rows.append([title, f"{mean:.4f}", f"{mean - whole:+.4f}"])
    return table(["", "bits/dim", "moved"], rows)


def t_mins(found: dict) -> str:
    rows = [
        [f"{t_min:g}", name, pm(value), pm(moved, True)]
        for (name, t_min), (value, moved) in found["t_min"].items()
    ]
    return table(["t_min", "dequantization", "bits/dim", "moved"], rows)


def elbos(found: dict) -> str:
    rows = [
        [name, pm(value), f"{std:.3f}", pm(moved, True)]
        for name, (value, moved, std) in found["elbo"].items()
    ]
    return table(["form", "bits/dim", "of an image", "less the ODE's"], rows)


def bounds(found: dict) -> str:
    rows = [
        [str(k), pm(value), pm(moved, True), f"{optimism:.4f}", f"{effective:.1f}"]
        for k, (value, moved, optimism, effective) in found["bounds"].items()
    ]
    header = ["K", "bits/dim", "against the mean of 16 single samples", "optimism", "effective K"]
    return table(header, rows)


def advice(rows: list[cost.Row]) -> str:
    """The least evaluations by equal steps whose errors are within the target, and those of the standard."""
    good = [r for r in rows if r.solver in cost.BUDGETS and abs(r.bias) <= cost.TARGET]
    standard = next(r for r in rows if r.grid == "uniform in t")
    if not good:
        return f"No equal steps of the table have a mean within {cost.TARGET}."
    first = min(good, key=lambda r: (r.nfe, r.rms))
    sure = [r for r in good if r.rms <= cost.TARGET]
    text = (
        f"The mean is within {cost.TARGET} bits/dim from {first.nfe:.0f} evaluations "
        f"(`{first.solver}`, whitening {first.whitening}, grid {first.grid})"
    )
    if sure:
        best = min(sure, key=lambda r: (r.nfe, r.rms))
        text += (
            f", and each image is, rms, from {best.nfe:.0f} (`{best.solver}`, {best.whitening}, "
            f"{best.grid})"
        )
    return (
        f"{text}. The standard takes {standard.nfe:.0f} and has an error of the mean of "
        f"{standard.bias:+.4f} and {standard.rms:.4f} rms."
    )


def safe(rows: list[cost.Row]) -> str:
    """The row of the configs' settings."""
    name, nfe = cost.BEST[0], cost.evaluations(*cost.BEST)
    kind = "none", "found", name, nfe
    row = next(r for r in rows if (r.whitening, r.grid, r.solver, r.nfe) == kind)
    return (
        f"The digits' config takes `{name}` on a found grid without whitening, {nfe} evaluations: "
        f"{row.bias:+.4f} +- {row.stderr:.4f} in the mean, {row.rms:.4f} rms."
    )


def tails(rows: list[cost.Row]) -> str:
    loose = [r for r in rows if r.solver.startswith("tsit5 at") and r.whitening == "none"]
    return "\n  ".join(
        f"At {r.solver.removeprefix('tsit5 at ')} the largest error is {r.worst:.4f}, the rms {r.rms:.4f}."
        for r in loose[:2]
    )


def probe_advice(rows: list[cost.Spread]) -> str:
    of = {(r.whitening, r.trace): r for r in rows}
    left = of["covariance", "rademacher"].left
    ratio = (of["none", "gaussian"].std / of["none", "rademacher"].std) ** 2
    return (
        f"Whitening by the covariance removes {1 - left:.0%} of the variance of a Rademacher probe and "
        f"{1 - of['covariance', 'gaussian'].left:.0%} of a Gaussian one's; by one variance for all "
        f"directions nothing of the former, whose |z|^2 is constant, and "
        f"{1 - of['isotropic', 'gaussian'].left:.0%} of the latter. A Gaussian probe has "
        f"{ratio:.1f} times the variance of a Rademacher one."
    )


def page(found: dict, costs: dict, levels: int, n_dims: int, **known) -> str:
    rows = costs["rows"]
    reference, n_steps = cost.REFERENCE
    check, n_check = cost.CHECK
    return PAGE.format(
        **known,
        name=costs["name"],
        offset=math.log2(levels / 2),
        off_by_one=math.log2(levels / (levels - 1)),
        n=found["n"],
        solver=cost.BEST[0],
        steps=cost.BEST[1],
        conventions=conventions(found),
        t_mins=t_mins(found),
        elbos=elbos(found),
        bounds=bounds(found),
        n_bounds=found["n_bounds"],
        reference=f"{n_steps} steps of `{reference}` in log-SNR",
        check=f"{n_check} steps of `{check}`",
        gap=costs["gap"][0],
        gap_rms=costs["gap"][1],
        n_cost=costs["n"],
        target=cost.TARGET,
        best=table(cost.ROW_HEADER, [cost.row_cells(r) for r in cost.best_rows(rows)]),
        advice=advice(rows),
        tails=tails(rows),
        safe=safe(rows),
        n_probes=costs["n_probes"],
        d=n_dims,
        spreads=cost.spread_table(costs["spreads"]),
        probe_advice=probe_advice(costs["spreads"]),
        rows=table(cost.ROW_HEADER, [cost.row_cells(r) for r in rows]),
    )
