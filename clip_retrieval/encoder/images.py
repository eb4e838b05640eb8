"""Bytes to a decoded picture of any format and mode; one that cannot be used gets a reason of one word."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, ImageFile, UnidentifiedImageError

from clip_retrieval.encoder.bit_depth import fit_transparent_color, narrow, needs_narrowing
from clip_retrieval.encoder.config import MAX_PIXELS, Transparency
from clip_retrieval.encoder.plugins import plugin_format
from clip_retrieval.encoder.png_text import without_large_text
from clip_retrieval.errors import ImageError, one_line
from clip_retrieval.other_files import READ_PICTURES, describe_other

# The formats of IMAGE_SUFFIXES and no others: some start programs (PostScript) or read other files.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000", "ICO", "TGA")
UNUSUAL_ALPHA = {"PA": "RGBA", "RGBa": "RGBA", "La": "LA"}  # mode to one that Pillow resizes and converts

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
ImageFile.LOAD_TRUNCATED_IMAGES = False


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return the picture in RGB; raises ImageError: empty, decode, truncated, too_large or needs_plugin.

    The first frame of an animation. 16-bit and float pictures are scaled to 8 bits, transparency is laid on white.
    EXIF orientation is ignored, as in the models' reference transforms.
    """
    return to_rgb(load_image(open_image(data, max_pixels), max_pixels))


def decode_as_stored(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return the picture in an 8-bit mode with its alpha, as the models' own transforms take it."""
    return without_transparent_color(load_image(open_image(data, max_pixels), max_pixels))


def open_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read the header of a picture; its pixels are not decoded yet, and take no memory."""
    if not data:
        raise ImageError("empty", "the file has no bytes")
    plugin = plugin_format(data)
    with refusing_bombs(max_pixels):
        try:
            image = Image.open(io.BytesIO(without_large_text(data)), formats=(plugin,) if plugin else FORMATS)
        except UnidentifiedImageError as error:
            # The spelling is stored in failures/: changing it would change the bytes of runs.
            other = describe_other(data)
            found = f": it is {other}" if other else ""
            broken = " whose header is damaged or cut off" if other in READ_PICTURES else ""
            raise ImageError("decode", f"no picture format recognised{found}{broken}") from error
        except Image.DecompressionBombError:
            raise
        except Exception as error:  # Pillow's decoders raise nearly anything on broken bytes
            raise ImageError("decode", f"no picture format recognised ({one_line(error)})") from error
    if image.width * image.height > max_pixels:
        raise ImageError("too_large", f"more than {max_pixels} pixels, the limit of max_pixels")
    return image


def load_image(image: Image.Image, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a picture from `open_image`; the result is in an 8-bit mode that Pillow can convert to RGB."""
    with refusing_bombs(max_pixels):
        try:
            return to_8_bit_mode(image)
        except Image.DecompressionBombError:
            raise
        except Exception as error:  # as in open_image
            reason = "truncated" if "truncated" in str(error) else "decode"
            raise ImageError(reason, one_line(error)) from error


@contextmanager
def refusing_bombs(max_pixels: int) -> Iterator[None]:
    """Make Pillow refuse pictures of more pixels, also those inside icons, whose size only Pillow sees."""
    Image.MAX_IMAGE_PIXELS = -(-max_pixels // 2)  # Pillow raises past twice this
    try:
        yield
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", f"more than {max_pixels} pixels, the limit of max_pixels") from error


def to_rgb(image: Image.Image, transparency: Transparency = "white") -> Image.Image:
    """Return any Pillow image in mode RGB, its transparent parts laid on white or its alpha dropped."""
    picture = to_8_bit_mode(image)
    if has_alpha(picture) and transparency == "white":
        return lay_on_white(picture)
    picture = without_transparent_color(picture)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def to_8_bit_mode(image: Image.Image) -> Image.Image:
    """Return the picture in an 8-bit mode that Pillow can convert to RGB; deeper samples are scaled to 8 bits."""
    fit_transparent_color(image)
    image.load()
    if needs_narrowing(image):
        return narrow(image)
    if image.mode in UNUSUAL_ALPHA:
        return image.convert(UNUSUAL_ALPHA[image.mode])
    return image


def has_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA") or "transparency" in image.info


def lay_on_white(image: Image.Image) -> Image.Image:
    picture = image.convert("RGBA")
    white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, picture).convert("RGB")


def without_transparent_color(image: Image.Image) -> Image.Image:
    """Return the picture without the note that one of its colors is transparent, about which `convert("RGB")` warns."""
    if "transparency" not in image.info:
        return image
    opaque = image.copy()
    del opaque.info["transparency"]
    return opaque
