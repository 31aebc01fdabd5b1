"""Handwritten digits 8x8.

python scripts/train.py --config=configs/vp_digits.py
"""

from configs import common


def get_config():
    return common.config(
        data=dict(name="digits"),
        sde=dict(name="vp"),
        net=dict(name="unet", channels=32, multipliers=(1, 2), blocks=2, attention=(), dropout=0.1),
        optim=dict(name="adam", lr=2e-3, warmup=100, decay="cosine"),
        train=dict(
            steps=1000, ema=(0.99,), log_every=50, eval_every=250, sample_every=250, save_every=250
        ),
        eval=dict(batch_size=72),
    )
