"""Which frames of a video are samples: at a rate, or at key frames.

Reading through a video may take minutes, so it is read in steps: an answer may say where the next step starts.
"""

from __future__ import annotations

import time
from contextlib import closing
from fractions import Fraction
from itertools import pairwise
from math import ceil
from typing import Any

from clip_retrieval.errors import ImageError
from clip_retrieval.media.config import VideoConfig
from clip_retrieval.media.listed import Listed, Spans, Step, least_end
from clip_retrieval.media.video import LEAPS, Video

MOST_FRAMES = 1_000_000  # of a video
STEP_SECONDS = 20.0  # of work, after which a step ends
SPAN = 60_000  # milliseconds of a part of a video whose scenes are found by one process
MOST_SPANS = 1_000
INDEXED = {"mov", "matroska", "avi"}  # formats whose index names key frames, unless the file was cut off


def list_frames(url: str, config: VideoConfig, step: Step | None = None) -> Listed:
    """Return the times of the frames that are wanted of a video, or of a part of it; raises ImageError or OSError."""
    with closing(Video(url)) as video:
        end = end_by_seeking(video)
        if end is not None and config.video_frames == "rate":
            return Listed(moments_at(own_rate(video, config), end), end)
        if end is not None and config.video_frames == "keyframes" and is_indexed(video):
            found = keyframes_in_index(video)
            if found is not None:
                return Listed(checked(found), end)
        video.rewind()
        listed = list_keyframes(video, step or Step(0))
        if config.video_frames == "rate":
            moments = moments_at(own_rate(video, config), listed.end) if listed.after is None else []
            listed = listed._replace(moments=moments)
        checked(listed.moments)
        is_cut = end is None and listed.after is None and listed.end < least_end(claimed_end(video))
        return listed._replace(is_cut=is_cut)


def find_spans(url: str) -> Spans:
    """Return parts of a video whose scenes can be found in parallel; raises ImageError or OSError.

    They depend only on the file. A file that has no index, or does not end where it says, is one part.
    """
    with closing(Video(url)) as video:
        end = end_by_seeking(video)
        if end is None or not is_indexed(video):
            return Spans([(0, None)], None if end is not None else claimed_end(video))
        each = max(SPAN, end // MOST_SPANS)
        starts = range(0, end, each)
        return Spans([(start, None if start + each >= end else start + each) for start in starts], None)


def checked(moments: list[int]) -> list[int]:
    if len(moments) > MOST_FRAMES:
        raise too_many()
    return moments


def too_many() -> ImageError:
    return ImageError("too_many_frames", f"more than {MOST_FRAMES:,} frames of the video would be samples")


def own_rate(video: Video, config: VideoConfig) -> float:
    """Return the wanted rate, at most the video's own as its file says: a higher one would repeat frames."""
    stream = video.stream
    rates = [float(rate) for rate in (stream.base_rate, stream.average_rate, stream.guessed_rate) if rate]
    return min(config.frames_per_second, max(rates, default=config.frames_per_second))


def moments_at(rate: float, end: int) -> list[int]:
    """Return the times 0, 1/rate, 2/rate ... before the end, in milliseconds; 0 at least."""
    each = 1000 / Fraction(rate).limit_denominator(10**6)
    if end / each > MOST_FRAMES:
        raise too_many()
    return [ceil(number * each) for number in range(max(1, ceil(end / each)))]


def end_by_seeking(video: Video) -> int | None:
    """Return when the video ends, in milliseconds; None if its file ends earlier than it claims."""
    claimed = video.duration
    if claimed is None or video.container.duration is None:
        return None
    try:
        video.container.seek(video.timestamp(claimed), stream=video.stream)
    except video.av.FFmpegError:
        return None
    end = last = 0
    for packet in video.packets(all_streams=True):
        stop = packet_end(video, packet)
        last = max(last, stop)
        end = max(end, stop) if packet.stream == video.stream else end
    whole = max(claimed_end(video), video.container.duration // 1000)
    return end if end and last >= least_end(whole) else None


def claimed_end(video: Video) -> int:
    """Return when a video ends as its file says; of AVI by its frames: ffmpeg takes the length from the size."""
    rate, is_avi = video.stream.average_rate, video.container.format.name == "avi"
    by_count = int(video.stream.frames * 1000 / rate) if is_avi and rate else 0
    return max(by_count, video.duration or 0)


def packet_end(video: Video, packet: Any) -> int:
    """Return the end of a packet in milliseconds; 0 if it has no time, or not all of its bytes."""
    since = packet.dts if packet.pts is None else packet.pts
    if since is None or packet.is_corrupt:
        return 0
    length = packet.duration or (1 / (video.stream.average_rate * packet.time_base) if video.stream.average_rate else 0)
    end: int = ceil((since + length) * packet.time_base * 1000 - video.origin)
    return end


def is_indexed(video: Video) -> bool:
    return bool(INDEXED & set(video.container.format.name.split(",")))


def keyframes_in_index(video: Video) -> list[int] | None:
    """Return the times of the frames that are stored whole, as the file's index has them: no others are read.

    None if the index and the frames disagree.
    """
    entries = [(entry.timestamp, entry.is_keyframe and not entry.is_discard) for entry in video.stream.index_entries]
    times = [timestamp for timestamp, is_key in entries if is_key]
    if "mov" in video.container.format.name and len(times) < len(entries):
        # its index has the times of decoding, which precede those on the screen: each key frame says by how much
        shown = [video.time_of_key_frame(*pair) for pair in pairwise([*times, 2 * times[-1] - times[0] + 2])]
        if None in shown:
            return None
        times = shown
    return sorted(set(map(video.milliseconds, times)))


def list_keyframes(video: Video, step: Step) -> Listed:
    """Return the times of the frames that are stored whole, from a step on."""
    moments, end, stop = list[int](), step.seen or 0, time.monotonic() + STEP_SECONDS
    if step.moment:
        video.go_to(video.timestamp(max(0, step.moment - LEAPS[-1])))
    for packet in video.packets():
        since = packet.dts if packet.pts is None else packet.pts
        if since is None:
            continue
        end = max(end, packet_end(video, packet))
        moment = video.milliseconds(since)
        if packet.is_keyframe and not packet.is_corrupt and moment >= step.moment:
            if moment > step.moment and time.monotonic() > stop:
                return Listed(sorted(moments), end, Step(moment, end))
            moments.append(moment)
    return Listed(sorted(moments), end)
