"""Memory, all-reduce and what fits on which card, for 1 to 256 devices, on paper; writes a section of docs/scaling.md.

    python benchmarks/devices.py

Nothing is run: parameters, the activations that a backward pass keeps and the operations are counted
from the networks as they are traced; speeds are those of data sheets. Four minutes on two CPU cores.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import scaling_page

from score_jax import losses, nets, sde
from score_jax import model as models
from score_jax.types import Batch

NETS = {
    "ddpm": nets.ddpm(),
    "ddpmpp": nets.ddpmpp(),
    "ddpmpp_deep": nets.ddpmpp_deep(),
    "ncsnpp_deep": nets.ncsnpp_deep(),
    "vdm": nets.vdm(),
    "dit": nets.DiT(),
}
# copies of the parameters: themselves, gradient, one average, Adam's two moments, and the vector of
# all gradients that is reduced
COPIES = 6
USABLE = 0.9  # of a device's memory: the rest is the compiler's, and the data set's
UTILISATION = 0.3  # of the peak of bfloat16 products
LATENCY = 5e-6  # of one message, s
PER_HOST = 8
SHOWN = "ddpmpp_deep"


class Card(NamedTuple):
    """A device: GiB, bfloat16 peak in FLOP/s, bytes/s to its neighbour in the host and out of the host of eight."""

    gib: int
    peak: float
    inside: float
    outside: float
    link: str


CARDS = {
    "RTX 4090": Card(24, 165e12, 25e9, 1.25e9, "PCIe 4.0 x16, 25 GB/s; 10 Gb/s Ethernet"),
    "RTX 4090, fast net": Card(24, 165e12, 25e9, 12.5e9, "PCIe 4.0 x16; 100 Gb/s Ethernet"),
    "TPU v4": Card(32, 275e12, 100e9, 800e9, "ICI, 100 GB/s of a ring in its torus, hosts alike"),
    "A100 40 GB": Card(40, 312e12, 300e9, 200e9, "NVLink 3, 300 GB/s; 8 x 200 Gb/s InfiniBand"),
    "H100 80 GB": Card(80, 989e12, 450e9, 400e9, "NVLink 4, 450 GB/s; 8 x 400 Gb/s InfiniBand"),
}

TITLE = "One to 256 devices, on paper"
BODY = """**Computed, not measured**, by `python benchmarks/devices.py`: parameters, activations and operations
are counted from the networks, the rest is arithmetic with the figures of vendors' data sheets. A real
run is slower. CIFAR-10's image size, the networks' defaults, the likelihood-weighted loss, dropout on.

Data-parallel training keeps on each device {copies} arrays of the size of the parameters, float32: the
parameters, one moving average, Adam's two moments, the gradient, and the vector in which all gradients,
the loss and its metrics go through the one all-reduce of a step. Every further average is one more.
That part does not shrink with more devices. Activations do, with the images that a device takes.

| network | parameters, M | state, GiB | all-reduce, MB | kept, MiB | in bfloat16 | and with remat | GFLOP |
| --- | --- | --- | --- | --- | --- | --- | --- |
{networks}

"Kept" is what automatic differentiation keeps from the forward pass of one image, as above; GFLOP are
an image's in a step, three times those of a forward pass (`remat`: four times).

### What fits

The most images on one device, in {usable:.0%} of its memory: float32 / bfloat16 / bfloat16 with remat.
With remat the activations of the one block that is computed again come on top: the third is an upper
bound. `train.accumulate` = k divides what is kept by k, so that a batch fits wherever the state does.

| network | {cards} |
| --- |{lines}
{fits}

CIFAR-10 itself, where it is resident (`train.resident_gib`), is 0.14 GiB on each device.

### The all-reduce

On a ring of n devices each sends 2 (n - 1) / n times the {mb:.0f} MB of {shown} (float32, whatever
`train.compute` is). Hosts have {per_host} devices: a ring inside each, then one over the hosts, whose
devices share the way out. Each of its 2 (n - 1) messages costs {latency:.0f} microseconds more. The step
waits for it: one all-reduce of everything can begin only when the whole gradient is there. Milliseconds:

| devices | {cards} |
| --- |{lines}
{reduces}

{links}

### Time of a step

{shown} in bfloat16 at {utilisation:.0%} of the data sheet's peak: images per second, and in brackets which
part of a step is computing. First with 16 images on each device, so that the batch grows with their
number:

| devices (batch) | {cards} |
| --- |{lines}
{weak}

Then the papers' batch of 128 over all of them (where it does not fit, with `train.accumulate`); more
than 128 devices have nothing to do:

| devices (images on each) | {cards} |
| --- |{lines}
{strong}

Over PCIe and slow Ethernet a host of eight is where adding devices stops to pay for the papers' batch;
`train.accumulate` with a larger batch makes the all-reduce rarer by as much.
"""


class Cost(NamedTuple):
    """Of a network: parameters, bytes kept per image (float32, bfloat16, bfloat16 with remat), FLOP per image."""

    n_params: int
    kept: tuple[float, float, float]
    flop: float


def cost(net) -> Cost:
    """Counted on abstract arrays: the difference of two batches, so that what does not grow with them is out."""
    model = models.denoiser(net, sde.vp())
    params = jax.eval_shape(lambda key: model.init(key, (32, 32, 3)), jax.random.key(0))
    batch = lambda n: jax.eval_shape(
        lambda key: Batch(
            jnp.zeros((n, 32, 32, 3)), None, jax.random.split(key, n), jnp.arange(n) / n
        ),
        jax.random.key(0),
    )

    def kept(n, **options):
        loss = losses.denoising(models.denoiser(net.clone(**options), sde.vp()))

        def backward(params, batch):
            value = lambda params: loss(jax.random.key(0), params, (), batch, 0)[0]
            return jax.vjp(value, params)[1]

        leaves = jax.tree.leaves(jax.eval_shape(backward, params, batch(n)))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

    grows = lambda **options: (kept(5, **options) - kept(3, **options)) / 2
    bf16 = dict(dtype=jnp.bfloat16)
    forward = jax.jit(model.predict)
    arguments = (params, batch(2).x, jax.ShapeDtypeStruct((2,), jnp.float32))
    flop = forward.lower(*arguments).cost_analysis()["flops"] / 2
    n_params = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    return Cost(n_params, (grows(), grows(**bf16), grows(**bf16, remat=True)), 3 * flop)


def fits(card: Card, found: Cost, kept: float) -> int:
    """Images."""
    free = USABLE * card.gib * 2**30 - 4 * COPIES * found.n_params
    return max(int(free // kept), 0)


def all_reduce(card: Card, n: int, n_bytes: float) -> float:
    """Seconds, for n devices in hosts of eight."""
    ring = lambda k, speed: 2 * (k - 1) / k * n_bytes / speed + 2 * (k - 1) * LATENCY
    hosts = -(-n // PER_HOST)
    return ring(min(n, PER_HOST), card.inside) + ring(hosts, card.outside)


def rate(card: Card, found: Cost, n: int, images: int) -> str:
    """Images per second of n devices that take so many each, and the part of the time that they compute."""
    computing = images * found.flop / (UTILISATION * card.peak)
    total = computing + all_reduce(card, n, 4 * found.n_params)
    return f"{n * images / total:,.0f} ({computing / total:.0%})"


def main():
    costs = {}
    for name, net in NETS.items():
        costs[name] = cost(net)
        print(name, costs[name], flush=True)
    shown, counts = costs[SHOWN], [2**i for i in range(9)]
    row = lambda *cells: "| " + " | ".join(map(str, cells)) + " |"
    networks = [
        row(
            name,
            f"{c.n_params / 1e6:.1f}",
            f"{4 * COPIES * c.n_params / 2**30:.2f}",
            f"{4 * c.n_params / 1e6:.0f}",
            *(f"{kept / 2**20:.0f}" for kept in c.kept),
            f"{c.flop / 1e9:.0f}",
        )
        for name, c in costs.items()
    ]
    body = BODY.format(
        copies=COPIES,
        usable=USABLE,
        mb=4 * shown.n_params / 1e6,
        shown=SHOWN,
        per_host=PER_HOST,
        latency=1e6 * LATENCY,
        utilisation=UTILISATION,
        networks="\n".join(networks),
        cards=" | ".join(CARDS),
        lines=" --- |" * len(CARDS),
        fits="\n".join(
            row(
                name,
                *(" / ".join(str(fits(card, c, k)) for k in c.kept) for card in CARDS.values()),
            )
            for name, c in costs.items()
        ),
        reduces="\n".join(
            row(
                n,
                *(f"{1e3 * all_reduce(c, n, 4 * shown.n_params):.1f}" for c in CARDS.values()),
            )
            for n in counts
        ),
        links=";\n".join(f"{name}: {card.link}" for name, card in CARDS.items()) + ".",
        weak="\n".join(
            row(f"{n} ({16 * n})", *(rate(c, shown, n, 16) for c in CARDS.values())) for n in counts
        ),
        strong="\n".join(
            row(f"{n} ({128 // n})", *(rate(c, shown, n, 128 // n) for c in CARDS.values()))
            for n in counts
            if n <= 128
        ),
    )
    scaling_page.write(TITLE, body)


if __name__ == "__main__":
    main()
