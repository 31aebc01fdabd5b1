"""Fashion-MNIST with its classes, one label in ten dropped: for classifier-free guidance, composition and Bayes' rule.

All else as in `vp_fashion_mnist`, but a narrower network and fewer steps, for two CPU cores: 17 minutes on
two virtual devices, to an ELBO of 3.05 bits/dim on 128 validation images. What guidance makes of it is in
docs/control.md.

python scripts/train.py --config=configs/vp_fashion_mnist_conditional.py
"""

from configs import vp_fashion_mnist


def get_config():
    base = vp_fashion_mnist.get_config()
    return vp_fashion_mnist.get_config(
        net=vp_fashion_mnist.NET | dict(channels=32),
        model=dict(output="levels", conditioning="log_snr", class_conditional=True),
        train=base.train.to_dict() | dict(steps=6000, label_dropout=0.1),
    )
