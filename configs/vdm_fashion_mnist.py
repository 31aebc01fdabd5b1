"""Fashion-MNIST 28x28 by a variational diffusion model (Kingma et al. 2021, arXiv 2107.00630), for two CPU cores.

A learned schedule, a discrete decoder, and sines of the input, in the small U-Net of
`vp_fashion_mnist`, which halves the image twice. Not run to the end.

XLA_FLAGS=--xla_force_host_platform_device_count=2 python scripts/train.py --config=configs/vdm_fashion_mnist.py
"""

from configs import vp_fashion_mnist


def get_config():
    return vp_fashion_mnist.get_config(
        sde=dict(name="learned", log_snr_max=13.3, log_snr_min=-5.0),
        net=vp_fashion_mnist.NET | dict(input_frequencies=(7, 8)),
        model=dict(output="eps", conditioning="log_snr"),
        dequantize=dict(name="lattice"),
        loss=dict(name="vdm", grid="uniform"),
        eval=dict(batch_size=50, elbo_times=16),
    )
