"""CIFAR-10 with DDPM's network, continuous time and likelihood weighting.

Published for this network and SDE with the standard weight: 3.21 bits/dim (Song et al. 2021, arXiv
2011.13456, table 2, "DDPM cont. (VP)"). Likelihood weighting trades samples for bits;
`--config.loss.grid=uniform --config.loss.weight=simple` is the standard weight. 500,000 steps of 128 images; for
GPUs or TPUs. Not yet run at full size.

python scripts/train.py --config=configs/vp_cifar10.py
"""

from configs import common


def get_config():
    return common.config(
        data=dict(name="cifar10"),
        sde=dict(name="vp"),
        net=dict(
            name="unet",
            channels=128,
            multipliers=(1, 2, 2, 2),
            blocks=2,
            attention=(16,),
            dropout=0.1,
        ),
        optim=dict(name="adam", lr=2e-4, warmup=5000, decay="constant"),
        train=dict(
            steps=500_000,
            batch_size=128,
            ema=(0.9999,),
            flip=True,
            log_every=100,
            eval_every=10_000,
            sample_every=10_000,
            save_every=10_000,
        ),
        eval=dict(batch_size=256, rtol=1e-5, atol=1e-5),
    )
