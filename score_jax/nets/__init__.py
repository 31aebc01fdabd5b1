"""Networks, called as net(x, c, label=None, *, keys=None) -> an array of x's shape.

c [b] tells how noisy each x is (see `model.CONDITIONING`): 0 to 1000 at most, or a logarithm of
sigma, as networks with a Fourier embedding need it. label [b] is a class, 0 to n_classes - 1, or n_classes for "no
class"; None is "no class" for all, and a network with n_classes = 0 ignores it. keys, one per
example, switch dropout on.
"""

from score_jax.nets.families import ddpm, ddpmpp, ddpmpp_deep, ncsnpp, ncsnpp_deep
from score_jax.nets.mlp import MLP
from score_jax.nets.unet import CHOICES, UNet, check_image_size

__all__ = [
    "CHOICES",
    "MLP",
    "UNet",
    "check_image_size",
    "ddpm",
    "ddpmpp",
    "ddpmpp_deep",
    "ncsnpp",
    "ncsnpp_deep",
]
