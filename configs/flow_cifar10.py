"""CIFAR-10 by flow matching on straight paths (Lipman et al. 2023, arXiv 2210.02747, appendix E).

Published: 2.99 bits/dim, FID 6.35 in 142 evaluations, with a U-Net of 256 channels whose attention
has four heads; this one has one. 391,000 steps of 256 images; for GPUs or TPUs. Not yet run at full
size.

python scripts/train.py --config=configs/flow_cifar10.py
"""

from configs import common


def get_config():
    return common.config(
        data=dict(name="cifar10"),
        sde=dict(name="linear"),
        net=dict(name="ddpm", channels=256, dropout=0.0),
        model=dict(output="velocity", conditioning="t"),
        loss=common.STANDARD_LOSS | dict(target="velocity"),
        optim=dict(name="adam", lr=5e-4, warmup=45_000, decay="linear"),
        train=common.large_train(steps=391_000, batch_size=256, ema=(0.9999,), flip=False),
        sample=dict(name="probability_flow", grid="uniform", solver="dopri5", rtol=1e-5, atol=1e-5),
        eval=dict(batch_size=256, grid="uniform", solver="dopri5", rtol=1e-5, atol=1e-5),
    )
