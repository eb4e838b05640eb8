"""High dynamic range: values of the standards, and a video whose frames have the colors of usual pictures."""

from __future__ import annotations

from contextlib import closing
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from clip_retrieval.media.drawing import whole_size
from clip_retrieval.media.hdr import HLG, PQ, SCALED_WHITE, hlg_light, pq_light, to_srgb
from clip_retrieval.media.video import Video

PQ_OF_LIGHT = {0: 0.0, 100: 0.5081, 203: 0.5807, 1000: 0.7518, 10_000: 1.0}  # SMPTE ST 2084 and ITU-R BT.2408
RED: NDArray[np.float64] = np.array((0.6274, 0.0691, 0.0164))  # of BT.709 in BT.2020 (ITU-R BT.2087)


def gray(value: float, transfer: int) -> int:
    pixel = np.full((1, 1, 3), round(value * SCALED_WHITE), np.uint16)
    red, green, blue = to_srgb(pixel, transfer)[0, 0].tolist()
    assert max(red, green, blue) - min(red, green, blue) <= 1
    return int(green)


def test_light_is_that_of_the_standards() -> None:
    for light, value in PQ_OF_LIGHT.items():
        assert pq_light(np.array(value)) == pytest.approx(light, rel=2e-3)
    assert hlg_light(np.array([0.0, 0.5, 1.0])) == pytest.approx([0, 1 / 12, 1], abs=1e-6)
    assert 1000 * float(hlg_light(np.array(0.75))) ** 1.2 == pytest.approx(203, abs=0.5)  # BT.2408: white is at 75 %


def test_grays_keep_their_order_and_dark_ones_their_light() -> None:
    assert gray(PQ_OF_LIGHT[0], PQ) == 0
    assert gray(PQ_OF_LIGHT[100], PQ) == pytest.approx(186, abs=1)  # 0.489 of the white; 0.493 without the curve
    assert gray(PQ_OF_LIGHT[203], PQ) == pytest.approx(228, abs=1)  # 0.783: white has room for highlights above it
    assert gray(PQ_OF_LIGHT[1000], PQ) == gray(1, PQ) == gray(1, HLG) == 255
    assert gray(0.75, HLG) == pytest.approx(gray(PQ_OF_LIGHT[203], PQ), abs=1)
    values = np.linspace(0, SCALED_WHITE, 500).astype(np.uint16)
    shown = to_srgb(np.repeat(values[:, None, None], 3, axis=2), PQ)[:, 0, 1].astype(int)
    assert (np.diff(shown) >= 0).all()


def pq_bits(light: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the 10-bit luma and chroma of BT.2020 (non-constant luminance, narrow range) of light in cd/m2."""
    power = (light / 10_000) ** 0.1593017578125
    red, green, blue = ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    luma = 0.2627 * red + 0.6780 * green + 0.0593 * blue
    return np.array([64 + 876 * luma, 512 + 896 * (blue - luma) / 1.8814, 512 + 896 * (red - luma) / 1.4746])


def test_a_frame_of_high_dynamic_range_has_the_colors_of_a_usual_picture(tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="videos are read by PyAV: pip install av")
    with av.open(str(tmp_path / "a.mkv"), "w") as opened:
        stream = opened.add_stream("ffv1", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p10le"
        codec = stream.codec_context
        codec.colorspace, codec.color_primaries, codec.color_trc, codec.color_range = 9, 9, PQ, 1
        frame = av.VideoFrame(64, 64, "yuv420p10le")
        for plane, bits in zip(frame.planes, pq_bits(50.0 * RED), strict=True):
            plane.update(np.full(plane.buffer_size // 2, round(bits), np.uint16).tobytes())
        frame.pts, frame.time_base = 0, Fraction(1, 1)
        opened.mux([*stream.encode(frame), *stream.encode(None)])
    with closing(Video(str(tmp_path / "a.mkv"))) as video:
        red, green, blue = np.asarray(video.picture(0, whole_size)[0])[32, 32].tolist()
    assert red == pytest.approx(136, abs=2)  # 50 / 203 of the light of white
    assert max(green, blue) <= 12  # values of 10 bits are as far apart
