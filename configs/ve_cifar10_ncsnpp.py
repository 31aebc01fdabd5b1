"""CIFAR-10, VE SDE, NCSN++ (Song et al. 2021, arXiv 2011.13456).

Published as "NCSN++ cont. (VE)": FID 2.38 by the sampler set here (table 3). No bits/dim were
published under VE. 1,300,000 steps of 128 images; for GPUs or TPUs. Not yet run at full size.

python scripts/train.py --config=configs/ve_cifar10_ncsnpp.py
"""

from configs import common


def get_config():
    return common.score_sde_cifar10("ve", "ncsnpp")
