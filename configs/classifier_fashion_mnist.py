"""A classifier of noisy Fashion-MNIST images, to guide the models of the other configs, for two CPU cores.

It sees x_t at uniform times of the VP SDE; `guidance.across` asks it about any other SDE's. Expect
0.869, 0.868, 0.809, 0.652 and 0.302 of 2000 validation images right at noise levels sigma / alpha of 0.1,
0.3, 1, 3 and 10, after 3,000 steps in 8 minutes on two virtual devices (see `vp_fashion_mnist`). With
more of the times at little noise it is a judge of samples instead of a guide, 0.917 at level 0.1:

python scripts/train.py --config=configs/classifier_fashion_mnist.py
python scripts/train.py --config=configs/classifier_fashion_mnist.py --config.loss.grid=log_normal_wide --config.seed=1
"""

from configs import common


def get_config():
    return common.config(
        data=dict(name="fashion_mnist"),
        sde=dict(name="vp"),
        net=dict(
            name="classifier",
            channels=32,
            multipliers=(1, 2, 2),
            blocks=1,
            attention=(),
            dropout=0.1,
        ),
        model=dict(output="class", conditioning="log_snr"),
        loss=dict(name="cross_entropy", grid="uniform"),
        optim=dict(name="adam", lr=1e-3, warmup=200, decay="cosine", weight_decay=0.05),
        train=dict(
            steps=3000,
            batch_size=64,
            ema=(0.999,),
            log_every=100,
            eval_every=1000,
            save_every=1000,
            eval_images=2000,
        ),
        eval=dict(batch_size=200),
    )
