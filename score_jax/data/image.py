"""One image file as an array of bytes, or a sentence that says why not.

A file is refused rather than repaired or converted with loss: a few grey, transparent or cut-off
images would be learnt as if they were meant.
"""

import io
import warnings

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_DEPTH = 24  # where the header has the bits per channel
_MODES = ("RGB", "L", "P", "1", "RGBA", "LA", "PA")  # 8 bits or fewer, in red, green, blue or grey


VERSION = 1  # of what pixels a file gives: with another number, all is decoded anew


def read_image(content: bytes, size: int | None, channels: int) -> UInt8[np.ndarray, "h w c"]:
    """The pixels of an image file, upright; of an animation, the first frame.

    The EXIF orientation is applied; a colour profile is not.

    Args:
      size: the shorter side is resized to it with an antialiased Lanczos filter (a = 3), up or
        down, and the central size x size pixels are taken; None leaves the image as it is.
      channels: 3 or 1. Grey becomes three equal channels, and three equal channels grey; palettes
        are looked up; an alpha channel that is opaque everywhere is dropped.

    Raises:
      ValueError: the file is damaged, of another format, larger than Pillow's limit against
        decompression bombs, of 16 bits per channel, partly transparent, in colour where channels is
        1, or in another colour space. The message is a predicate, as "is partly transparent".
    """
    if content.startswith(_PNG) and content[_PNG_DEPTH : _PNG_DEPTH + 1] == b"\x10":
        raise ValueError("has 16 bits per channel, which 8 cannot hold")  # Pillow would drop half
    try:
        with warnings.catch_warnings():
            # the size is in the header: refused before any pixel is decoded
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=FORMATS)
        image.load()
        upright = ImageOps.exif_transpose(image) if image.mode in _MODES else image
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(f"is too large ({str(error).rstrip('.')})") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"is no image of a format among {', '.join(FORMATS)}") from error
    except MemoryError:
        raise
    except Exception as error:  # damaged files make Pillow raise almost anything
        raise ValueError(f"cannot be read ({error or type(error).__name__})") from error
    flat = _with_channels(upright, channels)
    pixels = np.asarray(flat if size is None else _square(flat, size))
    return pixels.reshape(*pixels.shape[:2], channels)


def _with_channels(image: Image.Image, channels: int) -> Image.Image:
    if image.mode not in _MODES:
        raise ValueError(f"is of mode {image.mode}, not 8-bit RGB or grey")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema()[0] < 255:
            raise ValueError("is partly transparent")
    if image.mode in ("L", "1", "LA"):
        image = image.convert("L")
        return image if channels == 1 else Image.merge("RGB", [image] * 3)
    image = image.convert("RGB")
    if channels == 3:
        return image
    red, green, blue = image.split()
    if not red.tobytes() == green.tobytes() == blue.tobytes():
        raise ValueError(
            "is in colour, but one channel is wanted (config.data.channels, of a folder)"
        )
    return red


def _square(image: Image.Image, size: int) -> Image.Image:
    shorter = min(image.size)
    if shorter != size:
        width, height = (max(size, round(side * size / shorter)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    left, top = ((side - size) // 2 for side in image.size)
    return image.crop((left, top, left + size, top + size))
