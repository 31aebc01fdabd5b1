"""A folder of images at 256x256: NCSN++ under VE, as for CelebA-HQ, FFHQ and LSUN (arXiv 2011.13456, appendix H).

`--config.data.path=FOLDER` is required: images in any size, classes by sub-folder. Published: samples
only, no number, after 2,400,000 steps of 64 images; for GPUs or TPUs. Not yet run at full size.

python scripts/train.py --config=configs/ve_folder_256.py --config.data.path=FOLDER
"""

from configs import common


def get_config():
    return common.score_sde(
        "ve",
        256 * 256 * 3,
        data=dict(name="folder", size=256),
        # twice 348, the largest distance between two images of FFHQ in [0, 1]
        sde=dict(name="ve", sigma_min=0.02, sigma_max=696.0),
        net=dict(
            name="ncsnpp",
            embedding="fourier",
            multipliers=(1, 1, 2, 2, 2, 2, 2),
            blocks=2,
            dropout=0.0,
            progressive_input="input_skip",
            progressive_output="output_skip",
        ),
        model=dict(output="eps", conditioning="log_sigma"),
        train=common.large_train(steps=2_400_000, batch_size=64, ema=(0.999,), remat=True),
        sample=common.langevin(snr=0.075, n_steps=1999),
        eval=dict(batch_size=16, rtol=1e-5, atol=1e-5),
    )
