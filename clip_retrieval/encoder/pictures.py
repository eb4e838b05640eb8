"""Bytes to the pixels that a model wants, exactly or fast: what every command does with a picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clip_retrieval.encoder.config import PictureConfig
from clip_retrieval.encoder.images import has_alpha, lay_on_white, load_image, open_image, without_transparent_color
from clip_retrieval.encoder.jpeg import decode_jpeg
from clip_retrieval.encoder.orientation import (
    UPRIGHT,
    fit_as_stored,
    read_orientation,
    turn_pixels,
    turn_size,
    turn_upright,
)
from clip_retrieval.encoder.preprocess import Preprocess
from clip_retrieval.encoder.resizing import resize_near


def read_pixels(data: bytes, preprocess: Preprocess, pictures: PictureConfig) -> NDArray[np.uint8]:
    """Return uint8 pixels [size, size, 3]; raises ImageError with the reasons of `decode_image`.

    `exact` gives what the model's reference transform does, which resizes a picture in its own mode (a palette without
    interpolation) and converts it to RGB at the end. `fast` gives nearly the same ones: it decodes a JPEG at a fraction
    of its size, averages other large pictures, resizes only the part that the model sees, and palettes as RGB.
    """
    image = open_image(data, pictures.max_pixels)
    if pictures.decode == "fast":
        return read_fast(image, data, preprocess, pictures)
    picture = flatten(load_image(image, pictures.max_pixels), pictures)
    return preprocess(turn_upright(picture, orientation_of(image, pictures)))


def fit_picture(image: Image.Image, preprocess: Preprocess, pictures: PictureConfig) -> NDArray[np.uint8]:
    """Return the pixels of a picture in RGB that is already upright, such as a page, as `read_pixels` does."""
    if pictures.decode == "exact":
        return preprocess(image)
    window = preprocess.window(preprocess.fit(*image.size), image.size)
    return preprocess.framed(resize_near(image, window, preprocess.interpolation, preprocess.reducing_gap), window)


def flatten(image: Image.Image, pictures: PictureConfig) -> Image.Image:
    """Return the picture for resizing. Alpha that is to be dropped stays until then: resizing weighs pixels by it."""
    if pictures.transparency == "white" and has_alpha(image):
        return lay_on_white(image)
    image = without_transparent_color(image)
    keeps_mode = pictures.decode == "exact" or image.mode in ("RGB", "RGBA", "LA")
    return image if keeps_mode else image.convert("RGB")


def read_fast(image: Image.Image, data: bytes, preprocess: Preprocess, pictures: PictureConfig) -> NDArray[np.uint8]:
    """Return nearly the pixels of the reference transform. Orientation is applied last, to the fewest pixels."""
    size = image.size
    drafted = image.draft(None, preprocess.least_size(*size))  # only JPEG can be decoded at a fraction; None for others
    pixels = decode_jpeg(image, data)
    picture = flatten(load_image(image, pictures.max_pixels), pictures) if pixels is None else pixels
    extent = drafted[1][2:] if drafted else image.size
    orientation = orientation_of(image, pictures)
    fit = fit_as_stored(preprocess.fit(*turn_size(size, orientation)), preprocess.size, orientation)
    window = preprocess.window(fit, extent)
    pixels = resize_near(picture, window, preprocess.interpolation, preprocess.reducing_gap)
    return turn_pixels(preprocess.framed(pixels, window), orientation)


def orientation_of(image: Image.Image, pictures: PictureConfig) -> int:
    """Return the EXIF orientation to apply. Call it after loading: Pillow turns TIFF itself, and clears the tag."""
    return read_orientation(image) if pictures.exif_orientation else UPRIGHT
