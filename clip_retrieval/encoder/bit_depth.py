"""Samples of other depths than 8 bits: Pillow decodes them, and this scales them to 0..255."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262  # TIFF tags
WHITE_IS_ZERO = 0
MOSTLY = 99  # percent of a float picture's samples that tell its range; the others may be highlights


def fit_transparent_color(image: Image.Image) -> None:
    """Give a PNG's transparent color the depth of the decoded pixels; to be called before they are decoded.

    Pillow scales 2-bit and 4-bit gray and 16-bit RGB to 8 bits, but leaves the color of the tRNS chunk as it is.
    """
    color = image.info.get("transparency")
    if color is None or not isinstance(image, PngImageFile) or not image.tile:
        return
    layout = image.tile[0][3]
    if layout == "L;2":
        image.info["transparency"] = (color & 3) * 85
    elif layout == "L;4":
        image.info["transparency"] = (color & 15) * 17
    elif layout == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in color)


def narrow(image: Image.Image) -> Image.Image:
    """Return a decoded picture of 16-bit, 32-bit or float gray in mode L, or LA where it has a transparent value."""
    samples = np.asarray(image)
    gray = Image.fromarray(to_8_bits(samples, find_white(image)))
    if getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO:
        gray = gray.point(lambda value: 255 - value)
    transparent = image.info.get("transparency")
    if transparent is None:
        return gray
    return Image.merge("LA", (gray, Image.fromarray(np.where(samples == transparent, 0, 255).astype(np.uint8))))


def find_white(image: Image.Image) -> int | None:
    """Return the sample that is white where the format says it; None where only the samples can tell."""
    if image.mode.startswith("I;16"):
        return 4095 if 12 in as_tuple(getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE)) else 65535
    return 65535 if image.mode == "I" and image.format in ("PNG", "PPM") else None


def as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def to_8_bits(samples: NDArray[Any], white: int | None = None) -> NDArray[np.uint8]:
    """Scale samples of any type to uint8: 0..`white` where that is known, else a range guessed from the samples.

    Integers are read as 8-bit where none exceeds 255, else as 16-bit; floats as 0..1 where 99 % of them do not exceed
    1, else as 0..255. Samples outside of these ranges, or below 0, have all of them stretched from the lowest to the
    highest. Infinities become black or white, NaN becomes black; neither counts for the range.
    """
    if white is not None:
        table = np.rint(np.arange(white + 1) * (255 / white)).astype(np.uint8)
        known: NDArray[np.uint8] = table[np.clip(samples, 0, white)]
        return known
    is_finite = np.isfinite(samples)
    finite = samples[is_finite].astype(np.float64)
    if not len(finite):
        finite = np.zeros(1)
    low, high = float(finite.min()), float(finite.max())
    is_float = samples.dtype.kind == "f"
    if low < 0:
        black, scale = low, 255 / max(high - low, 1e-12)
    elif is_float and np.percentile(finite, MOSTLY) <= 1:
        black, scale = 0.0, 255.0
    elif high <= 255:
        black, scale = 0.0, 1.0
    elif high <= 65535 and not is_float:
        black, scale = 0.0, 255 / 65535
    else:
        black, scale = low, 255 / max(high - low, 1e-12)
    wide = np.nan_to_num(samples.astype(np.float64), nan=black, posinf=np.inf, neginf=-np.inf)
    guessed: NDArray[np.uint8] = np.rint((wide - black) * scale).clip(0, 255).astype(np.uint8)
    return guessed
