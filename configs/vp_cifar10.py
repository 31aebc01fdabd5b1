"""CIFAR-10 with DDPM's network, continuous time and likelihood weighting.

Published for this network and SDE with the standard weight (`vp_cifar10_ddpm`): 3.21 bits/dim (Song
et al. 2021, arXiv 2011.13456, table 2, "DDPM cont. (VP)"). Likelihood weighting trades samples for
bits. 500,000 steps of 128 images; for GPUs or TPUs. Not yet run at full size.

python scripts/train.py --config=configs/vp_cifar10.py
"""

from configs import common


def get_config():
    return common.config(
        data=dict(name="cifar10"),
        sde=dict(name="vp"),
        net=dict(name="ddpm"),
        optim=dict(name="adam", lr=2e-4, warmup=5000, decay="constant"),
        train=common.large_train(steps=500_000, batch_size=128, ema=(0.9999,)),
        eval=dict(batch_size=256, rtol=1e-5, atol=1e-5),
    )
