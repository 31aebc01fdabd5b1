"""What the configs have in common. Options not set here or in a page take their constructor's default."""

from ml_collections import ConfigDict

# unweighted error of eps at uniform times: the loss of DDPM and of most published models
STANDARD_LOSS = dict(name="denoising", grid="uniform", weight="simple", target="eps")


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


def large_train(steps: int, every: int = 10_000, **options) -> dict:
    """A train section for days on GPUs or TPUs: mirrored images, an event every `every` steps."""
    defaults = dict(
        steps=steps,
        flip=True,
        log_every=100,
        eval_every=every,
        sample_every=every,
        save_every=every,
    )
    return defaults | options


def langevin(snr: float, n_steps: int) -> dict:
    """The sample section of Song et al.'s VE models: reverse diffusion, corrected by Langevin dynamics."""
    return dict(
        name="predictor_corrector",
        predictor="reverse_diffusion",
        corrector="langevin",
        snr=snr,
        n_steps=n_steps,
    )


def score_sde(sde: str, n_dims: int, /, **sections) -> ConfigDict:
    """The training and sampling that Song et al. 2021 (arXiv 2011.13456, appendices G and H) share.

    Continuous times and the standard loss. What differs: dequantization is on here, and their
    bits/dim under sub-VP begin at t = 1e-5, where ours begin at the SDE's t_min.

    Args:
      sde: "vp", "sub_vp" or "ve". The noise levels of VE are theirs times two: their images are in
        [0, 1] for VE, ours in [-1, 1].
      n_dims: of an image. The loss here is a mean over dimensions, theirs under VE half the sum,
        which they clip: `clip` and `eps` are scaled to take the same step.
    """
    adam = dict(name="adam", lr=2e-4, warmup=5000, decay="constant")
    # their last step ends at t = 1e-3, and then the noise is removed
    euler_maruyama = dict(
        name="predictor_corrector",
        predictor="euler_maruyama",
        corrector="none",
        n_steps=999,
        t_end=1e-3,
    )
    of_sde = {
        "vp": dict(sde=dict(name="vp"), sample=euler_maruyama, optim=adam),
        "sub_vp": dict(
            sde=dict(name="sub_vp"), sample=euler_maruyama | dict(t_end=None), optim=adam
        ),
        "ve": dict(
            sde=dict(name="ve", sigma_min=0.02, sigma_max=100.0),
            sample=langevin(snr=0.16, n_steps=999),
            optim=adam | dict(clip=2 / n_dims, eps=1e-8 * 2 / n_dims),
        ),
    }
    defaults = dict(
        model=dict(output="eps", conditioning="t"),
        loss=STANDARD_LOSS,
        eval=dict(batch_size=256, rtol=1e-5, atol=1e-5),
    )
    return config(**defaults | of_sde[sde] | sections)


def score_sde_cifar10(sde: str, net: str, /, **sections) -> ConfigDict:
    """Their CIFAR-10 set: an SDE and one of the networks ddpm, ddpmpp, ddpmpp_deep, ncsnpp, ncsnpp_deep.

    They train on all 50,000 images; `--config.data.n_validation=1` comes near, 5,000 are held out here.
    """
    fourier = sde == "ve" and net.startswith("ncsnpp")
    embedding = dict(embedding="fourier" if fourier else "positional")
    defaults = dict(
        data=dict(name="cifar10"),
        net=dict(name=net) | (embedding if net.startswith("ncsnpp") else {}),
        model=dict(output="eps", conditioning="log_sigma" if fourier else "t"),
        train=large_train(
            steps=950_000 if net.endswith("deep") else 1_300_000,
            batch_size=128,
            ema=(0.999 if sde == "ve" else 0.9999,),
        ),
    )
    return score_sde(sde, 32 * 32 * 3, **defaults | sections)
