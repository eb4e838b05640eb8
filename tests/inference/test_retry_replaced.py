"""`--retry_failed` of a tar or zip whose name another file has by now: rows of two files do not meet in a folder."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from clip_retrieval import clip_inference
from clip_retrieval.network.connections import FetchError
from clip_retrieval.sources import urls

Members = list[tuple[str, bytes]]
Table = Callable[[Path, str], pd.DataFrame]
WriteTar = Callable[[Path, Sequence[tuple[str, bytes]]], Path]
MakeSample = Callable[[int], Members]


def embed(source: Path, output: Path, form: str, **options: Any) -> dict[str, int]:
    done = clip_inference(source, output, form, clip_model="hash:16?size=32", num_prepro_workers=0, **options)
    return done.revised.to_json() if done.revised else {}


def write_zip(path: Path, members: Members) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, data in members:
            zipped.writestr(name, data)
    return path


def samples(make_sample: MakeSample, numbers: Sequence[int], broken: int = -1) -> Members:
    members = [member for number in numbers for member in make_sample(number) if not member[0].endswith(".json")]
    broken_name = f"{broken:05d}.jpg"
    members = [(name, b"broken" if name == broken_name else data) for name, data in members]
    return [one for one in members if one[0] != f"{broken:05d}.txt"]


@pytest.mark.parametrize("form", ["webdataset", "archive", "deflated"])
def test_a_file_of_other_samples_gives_no_rows(
    tmp_path: Path,
    write_tar: WriteTar,
    make_sample: MakeSample,
    read_table: Table,
    caplog: pytest.LogCaptureFixture,
    form: str,
) -> None:
    write = write_zip if form == "deflated" else write_tar
    form, suffix = ("archive", "zip") if form == "deflated" else (form, "tar")
    shard, output = write(tmp_path / f"0.{suffix}", samples(make_sample, range(4), broken=2)), tmp_path / "out"
    embed(shard, output, form)
    before = [read_table(output, name) for name in ("metadata", "failures")]
    assert len(before[0]) == 3
    write(shard, samples(make_sample, [2, 7, 8, 9]))
    caplog.clear()

    assert embed(shard, output, form, retry_failed=True)["failing"] == 1

    assert all(was.equals(read_table(output, name)) for was, name in zip(before, ("metadata", "failures"), strict=True))
    (told,) = caplog.messages
    assert f"{shard} is not the file that was embedded: 3 pictures with a row are missing" in told
    assert told.endswith("nothing of it is tried again, embed it into a new folder")
    write(shard, samples(make_sample, range(4)))
    assert embed(shard, output, form, retry_failed=True)["embedded"] == 1
    assert not len(read_table(output, "failures"))


@pytest.mark.parametrize("form", ["webdataset", "archive"])
def test_a_cut_file_that_becomes_another_one_gives_no_rows(
    tmp_path: Path,
    write_tar: WriteTar,
    make_sample: MakeSample,
    read_table: Table,
    caplog: pytest.LogCaptureFixture,
    form: str,
) -> None:
    shard, output = write_tar(tmp_path / "0.tar", samples(make_sample, range(5))), tmp_path / "out"
    with tarfile.open(shard) as tar:
        cut = tar.getmember("00003.txt").offset
    shard.write_bytes(shard.read_bytes()[:cut])
    embed(shard, output, form)
    others = [(name.replace("0000", "0001"), data) for name, data in samples(make_sample, range(3, 9))]
    renamed = {"00013": "00000", "00014": "00001"}  # names of rows, with other pictures
    others = [(f"{renamed.get(name[:5], name[:5])}{name[5:]}", data + b" ") for name, data in others]
    write_tar(shard, others)
    caplog.clear()

    assert embed(shard, output, form, retry_failed=True)["embedded"] == 0

    assert len(read_table(output, "metadata")) == 3
    assert "shard:truncated" in set(
        read_table(output, "failures")["part"] + ":" + read_table(output, "failures")["reason"]
    )
    assert "3 pictures with a row are missing from it, or have other sizes, such as 00000" in caplog.text


@pytest.mark.parametrize("form", ["webdataset", "archive"])
def test_captions_alone_behind_a_cut_become_rows(
    tmp_path: Path,
    write_tar: WriteTar,
    make_sample: MakeSample,
    read_table: Table,
    form: str,
) -> None:
    members = [("0.txt", b"first"), *samples(make_sample, range(1, 3)), ("9.txt", b"last")]
    shard, output = write_tar(tmp_path / "0.tar", members), tmp_path / "out"
    data = shard.read_bytes()
    with tarfile.open(shard) as tar:
        cut = tar.getmember("00002.jpg").offset
    shard.write_bytes(data[:cut])
    embed(shard, output, form)
    assert sorted(read_table(output, "metadata")["caption"]) == ["first", "picture number 1"]
    shard.write_bytes(data)

    for _ in range(2):
        embed(shard, output, form, retry_failed=True)
        captions = sorted(read_table(output, "metadata")["caption"])
        assert captions == ["first", "last", "picture number 1", "picture number 2"]
        assert set(read_table(output, "failures")["reason"]) == {"no_image"}


def test_what_cannot_be_looked_for_is_told_in_a_sentence(
    tmp_path: Path, write_tar: WriteTar, make_sample: MakeSample, caplog: pytest.LogCaptureFixture
) -> None:
    shard, output = write_tar(tmp_path / "0.tar", samples(make_sample, range(5))), tmp_path / "out"
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) // 2])
    embed(shard, output, "webdataset", enable_image=False)
    shard.write_bytes(data)
    caplog.clear()
    embed(shard, output, "webdataset", enable_image=False, retry_failed=True)
    assert f"what could not be read of {shard} is not looked for again" in caplog.text


def write_table(path: Path, captions: Sequence[str], pictures: Sequence[bytes] | None) -> None:
    if path.suffix == ".csv":
        pd.DataFrame({"image_path": [f"{caption}.jpg" for caption in captions], "caption": captions}).to_csv(path)
    else:
        pd.DataFrame({"image": pictures, "caption": captions}).to_parquet(path, row_group_size=4)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_table_of_other_rows_gives_none(
    tmp_path: Path,
    make_jpeg: Callable[[int], bytes],
    read_table: Table,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
) -> None:
    table, output, captions = tmp_path / f"t.{suffix}", tmp_path / "out", list("abcdefg")
    options: dict[str, Any] = {"output_partition_count": 2, "require_all": True}
    form = "parquet" if suffix == "parquet" else "urls"
    broken = {"c", "f"}

    def fetch(url: str, limits: object) -> bytes:
        del limits
        if url[0] in broken:
            raise FetchError("timeout", "no answer")
        return make_jpeg(ord(url[0]) % 7)

    def write(captions: Sequence[str]) -> None:
        write_table(table, captions, [b"broken" if name in broken else make_jpeg(ord(name) % 7) for name in captions])

    monkeypatch.setattr(urls, "fetch", fetch)
    write(captions)
    if form == "urls":
        options["url_column"] = "image_path"
        del options["output_partition_count"]
    embed(table, output, form, **options)
    assert list(read_table(output, "metadata")["caption"]) == list("abdeg")
    broken.clear()
    before = [read_table(output, name) for name in ("metadata", "failures")]
    write([*"xabdefg"])
    caplog.clear()

    assert embed(table, output, form, retry_failed=True, **options)["failing"] == 2

    assert all(was.equals(read_table(output, name)) for was, name in zip(before, ("metadata", "failures"), strict=True))
    (told,) = caplog.messages
    assert f"{table} is not the file that was embedded: the rows around row 2 are others now;" in told
    for name in "cf":  # one after the other: rows of the first retry are rows of the folder
        broken.symmetric_difference_update("f")
        write(captions)
        assert embed(table, output, form, retry_failed=True, **options)["embedded"] == 1, name
    assert list(read_table(output, "metadata")["caption"]) == list("abdegcf")
