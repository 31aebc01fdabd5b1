"""What the configs have in common. Options not set here or in a page take their constructor's default."""

from ml_collections import ConfigDict


def config(**sections) -> ConfigDict:
    """A config of the given sections over the defaults: likelihood-weighted training of eps, DDIM samples."""
    defaults = dict(
        seed=0,
        model=dict(output="eps", conditioning="log_snr"),
        loss=dict(name="denoising", grid="log_snr", weight="likelihood", target="eps"),
        optim=dict(name="adam"),
        sample=dict(name="ddim", n_steps=100),
        train=dict(),
        eval=dict(),
    )
    return ConfigDict(defaults | sections)
