"""CIFAR-10, sub-VP SDE, deep DDPM++, likelihood weighting (ScoreFlow: Song et al. 2021, arXiv 2101.09258).

Published: 2.83 bits/dim and FID 5.4, with variational dequantization; here dequantization is
uniform, so expect more. Times are uniform in log-SNR, which is the paper's importance sampling.
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
    )
