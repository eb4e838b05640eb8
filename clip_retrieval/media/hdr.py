"""High dynamic range (PQ and HLG, BT.2020) to sRGB, like the pictures that models were trained on.

Light comes from SMPTE ST 2084, or from ITU-R BT.2100 for HLG on a display of 1000 cd/m2. It is compressed by the curve
of ITU-R BT.2390-10, 5.4.1, from 1000 cd/m2 to 203, the white of BT.2408, which becomes the white of sRGB.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

PQ, HLG = 16, 18  # AVCOL_TRC_SMPTE2084 and AVCOL_TRC_ARIB_STD_B67 of libavutil's pixfmt.h
PEAK, WHITE = 1000.0, 203.0  # cd/m2
LEVELS = 1 << 16
SCALED_WHITE = 65_280  # of 16 bits: swscale makes 255 * 256 of white
ROWS = 256  # converted at once
M1, M2 = 2610 / 16384, 2523 / 32
C1, C2, C3 = 3424 / 4096, 2413 / 128, 2392 / 128
A, B, C = 0.17883277, 0.28466892, 0.55991073  # of HLG
GAMMA = 1.2  # of HLG on a display of PEAK
LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)  # BT.2020
TO_709 = np.array(  # ITU-R BT.2087
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)

Floats = NDArray[np.floating[Any]]


def to_srgb(pixels: NDArray[np.uint16], transfer: int) -> NDArray[np.uint8]:
    """Return pixels (height, width, 3) of PQ or HLG in sRGB."""
    out = np.empty(pixels.shape, np.uint8)
    for start in range(0, len(pixels), ROWS):
        light = light_of(transfer)[pixels[start : start + ROWS]]
        if transfer == HLG:  # scene light: the display makes it brighter, all three colors alike
            light *= np.maximum(light @ LUMINANCE, 1e-9)[..., None] ** (GAMMA - 1) * PEAK
        light = np.maximum(light @ TO_709.T, 0)
        light *= np.interp(light.max(axis=-1), *gains())[..., None]
        out[start : start + ROWS] = srgb()[(np.minimum(light, 1) * (LEVELS - 1)).astype(np.uint16)]
    return out


@cache
def light_of(transfer: int) -> Floats:
    """Return the light of each value: in cd/m2 for PQ, of the scene from 0 to 1 for HLG."""
    values = np.minimum(np.arange(LEVELS) / SCALED_WHITE, 1)
    light: Floats = (pq_light(values) if transfer == PQ else hlg_light(values)).astype(np.float32)
    return light


def pq_light(values: Floats) -> Floats:
    """Return the light of values from 0 to 1, in cd/m2."""
    power = values ** (1 / M2)
    light: Floats = 10_000 * (np.maximum(power - C1, 0) / (C2 - C3 * power)) ** (1 / M1)
    return light


def pq_values(light: Floats) -> Floats:
    power = (light / 10_000) ** M1
    return ((C1 + C2 * power) / (1 + C3 * power)) ** M2


def hlg_light(values: Floats) -> Floats:
    return np.where(values <= 0.5, values**2 / 3, (np.exp((values - C) / A) + B) / 12)


@cache
def gains() -> tuple[Floats, Floats]:
    """Return the light of the brightest color in cd/m2, and the factor for all three colors: PEAK becomes 1."""
    peak = pq_values(np.array(PEAK))
    values = np.linspace(0, 1, 4096)
    top = float(pq_values(np.array(WHITE)) / peak)
    knee = 1.5 * top - 0.5
    place = np.maximum(values - knee, 0) / (1 - knee)
    curve = (
        (2 * place**3 - 3 * place**2 + 1) * knee
        + (place**3 - 2 * place**2 + place) * (1 - knee)
        + (3 * place**2 - 2 * place**3) * top
    )
    light = pq_light(values * peak)
    compressed = pq_light(np.where(values < knee, values, curve) * peak)
    gain = compressed / np.maximum(light, 1e-9) / WHITE
    gain[0] = 1 / WHITE
    return np.append(light, 10_000), np.append(gain, 1e-4)  # brighter than PEAK is white


@cache
def srgb() -> NDArray[np.uint8]:
    """Return the byte of each light, from 0 to 1 in LEVELS steps."""
    light = np.arange(LEVELS) / (LEVELS - 1)
    curve = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    values: NDArray[np.uint8] = np.rint(255 * curve).astype(np.uint8)
    return values
