"""CIFAR-10 by denoising score matching at ten noise levels and annealed Langevin dynamics.

The objective, the levels and the sampler of NCSN (Song & Ermon 2019, arXiv 1907.05600), with DDPM's
network in the place of its RefineNet. Published there: FID 25.3, inception score 8.87. Its levels, 1
to 0.01 for images in [0, 1], are twice that in [-1, 1]. 200,000 steps of 128 images; for GPUs or
TPUs. Not yet run at full size.

python scripts/train.py --config=configs/ncsn_cifar10.py
"""

from configs import common


def get_config():
    return common.config(
        data=dict(name="cifar10"),
        sde=dict(name="ve", sigma_min=0.02, sigma_max=2.0),
        net=dict(name="ddpm"),
        model=dict(output="eps", conditioning="log_snr", sigma_data=0.5),
        loss=dict(name="ncsn", n_times=10),
        optim=dict(name="adam", lr=1e-3, warmup=1000, decay="constant"),
        train=common.large_train(steps=200_000, batch_size=128, ema=(0.999,)),
        # epsilon = 2e-5 at the last level 0.01 of the paper
        sample=dict(name="annealed_langevin", n_levels=10, n_steps=100, step=0.2),
        eval=dict(batch_size=256, rtol=1e-5, atol=1e-5),
    )
