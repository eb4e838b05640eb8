"""Pictures drawn with Pillow: the gallery's own style, and a harder one that training never saw.

Both share the glyph bitmaps, but no code, with `augment.py`, which draws what the model is trained on.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
from glyphs import GLYPH_SIDE, Glyph
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.float32]  # [side, side, 3] in 0..255

GALLERY_SIDE = 128
HARD_SIDE = 224


@dataclass(frozen=True)
class Picture:
    """One drawn picture and what is known of it."""

    glyph: Glyph
    jpeg: bytes
    background: str
    rotation_degrees: float
    scale: float


def draw_gallery_picture(glyph: Glyph, rng: np.random.Generator) -> Picture:
    """Draw a picture of the demo gallery: plain or shaded background, small turns, a little noise."""
    kind = str(rng.choice(["plain", "gradient", "glow"], p=[0.5, 0.3, 0.2]))
    first = rng.uniform(30, 250, 3)
    second = np.clip(first + rng.uniform(-90, 90, 3), 0, 255)
    background = blend(first, second, gallery_mix(kind, rng))
    rotation, scale = float(rng.uniform(-15, 15)), float(rng.uniform(0.62, 0.95))
    pixels = compose(glyph, background, rotation, scale, rng)
    pixels += rng.normal(0, rng.uniform(0, 4), pixels.shape).astype(np.float32)
    return Picture(glyph, encode_jpeg(pixels, 86), kind, round(rotation, 1), round(scale, 2))


def draw_hard_picture(glyph: Glyph, rng: np.random.Generator) -> Picture:
    """Draw a picture of the independent renderer: busy backgrounds, larger turns, coarser JPEG."""
    kind = str(rng.choice(["clouds", "rings", "dots", "split", "weave", "plain"]))
    first, second = rng.uniform(0, 255, 3), rng.uniform(0, 255, 3)
    if rng.random() < 0.5:
        second = np.clip(first + rng.uniform(-70, 70, 3), 0, 255)
    background = blend(first, second, hard_mix(kind, rng))
    rotation, scale = float(rng.uniform(-25, 25)), float(rng.uniform(0.5, 0.98))
    pixels = compose(glyph, background, rotation, scale, rng)
    return Picture(glyph, encode_jpeg(pixels, int(rng.integers(60, 96))), kind, round(rotation, 1), round(scale, 2))


def blend(first: NDArray[np.float64], second: NDArray[np.float64], mix: Pixels) -> Pixels:
    return (first * (1 - mix[..., None]) + second * mix[..., None]).astype(np.float32)


def coordinates(side: int) -> tuple[Pixels, Pixels]:
    steps = np.linspace(-1, 1, side, dtype=np.float32)
    x, y = np.meshgrid(steps, steps)
    return x, y


def gallery_mix(kind: str, rng: np.random.Generator) -> Pixels:
    x, y = coordinates(GALLERY_SIDE)
    angle = rng.uniform(0, 2 * math.pi)
    if kind == "gradient":
        return np.clip((x * math.cos(angle) + y * math.sin(angle)) * 0.5 + 0.5, 0, 1)
    if kind == "glow":
        return np.clip(np.hypot(x - rng.uniform(-0.4, 0.4), y - rng.uniform(-0.4, 0.4)) * 0.8, 0, 1)
    return np.zeros_like(x)


def hard_mix(kind: str, rng: np.random.Generator) -> Pixels:
    x, y = coordinates(HARD_SIDE)
    if kind == "clouds":
        coarse = Image.fromarray(rng.integers(0, 256, (5, 5), dtype=np.uint8)).resize(
            (HARD_SIDE, HARD_SIDE), Image.Resampling.BICUBIC
        )
        fine = Image.fromarray(rng.integers(0, 256, (24, 24), dtype=np.uint8)).resize(
            (HARD_SIDE, HARD_SIDE), Image.Resampling.BICUBIC
        )
        return (np.asarray(coarse, dtype=np.float32) * 0.7 + np.asarray(fine, dtype=np.float32) * 0.3) / 255
    if kind == "rings":
        return (np.sin(np.hypot(x, y) * rng.uniform(8, 24)) > 0).astype(np.float32)
    if kind == "dots":
        pitch = rng.uniform(8, 22)
        return ((np.sin(x * pitch) * np.sin(y * pitch)) > 0.55).astype(np.float32)
    if kind == "split":
        return (x * rng.uniform(-1, 1) + y > rng.uniform(-0.5, 0.5)).astype(np.float32)
    if kind == "weave":
        pitch = rng.uniform(10, 30)
        return np.abs(np.sin(x * pitch + np.sin(y * pitch)))
    return np.zeros_like(x)


def compose(glyph: Glyph, background: Pixels, rotation: float, scale: float, rng: np.random.Generator) -> Pixels:
    """Paste the turned, scaled glyph somewhere on the background; return float pixels."""
    canvas_side = background.shape[0]
    side = max(8, round(canvas_side * scale))
    turned = glyph.bitmap.resize((side, side), Image.Resampling.LANCZOS) if side != GLYPH_SIDE else glyph.bitmap
    turned = turned.rotate(rotation, Image.Resampling.BICUBIC)
    room = canvas_side - side
    corner = (int(rng.integers(0, room + 1)), int(rng.integers(0, room + 1)))
    canvas = Image.fromarray(np.clip(background, 0, 255).astype(np.uint8))
    canvas.paste(turned, corner, turned)
    return np.asarray(canvas, dtype=np.float32).copy()


def encode_jpeg(pixels: Pixels, quality: int) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8))
    image.save(buffer, format="JPEG", quality=quality, optimize=True)
    return buffer.getvalue()
