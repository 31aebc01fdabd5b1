"""CIFAR-10, VE SDE, DDPM's network (Song et al. 2021, arXiv 2011.13456).

Published for this network with SMLD's discrete noise levels: FID 3.60 by the sampler set here
(table 1). No bits/dim were published under VE. 1,300,000 steps of 128 images; for GPUs or TPUs. Not
yet run at full size.

python scripts/train.py --config=configs/ve_cifar10_ddpm.py
"""

from configs import common


def get_config():
    return common.score_sde_cifar10("ve", "ddpm")
