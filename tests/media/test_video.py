"""Frames of videos: the one on the screen at a time, upright and undistorted; which are listed; what is wrong."""

from __future__ import annotations

import io
import wave
from collections.abc import Callable
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clip_retrieval.cache_home import cache_home
from clip_retrieval.errors import ConfigError, ImageError
from clip_retrieval.media import frames, process, scenes
from clip_retrieval.media.config import VideoConfig, VideoFrames
from clip_retrieval.media.drawing import whole_size
from clip_retrieval.media.listed import Listed, fill_gaps, list_video, spread, thin_out
from clip_retrieval.media.places import PlaceRef, in_place_order, place_path, split_place
from clip_retrieval.media.video import Video, picture_of_frame

pytest.importorskip("av", reason="videos are read by PyAV: pip install av")

MakeVideo = Callable[..., bytes]
WAYS: tuple[VideoFrames, ...] = ("rate", "keyframes", "scenes")
COLORS = ("red", "lime", "blue", "yellow")
KINDS = (
    ("mp4", "libx265"),
    ("mp4", "mpeg4"),
    ("mp4", "libx264"),
    ("matroska", "mpeg4"),
    ("webm", "libvpx"),
    ("avi", "mpeg4"),
    ("mpegts", "mpeg4"),
)


class Here:
    """Answers in this process what helpers would be asked."""

    count = 1

    def ask(self, function: str, *arguments: object) -> Any:
        return process.FUNCTIONS[function](*arguments)


@pytest.fixture
def save(tmp_path: Path) -> Callable[[bytes], str]:
    def write(data: bytes) -> str:
        path = tmp_path / "a.mp4"
        path.write_bytes(data)
        return str(path)

    return write


Save = Callable[[bytes], str]


def listed(url: str, video_frames: VideoFrames = "rate", rate: float = 1.0) -> Listed:
    config = VideoConfig(video_frames=video_frames, frames_per_second=rate)
    return list_video(Here(), PlaceRef(url, None, None, ""), config)  # type: ignore[arg-type]


def color_of(image: Image.Image) -> str:
    """Return the name of the color that a picture has in its middle."""
    pixel = image.getpixel((image.width // 2, image.height // 2))
    assert isinstance(pixel, tuple)
    names = {(1, 0, 0): "red", (0, 1, 0): "lime", (0, 0, 1): "blue", (1, 1, 0): "yellow"}
    return names[pixel[0] > 100, pixel[1] > 100, pixel[2] > 100]


def color_at(video: Video, moment: int) -> str:
    return color_of(video.picture(moment, whole_size)[0])


def reason_of(url: str, moment: int | None = 0) -> str:
    with pytest.raises(ImageError) as refused, closing(Video(url)) as video:
        video.picture(moment, whole_size)
    return refused.value.reason


def test_a_path_of_a_frame_is_taken_apart_as_it_was_made() -> None:
    for path, place in (("a.mp4#t=0", 0), ("A.MKV#t=1.5", 1500), ("x#t=1/a b.webm#t=3600.001", 3_600_001)):
        file, _, _ = path.rpartition("#")
        assert place_path(file, place) == path
        assert split_place(path) == (file, place)
    for path in ("a.mp4", "a.mp4#t=1.50", "a.mp4#t=01", "a.mp4#page=1", "a.pdf#t=1", "a.jpg#t=1", "a.mp4#t=1.2345"):
        assert split_place(path) is None
    assert sorted(["a.mp4#t=10", "a.mp4#t=9.5"], key=in_place_order) == ["a.mp4#t=9.5", "a.mp4#t=10"]


@pytest.mark.parametrize(("container", "codec"), KINDS)
def test_each_time_has_its_frame_in_any_order(container: str, codec: str, make_video: MakeVideo, save: Save) -> None:
    url = save(make_video(*COLORS, container=container, codec=codec))
    assert listed(url, rate=2).moments == [0, 500, 1000, 1500, 2000, 2500, 3000, 3500]
    with closing(Video(url)) as video:
        for moments in (range(0, 4000, 500), range(3900, -1, -700), (3999, 0, 2000, 1999)):
            assert [color_at(video, moment) for moment in moments] == [COLORS[moment // 1000] for moment in moments]
        assert [video.picture(moment, whole_size)[1] for moment in (0, 199, 200, 1000, 3999)] == [0, 0, 1, 5, 19]


@pytest.mark.parametrize(("container", "codec"), KINDS)
def test_a_frame_has_the_same_pixels_wherever_reading_began(
    container: str, codec: str, make_video: MakeVideo, save: Save
) -> None:
    url, moments = save(make_video(*COLORS, container=container, codec=codec, noise=True)), range(0, 4000, 500)
    with closing(Video(url)) as video:
        forward = [video.picture(moment, whole_size)[0].tobytes() for moment in moments]
    for moment, pixels in zip(moments, forward, strict=True):
        with closing(Video(url)) as video:
            assert video.picture(moment, whole_size)[0].tobytes() == pixels


@pytest.mark.parametrize(("container", "codec"), KINDS)
def test_key_frames_and_scenes_are_found(container: str, codec: str, make_video: MakeVideo, save: Save) -> None:
    url = save(make_video(*COLORS, container=container, codec=codec))
    keys = listed(url, "keyframes").moments
    assert keys[0] == 0
    assert len(keys) > 1
    with closing(Video(url)) as video:
        assert [color_at(video, moment) for moment in keys] == [COLORS[moment // 1000] for moment in keys]
    assert [moment // 1000 for moment in listed(url, "scenes").moments] == [0, 1, 2, 3]


def test_an_index_names_the_key_frames_that_reading_through_finds(
    make_video: MakeVideo, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    for container, codec in KINDS:
        url = save(make_video(*COLORS, container=container, codec=codec))
        found = listed(url, "keyframes").moments
        with monkeypatch.context() as patch:
            patch.setattr(frames, "INDEXED", set())
            assert listed(url, "keyframes").moments == found, container


def test_a_step_goes_on_where_the_last_one_ended(
    make_video: MakeVideo, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = save(make_video(*COLORS, container="matroska", options={"live": "1"}))  # it says nothing of its length
    whole = [listed(url, way).moments for way in WAYS]
    for module in (frames, scenes):
        monkeypatch.setattr(module, "STEP_SECONDS", -1)
    assert scenes.list_changes(url, 10, 0, None).after is not None
    assert [listed(url, way).moments for way in WAYS] == whole


@pytest.mark.parametrize(("container", "codec"), KINDS)
def test_scenes_are_the_same_however_many_processes_find_them(
    container: str, codec: str, make_video: MakeVideo, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = save(make_video(*COLORS, *COLORS, container=container, codec=codec, noise=True))
    monkeypatch.setattr(frames, "SPAN", 700)
    assert len(frames.find_spans(url).spans) == (1 if container == "mpegts" else 12)
    found = listed(url, "scenes").moments
    assert [moment // 1000 for moment in found] == list(range(8))  # at the beginning of a second, or a few frames later
    monkeypatch.setattr(frames, "SPAN", 60_000)
    assert listed(url, "scenes").moments == found


def test_scenes_that_were_found_are_kept_while_the_file_stays_as_it_is(make_video: MakeVideo, save: Save) -> None:
    url, ways = save(make_video("red", "blue")), VideoConfig(video_frames="scenes")

    def find(stamp: str) -> list[int]:
        return list_video(Here(), PlaceRef(url, None, 9, stamp), ways).moments  # type: ignore[arg-type]

    assert find("1") == [0, 1000]
    Path(url).write_bytes(make_video("red"))
    assert find("1") == [0, 1000]
    assert find("2") == [0]
    assert find("") == [0]
    for kept in (cache_home() / "scenes").iterdir():
        kept.write_text("[")
    assert find("1") == [0]


def test_so_many_frames_of_a_video_are_spread_evenly() -> None:
    assert spread([0, 1, 2, 3, 4], 2) == [0, 2]
    assert spread([0, 1], 2) == spread([0, 1], None) == [0, 1]
    assert thin_out([0, 40, 960, 1000, 3999, 4000], 1) == [0, 1000, 3999, 4000]
    assert thin_out([0, 40, 960, 1000], 0.5) == [0]
    assert fill_gaps([0, 10_000, 46_000], 60_000, 1) == [0, 10_000, 22_000, 34_000, 46_000, 53_000]
    assert fill_gaps([0], 60_000, 0.02) == [0, 30_000]  # one each 50 seconds at most
    assert fill_gaps([], 0, 1) == []
    for wrong in (0, -1, 1e-9, 1e-300, 1001, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match=r"frames_per_second is a number from 0\.000001 to 1000, not"):
            VideoConfig(frames_per_second=wrong)
    for rate in (1e-6, 1000):
        assert sorted(set(frames.moments_at(rate, 3000))) == frames.moments_at(rate, 3000)
    with pytest.raises(ConfigError, match="frames_per_video"):
        VideoConfig(frames_per_video=0)


def test_a_video_with_one_key_frame_has_more_rows_than_that(make_video: MakeVideo, save: Save) -> None:
    url = save(make_video(*COLORS * 7, container="matroska", codec="libx264", options={}, key_frames_apart=1000))
    found = listed(url, "keyframes").moments
    assert found == [0, 9333, 18666]
    with closing(Video(url)) as video:
        assert [color_at(video, moment) for moment in found] == [COLORS[moment // 1000 % 4] for moment in found]


def test_a_frame_is_upright_with_square_pixels_and_scaled_down_only(make_video: MakeVideo, save: Save) -> None:
    with closing(Video(save(make_video("red", size=(96, 64), ratio=Fraction(4, 3), turn=90)))) as video:
        assert video.picture(0, whole_size)[0].size == (64, 128)
        assert video.picture(0, lambda *_: (16, 16))[0].size == (16, 32)
        assert video.picture(0, lambda *_: (500, 500))[0].size == (64, 128)


def test_a_frame_is_turned_to_the_side_that_is_up(save: Save) -> None:
    av = pytest.importorskip("av")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as opened:
        stream = opened.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.set_display_rotation(90)  # counterclockwise
        pixels = np.zeros((64, 96, 3), np.uint8)
        pixels[:, 64:] = (255, 0, 0)
        opened.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        opened.mux(stream.encode(None))
    with closing(Video(save(file.getvalue()))) as video:
        image = np.asarray(video.picture(0, whole_size)[0])
    assert image[10, 32, 0] > 100  # what was on the right is on top
    assert image[80, 32, 0] < 100


def test_an_interlaced_frame_is_shown_without_combs(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[0::2, 8:24] = pixels[1::2, 40:56] = 255  # a bar that moves from one field to the next
    with av.open(str(tmp_path / "a.mkv"), "w") as opened:
        stream = opened.add_stream("libx264", rate=25, options={"x264-params": "tff=1", "qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
        opened.mux([*stream.encode(frame), *stream.encode(None)])
    with closing(Video(str(tmp_path / "a.mkv"))) as video:
        assert video.frame_at(0).interlaced_frame
        whole = np.asarray(video.picture(0, whole_size)[0]).astype(int)
    assert abs(np.diff(whole[8:56, :, 1], axis=0)).max() < 20
    assert sorted(whole[32, [16, 48], 1] > 128) == [False, True]


def test_frames_of_unlike_lengths_are_shown_for_as_long_as_they_last(make_video: MakeVideo, save: Save) -> None:
    times = [0, 1, 2, 3, 4, 35, 36, 37, 38, 39]  # red stands for seven seconds
    url = save(make_video("red", "lime", container="matroska", times=times))
    assert listed(url).moments == [0, 1000, 2000, 3000, 4000, 5000, 6000, 7000]
    with closing(Video(url)) as video:
        assert [color_at(video, moment) for moment in (0, 1000, 6999, 7000)] == ["red", "red", "red", "lime"]


def test_a_file_that_was_cut_off_ends_where_its_frames_do(make_video: MakeVideo, save: Save) -> None:
    for container, options in (("mp4", {"movflags": "faststart"}), ("matroska", {})):
        data = make_video(*COLORS, *COLORS, container=container, noise=True, options=options)
        url = save(data[: len(data) * 5 // 8])
        for way in WAYS:
            found = listed(url, way)
            assert found.is_cut
            assert 3000 < found.end < 6500
            assert found.moments[-1] < found.end
            with closing(Video(url)) as video:
                colors = [color_at(video, moment) for moment in found.moments]
            assert colors == [COLORS[moment // 1000 % 4] for moment in found.moments]
        assert reason_of(url, 9000) == "decode"


@pytest.mark.parametrize("seconds", [4, 24])
@pytest.mark.parametrize(("container", "options"), [("avi", {}), ("matroska", {}), ("mp4", {"movflags": "faststart"})])
def test_short_files_and_files_without_a_length_are_told_of_as_cut_off(
    make_video: MakeVideo, save: Save, seconds: int, container: str, options: dict[str, str]
) -> None:
    data = make_video(*COLORS * (seconds // 4), container=container, noise=True, options=options)
    for way in WAYS:
        assert listed(save(data[: len(data) * 5 // 8]), way).is_cut
        assert not listed(save(data), way).is_cut


def test_what_cannot_be_decoded_is_told_of_and_what_follows_is_not(make_video: MakeVideo, save: Save) -> None:
    data = bytearray(make_video(*COLORS, codec="libx264", noise=True))
    with closing(Video(save(bytes(data)))) as video:
        torn = [packet for packet in video.packets() if packet.pts and 1000 < video.milliseconds(packet.pts) < 2000]
    for packet in torn:
        data[packet.pos + 8 : packet.pos + packet.size] = bytes(packet.size - 8)
    with closing(Video(save(bytes(data)))) as video:
        assert color_at(video, 0) == "red"
        with pytest.raises(ImageError, match="the video is damaged here"):
            video.picture(1900, whole_size)
        assert color_at(video, 3900) == "yellow"


def test_each_fault_has_its_reason(make_video: MakeVideo, save: Save, tmp_path: Path) -> None:
    whole = make_video("red")
    assert reason_of(save(b"")) == "empty"
    assert reason_of(save(b"no video")) == "decode"
    assert reason_of(save(whole[:300])) == "decode"
    assert reason_of(save(b"version https://git-lfs.github.com/spec/v1\noid sha256:0")) == "git_lfs_pointer"
    assert reason_of(save(whole), 5000) == "decode"
    assert reason_of(save(whole), None) == "decode"
    with pytest.raises(ImageError) as refused:
        Video(save(whole), most_pixels=1000)
    assert refused.value.reason == "too_large"
    with wave.open(str(tmp_path / "sound.avi"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(16000))
    assert reason_of(str(tmp_path / "sound.avi")) == "decode"  # wav is no format of videos


def test_a_cover_is_no_video(save: Save) -> None:
    av = pytest.importorskip("av")
    file, cover = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (16, 16)).save(cover, "JPEG")
    with av.open(file, "w", format="mp4") as opened:
        sound, picture = opened.add_stream("aac", rate=8000), opened.add_stream("mjpeg", rate=1)
        picture.width = picture.height = 16
        picture.pix_fmt = "yuvj420p"
        picture.disposition = av.stream.Disposition.attached_pic
        packet = av.Packet(cover.getvalue())
        packet.stream, packet.pts, packet.dts, packet.time_base = picture, 0, 0, Fraction(1, 1)
        opened.mux(packet)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
        silence.sample_rate = 8000
        opened.mux([*sound.encode(silence), *sound.encode(None)])
    assert reason_of(save(file.getvalue())) == "no_video"


def test_a_list_of_other_files_is_no_video(make_video: MakeVideo, tmp_path: Path) -> None:
    (tmp_path / "secret.mp4").write_bytes(make_video("red"))
    for text in ("#EXTM3U\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile secret.mp4\n"):
        (tmp_path / "list.mp4").write_text(text)
        assert reason_of(str(tmp_path / "list.mp4")) == "decode"


def test_a_shown_frame_is_a_jpeg_of_its_own_size(make_video: MakeVideo, save: Save) -> None:
    image = Image.open(io.BytesIO(picture_of_frame(save(make_video("red", "blue")), 1000)))
    assert (image.format, image.size, color_of(image)) == ("JPEG", (64, 64), "blue")
