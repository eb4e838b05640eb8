"""The frames that are wanted of a video, as a helper process lists them, step by step. Loads no library."""

from __future__ import annotations

from typing import Any, NamedTuple

from clip_retrieval.media.config import VideoConfig
from clip_retrieval.media.helper import Helper


class Step(NamedTuple):
    """Where reading goes on: from a time in milliseconds, after what was seen of the frames before it."""

    moment: int
    seen: Any = None


class Listed(NamedTuple):
    """Times of frames in milliseconds; `after` is the next step, if there is one, `cut` the end of a file cut short."""

    moments: list[int]
    after: Step | None = None
    cut: int | None = None


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
        moments = thin_out(moments, config.frames_per_second)
    return Listed(spread(moments, config.frames_per_video), cut=listed.cut)


def thin_out(moments: list[int], rate: float) -> list[int]:
    """Return the first time of each period: some videos hold every frame whole."""
    return list({int(moment * rate // 1000): moment for moment in reversed(moments)}.values())[::-1]


def spread(moments: list[int], most: int | None) -> list[int]:
    """Return so many of the times at most, evenly chosen."""
    if most is None or len(moments) <= most:
        return moments
    return [moments[place * len(moments) // most] for place in range(most)]
