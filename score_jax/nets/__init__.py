"""Networks, called as net(x, c, label=None, *, keys=None, augment=None) -> an array of x's shape.

c [b] tells how noisy each x is (see `model.CONDITIONING`): 0 to 1000 at most, or a logarithm of
sigma, as networks with a Fourier embedding need it. label [b] is a class, 0 to n_classes - 1, or n_classes for "no
class"; None is "no class" for all, and a network with n_classes = 0 ignores it. keys, one per
example, switch dropout on. augment [b, n_augment] is what augmentation did to each example; None is
zeros, which stand for nothing, and a network with n_augment = 0 ignores it.
"""

from score_jax.nets.dit import DiT, check_patch
from score_jax.nets.families import ddpm, ddpmpp, ddpmpp_deep, ncsnpp, ncsnpp_deep, vdm
from score_jax.nets.mlp import MLP
from score_jax.nets.unet import CHOICES, UNet, check_image_size

__all__ = [
    "CHOICES",
    "MLP",
    "DiT",
    "UNet",
    "check_image_size",
    "check_patch",
    "ddpm",
    "ddpmpp",
    "ddpmpp_deep",
    "ncsnpp",
    "ncsnpp_deep",
    "vdm",
]
