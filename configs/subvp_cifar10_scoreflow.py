"""CIFAR-10, sub-VP SDE, deep DDPM++, likelihood weighting (ScoreFlow: Song et al. 2021, arXiv 2101.09258).

Published: 2.83 bits/dim with variational dequantization and without augmentation; here dequantization
is uniform, so expect more. Times are uniform in log-SNR, which is the paper's importance sampling.
950,000 steps of 128 images; for GPUs or TPUs. Not yet run at full size.

python scripts/train.py --config=configs/subvp_cifar10_scoreflow.py
"""

from configs import common


def get_config():
    return common.score_sde_cifar10(
        "sub_vp",
        "ddpmpp_deep",
        model=dict(output="eps", conditioning="log_snr"),
        loss=dict(name="denoising", grid="log_snr", weight="likelihood", target="eps"),
        train=common.large_train(steps=950_000, batch_size=128, ema=(0.9999,), flip=False),
        sample=dict(name="probability_flow", rtol=1e-5, atol=1e-5),
    )
