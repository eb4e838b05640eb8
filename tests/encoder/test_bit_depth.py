"""Samples of 1 to 32 bits keep their tones, and their transparent color, in every format that has them."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from clip_retrieval.encoder.bit_depth import to_8_bits
from clip_retrieval.encoder.images import decode_image

GRAY, RGB, GRAY_ALPHA = 0, 2, 4  # color types of PNG
CLEAR = [255] * 3
LONG, SHORT = 4, 3  # types of TIFF


def pixels(data: bytes) -> list[list[int]]:
    """Return the colors of a picture of one row."""
    colors: list[list[int]] = np.asarray(decode_image(data))[0].tolist()
    return colors


def png(bits: int, color_type: int, row: bytes, transparent: bytes | None = None) -> bytes:
    """Return a PNG of 2 x 1 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">2I5B", 2, 1, bits, color_type, 0, 0, 0)),
            chunk(b"tRNS", transparent) if transparent is not None else b"",
            chunk(b"IDAT", zlib.compress(b"\0" + row)),
            chunk(b"IEND", b""),
        ]
    )


def tiff(order: str, bits: int, row: bytes, *, photometric: int = 1, sample_format: int = 1) -> bytes:
    """Return an uncompressed TIFF of 2 x 1 gray pixels, in little-endian (<) or big-endian (>) order."""
    tags = [
        (256, LONG, 2), (257, LONG, 1), (258, SHORT, bits), (259, SHORT, 1), (262, SHORT, photometric),
        (273, LONG, 8 + 2 + 12 * 10 + 4), (277, SHORT, 1), (278, LONG, 1), (279, LONG, len(row)),
        (339, SHORT, sample_format),
    ]  # fmt: skip
    entries = [
        struct.pack(f"{order}HHI{'I' if kind == LONG else 'H2x'}", tag, kind, 1, value) for tag, kind, value in tags
    ]
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    return header + b"".join(entries) + bytes(4) + row


@pytest.mark.parametrize(
    ("bits", "row", "transparent", "expected"),
    [
        (1, b"\x40", 1, [[0] * 3, CLEAR]),
        (1, b"\x40", 0, [CLEAR, [255] * 3]),
        (2, b"\x60", 2, [[85] * 3, CLEAR]),
        (4, b"\x19", 9, [[17] * 3, CLEAR]),
        (8, b"\x10\x90", 0x90, [[16] * 3, CLEAR]),
        (8, b"\x10\x90", 0x310, [CLEAR, [144] * 3]),  # only the low bits count
        (16, b"\x10\x00\x90\x12", 0x9012, [[16] * 3, CLEAR]),
        (16, b"\x90\x13\x90\x12", 0x9012, [[144] * 3, CLEAR]),
    ],
)
def test_the_transparent_gray_of_a_png_is_white(
    bits: int, row: bytes, transparent: int, expected: list[list[int]]
) -> None:
    assert pixels(png(bits, GRAY, row, struct.pack(">H", transparent))) == expected


@pytest.mark.parametrize(
    ("bits", "row", "transparent"),
    [
        (8, bytes([1, 2, 3, 4, 5, 6]), (4, 5, 6)),
        (16, bytes([1, 0, 2, 0, 3, 0, 4, 9, 5, 9, 6, 9]), (0x409, 0x509, 0x609)),
    ],
)
def test_the_transparent_color_of_a_png_is_white(bits: int, row: bytes, transparent: tuple[int, ...]) -> None:
    assert pixels(png(bits, RGB, row, struct.pack(">3H", *transparent))) == [[1, 2, 3], CLEAR]


def test_16_bit_gray_with_alpha_is_laid_on_white() -> None:
    assert pixels(png(16, GRAY_ALPHA, struct.pack(">4H", 0x4000, 0xFFFF, 0x1234, 0))) == [[64] * 3, CLEAR]


@pytest.mark.parametrize(
    ("order", "photometric", "values", "expected"),
    [
        *((order, 1, *tones) for order in "<>" for tones in [((0, 65535), (0, 255)), ((1, 200), (0, 1))]),
        *((order, 1, (0x4000, 0x8000), (64, 128)) for order in "<>"),
        ("<", 0, (0, 65535), (255, 0)),  # Pillow opens no big-endian one where 0 is white
    ],
)
def test_16_bit_tiff_keeps_its_tones_in_both_byte_orders(
    order: str, photometric: int, values: tuple[int, int], expected: tuple[int, int]
) -> None:
    data = tiff(order, 16, struct.pack(f"{order}2H", *values), photometric=photometric)

    assert [red for red, _, _ in pixels(data)] == list(expected)


def test_12_bit_tiff_keeps_its_tones() -> None:
    assert [red for red, _, _ in pixels(tiff("<", 12, bytes([0x80, 0x0F, 0xFF])))] == [128, 255]


@pytest.mark.parametrize(
    ("bits", "kind", "sample_format", "values", "expected"),
    [
        (32, "I", 1, (0, 65535), (0, 255)),
        (32, "I", 1, (7, 200), (7, 200)),
        (32, "I", 1, (0, 2**32 - 1), (0, 255)),
        (32, "I", 1, (16_843_009 * 3, 16_843_009 * 200), (3, 200)),
        (32, "I", 1, (100_000, 300_000), (0, 255)),  # no known range: stretched
        (32, "i", 2, (2**31 // 4, 2**31 - 1), (64, 255)),
        (8, "b", 2, (0, 100), (0, 100)),
        (8, "b", 2, (-128, 127), (0, 255)),
        (16, "h", 2, (0, 255), (0, 255)),
        (16, "h", 2, (8192, 32767), (64, 255)),
        (16, "h", 2, (-100, 100), (0, 255)),
        (32, "i", 2, (-5, 100), (0, 255)),
        (32, "f", 3, (0.5, 1.0), (128, 255)),
        (32, "f", 3, (20.0, 90.0), (20, 90)),
        (32, "f", 3, (0.5, float("inf")), (128, 255)),
        (32, "f", 3, (0.5, float("nan")), (128, 0)),
        (32, "f", 3, (90.0, float("-inf")), (90, 0)),
    ],
)
def test_wide_tiff_keeps_its_tones(
    bits: int, kind: str, sample_format: int, values: tuple[float, float], expected: tuple[int, int]
) -> None:
    data = tiff("<", bits, struct.pack(f"<2{kind}", *values), sample_format=sample_format)

    assert [red for red, _, _ in pixels(data)] == list(expected)


@pytest.mark.parametrize("largest", [1, 15, 255, 256, 1023, 65535])
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_graymap_is_scaled_by_the_largest_value_that_it_names(largest: int, share: float) -> None:
    value = int(share * largest)
    row = struct.pack(">2H", value, 0) if largest > 255 else bytes([value, 0])

    first, second = pixels(b"P5 2 1 %d\n" % largest + row)

    assert first[0] == pytest.approx(255 * value / largest, abs=1)
    assert second[0] == 0


@pytest.mark.parametrize(("order", "scale"), [("<", "-1.0"), (">", "1.0")])
def test_a_float_map_keeps_its_tones_in_both_byte_orders(order: str, scale: str) -> None:
    data = f"Pf\n2 1\n{scale}\n".encode() + struct.pack(f"{order}2f", 0.5, 1.0)

    assert [red for red, _, _ in pixels(data)] == [128, 255]


def test_a_16_bit_jpeg_2000_keeps_its_tones() -> None:
    file = io.BytesIO()
    Image.fromarray(np.array([[0x4000, 0xFFFF]] * 2, np.uint16)).save(file, "JPEG2000", irreversible=False)

    assert [red for red, _, _ in pixels(file.getvalue())] == [64, 255]


HIGHLIGHTS = np.concatenate([np.linspace(0, 1, 996), [1.2, 30.0, np.inf, np.nan]]).astype(np.float32)


def test_a_few_samples_do_not_change_the_range_of_a_float_picture() -> None:
    narrow = to_8_bits(HIGHLIGHTS)

    np.testing.assert_array_equal(narrow[:996], np.rint(np.linspace(0, 1, 996, dtype=np.float32).astype(float) * 255))
    assert narrow[996:].tolist() == [255, 255, 255, 0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([0, 255], np.int32), [0, 255]),
        (np.array([0, 65535], np.int32), [0, 255]),
        (np.array([-1, 1], np.int32), [0, 255]),
        (np.array([10, 70_000], np.int32), [0, 255]),
        (np.array([0, 1], np.float32), [0, 255]),
        (np.array([0, 255], np.float32), [0, 255]),
        (np.array([0, 300], np.float32), [0, 255]),
        (np.array([-1, 0, np.nan, np.inf], np.float32), [0, 255, 0, 255]),
        (np.array([np.nan, 1], np.float32), [0, 255]),
        (np.array([0, np.inf], np.float32), [0, 255]),
        (np.array([np.nan, np.inf, -np.inf], np.float32), [0, 255, 0]),
        (np.array([7, 7], np.float32), [7, 7]),
    ],
)
def test_samples_of_unknown_range_become_8_bits(values: NDArray[np.float32], expected: list[int]) -> None:
    assert to_8_bits(values).tolist() == expected
