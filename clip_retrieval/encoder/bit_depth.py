"""Samples of other depths than 8 bits: Pillow decodes them, and this scales them to 0..255."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
WHITE_IS_ZERO = 0
SIGNED = 2  # value of SAMPLE_FORMAT
MOSTLY = 99  # percent of a float picture's samples that determine its range; the others may be highlights


def fit_transparent_color(image: Image.Image) -> None:
    """Give a PNG's transparent color the depth of the decoded pixels; to be called before they are decoded.

    Pillow scales 2-bit and 4-bit gray and 16-bit RGB to 8 bits, but leaves the color of the tRNS chunk unchanged.
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


def needs_narrowing(image: Image.Image) -> bool:
    """Say whether samples have to be scaled to 8 bits: those of 16 bits, 32 bits or floats, and signed ones of 8."""
    return (
        image.mode.startswith("I") or image.mode == "F" or (image.mode == "L" and SIGNED in tag(image, SAMPLE_FORMAT))
    )


def narrow(image: Image.Image) -> Image.Image:
    """Return a decoded gray picture in mode L with its samples scaled, or LA if it has a transparent value."""
    samples = read_samples(image)
    gray = Image.fromarray(to_8_bits(samples, find_white(image)))
    if WHITE_IS_ZERO in tag(image, PHOTOMETRIC):
        gray = gray.point(lambda value: 255 - value)
    transparent = image.info.get("transparency")
    if transparent is None:
        return gray
    return Image.merge("LA", (gray, Image.fromarray(np.where(samples == transparent, 0, 255).astype(np.uint8))))


def find_white(image: Image.Image) -> int | None:
    """Return the sample that is white if the format says it; None if only the samples can show it."""
    if image.mode.startswith("I;16"):
        return 4095 if 12 in tag(image, BITS_PER_SAMPLE) else 65535
    return 65535 if image.mode == "I" and image.format in ("PNG", "PPM") else None


def read_samples(image: Image.Image) -> NDArray[Any]:
    """Return the samples in the type that a TIFF gives them: Pillow takes 32 bits for signed, and 8 for unsigned."""
    samples, bits = np.asarray(image), tag(image, BITS_PER_SAMPLE)
    if SIGNED in tag(image, SAMPLE_FORMAT):
        return samples.astype(f"i{bits[0] // 8}")
    return samples.view(np.uint32) if image.mode == "I" and 32 in bits else samples


def tag(image: Image.Image, number: int) -> tuple[Any, ...]:
    """Return the values of a TIFF's tag; none if it is absent, or the picture is not a TIFF."""
    value = getattr(image, "tag_v2", {}).get(number, ())
    return value if isinstance(value, tuple) else (value,)


def to_8_bits(samples: NDArray[Any], white: int | None = None) -> NDArray[np.uint8]:
    """Scale samples of any type to uint8: 0..`white` if that is known, else a range guessed from the samples.

    Integers are read as 8-bit if none exceeds 255, as 16-bit (15 if signed) if none exceeds that, and as 32-bit (31) if
    one needs the highest bit; floats as 0..1 if 99 % of them do not exceed 1, else as 0..255. If samples are outside of
    these ranges, or below 0, all of them are stretched from the lowest to the highest. Infinities become black or
    white, NaN becomes black; neither affects the range.
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
    most = float("inf") if is_float else float(np.iinfo(samples.dtype).max)
    if low < 0:
        black, scale = low, 255 / max(high - low, 1e-12)
    elif is_float and np.percentile(finite, MOSTLY) <= 1:
        black, scale = 0.0, 255.0
    elif high <= 255:
        black, scale = 0.0, 1.0
    elif high <= min(65535, most) and not is_float:
        black, scale = 0.0, 255 / min(65535, most)
    elif high > most / 2:
        black, scale = 0.0, 255 / most
    else:
        black, scale = low, 255 / max(high - low, 1e-12)
    wide = np.nan_to_num(samples.astype(np.float64), nan=black, posinf=np.inf, neginf=-np.inf)
    guessed: NDArray[np.uint8] = np.rint((wide - black) * scale).clip(0, 255).astype(np.uint8)
    return guessed
