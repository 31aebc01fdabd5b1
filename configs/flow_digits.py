"""Flow matching on digits: linear interpolation, velocity regression uniform in time (arXiv 2210.02747).

python scripts/train.py --config=configs/flow_digits.py
"""

from configs import vp_digits


def get_config():
    return vp_digits.get_config(
        sde=dict(name="linear"),
        model=dict(output="velocity", conditioning="log_snr"),
        loss=dict(name="denoising", grid="uniform", weight="simple", target="velocity"),
        sample=dict(name="probability_flow", grid="uniform", solver="heun", n_steps=50),
    )
