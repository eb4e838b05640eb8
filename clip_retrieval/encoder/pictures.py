"""Bytes to the pixels that a model wants, exactly or fast: what every command does with a picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clip_retrieval.encoder.config import PictureConfig
from clip_retrieval.encoder.images import load_rgb, open_image
from clip_retrieval.encoder.orientation import UPRIGHT, fit_as_stored, read_orientation, turn_size, turn_upright
from clip_retrieval.encoder.preprocess import LEAST_AVERAGED, Preprocess


def read_pixels(data: bytes, preprocess: Preprocess, pictures: PictureConfig) -> NDArray[np.uint8]:
    """Return uint8 pixels [size, size, 3]; raises ImageError with the reasons of `decode_image`.

    `exact` gives those of the model's reference transform. `fast` gives nearly the same ones: it decodes a JPEG at a
    fraction of its size, averages other large pictures, and resizes only what the model sees.
    """
    image = open_image(data, pictures.max_pixels)
    if pictures.decode == "fast":
        return read_fast(image, preprocess, pictures)
    rgb = load_rgb(image, pictures.max_pixels)
    return preprocess(turn_upright(rgb, orientation_of(image, pictures)))


def read_fast(image: Image.Image, preprocess: Preprocess, pictures: PictureConfig) -> NDArray[np.uint8]:
    """Turn the few pixels that are left in the end, not those of the file."""
    size = image.size
    drafted = image.draft(None, preprocess.least_size(*size))  # None but for JPEG
    rgb = load_rgb(image, pictures.max_pixels)
    extent = drafted[1][2:] if drafted else rgb.size
    orientation = orientation_of(image, pictures)
    fit = fit_as_stored(preprocess.fit(*turn_size(size, orientation)), preprocess.size, orientation)
    return np.asarray(turn_upright(preprocess.resize_part(rgb, fit, extent, LEAST_AVERAGED), orientation))


def orientation_of(image: Image.Image, pictures: PictureConfig) -> int:
    """Return how a loaded image is to be turned: loading turns some formats itself."""
    return read_orientation(image) if pictures.exif_orientation else UPRIGHT
