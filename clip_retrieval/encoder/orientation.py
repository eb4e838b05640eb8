"""EXIF orientation: how a stored picture is turned to be upright."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from clip_retrieval.encoder.preprocess import Fit

Transpose = Image.Transpose

UPRIGHT = 1
TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90,
}  # fmt: skip
FROM_THE_RIGHT, FROM_THE_BOTTOM, SIDEWAYS = {2, 3, 6, 7}, {3, 4, 7, 8}, {5, 6, 7, 8}


def read_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 (upright) if it is absent or unreadable."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # broken EXIF raises nearly anything, and must not lose the picture  # noqa: BLE001
        return UPRIGHT
    return orientation if orientation in TURNS else UPRIGHT


def turn_upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def turn_pixels(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Return pixels [height, width, 3] upright."""
    return np.asarray(turn_upright(Image.fromarray(pixels), orientation)) if orientation in TURNS else pixels


def turn_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Return width and height of the upright picture."""
    return (size[1], size[0]) if orientation in SIDEWAYS else size


def fit_as_stored(fit: Fit, size: int, orientation: int) -> Fit:
    """Translate the fit of the upright picture into the fit of the stored one, so that both keep the same square."""
    left = fit.width - size - fit.left if orientation in FROM_THE_RIGHT else fit.left
    top = fit.height - size - fit.top if orientation in FROM_THE_BOTTOM else fit.top
    return Fit(fit.height, fit.width, top, left) if orientation in SIDEWAYS else Fit(fit.width, fit.height, left, top)
