"""The page and the pictures that benchmarks/control.py writes; what it says follows from the numbers."""

import itertools
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from control_guidance import KINDS, Judged
from control_restoration import FACTOR, LINEAR, STD, TRIVIAL, WIDTH, Scores
from objectives_page import table

from score_jax import files
from score_jax.evaluate import Estimate, estimate

# (kind, scale) -> what was found of its samples
Guided = dict[tuple[str, float], Judged]
# task -> method -> what was found of each image
Restored = dict[str, dict[str, Scores]]

PAGE = """# Control

Written by

    {command}

with {minutes:.0f} minutes of sampling on {cores} CPU cores, jax {jax}. All errors are one standard error; two
numbers are told apart where they differ by two of their difference's.

{sections}"""

GUIDANCE = """## Guidance by a class, on `{data}`

{n} samples for each scale, as many of each class, by {n_steps} steps of DPM-Solver++(2M), uniform in
log-SNR; labels and noise are the same at all scales. The model was trained for {model_step} steps with a
label dropout of {dropout:g}. Classifier guidance pushes the same model, not told the class, by the gradient
of another run, the guide. Scale 0 is that model alone; at scale 1 both stand for p(x | class), the one as
it was trained, the other by Bayes.

The judge is a classifier that took no part in any of this, trained for {judge_step} steps from seed
{judge_seed} (the guide: {guide_step} from seed {guide_seed}). {difference} It is shown samples in whole
levels, as images are; the last row is of {n_test} images of the test split. "Spread" is the standard
deviation of a pixel within a class, over theirs: below 1 is diversity lost, the price of guidance. At scale 0
samples were not told the class that they are judged by: one in as many classes is right by chance, and their
spread is that of all classes together.

{numbers}

{advice}

{pictures}

"""

RESTORATION = """## {n} images of `{data}` drawn again from a measurement

y = A x + noise of standard deviation {std:g}, of data in [-1, 1].

{tasks}

Each method has {evaluations} evaluations of the network for an image: `repaint` walks a grid of a quarter of the
steps four times, `tsmc` moves four particles along such a grid and one of them is taken. In `dps`, `pigdm`
and `tsmc` an evaluation is one with its gradient, which costs more. All other options are the defaults. The
network was trained for {step} steps; it is told no class here.

`{trivial}` is the pseudo-inverse, which knows nothing of images: where A nearly erases something, it returns noise,
and `projection` and `repaint` set what is measured by it, noise and all. `{linear}` is the best estimate that is
linear in y, from mean and covariance of training images. It estimates where the methods draw: an exact
draw has twice the mean squared error of the posterior's mean, 3 dB less, which is what its detail costs.
Images are clipped to [0, 1] and rounded to levels; PSNR is in dB, SSIM has Gaussian windows of 1.5 pixels.
The residual is the root mean square of (y - A x) / std, 1 for the truth.

{numbers}

{pictures}

"""

TASKS = {
    "inpaint": "`inpaint`: the middle, half as wide and high as the image, is hidden.",
    "super_resolution": f"`super_resolution`: means of {FACTOR} x {FACTOR} pixels.",
    "deblur": f"`deblur`: a Gaussian filter of {WIDTH:g} pixels.",
    "colorize": "`colorize`: the grey image.",
}


def page(sections: list[str], **facts) -> str:
    """The text of control.md; facts: command, minutes, cores, jax."""
    return PAGE.format(sections="".join(sections).rstrip() + "\n", **facts)


def pm(found: Estimate, digits: int = 3) -> str:
    """Mean and standard error."""
    if not math.isfinite(found.mean):
        return "-"
    return f"{found.mean:.{digits}f} +- {found.stderr:.{digits}f}"


# guidance


def guidance_section(
    guided: Guided, test: Judged, pictures: list[Path], *, difference: str, **facts
) -> str:
    """facts: data, n, n_test, n_steps, dropout, the model's step, and step and seed of judge and guide.

    Args:
      difference: `difference` of judge and guide.
    """
    return GUIDANCE.format(
        difference=difference,
        numbers=guidance_table(guided, test),
        advice=guidance_advice(guided, test),
        pictures="\n\n".join(f"![samples by scale, {path.stem}]({path.name})" for path in pictures),
        **facts,
    )


# of a config: what decides how a classifier is trained, beside its seed and steps
_SECTIONS = "sde", "net", "model", "loss", "optim", "train"


def difference(judge: dict[str, Any], guide: dict[str, Any]) -> str:
    """A sentence on what the judge's config has that the guide's has not, but for seed and steps."""
    told = []
    for section in _SECTIONS:
        one, other = judge[section], guide[section]
        for key in dict.fromkeys((*one, *other)):
            if (section, key) != ("train", "steps") and one.get(key) != other.get(key):
                values = f"{one.get(key)} (the guide: {other.get(key)})"
                told.append(f"`{section}.{key}` is {values}")
    if not told:
        return "Their configs are otherwise the same."
    return f"Of its config {', '.join(told)}; the rest is the same."


def guidance_table(guided: Guided, test: Judged) -> str:
    scales = list(dict.fromkeys(scale for _, scale in guided))
    header = ["scale"]
    for kind in KINDS:
        word = kind.replace("_", "-")
        header += [f"{word}: judge", "guide", "spread"]
    rows = [
        [f"{scale:g}", *(pm(value) for kind in KINDS for value in guided[kind, scale])]
        for scale in scales
    ]
    return table(header, [*rows, ["test images", *map(pm, test), *["" for _ in test]]])


def guidance_advice(guided: Guided, test: Judged) -> str:
    """What the table says, in sentences."""
    lines = []
    for kind, what in (
        ("classifier_free", "the class-conditional model alone"),
        ("classifier", "the classifier's gradient as it is"),
    ):
        if (kind, 1.0) in guided:
            own = guided[kind, 1.0]
            lines.append(
                f"- **Scale 1**, {what}: {pm(own.judge)} are of their class to the judge, "
                f"{against(own.judge, test.judge)} the test images' {pm(test.judge)}; the spread is "
                f"{pm(own.spread)}."
            )
    for kind in KINDS:
        at = {scale: found for (k, scale), found in guided.items() if k == kind}
        best = max(at, key=lambda scale: at[scale].judge.mean)
        ties = [s for s in at if s != best and not differ(at[s].judge, at[best].judge)]
        text = f"- **{kind.replace('_', '-')}**: most are of their class at scale {best:g}, {pm(at[best].judge)}"
        if ties:
            cheapest = max((*ties, best), key=lambda scale: at[scale].spread.mean)
            text += f", not told apart from {_listed(ties)}"
            text += f"; of these scale {cheapest:g} spreads most, {pm(at[cheapest].spread)}"
        else:
            text += f", with a spread of {pm(at[best].spread)}"
        last = max(at)
        lines.append(f"{text}. At scale {last:g} the spread is {pm(at[last].spread)}.")
    last = max(scale for _, scale in guided)
    found = guided["classifier", last]
    gap = found.guide.mean - found.judge.mean
    if differ(found.guide, found.judge) and gap > 0:
        lines.append(
            f"- **The guide flatters itself**: at scale {last:g} it takes {pm(found.guide)} of what it pushed "
            f"for their class, the judge {pm(found.judge)}. Accuracy by the guide is no measure."
        )
    return "\n".join(lines)


def differ(a: Estimate, b: Estimate) -> bool:
    """Whether two means differ by two standard errors, taken for independent."""
    return abs(a.mean - b.mean) > 2 * math.hypot(a.stderr, b.stderr)


def against(a: Estimate, b: Estimate) -> str:
    if not differ(a, b):
        return "not told apart from"
    return "more than" if a.mean > b.mean else "less than"


def _listed(scales: list[float]) -> str:
    return " and ".join(f"{scale:g}" for scale in scales)


# restoration


def restoration_section(restored: Restored, pictures: list[Path], **facts) -> str:
    """facts: data, n, evaluations, step."""
    parts = []
    for task, by_method in restored.items():
        parts.append(f"### `{task}`\n\n{score_table(by_method)}\n\n{score_advice(by_method)}")
    return RESTORATION.format(
        numbers="\n\n".join(parts),
        tasks="\n".join(f"- {TASKS[task]}" for task in restored),
        pictures="\n\n".join(f"![{path.stem}]({path.name})" for path in pictures),
        std=STD,
        trivial=TRIVIAL,
        linear=LINEAR,
        **facts,
    )


def score_table(by_method: dict[str, Scores]) -> str:
    rows = []
    for name, found in by_method.items():
        means = (estimate(values) for values in found)
        digits = {"psnr": 2, "ssim": 3, "residual": 2}.values()
        cells = (pm(mean, d) for mean, d in zip(means, digits, strict=True))
        rows.append([f"`{name}`", *cells])
    return table(["", "PSNR", "SSIM", "residual"], rows)


def score_advice(by_method: dict[str, Scores]) -> str:
    """The order of the methods by PSNR and SSIM, and which of them failed, are no use or do not meet y."""
    lines = [
        f"By {word}: {order({name: getattr(found, field) for name, found in by_method.items()})}."
        for word, field in (("PSNR", "psnr"), ("SSIM", "ssim"))
    ]
    lines[0] += " `~` where neighbours are not told apart, image by image."
    drawn = {n: found for n, found in by_method.items() if n not in (TRIVIAL, LINEAR)}
    failed = {n: np.mean(~np.isfinite(found.residual)) for n, found in drawn.items()}
    failed = ", ".join(f"`{n}` ({share:.0%})" for n, share in failed.items() if share)
    if failed:
        lines.append(f"Not finite, and judged with black in their place, are images of {failed}.")
    trivial = by_method[TRIVIAL]
    below = [n for n, found in drawn.items() if _gap(trivial.psnr, found.psnr) > 2]
    if below:
        lines.append(f"Below the pseudo-inverse by PSNR: {_names(below)}.")
    far = {n: estimate(found.residual).mean for n, found in drawn.items()}
    far = {n: value for n, value in far.items() if value > 2}
    if far:
        each = ", ".join(f"`{n}` ({value:.3g})" for n, value in far.items())
        lines.append(f"Further from y than twice its noise: {each}.")
    near = [n for n, found in drawn.items() if estimate(found.residual).mean < 0.5]
    if near:
        lines.append(
            f"Nearer to y than half its noise, so that noise is drawn as signal: {_names(near)}."
        )
    return "\n\n".join(lines)


def order(values: dict[str, np.ndarray]) -> str:
    """Names from the highest mean down, with `~` between neighbours that are not told apart."""
    names = sorted(values, key=lambda name: -values[name].mean())
    text = f"`{names[0]}`"
    for better, worse in itertools.pairwise(names):
        text += f" {'>' if _gap(values[better], values[worse]) > 2 else '~'} `{worse}`"
    return text


def _gap(a: np.ndarray, b: np.ndarray) -> float:
    """The mean difference, in its standard errors."""
    found = estimate(a - b)
    if not found.mean:
        return 0.0
    return found.mean / found.stderr if found.stderr > 0 else math.copysign(math.inf, found.mean)


def _names(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


# pictures


def plate(path: Path, images: np.ndarray, columns: list[str], rows: list[str], levels: int):
    """Writes a PNG of images [rows, columns, h, w, c], levels, with a title for each column and row."""
    from matplotlib.figure import Figure

    scaled = np.round(images * (255 / (levels - 1))).astype(np.uint8)
    n_rows, n_columns, height, width, channels = scaled.shape
    canvas = np.full((n_rows, height + 1, n_columns, width + 1, channels), 255, np.uint8)
    canvas[:, :height, :, :width] = scaled.transpose(0, 2, 1, 3, 4)
    canvas = canvas.reshape(n_rows * (height + 1), n_columns * (width + 1), channels)
    figure = Figure(figsize=(0.8 * n_columns + 1.2, 0.8 * n_rows + 0.6), dpi=100, layout="tight")
    axes = figure.subplots()
    shown: Any = np.repeat(canvas, 3, axis=-1) if channels == 1 else canvas
    axes.imshow(shown, interpolation="nearest")
    axes.set_xticks((width + 1) * np.arange(n_columns) + width / 2, columns, fontsize=7)
    axes.set_yticks((height + 1) * np.arange(n_rows) + height / 2, rows, fontsize=7)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    files.write(path, partial(figure.savefig))
