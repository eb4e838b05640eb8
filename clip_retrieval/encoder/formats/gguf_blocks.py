"""The number formats of GGUF tensors: plain floats, and blocks of 32 weights in 4, 5 or 8 bits, to and from numpy.

Types ending in _0 hold weight = scale * number, with the scale chosen so that the weight farthest from zero becomes the
lowest number (or +-127 in q8_0); types ending in _1 hold weight = scale * number + least. Quantized bytes are those of
ggml's reference code, which clip.cpp uses, for finite weights: its order of float32 operations is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, assert_never

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
BlockType = Literal["f32", "f16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0"]
Quantized = Literal["q4_0", "q4_1", "q5_0", "q5_1", "q8_0"]

BLOCK_LENGTH = 32  # weights
CHUNK = 1 << 15  # blocks per pass; bounds the memory for intermediate arrays
CODES: dict[BlockType, int] = {
    "f32": 0,
    "f16": 1,
    "q4_0": 2,
    "q4_1": 3,
    "q5_0": 6,
    "q5_1": 7,
    "q8_0": 8,
}  # ggml's type numbers
# Byte i of `nibbles` has weight i in its low half and weight i + 16 in its high half; bit i of `high` is the fifth bit
# of weight i.
LAYOUTS: dict[BlockType, np.dtype[Any]] = {
    "f32": np.dtype("<f4"),
    "f16": np.dtype("<f2"),
    "q4_0": np.dtype([("scale", "<f2"), ("nibbles", "u1", 16)]),
    "q4_1": np.dtype([("scale", "<f2"), ("least", "<f2"), ("nibbles", "u1", 16)]),
    "q5_0": np.dtype([("scale", "<f2"), ("high", "u1", 4), ("nibbles", "u1", 16)]),
    "q5_1": np.dtype([("scale", "<f2"), ("least", "<f2"), ("high", "u1", 4), ("nibbles", "u1", 16)]),
    "q8_0": np.dtype([("scale", "<f2"), ("numbers", "i1", 32)]),
}


@dataclass(frozen=True)
class GgufTensor:
    """A tensor's type and shape (numpy's order), and a function that loads its bytes on demand."""

    block_type: BlockType
    shape: tuple[int, ...]
    load: Callable[[], Bytes]

    def array(self) -> NDArray[Any]:
        """Return the values: a view where floats are stored, float32 where blocks are."""
        if is_blocked(self.block_type):
            return dequantize(self.load(), self.block_type, self.shape)
        return self.load().view(LAYOUTS[self.block_type]).reshape(self.shape)


def pack_later(load: Callable[[], NDArray[Any]], shape: tuple[int, ...], block_type: BlockType) -> GgufTensor:
    """Return a tensor that loads and quantizes its array only while it is written."""
    return GgufTensor(block_type, shape, lambda: quantize(load(), block_type))


def is_blocked(block_type: BlockType) -> bool:
    """Say whether a type packs 32 weights; the others hold one number each."""
    return block_type not in ("f32", "f16")


def fits(shape: tuple[int, ...], block_type: BlockType) -> bool:
    """Say whether rows of this shape are whole blocks: a block never spans two rows."""
    return not is_blocked(block_type) or (len(shape) > 0 and shape[-1] % BLOCK_LENGTH == 0)


def count_bytes(shape: tuple[int, ...], block_type: BlockType) -> int:
    """Return the bytes of a tensor whose shape fits the type."""
    return math.prod(shape) // (BLOCK_LENGTH if is_blocked(block_type) else 1) * LAYOUTS[block_type].itemsize


def quantize(array: NDArray[Any], block_type: BlockType) -> Bytes:
    """Return the bytes of a tensor, flat; rows must be whole blocks."""
    if not fits(array.shape, block_type):
        raise ValueError(f"rows of {array.shape} are not whole blocks of {BLOCK_LENGTH}")
    layout = LAYOUTS[block_type]
    with np.errstate(over="ignore", invalid="ignore"):  # a scale too large for float16 is infinite, as in ggml
        if not is_blocked(block_type):
            return np.ascontiguousarray(array, layout).reshape(-1).view(np.uint8)
        blocks = np.ascontiguousarray(array).reshape(-1, BLOCK_LENGTH)
        packed = np.empty(len(blocks), layout)
        for start in range(0, len(blocks), CHUNK):
            part = slice(start, start + CHUNK)
            fill_blocks(packed[part], np.asarray(blocks[part], np.float32), block_type)
    return packed.view(np.uint8)


def fill_blocks(packed: NDArray[Any], blocks: Floats, block_type: BlockType) -> None:
    match block_type:
        case "q4_0" | "q5_0":
            half = np.float32(8 if block_type == "q4_0" else 16)
            farthest = pick(blocks, np.abs(blocks).argmax(axis=1)) + np.float32(0)  # -0 becomes +0
            scale = farthest / -half
            pack_numbers(packed, blocks * invert(scale) + (half + np.float32(0.5)))
        case "q4_1" | "q5_1":
            least, most = pick(blocks, blocks.argmin(axis=1)), pick(blocks, blocks.argmax(axis=1))
            scale = (most - least) / np.float32(15 if block_type == "q4_1" else 31)
            packed["least"] = least[:, 0]
            pack_numbers(packed, (blocks - least) * invert(scale) + np.float32(0.5))
        case "q8_0":
            scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
            packed["numbers"] = round_half_away(zero_overflow(blocks * invert(scale)))
        case "f32" | "f16":
            raise ValueError(f"{block_type} has no blocks")
        case _:
            assert_never(block_type)
    packed["scale"] = scale[:, 0]


def pick(blocks: Floats, column: NDArray[np.intp]) -> Floats:
    """Return one weight of each block [n, 1]; the callers name the first of equal ones (0 and -0), as C does."""
    found: Floats = np.take_along_axis(blocks, column[:, None], axis=1)
    return found


def invert(scale: Floats) -> Floats:
    """Return 1 / scale, and 0 for 0; infinite if the scale is denormal."""
    with np.errstate(divide="ignore"):
        return np.where(scale == 0, np.float32(0), np.float32(1) / scale)


def zero_overflow(numbers: Floats) -> Floats:
    """Return numbers with 0 in place of NaN and infinity, whose conversion to integers is undefined in C."""
    return np.where(np.isfinite(numbers), numbers, np.float32(0))


def round_half_away(numbers: Floats) -> Floats:
    """Round as C's roundf does; adding a half first would be wrong just below a half."""
    whole = np.trunc(numbers)
    rounded: Floats = whole + np.trunc(2 * (numbers - whole))
    return rounded


def pack_numbers(packed: NDArray[Any], numbers: Floats) -> None:
    """Truncate the numbers and store the numbers as nibbles and, in a five-bit type, high bits."""
    has_high = "high" in (packed.dtype.names or ())
    whole = zero_overflow(numbers).astype(np.uint8).clip(0, 31 if has_high else 15)
    half = BLOCK_LENGTH // 2
    packed["nibbles"] = (whole[:, :half] & 15) | (whole[:, half:] << 4)
    if has_high:
        packed["high"] = np.packbits(whole >> 4, axis=1, bitorder="little")


def dequantize(raw: Bytes, block_type: BlockType, shape: tuple[int, ...]) -> Floats:
    """Return the weights of a tensor's bytes as float32; a view if they are float32 already."""
    packed = raw.reshape(-1).view(LAYOUTS[block_type])
    if not is_blocked(block_type):
        return packed.astype(np.float32, copy=False).reshape(shape)
    weights = np.empty((len(packed), BLOCK_LENGTH), np.float32)
    for start in range(0, len(packed), CHUNK):
        part = slice(start, start + CHUNK)
        weights[part] = unpack_blocks(packed[part], block_type)
    return weights.reshape(shape)


def unpack_blocks(packed: NDArray[Any], block_type: BlockType) -> Floats:
    scale: Floats = packed["scale"].astype(np.float32)[:, None]
    if block_type == "q8_0":
        return np.multiply(scale, packed["numbers"], dtype=np.float32)
    numbers = np.concatenate([packed["nibbles"] & 15, packed["nibbles"] >> 4], axis=1)
    if "high" in (packed.dtype.names or ()):
        numbers |= np.unpackbits(packed["high"], axis=1, bitorder="little") << 4
    if "least" in (packed.dtype.names or ()):
        weights: Floats = scale * numbers.astype(np.float32) + packed["least"].astype(np.float32)[:, None]
        return weights
    centered = numbers.astype(np.int8) - np.int8(8 if block_type == "q4_0" else 16)
    return np.multiply(scale, centered, dtype=np.float32)
