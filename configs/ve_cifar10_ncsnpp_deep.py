"""CIFAR-10, VE SDE, NCSN++ with twice the blocks (Song et al. 2021, arXiv 2011.13456).

Published as "NCSN++ cont. deep (VE)": FID 2.20 by the sampler set here (table 3). No bits/dim were
published under VE. 950,000 steps of 128 images; for GPUs or TPUs. Not yet run at full size.

python scripts/train.py --config=configs/ve_cifar10_ncsnpp_deep.py
"""

from configs import common


def get_config():
    return common.score_sde_cifar10("ve", "ncsnpp_deep")
