"""Frames of videos: how many a core lists, decodes and resizes in a second, beside those that a model encodes.

python benchmarks/video.py FOLDER
python benchmarks/video.py FOLDER --model random:ViT-B-32
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from clip_retrieval.encoder.config import EncoderConfig, PictureConfig
from clip_retrieval.encoder.load import load_encoder
from clip_retrieval.encoder.pictures import fit_picture
from clip_retrieval.encoder.preprocess import Preprocess
from clip_retrieval.media.config import VideoConfig, VideoFrames
from clip_retrieval.media.frames import list_frames
from clip_retrieval.media.scenes import list_changes
from clip_retrieval.media.video import Video

SECONDS, RATE, ROUNDS, BATCH = 12, 30, 2, 16
PREPROCESS = Preprocess(224, (0.5,) * 3, (0.5,) * 3)
KINDS = (
    ("720p H.264, a key frame in 8 s", (1280, 720), "libx264", 240),
    ("1080p H.264, a key frame in 8 s", (1920, 1080), "libx264", 240),
    ("1080p H.264, a key frame in 1 s", (1920, 1080), "libx264", 30),
    ("1080p H.265, a key frame in 1 s", (1920, 1080), "libx265", 30),
    ("1080p VP9, a key frame in 4 s", (1920, 1080), "libvpx-vp9", 120),
    ("1080p AV1, a key frame in 4 s", (1920, 1080), "libsvtav1", 120),
)
ENCODERS = {  # options that encode fast
    "libx264": {"preset": "veryfast"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "b": "4M"},
    "libsvtav1": {"preset": "12", "crf": "40", "svtav1-params": "lp=2"},
}
WAYS: Sequence[VideoFrames] = ("rate", "keyframes", "scenes")


def write_video(path: Path, size: tuple[int, int], codec: str, key_frames: int) -> None:
    """Write a video whose camera moves over a picture, another one every four seconds."""
    random, (width, height) = np.random.default_rng(0), size
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=RATE, options=ENCODERS[codec])
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size = key_frames
        for number in range(SECONDS * RATE):
            if number % (4 * RATE) == 0:
                coarse = Image.fromarray(random.integers(0, 256, (20, 30, 3), dtype=np.uint8))
                fine = random.integers(0, 24, (height + 300, width + 300, 3), dtype=np.uint8)
                scene = np.asarray(coarse.resize((width + 300, height + 300))) // 8 * 7 + fine
            at = number % (4 * RATE)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(scene[at : at + height, at : at + width]), "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


def least_seconds(action: Callable[[], object]) -> float:
    """Return the CPU time, the least of several rounds."""
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.process_time()
        action()
        best = min(best, time.process_time() - start)
    return best


def list_all(path: Path, config: VideoConfig) -> list[int]:
    """Return the times of the frames that are wanted, found by this process alone."""
    if config.video_frames != "scenes":
        return list_frames(str(path), config).moments
    moments, start = list[int](), 0
    while True:
        listed = list_changes(str(path), config.scene_threshold, start, None)
        moments += listed.moments
        if listed.after is None:
            return moments
        start = listed.after.moment


def read_frames(path: Path, moments: Sequence[int]) -> None:
    with closing(Video(str(path))) as video:
        for moment in moments:
            image, _ = video.picture(moment, PREPROCESS.least_size)
            fit_picture(image, PREPROCESS, PictureConfig())


def measure(folder: Path) -> None:
    print("| | frames | list, ms | read, frames a second | seconds of video a second |\n|---|---|---|---|---|")
    for number, (name, shape, codec, key_frames) in enumerate(KINDS):
        path = folder / f"{number}.mp4"
        if not path.exists():
            write_video(path, shape, codec, key_frames)
        for way in WAYS:
            config = VideoConfig(video_frames=way)
            moments = list_all(path, config)
            listing = least_seconds(lambda path=path, config=config: list_all(path, config))
            reading = least_seconds(lambda path=path, moments=moments: read_frames(path, moments))
            print(
                f"| {name}, {way} | {len(moments)} | {listing * 1000:.1f} | {len(moments) / reading:.1f} | "
                f"{SECONDS / reading:.0f} |",
                flush=True,
            )


def encode(model: str) -> None:
    encoder = load_encoder(EncoderConfig(clip_model=model, device="cpu", precision="fp32"))
    size = encoder.info.preprocess.size
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, size, size, 3), dtype=np.uint8)
    encoder.encode_images(pixels)
    print(f"{model} encodes {BATCH / least_seconds(lambda: encoder.encode_images(pixels)):.1f} pictures a CPU second")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, help="where the videos are, or are written to, 30 MB")
    parser.add_argument("--model", help="measure this model instead")
    options = parser.parse_args()
    if options.model:
        encode(options.model)
    else:
        options.folder.mkdir(parents=True, exist_ok=True)
        measure(options.folder)


if __name__ == "__main__":
    main()
