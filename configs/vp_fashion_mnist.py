"""Fashion-MNIST 28x28 in bits/dim: a small U-Net under the VP SDE, for two CPU cores.

The network says the probabilities of each pixel's 256 levels, from which `levels.posterior` makes a
score as sharp as the data; training times are drawn where noise and levels meet. See
`subvp_fashion_mnist` for a run to the end. Published for 28x28, 8 bits: hierarchical VAE 3.28, HCLT
circuit 3.34, IDF 3.47.

On a CPU, two virtual devices take a step in little more than half of the time of one:

XLA_FLAGS=--xla_force_host_platform_device_count=2 python scripts/train.py --config=configs/vp_fashion_mnist.py
"""

from configs import common

NET = dict(name="unet", channels=48, multipliers=(1, 2, 2), blocks=1, attention=(7,), dropout=0.0)


def get_config(**sections):
    return common.config(
        **dict(
            data=dict(name="fashion_mnist"),
            sde=dict(name="vp"),
            net=NET,
            model=dict(output="levels", conditioning="log_snr"),
            loss=dict(name="denoising", grid="log_normal_wide", weight="likelihood", target="eps"),
            optim=dict(name="adam", lr=2e-3, b2=0.99, warmup=300, decay="cosine"),
            train=dict(
                steps=13_000,
                batch_size=16,
                ema=(0.999,),
                log_every=100,
                eval_every=2000,
                sample_every=0,
                save_every=1000,
                keep=20,
                eval_images=128,
            ),
            eval=dict(batch_size=50, solver="adams4", n_steps=50, fit_grid=True, elbo_times=16),
        )
        | sections
    )
