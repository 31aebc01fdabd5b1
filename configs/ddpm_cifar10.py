"""CIFAR-10 as in DDPM (Ho et al. 2020, arXiv 2006.11239): 1000 discrete times, unweighted error of eps.

Published: FID 3.17 by ancestral sampling in 1000 steps; at most 3.75 bits/dim by the discrete
bound, 3.28 by the ODE (Song et al. 2021, arXiv 2011.13456, table 2). 800,000 steps of 128 images;
for GPUs or TPUs. Not yet run at full size.

python scripts/train.py --config=configs/ddpm_cifar10.py
"""

from configs import common


def get_config():
    return common.config(
        data=dict(name="cifar10"),
        sde=dict(name="ddpm", t_min=1e-3),  # time i / 1000 is step i
        net=dict(name="ddpm"),
        model=dict(output="eps", conditioning="t"),
        loss=dict(name="ddpm", n_times=1000),
        optim=dict(name="adam", lr=2e-4, warmup=5000, decay="constant"),
        train=common.large_train(steps=800_000, batch_size=128, ema=(0.9999,)),
        # the 999 steps between, and algorithm 2's last one without noise
        sample=dict(name="ancestral", grid="uniform", n_steps=999, variance="large", denoise=True),
        eval=dict(batch_size=256, dequantize="decoder", rtol=1e-5, atol=1e-5),
    )
