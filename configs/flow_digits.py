"""Flow matching on digits: linear interpolation, velocity regression uniform in time (arXiv 2210.02747).

Expect 1.895 +- 0.013 bits/dim on the test split by the probability-flow ODE, but 1.98 +- 0.03 by the
ELBO, which this loss does not train; two minutes on two CPU cores.

python scripts/train.py --config=configs/flow_digits.py
"""

from configs import vp_digits


def get_config():
    return vp_digits.get_config(
        sde=dict(name="linear"),
        model=dict(output="velocity", conditioning="log_snr"),
        loss=dict(name="denoising", grid="uniform", weight="simple", target="velocity"),
        eval=dict(batch_size=72, n_steps=16),
        sample=dict(name="probability_flow", grid="uniform", solver="heun", n_steps=50),
    )
