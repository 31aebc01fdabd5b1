"""Handwritten digits 8x8 with 17 levels, from scikit-learn: real data that is embedded, for a first run.

python scripts/train.py --config=configs/vp_digits.py
"""

from configs import common


def get_config(**sections):
    return common.config(
        **dict(
            data=dict(name="digits"),
            sde=dict(name="vp"),
            net=dict(
                name="unet", channels=32, multipliers=(1,), blocks=1, attention=(), dropout=0.0
            ),
            model=dict(output="v", conditioning="log_snr"),
            optim=dict(name="adam", lr=3e-3, b2=0.99, warmup=100, decay="cosine"),
            train=dict(
                steps=3600,
                batch_size=32,
                ema=(0.99,),
                log_every=100,
                eval_every=900,
                sample_every=900,
                save_every=900,
            ),
            eval=dict(batch_size=72, n_steps=16),
        )
        | sections
    )
