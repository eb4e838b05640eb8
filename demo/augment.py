"""Training pictures: glyphs on varied backgrounds, drawn a whole batch at a time with torch.

Nothing here is used for the gallery or for the figures in the model card: `pictures.py` draws those
with Pillow, so that what is measured did not come from the code that training saw.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from glyphs import Glyph
from torch import Tensor
from torch.nn import functional

IMAGE_SIDE = 64
MEAN, STD = 0.5, 0.25
SCALE_OF_THE_SMALL_COPY = 0.62  # glyphs drawn smaller than this come from a half-size copy, against aliasing


@dataclass(frozen=True)
class Strength:
    """How much the pictures vary; `amount` multiplies every range."""

    amount: float = 1.0
    rotation_degrees: float = 28.0
    smallest_scale: float = 0.5
    color: float = 0.25
    noise: float = 0.06


def uniform(shape: tuple[int, ...], low: float, high: float, rng: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=rng) * (high - low) + low


def some(count: int, share: float, rng: torch.Generator) -> Tensor:
    """Return a [count, 1, 1, 1] mask that is 1 for about `share` of the pictures."""
    return (torch.rand((count, 1, 1, 1), generator=rng) < share).float()


class Painter:
    """Draws batches of training pictures from the glyphs' bitmaps."""

    def __init__(self, glyphs: list[Glyph], strength: Strength) -> None:
        self.strength = strength
        full = torch.stack([premultiplied(glyph, 72) for glyph in glyphs])
        self.atlas = full.half()  # [glyphs, 4, 72, 72]
        self.small = functional.interpolate(full, size=(36, 36), mode="area").half()
        steps = torch.linspace(-1, 1, IMAGE_SIDE)
        self.y, self.x = (axis[None, None] for axis in torch.meshgrid(steps, steps, indexing="ij"))

    def paint(self, ids: Tensor, rng: torch.Generator) -> Tensor:
        """Return normalized pictures [n, 3, 64, 64] of the glyphs `ids`."""
        layer = self.glyph_layer(ids, rng)
        picture = layer[:, :3] + self.backgrounds(len(ids), rng) * (1 - layer[:, 3:])
        return (self.disturb(picture, rng) - MEAN) / STD

    def glyph_layer(self, ids: Tensor, rng: torch.Generator) -> Tensor:
        count, strength = len(ids), self.strength
        scale = uniform((count,), strength.smallest_scale, 1.02, rng)
        angle = uniform((count,), -1, 1, rng) * np.deg2rad(strength.rotation_degrees) * strength.amount
        angle = angle * (torch.rand(count, generator=rng) > 0.2)
        stretch = 1 + uniform((count,), -0.1, 0.1, rng) * strength.amount
        shift = uniform((2, count), -1, 1, rng) * (1.05 - scale).clamp(min=0.03)
        cos, sin = torch.cos(angle), torch.sin(angle)
        # Output coordinates to bitmap coordinates: move back, turn back, scale back.
        rows = torch.stack(
            [cos / scale / stretch, sin / scale / stretch, -sin / scale * stretch, cos / scale * stretch]
        )
        matrix = rows.T.reshape(count, 2, 2)
        offset = -(matrix @ shift.T[:, :, None])
        theta = torch.cat([matrix, offset], dim=2)
        grid = functional.affine_grid(theta, [count, 4, IMAGE_SIDE, IMAGE_SIDE], align_corners=False)
        layer = torch.empty(count, 4, IMAGE_SIDE, IMAGE_SIDE)
        is_small = scale < SCALE_OF_THE_SMALL_COPY
        for mask, atlas in ((is_small, self.small), (~is_small, self.atlas)):
            if mask.any():
                layer[mask] = functional.grid_sample(atlas[ids[mask]].float(), grid[mask], align_corners=False)
        return layer

    def backgrounds(self, count: int, rng: torch.Generator) -> Tensor:
        """Solid colors, gradients, stripes, checks, spots and blobs between two colors."""
        first = uniform((count, 3, 1, 1), 0, 1, rng)
        first = torch.where(some(count, 0.3, rng).bool(), uniform((count, 1, 1, 1), 0, 1, rng), first)
        near = (first + uniform((count, 3, 1, 1), -0.25, 0.25, rng)).clamp(0, 1)
        second = torch.where(some(count, 0.5, rng).bool(), near, uniform((count, 3, 1, 1), 0, 1, rng))
        angle = uniform((count, 1, 1, 1), 0, 2 * np.pi, rng)
        along = self.x * torch.cos(angle) + self.y * torch.sin(angle)
        across = self.y * torch.cos(angle) - self.x * torch.sin(angle)
        frequency = uniform((count, 1, 1, 1), 4, 20, rng)
        wave = torch.sin(along * frequency)
        blobs = functional.interpolate(torch.rand((count, 1, 6, 6), generator=rng), size=IMAGE_SIDE, mode="bilinear")
        grain = functional.interpolate(torch.rand((count, 1, 20, 20), generator=rng), size=IMAGE_SIDE)
        kinds = torch.stack(
            [
                torch.zeros_like(wave),
                along * 0.35 + 0.5,
                (wave * 4).sigmoid(),
                (wave * torch.sin(across * frequency) * 6).sigmoid(),
                (self.x**2 + self.y**2).sqrt().expand_as(wave) * 0.7,
                blobs,
                grain,
            ]
        )
        share = torch.tensor([0.34, 0.14, 0.1, 0.1, 0.1, 0.14, 0.08])
        kind = torch.multinomial(share, count, replacement=True, generator=rng)
        mix = kinds[kind, torch.arange(count)].clamp(0, 1)
        return first * (1 - mix) + second * mix

    def disturb(self, picture: Tensor, rng: torch.Generator) -> Tensor:
        """Vary sharpness, color, light and noise, as cameras and JPEG do."""
        count, amount = len(picture), self.strength.amount
        blurred = functional.avg_pool2d(picture, 3, stride=1, padding=1, count_include_pad=False)
        mix = uniform((count, 1, 1, 1), -0.8, 1, rng) * some(count, 0.5, rng) * amount
        picture = torch.lerp(picture, blurred, mix)
        color = self.strength.color * amount
        gray = picture.mean(1, keepdim=True)
        picture = torch.lerp(gray, picture, 1 + uniform((count, 1, 1, 1), -color, color, rng))
        picture = (picture - 0.5) * (1 + uniform((count, 1, 1, 1), -color, color, rng)) + 0.5
        picture = picture + uniform((count, 1, 1, 1), -0.7 * color, 0.7 * color, rng)
        picture = picture * (1 + uniform((count, 3, 1, 1), -0.06, 0.06, rng) * amount)
        sigma = uniform((count, 1, 1, 1), 0, self.strength.noise * amount, rng) * some(count, 0.5, rng)
        return (picture + sigma * torch.randn(picture.shape, generator=rng)).clamp(0, 1)


def premultiplied(glyph: Glyph, side: int) -> Tensor:
    """Return the bitmap [4, side, side] in 0..1 with colors multiplied by alpha."""
    pixels = torch.from_numpy(np.asarray(glyph.bitmap, dtype=np.float32) / 255).permute(2, 0, 1)
    pixels = torch.cat([pixels[:3] * pixels[3:], pixels[3:]])
    return functional.interpolate(pixels[None], size=(side, side), mode="bilinear", antialias=True)[0]
