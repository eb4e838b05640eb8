"""Measure the demo model on pictures that training never saw; prints the figures of the model card."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from augment import IMAGE_SIDE, MEAN, STD
from glyphs import Glyph
from pictures import draw_gallery_picture, draw_hard_picture
from PIL import Image
from torch import Tensor
from torch.nn import functional

STYLES = {"gallery": draw_gallery_picture, "hard": draw_hard_picture}


def draw_pixels(glyphs: Sequence[Glyph], style: str, seed: int) -> Tensor:
    """Return one normalised picture of each glyph [glyphs, 3, 64, 64], through JPEG and the model's own resize."""
    rng = np.random.default_rng(seed)
    rows = []
    for glyph in glyphs:
        image = Image.open(io.BytesIO(STYLES[style](glyph, rng).jpeg))
        rows.append(np.asarray(image.resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BICUBIC), dtype=np.float32))
    pixels = torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2) / 255
    return (pixels - MEAN) / STD


@torch.no_grad()
def encode_pixels(clip: torch.nn.Module, pixels: Tensor) -> Tensor:
    """Return unit image embeddings [n, dim]."""
    return functional.normalize(torch.cat([clip.visual(part) for part in pixels.split(256)]).float(), dim=-1)


def name_recall(
    clip: torch.nn.Module, glyphs: Sequence[Glyph], names: Tensor, style: str, seed: int
) -> dict[str, float]:
    """Return text-to-image recall at 1 and 10: one picture of each glyph, asked for by its name's embedding."""
    scores = names @ encode_pixels(clip, draw_pixels(glyphs, style, seed)).T
    own = scores.diagonal()
    rank = (scores > own[:, None]).sum(1)
    return {f"recall@{k}": round(float((rank < k).float().mean()), 3) for k in (1, 10)}
