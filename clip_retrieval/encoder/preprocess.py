"""Pictures to the pixels that a model wants: resize and crop with Pillow, as open_clip's transform does.

Pillow is imported by the first picture: a process that encodes texts does without it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, assert_never

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

ResizeMode = Literal["shortest", "longest", "squash"]
Interpolation = Literal["bicubic", "bilinear", "nearest"]

# Past this many pixels the resized picture is never made whole: only the part that the crop keeps is.
LARGEST_RESIZED = 16_000_000


@dataclass(frozen=True)
class Preprocess:
    """How a model wants its pictures; can be had without weights, and sent to reader processes."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation = "bicubic"
    resize_mode: ResizeMode = "shortest"
    fill: int = 0

    def __call__(self, image: Image.Image) -> NDArray[np.uint8]:
        """Return the picture, an RGB image of any size, as uint8 pixels [size, size, 3]."""
        from PIL import Image

        resample = Image.Resampling[self.interpolation.upper()]
        match self.resize_mode:
            case "shortest":
                fitted = resize_and_crop(image, self.size, resample)
            case "longest":
                fitted = resize_and_pad(image, self.size, resample, self.fill)
            case "squash":
                fitted = image.resize((self.size, self.size), resample)
            case _:
                assert_never(self.resize_mode)
        return np.array(fitted)


def triple(values: Iterable[float | str]) -> tuple[float, float, float]:
    """Return a value for each colour; raises ValueError where there are not three."""
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def resize_and_crop(image: Image.Image, size: int, resample: Image.Resampling) -> Image.Image:
    """Scale the shorter side to `size` and cut the centre, with torchvision's rounding."""
    width, height = image.size
    if width <= height:
        new_width, new_height = size, int(size * height / width)
    else:
        new_width, new_height = int(size * width / height), size
    left, top = round((new_width - size) / 2.0), round((new_height - size) / 2.0)
    if new_width * new_height > LARGEST_RESIZED:
        scale_x, scale_y = width / new_width, height / new_height
        box = (left * scale_x, top * scale_y, (left + size) * scale_x, (top + size) * scale_y)
        return image.resize((size, size), resample, box=box)
    if (new_width, new_height) != image.size:
        image = image.resize((new_width, new_height), resample)
    return image.crop((left, top, left + size, top + size))


def resize_and_pad(image: Image.Image, size: int, resample: Image.Resampling, fill: int) -> Image.Image:
    """Scale the longer side to `size` and fill up the rest around the centre."""
    ratio = max(image.width, image.height) / size
    new_size = (max(1, round(image.width / ratio)), max(1, round(image.height / ratio)))
    resized = image.resize(new_size, resample)
    from PIL import Image

    canvas = Image.new("RGB", (size, size), (fill, fill, fill))
    canvas.paste(resized, ((size - new_size[0]) // 2, (size - new_size[1]) // 2))
    return canvas
