"""Pictures to a model's input, with exactly the pixels of OpenAI's transform; and from that input back to pixels."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clip_retrieval.blobs import read_file
from clip_retrieval.encoder.base import Pixels
from clip_retrieval.encoder.images import decode_as_stored, to_8_bit_mode, without_transparent_color
from clip_retrieval.encoder.preprocess import Preprocess
from clip_retrieval.encoder.tensors import is_tensor, to_array
from clip_retrieval.errors import EncoderError, ImageError
from clip_retrieval.faces.arrays import Array, wrap

EXACT_WITHIN = 0.05  # levels of 255; float32 this close to whole levels came from pixels
EXACT_WITHIN_16_BITS = 0.3  # the same for values that were float16 or bfloat16


class ImagePreprocess:
    """A picture to float32 [3, s, s], scaled by mean and standard deviation: OpenAI's transform."""

    def __init__(self, preprocess: Preprocess) -> None:
        self.preprocess = preprocess

    def __call__(self, image: Any) -> Array:
        """Take a path, a PIL picture, or uint8 pixels [h, w, 3] of any size."""
        return wrap(self.preprocess.scale(self.pixels(image)[None])[0])

    def pixels(self, image: Any) -> Pixels:
        """Return uint8 [s, s, 3], those of the model's reference transform; transparency is dropped."""
        return self.preprocess(open_image(image))


def open_image(image: Any) -> Image.Image:
    """Return a path, a PIL picture or uint8 pixels [h, w, 3] as a picture of 8 bits a sample, in its own mode."""
    if isinstance(image, str | PathLike):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        return without_transparent_color(to_8_bit_mode(image))
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise EncoderError(
            "expected a picture: a path, a PIL picture, uint8 pixels [h, w, 3] or what preprocess gives, got "
            f"{pixels.dtype} {list(pixels.shape)}"
        )
    return Image.fromarray(pixels)


def read_image(path: Path) -> Image.Image:
    try:
        return decode_as_stored(read_file(path))
    except ImageError as error:
        raise ImageError(error.reason, f"{path} cannot be used as a picture: {error}") from error
    except OSError as error:
        raise ImageError(
            getattr(error, "reason", "read"), f"{path} cannot be read: {error.strerror or error}"
        ) from error


def is_many(images: Any) -> bool:
    """Say whether this is a list of pictures, pixels [n, h, w, 3] or scaled ones [n, 3, s, s], not one picture."""
    if isinstance(images, list | tuple):
        return True
    return not isinstance(images, str | PathLike | Image.Image) and np.ndim(images) == 4


def is_scaled(image: Any) -> bool:
    """Say whether this is what preprocess gives, floats [3, s, s], not a picture."""
    return not isinstance(image, str | PathLike | Image.Image) and np.ndim(image) == 3 and is_float(image)


def is_float(image: Any) -> bool:
    return bool(image.is_floating_point()) if is_tensor(image) else np.asarray(image).dtype.kind == "f"


def as_scaled(images: Sequence[Any], size: int) -> NDArray[np.float32]:
    """Return scaled pictures as one array, float32 [n, 3, size, size]; raises EncoderError for another shape."""
    arrays = [to_array(image) if is_tensor(image) else np.asarray(image) for image in images]
    for array in arrays:
        if array.shape != (3, size, size):
            raise EncoderError(f"expected scaled pictures [3, {size}, {size}], got {list(array.shape)}")
    return np.stack([np.asarray(array, dtype=np.float32) for array in arrays])


def to_pixels(scaled: NDArray[np.float32], preprocess: Preprocess, *, is_16_bit: bool) -> Pixels | None:
    """Return the 8-bit pixels [n, s, s, 3] that were scaled; None for values that no 8-bit picture gives."""
    mean, std = (np.array(values, dtype=np.float32) for values in (preprocess.mean, preprocess.std))
    levels = (scaled.transpose(0, 2, 3, 1) * std + mean) * 255
    if not np.isfinite(levels).all():
        raise EncoderError("the scaled pictures hold values that are not numbers (NaN or infinite)")
    rounded = np.rint(levels)
    is_exact = np.abs(levels - rounded).max(initial=0) <= (EXACT_WITHIN_16_BITS if is_16_bit else EXACT_WITHIN)
    if not is_exact or rounded.min(initial=0) < 0 or rounded.max(initial=0) > 255:
        return None
    pixels: Pixels = rounded.astype(np.uint8)
    return pixels
