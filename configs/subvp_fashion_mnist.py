"""Fashion-MNIST under the sub-VP SDE, all else as in `vp_fashion_mnist`.

Expect 2.90 +- 0.03 bits/dim on the first 1,000 test images by the probability-flow ODE, 2.92 +- 0.03 by
the ELBO (28x28, 8 bits, uniform dequantization), after 65 minutes on two busy CPU cores.

XLA_FLAGS=--xla_force_host_platform_device_count=2 python scripts/train.py --config=configs/subvp_fashion_mnist.py

Stopped, the same command goes on; for two hours give --config.train.steps=25000 from the start.
"""

from configs import vp_fashion_mnist


def get_config():
    return vp_fashion_mnist.get_config(sde=dict(name="sub_vp"))
