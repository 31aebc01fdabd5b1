"""Two moons in the plane: an MLP under the VP SDE.

Expect 0.800 +- 0.012 nats on the test points, after a minute on two CPU cores.

python scripts/train.py --config=configs/vp_toy2d.py
"""

from configs import common


def get_config(train=None, **sections):
    return common.config(
        **dict(
            data=dict(name="toy2d", shape="moons"),
            sde=dict(name="vp"),
            net=dict(name="mlp", width=128, depth=3),
            optim=dict(name="adam", lr=1e-3, warmup=100, decay="cosine"),
            train=dict(
                steps=5000,
                batch_size=512,
                ema=(0.999,),
                log_every=500,
                eval_every=2500,
                sample_every=2500,
                save_every=2500,
            )
            | (train or {}),
            eval=dict(batch_size=1000, trace="exact"),
        )
        | sections
    )
