"""CIFAR-10, VP SDE, NCSN++ (Song et al. 2021, arXiv 2011.13456).

No number was published for this pair. 1,300,000 steps of 128 images; for GPUs or TPUs. Not yet run
at full size.

python scripts/train.py --config=configs/vp_cifar10_ncsnpp.py
"""

from configs import common


def get_config():
    return common.score_sde_cifar10("vp", "ncsnpp")
