"""The frames that are wanted of a video, as helper processes list them, step by step. Loads no library.

Finding scenes takes minutes, so those of a file are kept in this machine's cache, as long as the file is unchanged.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

from clip_retrieval.cache_home import cache_home, keep_small, read_small
from clip_retrieval.media.config import VideoConfig
from clip_retrieval.media.helper import Helpers
from clip_retrieval.media.places import PlaceRef

WIDEST = 12_000  # milliseconds between chosen key frames: encoders make one each 250 frames, if not more often
CUT_MILLISECONDS = 500, 2000  # less than the length that a file claims: streams end at different times
LEAST_SCENE = 500  # milliseconds of a scene, at least: a flash is not a scene
SCENES = 2  # version of the method that finds scenes; kept ones of another version are ignored


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


class Spans(NamedTuple):
    """Parts of a video in milliseconds; `claimed` is the length of a file that claims to go on where it ends."""

    spans: list[tuple[int, int | None]]
    claimed: int | None


def least_end(claimed: int) -> int:
    """Return where a file that claims a length ends at the earliest, unless it was cut off."""
    least, most = CUT_MILLISECONDS
    return claimed - min(most, max(least, claimed // 4))


def list_video(helpers: Helpers, file: PlaceRef, config: VideoConfig) -> Listed:
    """Return the frames that are wanted of a video, as helper processes find them. Raises ImageError."""
    if config.video_frames == "scenes":
        listed = remember(file, config.scene_threshold) or list_scenes(helpers, file, config.scene_threshold)
        return listed._replace(moments=spread(listed.moments, config.frames_per_video))
    moments, step = list[int](), None
    while True:
        listed = Listed(*helpers.ask("list_frames", file.url, config, step))
        moments += listed.moments
        if listed.after is None:
            break
        step = listed.after
    if config.video_frames == "keyframes":
        moments = fill_gaps(thin_out(moments, config.frames_per_second), listed.end, config.frames_per_second)
    return listed._replace(moments=spread(moments, config.frames_per_video))


def list_scenes(helpers: Helpers, file: PlaceRef, threshold: float) -> Listed:
    """Return the first frames of the scenes of a video: of parts of it at once, by as many processes as there are."""
    found: Spans = helpers.ask("find_spans", file.url)
    with ThreadPoolExecutor(min(len(found.spans), helpers.count)) as pool:
        parts = list(pool.map(partial(list_span, helpers, file.url, threshold), found.spans))
    moments = apart(sorted(moment for part in parts for moment in part.moments))
    end = max(part.end for part in parts)
    listed = Listed(moments, end, is_cut=found.claimed is not None and end < least_end(found.claimed))
    keep(file, threshold, listed)
    return listed


def list_span(helpers: Helpers, url: str, threshold: float, span: tuple[int, int | None]) -> Listed:
    """Return the times of frames in a part of a video that differ from the one before."""
    moments, (start, stop) = list[int](), span
    while True:
        listed: Listed = helpers.ask("list_changes", url, threshold, start, stop)
        moments += listed.moments
        if listed.after is None:
            return listed._replace(moments=moments)
        start = listed.after.moment


def apart(moments: list[int]) -> list[int]:
    """Return the times without any that follow the previous one too soon."""
    kept = list[int]()
    for moment in moments:
        if not kept or moment - kept[-1] >= LEAST_SCENE:
            kept.append(moment)
    return kept


def kept_place(file: PlaceRef, threshold: float) -> Path | None:
    """Return where the scenes of a file are kept; None if nothing says whether it has changed."""
    if not file.stamp:
        return None
    key = json.dumps([SCENES, file.url, file.size, file.stamp, threshold])
    return cache_home() / "scenes" / f"{hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}.json"


def remember(file: PlaceRef, threshold: float) -> Listed | None:
    """Return the scenes of a file that were kept."""
    place = kept_place(file, threshold)
    data = None if place is None else read_small(place)
    if data is None:
        return None
    with suppress(ValueError, TypeError, KeyError):  # what was kept is damaged
        moments, end, is_cut = json.loads(data)
        return Listed(list(map(int, moments)), int(end), is_cut=bool(is_cut))
    return None


def keep(file: PlaceRef, threshold: float, listed: Listed) -> None:
    place = kept_place(file, threshold)
    if place is not None:
        keep_small(place, json.dumps([listed.moments, listed.end, listed.is_cut]))


def thin_out(moments: list[int], rate: float) -> list[int]:
    """Return the first time of each period: some videos hold every frame whole."""
    return list({int(moment * rate // 1000): moment for moment in reversed(moments)}.values())[::-1]


def fill_gaps(moments: list[int], end: int, rate: float) -> list[int]:
    """Return the times with others in wide gaps between them: some videos hold only one frame whole."""
    widest = max(WIDEST, ceil(1000 / rate))
    filled = list[int]()
    for moment, following in pairwise([*moments, end]):
        count = max(1, ceil((following - moment) / widest))
        filled += [moment + (following - moment) * place // count for place in range(count)]
    return filled


def spread(moments: list[int], most: int | None) -> list[int]:
    """Return at most so many of the times, evenly chosen."""
    if most is None or len(moments) <= most:
        return moments
    return [moments[place * len(moments) // most] for place in range(most)]
