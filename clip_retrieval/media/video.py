"""Videos by PyAV: the frame on the screen at a time, as a picture. Hostile files may kill the process."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from fractions import Fraction
from itertools import chain, dropwhile
from math import ceil
from typing import Any

from PIL import Image

from clip_retrieval.blobs import open_raw
from clip_retrieval.errors import ImageError, one_line
from clip_retrieval.git_lfs import describe_pointer
from clip_retrieval.media.drawing import Shape, draw, whole_size
from clip_retrieval.media.places import advice, in_seconds
from clip_retrieval.other_files import LOOKED_AT, describe_start

MOST_PIXELS = 178_956_970  # of a frame if no other limit is given: that of pictures
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,asf,mpeg,mpegts,ogg"  # no playlist, which would open other files
)
MAY_BE_VIDEO = ("a video", "a sound", "an Ogg", "a HEIC")  # what a file begins as if ffmpeg has to look into it
BUFFER_BYTES = 1 << 18
LEAPS = (0, 2_000, 20_000)  # milliseconds before the wanted time to seek to, if the index of a file is not exact
WORTH_SEEKING = 10_000  # milliseconds ahead, in files whose key frames are not known
QUALITY = 92  # of a JPEG that is shown


class Video:
    """An opened video; raises ImageError: needs_plugin, empty, git_lfs_pointer, decode, no_video, too_large.

    Frames are cheap in the order of their times: each is decoded from the one before, or from the last key frame.
    A rough one leaves out frames on which no other depends, and does not smooth the edges of blocks.
    """

    def __init__(self, url: str, most_pixels: int = MOST_PIXELS, *, is_rough: bool = False) -> None:
        try:
            import av  # noqa: PLC0415 -- an extra, and 60 ms
        except ImportError as error:
            raise ImageError("needs_plugin", advice("video")) from error
        self.av, self.url, self.most_pixels, self.is_rough = av, url, most_pixels, is_rough
        with ExitStack() as stack:
            self.open(stack)
            self.stack = stack.pop_all()

    def open(self, stack: ExitStack) -> None:
        file = stack.enter_context(open_raw(self.url))
        head = file.read(LOOKED_AT)
        if not head:
            raise ImageError("empty", "the file has no bytes")
        if (pointer := describe_pointer(head)) is not None:
            raise ImageError("git_lfs_pointer", pointer)
        file.seek(0)
        other = describe_start(head)
        if other is not None and not other.startswith(MAY_BE_VIDEO):
            raise ImageError("decode", f"is no video: it is {other}")
        with self.explaining("is no video, or damaged beyond what says what it holds"):
            self.container: Any = stack.enter_context(
                self.av.open(
                    file, buffer_size=BUFFER_BYTES, metadata_errors="ignore", options={"format_whitelist": FORMATS}
                )
            )
        cover = self.av.stream.Disposition.attached_pic
        streams = [stream for stream in self.container.streams.video if not stream.disposition & cover]
        if not self.container.streams:
            raise ImageError("decode", "the file says nothing of what it holds: it is cut off or damaged")
        if not streams:
            raise ImageError("no_video", "the file holds sound or other data, but no video")
        self.stream: Any = streams[0]
        self.head: Any = None  # the packet of the key frame that was sought
        self.start_here(self.packets())
        codec = self.stream.codec_context
        if codec is None:
            raise ImageError("decode", "its frames have a format that is not known")
        self.check_size(codec.width, codec.height)
        codec.thread_count, codec.thread_type = 1, "NONE"
        codec.options = {"max_pixels": str(self.most_pixels)}
        if self.is_rough:
            codec.options |= {"skip_loop_filter": "all"}
            codec.skip_frame = "NONREF"

    def start_here(self, packets: Iterable[Any]) -> None:
        """Forget the frames of another place."""
        self.frames = self.decoded(packets)
        self.is_alone = False  # the frame on the screen was decoded without those around it
        self.now: Any = None  # the frame on the screen
        self.after: Any = None  # the one after it, if it is decoded already
        self.is_torn = False  # something after the frame on the screen could not be decoded
        self.has_ended = False

    def check_size(self, width: int, height: int) -> None:
        if width * height > self.most_pixels:
            raise ImageError("too_large", f"frames of {width:,} x {height:,} are more than {self.most_pixels:,} pixels")

    @contextmanager
    def explaining(self, what: str) -> Iterator[None]:
        """Turn an error of ffmpeg, or one of reading the file, into an ImageError."""
        try:
            yield
        except ImageError:
            raise
        except self.av.FFmpegError as error:
            raise ImageError("decode", f"{what} ({one_line(error.strerror)})") from error
        except Exception as error:  # a store's library may raise anything
            raise ImageError("unreadable", one_line(error)) from error

    @property
    def origin(self) -> Fraction:
        """When the file begins, in milliseconds of its own clock."""
        return Fraction(self.container.start_time or 0, 1000)

    @property
    def duration(self) -> int | None:
        """The length that the file claims, in milliseconds."""
        if self.stream.duration is not None:
            return self.milliseconds(self.stream.duration + (self.stream.start_time or 0))
        return None if self.container.duration is None else -(-self.container.duration // 1000)

    def milliseconds(self, timestamp: int) -> int:
        """Return a time of the stream from the beginning of the file, rounded up: its frame is on the screen then."""
        since: int = ceil(timestamp * self.stream.time_base * 1000 - self.origin)
        return max(0, since)

    def timestamp(self, moment: int) -> int:
        return int((moment + self.origin) / 1000 / self.stream.time_base)

    def time(self, frame: Any) -> int:
        return self.milliseconds(frame.pts)

    def packets(self, *, all_streams: bool = False) -> Iterator[Any]:
        """Yield packets from where the file is to its end, or to where it cannot be read on."""
        with suppress(self.av.FFmpegError):
            yield from self.container.demux() if all_streams else self.container.demux(self.stream)

    def decoded(self, packets: Iterable[Any]) -> Iterator[Any]:
        """Yield the frames of packets; what cannot be decoded is left out, and noted."""
        for packet in packets:
            try:
                frames = packet.decode()
            except self.av.FFmpegError:
                self.is_torn = True
                continue
            yield from (frame for frame in frames if frame.pts is not None)

    def frame_at(self, moment: int) -> Any:
        """Return the frame on the screen at a time, or the first one if there is none yet."""
        if self.is_elsewhere(moment):
            self.seek(moment, alone=True)
        while self.now is None or self.time(self.now) < moment:
            after = self.peek()
            if after is None or (self.now is not None and self.time(after) > moment):
                break
            self.now, self.after, self.is_torn = after, None, False
        if self.now is None:
            raise ImageError("decode", "no frame of the video can be decoded")
        if self.has_ended and moment > max(self.time(self.now), self.duration or 0):
            raise ImageError("decode", f"the video ends after {in_seconds(self.time(self.now))} s by now")
        if self.now.is_corrupt or (self.is_torn and self.time(self.now) != moment):
            raise ImageError("decode", "the video is damaged here")
        self.check_size(self.now.width, self.now.height)
        return self.now

    def peek(self) -> Any:
        """Return the frame after the one on the screen; None at the end."""
        if self.after is None and not self.has_ended:
            self.after = next(self.frames, None)
            self.has_ended = self.after is None
        return self.after

    def following(self) -> Iterator[Any]:
        """Yield the frames after the one on the screen."""
        while (frame := self.peek()) is not None:
            self.now, self.after = frame, None
            yield frame

    def is_elsewhere(self, moment: int) -> bool:
        """Say whether a time is reached sooner, or only, from a key frame."""
        last = self.after or self.now
        if last is None:
            return moment > 0
        if self.is_alone:
            return moment != self.time(self.now)
        if self.now is not None and moment < self.time(self.now):
            return True
        if moment <= self.time(last) or self.has_ended:
            return False
        entries = self.stream.index_entries
        place = entries.search_timestamp(self.timestamp(moment))
        if place >= 0 and entries[place].timestamp > last.pts:
            return True
        is_known = "mov" in self.container.format.name  # all key frames are in the index
        return not is_known and place in (-1, len(entries) - 1) and moment - self.time(last) > WORTH_SEEKING

    def seek(self, moment: int, *, alone: bool = False) -> None:
        """Go to a key frame before a time, or take the one that is there, `alone`, if no other frame is wanted."""
        for leap in LEAPS:
            if leap <= moment:
                self.go_to(self.timestamp(moment - leap))
                head = self.head
                if alone and head is not None and head.pts is not None and self.milliseconds(head.pts) == moment:
                    if self.take_alone(head):
                        return
                    self.go_to(self.timestamp(moment - leap))
                first = self.peek()
                if first is not None and self.time(first) <= moment:
                    return
        self.rewind()

    def time_of_key_frame(self, decoded: int, following: int) -> int | None:
        """Return when a key frame is on the screen, by the times of decoding it and the one after it."""
        with suppress(self.av.FFmpegError):
            self.container.seek((decoded + following) // 2, stream=self.stream)
            packet = next(self.packets(), None)
            if packet is not None and packet.dts == decoded and packet.is_keyframe:
                return packet.pts  # type: ignore[no-any-return]
        return None

    def take_alone(self, packet: Any) -> bool:
        """Take the frame of a key frame's packet, for which no other is decoded; say whether there is one.

        A flushed decoder cannot go on: the next frame needs a new seek.
        """
        try:
            frames = [frame for frame in (*packet.decode(), *packet.stream.decode(None)) if frame.pts == packet.pts]
        except self.av.FFmpegError:
            frames = []
        if frames:
            self.now, self.is_alone = frames[0], True
        return bool(frames)

    def go_to(self, timestamp: int) -> None:
        try:
            self.container.seek(timestamp, stream=self.stream)
        except self.av.FFmpegError:  # it has no index, or one that is damaged
            self.rewind()
        else:
            packets = dropwhile(lambda packet: not packet.is_keyframe, self.packets())  # others cannot be decoded
            self.head = next(packets, None)
            self.start_here(packets if self.head is None else chain([self.head], packets))

    def rewind(self) -> None:
        """Go to the beginning. The file is opened again: some formats find their first key frame in no other way."""
        self.close()
        with ExitStack() as stack:
            self.open(stack)
            self.stack = stack.pop_all()

    def picture(self, moment: int | None, shape: Shape) -> tuple[Image.Image, int | None]:
        """Return the frame at a time in RGB, upright, with square pixels, and its number in the video.

        It is scaled down to no less than `shape` says.
        """
        if moment is None:
            raise ImageError("decode", "the frames of the video could not be listed")
        with self.explaining("the frame cannot be made a picture"):
            frame = self.frame_at(moment)
            return draw(frame, self.stream.sample_aspect_ratio, shape), self.number(frame)

    def number(self, frame: Any) -> int | None:
        """Return the number of a frame, from 0; for videos with frames of different lengths, by their average."""
        rate = self.stream.average_rate or self.stream.guessed_rate
        if not rate:
            return None
        since = (frame.pts - (self.stream.start_time or 0)) * self.stream.time_base
        number: int = round(since * rate)
        return max(0, number)

    def close(self) -> None:
        self.stack.close()


def picture_of_frame(url: str, moment: int) -> bytes:
    """Return the frame at a time as a JPEG; raises ImageError or OSError."""
    with closing(Video(url)) as video:
        image, _ = video.picture(moment, whole_size)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
