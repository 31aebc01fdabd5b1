"""The U-Nets of the literature at their CIFAR-10 settings; arguments change them.

                 parameters  blocks  size changed by    resampling  progressive input  embedding
    ddpm         35.7 M      2       convolutions       naive       none               positional
    ddpmpp       61.8 M      4       residual blocks    naive       none               positional
    ddpmpp_deep  106.6 M     8
    ncsnpp       62.8 M      4       residual blocks    fir         residual           fourier
    ncsnpp_deep  107.6 M     8
    vdm          30.6 M      32      nothing            -           none               positional

DDPM: Ho et al. 2020, arXiv 2006.11239, appendix B. The others: Song et al. 2021, arXiv 2011.13456,
appendix H, with the settings published there and in their code; "cont." in their tables are the same
networks, trained in continuous time. VDM: Kingma et al. 2021, arXiv 2107.00630, appendix B.
"""

from functools import partial

from score_jax.nets.unet import UNet


def ddpm(
    channels: int = 128,
    multipliers: tuple[int, ...] = (1, 2, 2, 2),
    blocks: int = 2,
    attention: tuple[int, ...] = (16,),
    groups: int = 32,
    dropout: float = 0.1,
    n_classes: int = 0,
) -> UNet:
    """The network of DDPM: what `UNet` is unless its options say otherwise."""
    return UNet(channels, multipliers, blocks, attention, groups, dropout, n_classes)


def ncsnpp(
    channels: int = 128,
    multipliers: tuple[int, ...] = (1, 2, 2, 2),
    blocks: int = 4,
    attention: tuple[int, ...] = (16,),
    groups: int = 32,
    dropout: float = 0.1,
    n_classes: int = 0,
    resampling: str = "fir",
    progressive_input: str = "residual",
    progressive_output: str = "none",
    combine: str = "sum",
    embedding: str = "fourier",
    fourier_scale: float = 16.0,
) -> UNet:
    """The network NCSN++, as for the VE SDE; for VP and sub-VP its embedding is "positional".

    For images of 256 x 256 (CelebA-HQ, FFHQ, LSUN) it has multipliers (1, 1, 2, 2, 2, 2, 2), 2
    blocks, no dropout, progressive input "input_skip" and output "output_skip": 65.6 M parameters.
    """
    return UNet(
        channels,
        multipliers,
        blocks,
        attention,
        groups,
        dropout,
        n_classes,
        block_type="biggan",
        resampling=resampling,
        progressive_input=progressive_input,
        progressive_output=progressive_output,
        combine=combine,
        skip_rescale=True,
        embedding=embedding,
        fourier_scale=fourier_scale,
        attention_up="last",
    )


def vdm(
    channels: int = 128,
    multipliers: tuple[int, ...] = (1,),
    blocks: int = 32,
    attention: tuple[int, ...] = (),
    groups: int = 32,
    dropout: float = 0.1,
    n_classes: int = 0,
    input_frequencies: tuple[int, ...] = (7, 8),
) -> UNet:
    """The network of VDM, for likelihoods: all at full resolution, with x in waves at its input.

    This is that for CIFAR-10 without augmentation, whose only attention is in the middle; with it the
    paper has 256 channels, dropout 0.05 and attention after each block, here attention = (32,). VDM
    adds x to the output, which is thus a prediction of eps - x; here it is as it is.
    """
    return UNet(
        channels,
        multipliers,
        blocks,
        attention,
        groups,
        dropout,
        n_classes,
        input_frequencies=input_frequencies,
    )


# what NCSN++ is without its filter, progressive input and random frequencies
ddpmpp = partial(ncsnpp, resampling="naive", progressive_input="none", embedding="positional")
ddpmpp_deep = partial(ddpmpp, blocks=8)
ncsnpp_deep = partial(ncsnpp, blocks=8)
