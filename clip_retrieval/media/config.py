"""Which frames of a video are wanted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from clip_retrieval.errors import ConfigError
from clip_retrieval.options import check_least, option

# Times of frames are whole milliseconds, and rates fractions whose denominator is at most a million.
LEAST_RATE, MOST_RATE = 1e-6, 1000

VideoFrames = Literal["rate", "scenes", "keyframes"]


@dataclass(frozen=True, kw_only=True)
class VideoConfig:
    """Which frames of a video are samples."""

    video_frames: VideoFrames | None = option(
        None,
        help="files, video: which frames of videos are samples. rate: frames_per_second; scenes: one at the beginning "
        "of each scene, for which videos are decoded when they are first listed; keyframes: frames that are stored "
        "whole, the fastest to read, and some between if these are more than 12 seconds apart. None: rate for "
        "--input_format video, and no videos for files.",
        may_change=True,
    )
    frames_per_second: float = option(
        1.0,
        help="Frames per second of --video_frames rate, at most those of the video, and the most of keyframes; may be "
        "below 1.",
        may_change=True,
    )
    scene_threshold: float = option(
        10.0,
        help="Change from one frame to the next that begins a scene of --video_frames scenes, in percent of the "
        "brightness.",
        least=0,
        may_change=True,
    )
    frames_per_video: int | None = option(
        None, help="Most frames of one video, spread evenly over those it would have.", least=1, may_change=True
    )

    def __post_init__(self) -> None:
        check_least(self)
        if not LEAST_RATE <= self.frames_per_second <= MOST_RATE:
            raise ConfigError(
                f"frames_per_second is a number from {LEAST_RATE:f} to {MOST_RATE}, not {self.frames_per_second:g}"
            )
