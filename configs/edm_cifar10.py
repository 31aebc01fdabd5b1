"""CIFAR-10 as in EDM (Karras et al. 2022, arXiv 2206.00364): table 1's last column, with its augmentation.

Published: FID 1.97 unconditional, 1.79 class-conditional, in 35 evaluations. The augmentation
differs from the paper's in how pixels between pixels are found (`augment`). 200 million images, 390,625 steps of 512;
for GPUs or TPUs. Not yet run at full size.

python scripts/train.py --config=configs/edm_cifar10.py
"""

from configs import common


def get_config():
    return common.config(
        data=dict(name="cifar10"),
        sde=dict(name="edm"),
        net=dict(name="ddpmpp", multipliers=(2, 2, 2), dropout=0.13),
        model=dict(output="edm", conditioning="edm", sigma_data=0.5),
        # unit weight on the network's own output is the paper's lambda(sigma) on x0
        loss=dict(name="denoising", grid="log_normal", weight="simple", target="edm"),
        optim=dict(name="adam", lr=1e-3, warmup=19_531, decay="constant", clip=0.0),
        # the average forgets half in 500,000 images
        train=common.large_train(
            steps=390_625, batch_size=512, ema=(0.99929,), flip=False, augment=0.12
        ),
        # 18 noise levels, the last step to 0: 35 evaluations
        sample=dict(name="edm_heun", grid="power", n_steps=17, denoise=True),
        eval=dict(batch_size=256, rtol=1e-5, atol=1e-5),
    )
