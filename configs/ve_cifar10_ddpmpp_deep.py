"""CIFAR-10, VE SDE, DDPM++ with twice the blocks (Song et al. 2021, arXiv 2011.13456).

No number was published for this pair. 950,000 steps of 128 images; for GPUs or TPUs. Not yet run at
full size.

python scripts/train.py --config=configs/ve_cifar10_ddpmpp_deep.py
"""

from configs import common


def get_config():
    return common.score_sde_cifar10("ve", "ddpmpp_deep")
