"""JPEGs decoded by nvJPEG through torchvision, and resized on the GPU as Pillow does it: two products of matrices."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from clip_retrieval.encoder.preprocess import Preprocess


def decode_on_gpu(files: Sequence[bytes], device: str) -> list[Tensor]:
    """Return uint8 tensors [3, height, width] on the device."""
    data = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files]
    return decode_jpeg(data, ImageReadMode.RGB, device)


def resize_on_gpu(images: Sequence[Tensor], preprocess: Preprocess) -> Tensor:
    """Return uint8 [n, s, s, 3]: all pictures at once, padded to the largest, each with its own matrices."""
    device, size = images[0].device, preprocess.size
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    batch = torch.zeros((len(images), 3, height, width), dtype=torch.uint8, device=device)
    for place, image in zip(batch, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]].copy_(image)
    fits = [preprocess.fit(image.shape[2], image.shape[1]) for image in images]
    across = [
        weights(image.shape[2], fit.width, (fit.left, size), width) for image, fit in zip(images, fits, strict=True)
    ]
    down = [
        weights(image.shape[1], fit.height, (fit.top, size), height) for image, fit in zip(images, fits, strict=True)
    ]
    across_all = on_device(across, device, dtype).transpose(1, 2)  # [n, width, s]
    down_all = on_device(down, device, dtype)  # [n, s, height]
    lines = torch.bmm(batch.to(dtype).flatten(1, 2), across_all).round_().clamp_(0, 255)  # Pillow rounds here, too
    lines = lines.view(len(images), 3, height, size).permute(0, 2, 1, 3).reshape(len(images), height, 3 * size)
    pixels = torch.bmm(down_all, lines).round_().clamp_(0, 255)
    return pixels.view(len(images), size, 3, size).permute(0, 1, 3, 2).to(torch.uint8)


def on_device(matrices: Sequence[np.ndarray], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Copy each different matrix once, and give every picture its own."""
    different = {id(matrix): matrix for matrix in matrices}
    places = {key: place for place, key in enumerate(different)}
    table = torch.from_numpy(np.stack(list(different.values()))).to(device=device, dtype=dtype)
    return table[torch.tensor([places[id(matrix)] for matrix in matrices], device=device)]


@lru_cache(4096)
def weights(old: int, new: int, crop: tuple[int, int], padded: int) -> np.ndarray:
    """Return the matrix [crop, padded] of antialiased bicubic resizing from `old` to `new` values, cropped."""
    scale = old / new
    filter_scale = max(scale, 1.0)
    support = 2.0 * filter_scale
    matrix = np.zeros((new, padded), np.float32)
    for row in range(new):
        center = (row + 0.5) * scale
        first, last = max(0, int(center - support + 0.5)), min(old, int(center + support + 0.5))
        values = cubic((np.arange(first, last) - center + 0.5) / filter_scale)
        matrix[row, first:last] = values / values.sum()
    return np.ascontiguousarray(matrix[crop[0] : crop[0] + crop[1]])


def cubic(x: np.ndarray) -> np.ndarray:
    x, a = np.abs(x), -0.5
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
