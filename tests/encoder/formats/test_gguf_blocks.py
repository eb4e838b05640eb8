"""Block types: bytes derived by hand from their definition, and those of gguf-py."""

from __future__ import annotations

import struct
from typing import get_args

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from clip_retrieval.encoder.formats.gguf_blocks import BlockType, Quantized, count_bytes, dequantize, quantize

QUANTIZED: tuple[Quantized, ...] = get_args(Quantized)
SIZES = {"q4_0": 18, "q4_1": 20, "q5_0": 22, "q5_1": 24, "q8_0": 34}  # bytes of 32 weights


def halves(*numbers: float) -> bytes:
    return struct.pack(f"<{len(numbers)}e", *numbers)


def nibbles(numbers: list[int]) -> bytes:
    """Return sixteen bytes: the first sixteen numbers in the low halves, the others in the high ones."""
    return bytes(numbers[i] % 16 + numbers[i + 16] % 16 * 16 for i in range(16))


def high_bits(numbers: list[int]) -> bytes:
    return sum(number // 16 << i for i, number in enumerate(numbers)).to_bytes(4, "little")


FOUR = [i % 16 for i in range(32)]
FIVE = [(7 * i) % 32 for i in range(32)]
EIGHT = [127, -127, 0, 1, -1, *range(-100, -73)]
# Weights that are exactly scale * number + least, with a scale of 1/2: (type, weights, bytes).
EXACT: list[tuple[Quantized, list[float], bytes]] = [
    ("q4_0", [(q - 8) / 2 for q in FOUR], halves(0.5) + nibbles(FOUR)),
    ("q4_1", [q / 2 - 3 for q in FOUR], halves(0.5, -3) + nibbles(FOUR)),
    ("q5_0", [(q - 16) / 2 for q in FIVE], halves(0.5) + high_bits(FIVE) + nibbles(FIVE)),
    ("q5_1", [q / 2 - 3 for q in FIVE], halves(0.5, -3) + high_bits(FIVE) + nibbles(FIVE)),
    ("q8_0", [q / 2 for q in EIGHT], halves(0.5) + struct.pack("32b", *EIGHT)),
]


def floats(weights: list[float]) -> NDArray[np.float32]:
    return np.array([weights], dtype=np.float32)


@pytest.mark.parametrize(("block_type", "weights", "wanted"), EXACT)
def test_a_block_has_the_bytes_of_its_definition_and_gives_its_weights_back(
    block_type: Quantized, weights: list[float], wanted: bytes
) -> None:
    packed = quantize(floats(weights), block_type)
    assert packed.tobytes() == wanted
    assert len(wanted) == SIZES[block_type] == count_bytes((1, 32), block_type)
    np.testing.assert_array_equal(dequantize(packed, block_type, (1, 32)), floats(weights))


@pytest.mark.parametrize(
    ("block_type", "wanted"),
    [
        ("q4_0", halves(-0.0) + b"\x88" * 16),
        ("q4_1", halves(0, 0) + bytes(16)),
        ("q5_0", halves(-0.0) + b"\xff" * 4 + bytes(16)),
        ("q5_1", halves(0, 0) + bytes(20)),
        ("q8_0", halves(0) + bytes(32)),
    ],
)
def test_a_block_of_zeros_has_a_scale_of_zero(block_type: Quantized, wanted: bytes) -> None:
    assert quantize(floats([0.0] * 32), block_type).tobytes() == wanted


def test_minus_zero_does_not_change_the_sign_of_a_symmetric_scale() -> None:
    # ggml looks for the farthest weight from +0 on, and finds none; gguf-py takes the -0
    assert quantize(floats([-0.0] * 32), "q4_0").tobytes() == halves(-0.0) + b"\x88" * 16


@pytest.mark.parametrize(
    ("block_type", "weights", "byte", "wanted"),
    [
        ("q4_0", [-8, 0.5], 3, 9 + 8 * 16),  # a half goes up: 0.5 becomes 1, stored as 9
        ("q4_0", [-8, -0.5], 3, 8 + 8 * 16),  # and -0.5 becomes 0
        ("q4_0", [8, -8], 3, 15 + 8 * 16),  # of two as far from zero the first makes the scale, the other is cut to 7
        ("q4_1", [15, 0.5], 5, 1),
        ("q8_0", [127, 2.5], 3, 3),  # halves go away from zero
        ("q8_0", [127, -2.5], 3, 256 - 3),
        ("q8_0", [127, 0.49999997], 3, 0),  # adding a half to it would give one
    ],
)
def test_ties_are_rounded_as_in_c(block_type: Quantized, weights: list[float], byte: int, wanted: int) -> None:
    assert quantize(floats(weights + [0.0] * 30), block_type)[byte] == wanted


def test_weights_past_the_range_of_float16_do_not_warn() -> None:
    for block_type in QUANTIZED:
        assert len(quantize(floats([3e38, -3e38] * 16), block_type)) == SIZES[block_type]
    assert quantize(floats([1e5]), "f16").tobytes() == halves(float("inf"))


@pytest.mark.parametrize("block_type", get_args(BlockType))
def test_tensors_of_any_shape_come_back_near_to_what_they_were(block_type: BlockType) -> None:
    array = np.random.default_rng(0).standard_normal((3, 5, 64), dtype=np.float32)
    packed = quantize(array.transpose(1, 0, 2), block_type)  # not contiguous
    found = dequantize(packed, block_type, (5, 3, 64))
    assert packed.dtype == np.uint8
    assert len(packed) == count_bytes((5, 3, 64), block_type)
    assert found.dtype == np.float32
    bound = {"f32": 0, "f16": 2e-3, "q4_0": 0.5, "q4_1": 0.3, "q5_0": 0.25, "q5_1": 0.15, "q8_0": 0.02}[block_type]
    assert np.abs(found - array.transpose(1, 0, 2)).max() <= bound


def test_rows_that_are_no_whole_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="not whole blocks"):
        quantize(np.zeros((32, 33), np.float32), "q4_0")


def test_many_blocks_are_worked_on_in_pieces_with_the_same_result() -> None:
    row = np.random.default_rng(0).standard_normal((1, 32), dtype=np.float32)
    many = np.repeat(row, 70_000, axis=0)
    packed = quantize(many, "q5_1")
    assert packed.tobytes() == quantize(row, "q5_1").tobytes() * 70_000
    assert (dequantize(packed, "q5_1", many.shape) == dequantize(packed[:24], "q5_1", (1, 32))).all()


def make_rows() -> dict[str, NDArray[np.float32]]:
    random = np.random.default_rng(0)
    normal = random.standard_normal((1024, 64))
    rows = {
        "normal": normal * 0.05,
        "many": random.standard_normal((1 << 14, 64)),
        "positive": np.abs(normal),
        "zeros": np.zeros((4, 64)),
        "constant": np.full((4, 64), 0.3),
        "ties": random.integers(-32, 33, (1024, 64)) / 2,
        "scales": normal * 2.0 ** random.integers(-120, 100, (1024, 1)),
        "float16's ends": normal * 2.0 ** random.integers(-30, 20, (1024, 1)),
        "largest": np.clip(normal * 2e38, -3.4e38, 3.4e38),
        "denormal": normal * 1e-40,
        "least": normal * 2.0 ** random.integers(-149, -120, (1024, 1)),
    }
    return {name: array.astype(np.float32) for name, array in rows.items()}


@pytest.mark.parametrize("block_type", QUANTIZED)
def test_bytes_and_weights_are_those_of_gguf_py(block_type: Quantized) -> None:
    kind = gguf.GGMLQuantizationType[block_type.upper()]
    for name, rows in make_rows().items():
        with np.errstate(all="ignore"):
            wanted = gguf.quants.quantize(rows, kind)
            packed = quantize(rows, block_type)
            assert packed.tobytes() == wanted.tobytes(), name
            weights, found = gguf.quants.dequantize(wanted, kind), dequantize(packed, block_type, rows.shape)
        np.testing.assert_array_equal(found, weights, err_msg=name)
