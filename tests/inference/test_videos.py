"""A folder with videos: a row a frame, with what is said then, and all that holds for pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from clip_retrieval import clip_inference
from clip_retrieval.errors import ConfigError, SourceError
from clip_retrieval.inference.config import InferenceConfig
from clip_retrieval.inference.plan import open_plan
from clip_retrieval.inference.run import plan_only
from clip_retrieval.inference.summary import RunSummary
from clip_retrieval.options import build_config
from clip_retrieval.sources import listing, open_source
from clip_retrieval.sources.config import SourceConfig

pytest.importorskip("av", reason="videos are read by PyAV: pip install av")

MakeVideo = Callable[..., bytes]
Table = Callable[[Path, str], pd.DataFrame]
Read = Callable[[Path, str], NDArray[np.float16]]
SRT = "1\n00:00:00,500 --> 00:00:02,500\nhello\n\n2\n00:00:02,500 --> 00:00:09,000\n<i>bye</i>\n"


def embed(folder: Path | str, output: Path, **options: object) -> RunSummary:
    fixed = {"clip_model": "hash:16?size=32", "num_prepro_workers": 0, "batch_size": 4, "input_format": "video"}
    return clip_inference(str(folder), str(output), **{**fixed, **options})


@pytest.fixture
def films(tmp_path: Path, make_video: MakeVideo, make_jpeg: Callable[[int], bytes]) -> Path:
    """Give a folder of two videos, one with subtitles, a broken one, and a picture."""
    folder = tmp_path / "films"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(make_video("red", "lime", "blue", "yellow"))
    (folder / "a.srt").write_text(SRT)
    (folder / "b.WEBM").write_bytes(make_video("blue", "red", container="webm", codec="libvpx"))
    (folder / "c.mkv").write_bytes(b"broken")
    (folder / "d.jpg").write_bytes(make_jpeg(1))
    return folder


def names_in(rows: pd.DataFrame) -> list[str]:
    return [path.rpartition("/")[2] for path in rows["image_path"]]


FRAMES = [f"a.mp4#t={second}" for second in range(4)] + ["b.WEBM#t=0", "b.WEBM#t=1"]


def test_each_frame_is_a_row_in_the_order_of_time_with_what_is_said(
    films: Path, tmp_path: Path, read_table: Table, read_embeddings: Read
) -> None:
    summary = embed(films, tmp_path / "out")

    rows = read_table(tmp_path / "out", "metadata")
    assert names_in(rows) == FRAMES
    assert rows["video"].tolist() == [f"{films}/a.mp4"] * 4 + [f"{films}/b.WEBM"] * 2
    assert rows["time_seconds"].tolist() == [0.0, 1.0, 2.0, 3.0, 0.0, 1.0]
    assert rows["frame"].tolist() == [0, 5, 10, 15, 0, 5]
    assert rows["caption"].fillna("").tolist() == ["", "hello", "hello", "bye", "", ""]
    assert "page" not in rows
    pictures = read_embeddings(tmp_path / "out", "img_emb")
    assert len({row.tobytes() for row in pictures[:4]}) == 4
    assert len(pictures) == 6
    failures = read_table(tmp_path / "out", "failures").sort_values("key")
    assert failures[["key", "part", "reason"]].values.tolist() == [
        ["c.mkv", "image", "decode"],
        ["d.jpg", "other", "not_a_video"],
    ]
    assert (summary.now.sample_count, summary.now.skipped_count) == (6, 1)


def test_pictures_and_videos_share_a_folder_where_that_is_asked_for(
    films: Path, tmp_path: Path, read_table: Table
) -> None:
    embed(films, tmp_path / "out", input_format="files", video_frames="scenes", enable_text=False)
    rows = read_table(tmp_path / "out", "metadata")
    assert names_in(rows) == [*FRAMES, "d.jpg"]
    assert rows["time_seconds"].fillna(-1).tolist() == [0, 1, 2, 3, 0, 1, -1]

    embed(films, tmp_path / "pictures", input_format="files")
    assert "video" not in read_table(tmp_path / "pictures", "metadata")
    failures = read_table(tmp_path / "pictures", "failures").set_index("key")
    assert failures["reason"].to_dict() == dict.fromkeys(["a.mp4", "a.srt", "b.WEBM", "c.mkv"], "not_an_image")
    assert "--video_frames rate" in failures["detail"]["a.mp4"]


def test_an_update_follows_files_subtitles_and_the_choice_of_frames(
    films: Path, tmp_path: Path, make_video: MakeVideo, read_table: Table, read_embeddings: Read
) -> None:
    embed(films, tmp_path / "out")
    before = read_embeddings(tmp_path / "out", "img_emb")
    (films / "b.WEBM").rename(films / "renamed.webm")
    (films / "a.srt").write_text(SRT.replace("hello", "hi"))
    (films / "c.mkv").write_bytes(make_video("red", container="matroska"))

    revised = embed(films, tmp_path / "out", update=True).revised

    assert revised is not None
    assert revised.to_json() == {"kept": 0, "renamed": 2, "embedded": 5, "removed": 4, "failing": 0}
    assert np.array_equal(read_embeddings(tmp_path / "out", "img_emb")[4:6], before[4:6])

    with pytest.raises(
        ConfigError,
        match=r"holds other frames or pages \(frames_per_second 1.0 -> 2.0\): 7 new, 0 gone; .* --update .*old options",
    ):
        embed(films, tmp_path / "out", frames_per_second=2)
    revised = embed(films, tmp_path / "out", frames_per_second=2, update=True).revised
    assert revised is not None
    assert (revised.kept, revised.embedded, revised.removed) == (7, 7, 0)
    assert embed(films, tmp_path / "out", frames_per_second=2).stats.sample_count == 18
    rows = read_table(tmp_path / "out", "metadata").dropna(subset="image_path")
    assert rows.set_index("image_path")["caption"][f"{films}/a.mp4#t=0.5"] == "hi"


def test_a_rate_above_that_of_the_video_repeats_no_frame(films: Path, tmp_path: Path, read_table: Table) -> None:
    embed(films, tmp_path / "out", frames_per_second=1000)
    rows = read_table(tmp_path / "out", "metadata").dropna(subset="frame")
    assert not rows[["video", "frame"]].duplicated().any()
    assert rows["frame"].max() == 19


def test_a_folder_without_videos_is_refused_though_it_has_captions(
    tmp_path: Path, make_jpeg: Callable[[int], bytes]
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(make_jpeg(0))
    (tmp_path / "in" / "a.txt").write_text("a caption")
    with pytest.raises(SourceError, match="holds no video: no file with the suffix of one"):
        embed(tmp_path / "in", tmp_path / "out")


def test_captions_alone_are_those_of_the_frames(films: Path, tmp_path: Path, read_table: Table) -> None:
    embed(films, tmp_path / "out", enable_image=False)
    rows = read_table(tmp_path / "out", "metadata")
    assert rows["caption"].tolist() == ["hello", "hello", "bye"]


def test_a_saved_plan_reads_the_same_frames(films: Path, tmp_path: Path) -> None:
    options = {"clip_model": "hash:16?size=32", "input_format": "video", "frames_per_video": 3}
    config = build_config(InferenceConfig, options, [films, tmp_path / "out"])
    planned = plan_only(config)
    (films / "a.mp4").unlink()
    opened = open_plan(config, "r")
    assert opened.source.config == planned.source.config
    assert list(opened.source.units) == ["a.mp4#t=0", "a.mp4#t=1", "a.mp4#t=2", "b.WEBM#t=0", "b.WEBM#t=1", "c.mkv"]
    assert list(opened.source.read(0, 6)) == list(planned.source.read(0, 6))


def test_a_video_that_was_cut_off_has_rows_up_to_there_and_is_named(
    tmp_path: Path, make_video: MakeVideo, read_table: Table
) -> None:
    (tmp_path / "films").mkdir()
    whole = make_video(*["red", "blue"] * 4, noise=True, options={"movflags": "faststart"})
    (tmp_path / "films" / "a.mp4").write_bytes(whole[: len(whole) // 2])
    embed(tmp_path / "films", tmp_path / "out")
    assert 1 < len(read_table(tmp_path / "out", "metadata")) < 7
    (failure,) = read_table(tmp_path / "out", "failures").to_dict("records")
    assert (failure["key"], failure["reason"]) == ("a.mp4", "cut_off")
    assert "the video ends after" in failure["detail"]


def test_a_video_of_too_many_wanted_frames_is_named_with_that_cause(
    films: Path, tmp_path: Path, read_table: Table, make_video: MakeVideo
) -> None:
    (films / "b.WEBM").unlink()
    (films / "a.mp4").write_bytes(
        make_video("red", container="webm", codec="libvpx", rate=1000, times=[0, 1, 1_100_000])
    )
    embed(films, tmp_path / "out", input_format="files", video_frames="rate", frames_per_second=1000)
    failures = read_table(tmp_path / "out", "failures").set_index("key")
    assert failures["reason"]["a.mp4"] == "too_many_frames"
    assert "more than 1,000,000 frames of the video" in failures["detail"]["a.mp4"]
    assert names_in(read_table(tmp_path / "out", "metadata")) == ["d.jpg"]

    (films / "d.jpg").unlink()
    (films / "c.mkv").unlink()
    with pytest.raises(
        SourceError, match=r"a\.mp4: its frames cannot be listed: more than .*; nothing else there is a sample"
    ):
        embed(films, tmp_path / "none", input_format="video", frames_per_second=1000)


def test_videos_of_a_store_are_read_where_they_lie(tmp_path: Path, make_video: MakeVideo, read_table: Table) -> None:
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "a.mp4").write_bytes(make_video("red", "lime"))
    (tmp_path / "films" / "a.vtt").write_text("WEBVTT\n\n00:00.000 --> 00:01.000\nred\n")
    embed(f"local://{tmp_path}/films", tmp_path / "out")  # fsspec's, as any store
    rows = read_table(tmp_path / "out", "metadata")
    assert names_in(rows) == ["a.mp4#t=0", "a.mp4#t=1"]
    assert rows["caption"].fillna("").tolist() == ["red", ""]


def test_without_the_package_each_video_is_named_with_what_to_install(
    films: Path, tmp_path: Path, read_table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "can_read", lambda kind: kind != "video")
    with pytest.raises(SourceError, match=r"clip-retrieval\[video\]"):
        open_source(SourceConfig(input_dataset=str(films), input_format="video"), str(tmp_path / "other"))
    embed(films, tmp_path / "out", input_format="files", video_frames="rate")
    failures = read_table(tmp_path / "out", "failures").set_index("key")["reason"].to_dict()
    assert failures == {
        "a.mp4": "needs_plugin",
        "a.srt": "not_an_image",
        "b.WEBM": "needs_plugin",
        "c.mkv": "needs_plugin",
    }


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"<!doctype html><html>login</html>", "is no video: it is a web page, as servers send for an error"),
        (b"404: Not Found", "is no video: it is a text file"),
        (b"%PDF-1.7\n", "is no video: it is a PDF"),
        (b"\xff\xd8\xff\xe0" + bytes(99), "is no video: it is a JPEG"),
        (b"RIFF\x00\x00\x00\x00AVI LIST", "is no video, or damaged beyond what says what it holds"),
        (b"OggS\x00", "is no video, or damaged beyond what says what it holds"),
        (bytes(5000), "is no video, or damaged beyond what says what it holds"),
    ],
)
def test_a_file_that_is_no_video_is_called_what_it_is(
    films: Path, tmp_path: Path, read_table: Table, data: bytes, told: str
) -> None:
    (films / "a.mp4").write_bytes(data)
    embed(films, tmp_path / "out")
    failures = read_table(tmp_path / "out", "failures").set_index("key")
    assert failures["reason"]["a.mp4"] == "decode"
    assert failures["detail"]["a.mp4"].startswith(told)


def test_a_folder_of_videos_alone_and_a_video_are_told_how_they_are_read(films: Path, tmp_path: Path) -> None:
    (films / "d.jpg").unlink()
    with pytest.raises(SourceError, match=r"no sample: .*; it looks like --input_format video, videos"):
        open_source(SourceConfig(input_dataset=str(films)), str(tmp_path / "out"))
    for name in ("a.mp4", "b.WEBM"):
        with pytest.raises(SourceError, match="is a file, not a folder; give the folder that it is in"):
            open_source(SourceConfig(input_dataset=str(films / name), input_format="video"), str(tmp_path / "out"))
