"""Fashion-MNIST with its classes, one label in ten dropped: for classifier-free guidance, composition and Bayes' rule.

All else as in `vp_fashion_mnist`, but a narrower network and fewer steps, for two CPU cores. Not run to
the end. As there, two virtual devices are faster than one on a CPU.

python scripts/train.py --config=configs/vp_fashion_mnist_conditional.py
"""

from configs import vp_fashion_mnist


def get_config():
    base = vp_fashion_mnist.get_config()
    return vp_fashion_mnist.get_config(
        net=vp_fashion_mnist.NET | dict(channels=32),
        model=dict(output="levels", conditioning="log_snr", class_conditional=True),
        train=base.train.to_dict() | dict(steps=9000, label_dropout=0.1),
    )
