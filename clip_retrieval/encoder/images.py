"""Bytes to an RGB picture, whatever the format and mode; what cannot be used gets one word of reason."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from clip_retrieval.encoder.config import MAX_PIXELS
from clip_retrieval.encoder.plugins import plugin_format
from clip_retrieval.errors import ImageError

# Only what IMAGE_SUFFIXES promises: others may start programs (PostScript) or read other files.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000", "ICO", "TGA")

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
ImageFile.LOAD_TRUNCATED_IMAGES = False


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return the picture in RGB; raises ImageError: empty, decode, truncated, too_large or needs_plugin.

    The first frame of an animation. 16-bit and float pictures are scaled to 8 bits, transparency is laid on
    white, palettes become RGB here, before any resizing. EXIF orientation is ignored, as the models'
    reference transforms do.
    """
    return load_rgb(open_image(data, max_pixels), max_pixels)


def open_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return the picture with its header read and its pixels not: neither decoded nor given memory."""
    if not data:
        raise ImageError("empty", "the file has no bytes")
    plugin = plugin_format(data)
    with refusing_bombs(max_pixels):
        try:
            image = Image.open(io.BytesIO(data), formats=(plugin,) if plugin else FORMATS)
        except UnidentifiedImageError as error:
            raise ImageError("decode", "no picture format recognised") from error
        except Image.DecompressionBombError:
            raise
        except Exception as error:  # Pillow's decoders raise nearly anything on broken bytes
            raise ImageError("decode", f"no picture format recognised ({one_line(error)})") from error
    if image.width * image.height > max_pixels:
        raise ImageError("too_large", f"more than {max_pixels} pixels, the limit of max_pixels")
    return image


def load_rgb(image: Image.Image, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode what `open_image` gave, and return it in RGB."""
    with refusing_bombs(max_pixels):
        try:
            image.load()
            return to_rgb(image)
        except Image.DecompressionBombError:
            raise
        except Exception as error:  # as above
            reason = "truncated" if "truncated" in str(error) else "decode"
            raise ImageError(reason, one_line(error)) from error


@contextmanager
def refusing_bombs(max_pixels: int) -> Iterator[None]:
    """Have Pillow refuse more pixels, also those of pictures inside of pictures, which only it sees."""
    Image.MAX_IMAGE_PIXELS = -(-max_pixels // 2)  # it raises past twice this; its warning before that is not ours
    try:
        yield
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", f"more than {max_pixels} pixels, the limit of max_pixels") from error


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def to_rgb(image: Image.Image) -> Image.Image:
    """Return any Pillow image in mode RGB, with its tonal range kept."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(to_8_bits(np.asarray(image)))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        picture = image.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, picture).convert("RGB")
    return image.convert("RGB")


def to_8_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Scale 16-bit, 32-bit and float samples to uint8.

    Integers are read as 16-bit where any exceeds 255, floats as 0..1 where none exceeds 1; other ranges are
    stretched from their lowest to their highest value.
    """
    wide = np.nan_to_num(values.astype(np.float64))
    low, high = float(wide.min()), float(wide.max())
    is_float = values.dtype.kind == "f"
    if low >= 0 and is_float and high <= 1:
        scaled = wide * 255
    elif low >= 0 and high <= 255 and values.dtype != np.uint16:
        scaled = wide
    elif low >= 0 and high <= 65535 and not is_float:
        scaled = wide / 257
    else:
        scaled = (wide - low) * (255 / max(high - low, 1e-12))
    rounded: NDArray[np.uint8] = np.rint(scaled).clip(0, 255).astype(np.uint8)
    return rounded
