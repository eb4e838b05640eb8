"""The frames that are wanted of a video, as a helper process lists them, step by step. Loads no library."""

from __future__ import annotations

from itertools import pairwise
from math import ceil
from typing import Any, NamedTuple

from clip_retrieval.media.config import VideoConfig
from clip_retrieval.media.helper import Helper

WIDEST = 12_000  # milliseconds between chosen key frames: encoders make one each 250 frames, if not more often


class Step(NamedTuple):
    """Where reading goes on: from a time in milliseconds, after what was seen of the frames before it."""

    moment: int
    seen: Any = None


class Listed(NamedTuple):
    """Times of frames, and of the end of what was read, in milliseconds; `after` is the next step, if there is one."""

    moments: list[int]
    end: int
    after: Step | None = None
    is_cut: bool = False  # the file claims to go on


def list_video(helper: Helper, url: str, config: VideoConfig) -> Listed:
    """Return the frames that are wanted of a video, as a helper process finds them. Raises ImageError."""
    moments, step = list[int](), None
    while True:
        listed: Listed = helper.ask("list_frames", url, config, step)
        moments += listed.moments
        if listed.after is None:
            break
        step = listed.after
    if config.video_frames == "keyframes":
        moments = fill_gaps(thin_out(moments, config.frames_per_second), listed.end, config.frames_per_second)
    return listed._replace(moments=spread(moments, config.frames_per_video))


def thin_out(moments: list[int], rate: float) -> list[int]:
    """Return the first time of each period: some videos hold every frame whole."""
    return list({int(moment * rate // 1000): moment for moment in reversed(moments)}.values())[::-1]


def fill_gaps(moments: list[int], end: int, rate: float) -> list[int]:
    """Return times that are nowhere further apart than those of most films: some videos hold one frame whole."""
    widest = max(WIDEST, ceil(1000 / rate))
    filled = list[int]()
    for moment, following in pairwise([*moments, end]):
        count = max(1, ceil((following - moment) / widest))
        filled += [moment + (following - moment) * place // count for place in range(count)]
    return filled


def spread(moments: list[int], most: int | None) -> list[int]:
    """Return so many of the times at most, evenly chosen."""
    if most is None or len(moments) <= most:
        return moments
    return [moments[place * len(moments) // most] for place in range(most)]
