"""Where the scenes of a video begin, in a part of it: frames that differ from the one before.

Frames on which no other frame depends are left out, which halves the work: a scene is taken to begin with the next one,
in most videos at most three frames later. Edges of blocks are not smoothed, because frames are compared small.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from clip_retrieval.media.listed import Listed, Step
from clip_retrieval.media.video import Video

STEP_SECONDS = 20.0  # of work, after which a step ends
SMALL = (64, 36)  # pixels of a frame that is compared with the next one
BEFORE = (1_000, 20_000)  # milliseconds before a part, with the two frames that its first one is compared with


@dataclass
class Measure:
    """Compares each frame with the one before.

    The measure is that of ffmpeg's filter `scdet`: the mean difference of two frames in percent, or by how much that
    differs from the difference before, if this is less; so continuing motion begins no scene.
    """

    last: Any = None
    change: float = 0.0
    seen: int = 0

    def add(self, frame: Any) -> float:
        """Return how a frame differs from the one before."""
        import numpy as np  # noqa: PLC0415 -- a tenth of a second of each helper's start

        small = frame.reformat(*SMALL, format="rgb24", interpolation="AREA", threads=1).to_ndarray().astype(np.int16)
        then, self.change = self.change, 0.0 if self.last is None else float(np.abs(small - self.last).mean()) / 2.55
        self.last, self.seen = small, self.seen + 1
        return min(self.change, abs(self.change - then))


def list_changes(url: str, threshold: float, start: int, stop: int | None) -> Listed:
    """Return the times of frames from `start` on, before `stop`, that differ from the one before; and of the first one.

    After STEP_SECONDS of work, `after` says from where the next question goes on. Raises ImageError or OSError.
    """
    moments, end, hurry = list[int](), start, time.monotonic() + STEP_SECONDS
    with closing(Video(url, is_rough=True)) as video:
        for moment, change in changes_from(video, start):
            if stop is not None and moment >= stop:
                break
            if moment > start and time.monotonic() > hurry:
                return Listed(moments, moment, Step(moment))
            end = moment
            if change >= threshold or (not start and not moments):
                moments.append(moment)
    return Listed(moments, end)


def changes_from(video: Video, start: int) -> Iterator[tuple[int, float]]:
    """Yield the times of frames from one on, and how each differs from the frame before it, also the first one."""
    for lead in (*BEFORE, start):
        if start:
            video.seek(max(0, start - lead))
        measure = Measure()
        for frame in video.following():
            moment = video.time(frame)
            is_known = measure.seen > 1 or lead >= start
            if moment >= start and not is_known:
                break  # begin farther back
            change = measure.add(frame)
            if moment >= start:
                yield moment, change
        else:
            return
