"""Fashion-MNIST under the sub-VP SDE, all else as in `vp_fashion_mnist`. Not yet run to the end.

python scripts/train.py --config=configs/subvp_fashion_mnist.py
"""

from configs import vp_fashion_mnist


def get_config():
    return vp_fashion_mnist.get_config(sde=dict(name="sub_vp"))
