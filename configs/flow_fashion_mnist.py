"""Fashion-MNIST on straight paths (the linear SDE of flow matching), all else as in `vp_fashion_mnist`.

The loss is the likelihood's, not the unweighted one of the velocity. Not run to the end.

XLA_FLAGS=--xla_force_host_platform_device_count=2 python scripts/train.py --config=configs/flow_fashion_mnist.py
"""

from configs import vp_fashion_mnist


def get_config():
    return vp_fashion_mnist.get_config(sde=dict(name="linear"))
