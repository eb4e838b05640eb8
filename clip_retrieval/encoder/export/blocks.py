"""Weights in 8 or 4 bits: blocks of a column share a scale, in the format of ONNX Runtime's MatMulNBits.

A value is scale * (q - middle), with q unsigned and the middle 128 or 8. Format: the operator's page in ONNX Runtime's
docs/ContribOperators.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8)  # factors of the scale to try with few levels: less range, finer steps
LEAST_BLOCK_SIZE = 32
LEAST_HALF = 2.0**-14  # the least number that float16 holds with all of its digits
CHUNK_BLOCKS = 65_536  # worked on together, to bound the memory


@dataclass(frozen=True)
class Bits:
    """How many bits, and how many values share a scale."""

    bits: int
    block_size: int

    def fit(self, width: int) -> Bits:
        """Return the form with the largest blocks that fill rows of this width, but not below 32."""
        size = self.block_size
        while size > LEAST_BLOCK_SIZE and width % size:
            size //= 2
        return Bits(self.bits, size)

    @property
    def middle(self) -> int:
        return 1 << (self.bits - 1)


def quantize_rows(rows: Floats, form: Bits) -> tuple[Bytes, Floats]:
    """Return q [n, blocks, block_size] and scales [n, blocks] of rows [n, width]; the last block is filled up."""
    count, width = rows.shape
    padded = np.pad(rows, ((0, 0), (0, -width % form.block_size)))
    blocks = padded.reshape(-1, form.block_size)
    q = np.empty(blocks.shape, dtype=np.uint8)
    scales = np.empty(len(blocks), dtype=np.float32)
    for start in range(0, len(blocks), CHUNK_BLOCKS):
        part = slice(start, start + CHUNK_BLOCKS)
        q[part], scales[part] = quantize_blocks(blocks[part], form)
    return q.reshape(count, -1, form.block_size), scales.reshape(count, -1)


def quantize_blocks(blocks: Floats, form: Bits) -> tuple[Bytes, Floats]:
    """Choose each block's scale: the widest value is on the lowest level, or closer if that gives a smaller error."""
    widest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, None], axis=1)
    best_q, best_scale = round_blocks(blocks, widest / -form.middle, form)
    if form.bits < 8:
        best_error = errors(blocks, best_q, best_scale, form)
        for shrink in SHRINKS[1:]:
            q, scale = round_blocks(blocks, widest * np.float32(shrink / -form.middle), form)
            error = errors(blocks, q, scale, form)
            is_better = error < best_error
            best_q[is_better], best_scale[is_better], best_error[is_better] = (
                q[is_better],
                scale[is_better],
                error[is_better],
            )
    return best_q, best_scale[:, 0]


def round_blocks(blocks: Floats, scale: Floats, form: Bits) -> tuple[Bytes, Floats]:
    if form.bits < 8 and np.abs(scale[scale != 0]).min(initial=1) >= LEAST_HALF:
        scale = scale.astype(np.float16).astype(np.float32)  # rounded as stored
    levels = np.round(blocks / np.where(scale == 0, 1, scale)) + form.middle
    return np.clip(levels, 0, 2 * form.middle - 1).astype(np.uint8), scale.astype(np.float32)


def errors(blocks: Floats, q: Bytes, scale: Floats, form: Bits) -> Floats:
    found: Floats = (((q.astype(np.float32) - form.middle) * scale - blocks) ** 2).sum(axis=1)
    return found


def pack(q: Bytes, form: Bits) -> Bytes:
    """Put two 4-bit values into a byte, the first in its low half; 8-bit values are unchanged."""
    packed: Bytes = q if form.bits == 8 else q[..., 0::2] | (q[..., 1::2] << np.uint8(4))
    return packed
