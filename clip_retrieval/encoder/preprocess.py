"""Pictures to the pixels that a model wants: resize and crop with Pillow, as open_clip's transform does.

Pillow is imported by the first picture: a process that only encodes texts does not load it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Literal, assert_never

import msgspec
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

ResizeMode = Literal["shortest", "longest", "squash"]
Interpolation = Literal["bicubic", "bilinear", "nearest"]

# Pixels of a resized picture (an extreme shape) above which only the part that the crop keeps is made.
LARGEST_RESIZED = 16_000_000

# The least scale, in sizes of the model, that a picture is brought to before it is resized, if that is near enough:
# a JPEG is decoded at a half, a quarter or an eighth, anything else averaged by whole factors. Small models need more:
# below LEAST_SIDE pixels, thin lines and text become other patterns. Measured in docs/decisions/0010-decode.md.
LEAST_DECODED = 1.5
LEAST_AVERAGED = 2.0
LEAST_SIDE = 256


class Fit(msgspec.Struct, frozen=True):
    """Resize to width x height, then cut a square of the model's size at (left, top)."""

    width: int
    height: int
    left: int = 0  # negative if the picture is smaller than the square
    top: int = 0


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """Resize what is inside `box` (left, top, right, bottom) to `size` (width, height), which begins at (left, top)."""

    box: tuple[float, float, float, float]
    size: tuple[int, int]
    left: int
    top: int


@dataclass(frozen=True)
class Preprocess:
    """A model's picture preprocessing. It needs no weights, and can be sent to reader processes."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation = "bicubic"
    resize_mode: ResizeMode = "shortest"
    fill: int = 0

    def __call__(self, image: Image.Image) -> NDArray[np.uint8]:
        """Return a picture of any size as uint8 pixels [size, size, 3].

        It is resized in its own mode, of 8 bits, and becomes RGB at the end, as in the models' reference transforms:
        transparent pixels weigh less then, and alpha is dropped. A palette is resized without interpolation.
        """
        fit = self.fit(*image.size)
        if fit.width * fit.height > LARGEST_RESIZED:
            window = self.window(fit, image.size)
            part = as_rgb(image.resize(window.size, self.resampling(), window.box))
            return self.framed(np.asarray(part), window)
        resized = image.resize((fit.width, fit.height), self.resampling())
        return np.array(self.on_canvas(as_rgb(resized), fit.left, fit.top))

    def scale(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the input of a torch model, float32 [n, 3, s, s], for pixels [n, s, s, 3]."""
        mean, std = (np.array(values, dtype=np.float32) for values in (self.mean, self.std))
        scaled = (pixels.astype(np.float32) / np.float32(255) - mean) / std
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))

    def fit(self, width: int, height: int) -> Fit:
        """Return where a picture of this size goes, with the rounding of open_clip's transform."""
        match self.resize_mode:
            case "shortest":
                return fit_shortest(width, height, self.size)
            case "longest":
                return fit_longest(width, height, self.size)
            case "squash":
                return Fit(self.size, self.size)
            case _:
                assert_never(self.resize_mode)

    def least_size(self, width: int, height: int) -> tuple[int, int]:
        """Return the least width and height to decode a picture of this size at, if nearly equal pixels suffice."""
        fit, scale = self.fit(width, height), max(LEAST_DECODED, LEAST_SIDE / self.size)
        return ceil(fit.width * scale), ceil(fit.height * scale)

    @property
    def reducing_gap(self) -> float:
        """Return the least factor over the final size that blocks of pixels may be averaged down to before resizing."""
        return max(LEAST_AVERAGED, LEAST_SIDE / self.size)

    def window(self, fit: Fit, extent: tuple[float, float]) -> Window:
        """Return which part of an image becomes which part of the square [size, size].

        The picture covers `extent` of the image: decoded at a fraction, its last column and row may be parts.
        """
        x, y = extent[0] / fit.width, extent[1] / fit.height
        left, top = max(0, fit.left), max(0, fit.top)
        right, bottom = min(fit.width, fit.left + self.size), min(fit.height, fit.top + self.size)
        return Window(
            box=(left * x, top * y, min(right * x, extent[0]), min(bottom * y, extent[1])),
            size=(right - left, bottom - top),
            left=max(0, -fit.left),
            top=max(0, -fit.top),
        )

    def framed(self, pixels: NDArray[np.uint8], window: Window) -> NDArray[np.uint8]:
        """Return the square [size, size, 3] with these pixels in their place, the rest filled up."""
        height, width, _ = pixels.shape
        if width == height == self.size:
            return pixels
        square = np.full((self.size, self.size, 3), self.fill, np.uint8)
        square[window.top : window.top + height, window.left : window.left + width] = pixels
        return square

    def on_canvas(self, image: Image.Image, left: int, top: int) -> Image.Image:
        """Cut the square out of the image; if the image is smaller, fill up the rest."""
        from PIL import Image

        if min(left, top) >= 0 and left + self.size <= image.width and top + self.size <= image.height:
            return image.crop((left, top, left + self.size, top + self.size))
        canvas = Image.new("RGB", (self.size, self.size), (self.fill, self.fill, self.fill))
        canvas.paste(image, (-left, -top))
        return canvas

    def resampling(self) -> Image.Resampling:
        from PIL import Image

        return Image.Resampling[self.interpolation.upper()]


def as_rgb(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")


def fit_shortest(width: int, height: int, size: int) -> Fit:
    """Scale the shorter side to `size` and cut the center, with torchvision's rounding."""
    if width <= height:
        new_width, new_height = size, int(size * height / width)
    else:
        new_width, new_height = int(size * width / height), size
    return Fit(new_width, new_height, round((new_width - size) / 2.0), round((new_height - size) / 2.0))


def fit_longest(width: int, height: int, size: int) -> Fit:
    """Scale the longer side to `size`, in the center."""
    ratio = max(width, height) / size
    new_width, new_height = max(1, round(width / ratio)), max(1, round(height / ratio))
    return Fit(new_width, new_height, -((size - new_width) // 2), -((size - new_height) // 2))
