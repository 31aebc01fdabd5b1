"""Nine trials: the learning rate by the rate of the moving average that is evaluated.

Nine times the run: about twenty minutes for `vp_digits` on two CPU cores.

python scripts/sweep.py --config=configs/vp_digits.py --sweep=configs/sweeps/lr_ema.py
"""


def get_overrides():
    for lr in (1e-3, 3e-3, 1e-2):
        for rate in (0.98, 0.99, 0.995):
            yield {"optim.lr": lr, "train.ema": (rate,)}
