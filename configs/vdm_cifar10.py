"""CIFAR-10 by a variational diffusion model (Kingma et al. 2021, arXiv 2107.00630, appendix B).

Published: at most 2.65 bits/dim without augmentation. Levels are points of a lattice, which a
discrete decoder reads at t_min; the schedule is learned between pinned ends. The network works at
full resolution throughout and sees sines of its input. 10,000,000 steps; for GPUs or TPUs. Not yet
run at full size.

python scripts/train.py --config=configs/vdm_cifar10.py
"""

from configs import common


def get_config():
    return common.config(
        data=dict(name="cifar10"),
        sde=dict(name="learned", log_snr_max=13.3, log_snr_min=-5.0),
        net=dict(name="vdm"),
        model=dict(output="eps", conditioning="log_snr"),
        dequantize=dict(name="lattice"),
        loss=dict(name="vdm", grid="uniform"),
        optim=dict(name="adam", lr=2e-4, b2=0.99, weight_decay=0.01, warmup=100, decay="constant"),
        train=common.large_train(steps=10_000_000, batch_size=128, ema=(0.9999,), flip=False),
        sample=dict(name="ancestral", n_steps=1000),
        eval=dict(batch_size=256, elbo_times=64, rtol=1e-5, atol=1e-5),
    )
