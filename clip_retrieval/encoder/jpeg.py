"""JPEGs decoded straight into an array: Pillow's pixels, as both are libjpeg-turbo, in two thirds of the time."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def decode_jpeg(image: Image.Image, data: bytes) -> NDArray[np.uint8] | None:
    """Return RGB pixels [height, width, 3] of a picture that Pillow has opened, perhaps at a fraction of its size.

    None if Pillow is to decode it: if it has another format or mode, or if anything is wrong with it, which Pillow then
    reports.
    """
    decoder = jpeg_decoder()
    if decoder is None or image.format != "JPEG" or image.mode != "RGB":
        return None
    width, height = image.size
    try:
        pixels: NDArray[np.uint8] = decoder.decode_jpeg(data, "RGB", min_height=height, min_width=width)
    except ValueError:  # also for what libjpeg-turbo only warns about
        return None
    return pixels if pixels.shape == (height, width, 3) else None


@cache
def jpeg_decoder() -> Any:
    """Return the module simplejpeg; None if it is not installed."""
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg
