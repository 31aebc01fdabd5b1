"""Fashion-MNIST 28x28 in bits/dim: a small U-Net under the VP SDE, for two CPU cores.

Expect 3.07 +- 0.03 bits/dim on the first 1,000 test images, after 40 minutes on two CPU cores; all
10,000 take hours there, so begin with `scripts/eval.py --n=200`. Published for 28x28, 8 bits:
hierarchical VAE 3.28, HCLT circuit 3.34, IDF 3.47.

python scripts/train.py --config=configs/vp_fashion_mnist.py
"""

from configs import common


def get_config(**sections):
    return common.config(
        **dict(
            data=dict(name="fashion_mnist"),
            sde=dict(name="vp"),
            net=dict(
                name="unet",
                channels=32,
                multipliers=(1, 2, 2),
                blocks=1,
                attention=(7,),
                dropout=0.0,
            ),
            model=dict(output="v", conditioning="log_snr"),
            optim=dict(name="adam", lr=2e-3, b2=0.99, warmup=200, decay="cosine"),
            train=dict(
                steps=3500,
                batch_size=32,
                ema=(0.995,),
                log_every=50,
                eval_every=500,
                sample_every=500,
                save_every=500,
                eval_images=256,
            ),
            eval=dict(batch_size=50, n_steps=16, elbo_times=16),
        )
        | sections
    )
