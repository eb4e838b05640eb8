"""A decoded frame to a picture: in RGB, upright, with square pixels, scaled down."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

from PIL import Image

HIGH_DEFINITION = 720  # lines; from here on colors are those of BT.709 if a file does not say
HDR = (16, 18)  # AVCOL_TRC_SMPTE2084 (PQ) and AVCOL_TRC_ARIB_STD_B67 (HLG) of libavutil's pixfmt.h
UNSAID = 2  # AVCOL_SPC_UNSPECIFIED of libavutil's pixfmt.h
AVERAGED = 0.5  # of the size: lines are averaged up to here, and those of two fields, too
MOST_STRETCHED = 8  # longest to shortest side of a pixel; more is a mistake
TURNS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}

Shape = Callable[[int, int], tuple[int, int]]  # width and height of a frame to the least ones to scale it down to


def draw(frame: Any, ratio: Fraction | None, shape: Shape) -> Image.Image:
    """Return a frame, whose pixels have sides of this ratio, scaled down to no less than `shape` says."""
    turn = frame.rotation % 360
    width, height = square(frame.width, frame.height, ratio)
    is_on_its_side = turn in (90, 270)
    across, down = shape(height, width) if is_on_its_side else shape(width, height)
    across, down = (down, across) if is_on_its_side else (across, down)
    scale = min(1.0, max(across / width, down / height))
    if frame.interlaced_frame and scale > AVERAGED:
        frame = of_one_field(frame)
    is_hdr = frame.color_trc in HDR
    small = frame.reformat(
        width=max(1, round(width * scale)),
        height=max(1, round(height * scale)),
        format="rgb48le" if is_hdr else "rgb24",
        interpolation="AREA" if scale < 1 else "BICUBIC",
        src_colorspace=colors_of(frame),
        threads=1,
    )
    image = in_srgb(small, frame.color_trc) if is_hdr else small.to_image()
    return image.transpose(TURNS[turn]) if turn in TURNS else image


def of_one_field(frame: Any) -> Any:
    """Return an interlaced frame with the lines of one field and others between: two moments would make combs."""
    import av  # noqa: PLC0415 -- an extra, and 60 ms

    graph = av.filter.Graph()
    first = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1, 1000)
    )
    last = graph.add("buffersink")
    graph.link_nodes(first, graph.add("yadif"), last).configure()
    graph.push(frame)
    graph.push(None)
    drawn: Any = graph.pull()
    drawn.colorspace, drawn.color_range, drawn.color_trc = frame.colorspace, frame.color_range, frame.color_trc
    return drawn


def in_srgb(frame: Any, transfer: int) -> Image.Image:
    """Return a frame of high dynamic range as a picture of the usual one."""
    from clip_retrieval.media.hdr import to_srgb  # noqa: PLC0415 -- NumPy, a tenth of a second of each helper's start

    return Image.fromarray(to_srgb(frame.to_ndarray(), transfer))


def colors_of(frame: Any) -> str | None:
    """Return the matrix of the colors if the file does not say: players take it from the size."""
    return "ITU709" if frame.colorspace == UNSAID and frame.height >= HIGH_DEFINITION else None


def square(width: int, height: int, ratio: Fraction | None) -> tuple[int, int]:
    """Return the size with square pixels, by stretching; for an implausible ratio, the size unchanged."""
    if not ratio or ratio == 1 or not 1 / MOST_STRETCHED <= ratio <= MOST_STRETCHED:
        return width, height
    return (round(width * ratio), height) if ratio > 1 else (width, round(height / ratio))


def whole_size(width: int, height: int) -> tuple[int, int]:
    return width, height
