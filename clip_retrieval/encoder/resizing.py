"""Pictures resized as Pillow does, except for rounding, by vector code that takes a third of the time.

Rows are resized before columns, as in Pillow, so that the same values are clipped in between: then 1 value in 250
differs, by 1 level of 255. For other processors, modes or interpolations Pillow itself resizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clip_retrieval.encoder.preprocess import Interpolation, Window, as_rgb

# Names in cykooz-resizer; the radius of the filter. Its catmull_rom has Pillow's parameter of bicubic, -0.5.
FILTERS: dict[Interpolation, tuple[str, int]] = {"bicubic": ("catmull_rom", 2), "bilinear": ("bilinear", 1)}


@dataclass(frozen=True)
class Span:
    """One axis of a resize: the pixels from `start` to `stop` become `size`."""

    start: float
    stop: float
    size: int
    reducing_gap: float

    @property
    def block(self) -> int:
        """Return how many pixels are averaged to one before resizing."""
        return int((self.stop - self.start) / self.size / self.reducing_gap) or 1

    def reach(self, radius: int, length: int) -> tuple[int, int]:
        """Return the first pixel that the filter sees, and the one after its last."""
        scale = (self.stop - self.start) / self.size
        margin = radius * max(scale, 1.0) - scale / 2  # the first pixel made is half a step inside
        return max(0, int(self.start - margin)), min(length, ceil(self.stop + margin))

    def inside(self, first: int, length: int) -> tuple[float, float]:
        """Return start and length of the span within the averaged part that begins at pixel `first`."""
        start = (self.start - first) / self.block
        return start, min((self.stop - self.start) / self.block, length - start)


class Step(NamedTuple):
    """Resize what is inside `box` (left, top, width, height) to `size`."""

    box: tuple[float, float, float, float]
    size: tuple[int, int]


def resize_near(
    picture: Image.Image | NDArray[np.uint8], window: Window, interpolation: Interpolation, reducing_gap: float
) -> NDArray[np.uint8]:
    """Return the window of an image as RGB pixels [height, width, 3]; whole blocks of a large one are averaged first.

    `picture` is Pillow's, or RGB pixels [height, width, 3]. `reducing_gap` is the least factor over the final size
    that blocks are averaged down to, as of Pillow's `resize`.
    """
    vector = vector_code()
    is_rgb = not isinstance(picture, Image.Image) or picture.mode == "RGB"
    if vector is None or not is_rgb or interpolation not in FILTERS:
        resampling = Image.Resampling[interpolation.upper()]
        return np.asarray(as_rgb(as_image(picture).resize(window.size, resampling, window.box, reducing_gap)))
    name, radius = FILTERS[interpolation]
    across, down = (Span(window.box[i], window.box[i + 2], window.size[i], reducing_gap) for i in (0, 1))
    width_of_all, height_of_all = size_of(picture)
    left, right = across.reach(radius, width_of_all)
    top, bottom = down.reach(radius, height_of_all)
    if across.block == down.block == 1 and not isinstance(picture, Image.Image):
        part = picture[top:bottom, left:right]
    else:
        part = np.asarray(as_image(picture).reduce((across.block, down.block), (left, top, right, bottom)))
    rows_of_part, columns_of_part, _ = part.shape
    (x, width), (y, height) = across.inside(left, columns_of_part), down.inside(top, rows_of_part)
    rows = Step(box=(x, 0, width, rows_of_part), size=(across.size, rows_of_part))
    columns = Step(box=(0, y, across.size, height), size=window.size)
    return convolve(vector, part, name, (rows, columns))


def size_of(picture: Image.Image | NDArray[np.uint8]) -> tuple[int, int]:
    """Return width and height."""
    return picture.size if isinstance(picture, Image.Image) else (picture.shape[1], picture.shape[0])


def as_image(picture: Image.Image | NDArray[np.uint8]) -> Image.Image:
    """Return RGB pixels [height, width, 3] as an image of Pillow, which copies them (a tenth of a reader's time)."""
    if isinstance(picture, Image.Image):
        return picture
    return Image.frombuffer("RGB", size_of(picture), picture, "raw", "RGB", 0, 1)


def convolve(vector: Any, part: NDArray[np.uint8], name: str, steps: Sequence[Step]) -> NDArray[np.uint8]:
    kind, way = vector.PixelType.U8x3, vector.ResizeAlg.convolution(vector.FilterType[name])
    pixels = vector.ImageData(part.shape[1], part.shape[0], kind, np.ascontiguousarray(part).tobytes())
    for step in steps:
        source, pixels = pixels, vector.ImageData(*step.size, kind)
        vector.Resizer().resize(source, pixels, vector.ResizeOptions(way, crop_box=vector.CropBox(*step.box)))
    return np.frombuffer(pixels.get_buffer(), np.uint8).reshape(pixels.height, pixels.width, 3)


@cache
def vector_code() -> Any:
    """Return the module cykooz_resizer; None if it is not installed, or if the processor lacks its instructions."""
    try:
        import cykooz_resizer
    except ImportError:
        return None
    return None if cykooz_resizer.Resizer().cpu_extensions == cykooz_resizer.CpuExtensions.none else cykooz_resizer
