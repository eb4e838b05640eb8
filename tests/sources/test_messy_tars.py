"""Damaged and odd tars: what is whole is embedded, the rest is named with its reason."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from clip_retrieval import clip_inference
from clip_retrieval.errors import SourceError
from clip_retrieval.inference.summary import RunSummary
from clip_retrieval.sources.csv_table import CsvTable
from clip_retrieval.sources.tar import Damage, read_members
from clip_retrieval.sources.types import Failure

MODEL = "hash:16?size=32"
Members = list[tuple[str, bytes]]
Read = Callable[[Path, str], pd.DataFrame]
ReadEmbeddings = Callable[[Path, str], NDArray[np.float16]]
WriteTar = Callable[[Path, Iterable[tuple[str, bytes]]], Path]
MakeSample = Callable[[int], Members]


def embed(tar: Path, *, image: bool = True, metadata: bool = False) -> tuple[Path, RunSummary]:
    output = tar.parent / "output"
    summary = clip_inference(
        tar, output, "webdataset", clip_model=MODEL, num_prepro_workers=0, enable_image=image, enable_metadata=metadata
    )
    return output, summary


def shard_failures(table: pd.DataFrame) -> list[list[str]]:
    return [list(row) for row in table[table["part"] == "shard"][["shard", "reason"]].to_numpy()]


@pytest.fixture
def good_tar(tmp_path: Path, write_tar: WriteTar, make_sample: MakeSample) -> Path:
    return write_tar(tmp_path / "good.tar", [member for i in range(8) for member in make_sample(i)])


def place_of(tar: Path, member: str) -> tarfile.TarInfo:
    with tarfile.open(tar) as archive:
        return archive.getmember(member)


def test_a_good_tar_is_embedded_whole(good_tar: Path, read_table: Read) -> None:
    output, _ = embed(good_tar, metadata=True)

    table = read_table(output, "metadata")
    assert list(table["image_path"]) == list(table["key"]) == [f"{i:05d}" for i in range(8)]
    assert list(table["caption"]) == [f"picture number {i}" for i in range(8)]
    assert read_table(output, "failures").empty


def test_each_row_says_where_the_bytes_of_its_picture_are(
    good_tar: Path, make_sample: MakeSample, read_table: Read
) -> None:
    output, _ = embed(good_tar)

    row = read_table(output, "metadata").iloc[3]
    data = Path(row["shard"]).read_bytes()[row["shard_offset"] :][: row["shard_size"]]
    assert data == make_sample(3)[0][1]


@pytest.mark.parametrize("member", ["00005.jpg", "00005.txt", "00005.json"])
@pytest.mark.parametrize("is_stream", [False, True])
def test_samples_before_a_cut_are_kept(good_tar: Path, read_table: Read, member: str, is_stream: bool) -> None:
    cut = good_tar.read_bytes()[: place_of(good_tar, member).offset_data + 5]
    tar = good_tar.with_name("cut.tar.gz" if is_stream else "cut.tar")
    tar.write_bytes(gzip.compress(cut) if is_stream else cut)

    output, _ = embed(tar, metadata=True)

    paths = list(read_table(output, "metadata")["image_path"])
    assert paths[:5] == [f"{i:05d}" for i in range(5)]
    assert len(paths) == 5
    assert shard_failures(read_table(output, "failures")) == [[str(tar), "truncated"]]


@pytest.mark.parametrize("is_stream", [False, True])
def test_samples_before_a_damaged_header_are_kept(good_tar: Path, read_table: Read, is_stream: bool) -> None:
    data, place = bytearray(good_tar.read_bytes()), place_of(good_tar, "00004.jpg").offset
    data[place : place + 512] = bytes(reversed(range(256))) * 2
    tar = good_tar.with_name("torn.tar.gz" if is_stream else "torn.tar")
    tar.write_bytes(gzip.compress(bytes(data)) if is_stream else bytes(data))

    output, _ = embed(tar)

    assert list(read_table(output, "metadata")["image_path"]) == ["00000", "00001", "00002", "00003"]
    assert shard_failures(read_table(output, "failures")) == [[str(tar), "corrupt"]]


def test_a_compressed_tar_equals_a_plain_one(good_tar: Path, read_table: Read, read_embeddings: ReadEmbeddings) -> None:
    plain, _ = embed(good_tar)
    packed = good_tar.parent / "packed" / "good.tar.gz"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(good_tar.read_bytes()))

    output, _ = embed(packed)

    assert (read_embeddings(output, "img_emb") == read_embeddings(plain, "img_emb")).all()
    assert list(read_table(output, "metadata")["caption"]) == list(read_table(plain, "metadata")["caption"])


def test_a_cut_gzip_keeps_what_came_before(good_tar: Path, read_table: Read) -> None:
    tar = good_tar.with_name("cut.tar.gz")
    packed = gzip.compress(good_tar.read_bytes())
    tar.write_bytes(packed[: len(packed) * 3 // 4])

    output, summary = embed(tar)

    assert 1 <= summary.stats.sample_count < 8
    assert shard_failures(read_table(output, "failures"))[0][1] == "truncated"


@pytest.mark.parametrize(
    ("name", "payload", "reason"),
    [
        ("no_members.tar", bytes(10240), "empty"),
        ("zero_bytes.tar", b"", "empty"),
        ("page.tar", b"<html>not found</html>" * 99, "not_a_tar"),
        ("short.tar", b"short", "not_a_tar"),
    ],
)
def test_a_tar_that_is_none_is_named_and_the_others_go_on(
    good_tar: Path, read_table: Read, name: str, payload: bytes, reason: str
) -> None:
    bad, output = good_tar.with_name(name), good_tar.parent / "output"
    bad.write_bytes(payload)

    clip_inference(str([str(bad), str(good_tar)]), output, "webdataset", clip_model=MODEL, num_prepro_workers=0)

    assert shard_failures(read_table(output, "failures")) == [[str(bad), reason]]
    assert len(read_table(output, "metadata")) == 8


def test_a_missing_tar_among_others_is_named(good_tar: Path, read_table: Read) -> None:
    missing, output = str(good_tar.with_name("missing.tar")), good_tar.parent / "output"

    clip_inference(str([missing, str(good_tar)]), output, "webdataset", clip_model=MODEL, num_prepro_workers=0)

    assert shard_failures(read_table(output, "failures")) == [[missing, "missing"]]


def test_only_bad_tars_fail_in_one_sentence(tmp_path: Path) -> None:
    tar = tmp_path / "empty.tar"
    tar.write_bytes(b"")

    with pytest.raises(SourceError, match=r"no sample of .*empty\.tar could be embedded \(1 shard:empty\)"):
        embed(tar)


def test_every_image_extension_is_a_picture(
    tmp_path: Path, write_tar: WriteTar, make_jpeg: Callable[[int], bytes], read_table: Read
) -> None:
    names = ["0.JPG", "1.jpeg", "2.png", "3.webp", "a/4.v1.jpg", "b/4.v1.jpg", "日本.jpg"]
    tar = write_tar(tmp_path / "x.tar", [(name, make_jpeg(i)) for i, name in enumerate(names)])

    output, _ = embed(tar)

    assert list(read_table(output, "metadata")["image_path"]) == ["0", "1", "2", "3", "a/4.v1", "b/4.v1", "日本"]


def test_a_key_that_comes_back_later_is_another_sample(
    tmp_path: Path, write_tar: WriteTar, make_jpeg: Callable[[int], bytes], read_table: Read
) -> None:
    members = [("0.jpg", make_jpeg(1)), ("0.txt", b"one"), ("1.jpg", make_jpeg(2)), ("0.jpg", make_jpeg(3))]
    tar = write_tar(tmp_path / "x.tar", [*members, ("0.txt", b"three")])

    output, _ = embed(tar)

    table = read_table(output, "metadata")
    assert [list(row) for row in table[["image_path", "caption"]].to_numpy()] == [
        ["0", "one"],
        ["1", None],
        ["0", "three"],
    ]


def test_the_second_of_two_members_with_one_name_is_named(
    tmp_path: Path, write_tar: WriteTar, make_jpeg: Callable[[int], bytes], read_table: Read
) -> None:
    tar = write_tar(tmp_path / "x.tar", [("0.jpg", make_jpeg(1)), ("0.jpg", make_jpeg(2))])

    output, _ = embed(tar)

    failures = read_table(output, "failures")
    assert len(read_table(output, "metadata")) == 1
    assert failures[["key", "shard", "reason"]].values.tolist() == [["0.jpg", str(tar), "duplicate"]]


def test_the_second_caption_of_a_sample_is_named(
    tmp_path: Path, write_tar: WriteTar, make_jpeg: Callable[[int], bytes], read_table: Read
) -> None:
    tar = write_tar(tmp_path / "x.tar", [("0.jpg", make_jpeg(1)), ("0.txt", b"first"), ("0.TXT", b"second")])

    output, _ = embed(tar)

    assert list(read_table(output, "metadata")["caption"]) == ["first"]
    assert list(read_table(output, "failures")["reason"]) == ["duplicate"]


def test_pictures_with_more_dots_beside_a_picture_are_not_lost_in_silence(
    tmp_path: Path, write_tar: WriteTar, make_jpeg: Callable[[int], bytes], read_table: Read
) -> None:
    tar = write_tar(tmp_path / "x.tar", [("a.jpg", make_jpeg(1)), ("a.v2.jpg", make_jpeg(2))])

    output, _ = embed(tar)

    told = len(read_table(output, "metadata")) + len(read_table(output, "failures"))
    assert told == 2


def test_members_sorted_by_extension_are_never_mispaired(
    tmp_path: Path, write_tar: WriteTar, make_sample: MakeSample, read_table: Read, read_embeddings: ReadEmbeddings
) -> None:
    samples = [make_sample(i) for i in range(3)]
    tar = write_tar(tmp_path / "x.tar", [sample[part] for part in range(3) for sample in samples])

    output, summary = embed(tar, metadata=True)

    table = read_table(output, "metadata")
    has_image = (read_embeddings(output, "img_emb") != 0).any(axis=1)
    assert has_image.tolist() == [True] * 3 + [False] * 3
    assert table["caption"].isna().tolist() == [True] * 3 + [False] * 3
    assert summary.stats.reasons == {"image:no_image": 6}
    assert summary.stats.skipped_count == 3


def test_a_tar_without_pictures_is_named_and_its_captions_are_rows(
    tmp_path: Path, write_tar: WriteTar, read_table: Read
) -> None:
    tar = write_tar(tmp_path / "x.tar", [(f"{i}.txt", b"a dog") for i in range(4)])

    output, summary = embed(tar)

    failures = read_table(output, "failures")
    assert shard_failures(failures) == [[str(tar), "no_images"]]
    assert summary.stats.reasons == {"image:no_image": 4, "shard:no_images": 1}
    assert len(read_table(output, "metadata")) == 4


def test_a_run_for_captions_only_embeds_a_tar_without_pictures(
    tmp_path: Path, write_tar: WriteTar, read_table: Read, read_embeddings: ReadEmbeddings
) -> None:
    tar = write_tar(tmp_path / "x.tar", [(f"{i}.txt", b"a dog") for i in range(4)])

    output, _ = embed(tar, image=False)

    assert read_embeddings(output, "text_emb").shape == (4, 16)
    assert not (output / "img_emb").exists()
    assert list(read_table(output, "metadata").columns) == ["caption"]
    assert read_table(output, "failures").empty


def test_every_failure_names_its_tar(
    tmp_path: Path, write_tar: WriteTar, make_jpeg: Callable[[int], bytes], read_table: Read
) -> None:
    members = [("0.jpg", make_jpeg(0)), ("1.jpg", b"no"), ("2.txt", b"orphan"), ("3.json", b"{}"), ("README", b"hello")]
    tar = write_tar(tmp_path / "x.tar", [*members, ("4.jpg", make_jpeg(4)), ("4.txt", b"\xff")])

    output, _ = embed(tar, metadata=True)

    failures = read_table(output, "failures")
    assert sorted(failures["key"]) == ["1", "2", "3", "4", "README"]
    assert set(failures["shard"]) == {str(tar)}


def test_every_row_names_its_tar(
    tmp_path: Path, write_tar: WriteTar, make_jpeg: Callable[[int], bytes], read_table: Read
) -> None:
    tar = write_tar(tmp_path / "x.tar", [("0.jpg", make_jpeg(0)), ("1.txt", b"orphan")])

    output, _ = embed(tar)

    table = read_table(output, "metadata")
    assert list(table["shard"]) == [str(tar), str(tar)]
    assert table["shard_offset"].isna().tolist() == [False, True]


def test_failures_of_captions_alone_are_told_without_a_caption(good_tar: Path, read_table: Read) -> None:
    bad, output = good_tar.with_name("bad.tar"), good_tar.parent / "output"
    bad.write_bytes(b"short")
    tars = str([str(good_tar), str(bad)])
    options = {"clip_model": MODEL, "num_prepro_workers": 0, "enable_image": False, "output_partition_count": 2}

    clip_inference(tars, output, "webdataset", **options)

    assert len(read_table(output, "metadata")) == 8
    assert shard_failures(read_table(output, "failures")) == [[str(bad), "not_a_tar"]]


@pytest.mark.parametrize("kept", [1, 5])
def test_whole_samples_before_a_missing_end_mark_are_kept(good_tar: Path, read_table: Read, kept: int) -> None:
    tar = good_tar.with_name("cut.tar")
    tar.write_bytes(good_tar.read_bytes()[: place_of(good_tar, f"{kept:05d}.jpg").offset])

    output, _ = embed(tar, metadata=True)

    assert list(read_table(output, "metadata")["image_path"]) == [f"{i:05d}" for i in range(kept)]
    assert list(read_table(output, "failures")["part"]) == ["shard"]


def test_what_no_one_asked_for_may_be_cut_off(good_tar: Path, read_table: Read) -> None:
    tar = good_tar.with_name("cut.tar")
    tar.write_bytes(good_tar.read_bytes()[: place_of(good_tar, "00005.json").offset])

    output, _ = embed(tar)

    assert len(read_table(output, "metadata")) == 6


def zstandard(data: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(data, asbytes=True))


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, bz2.compress, zstandard])
def test_a_compressed_tar_that_is_cut_off_is_truncated(
    tmp_path: Path, write_tar: WriteTar, pack: Callable[[bytes], bytes]
) -> None:
    packed = pack(write_tar(tmp_path / "a.tar", [("a.jpg", os.urandom(10_000))]).read_bytes())
    (tmp_path / "a.tar").write_bytes(packed[: len(packed) // 2])
    assert [item.reason for item in read_members(str(tmp_path / "a.tar"), bool) if isinstance(item, Damage)] == [
        "truncated"
    ]


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
@pytest.mark.parametrize("name", ["a.tar", "a.csv"])
def test_damaged_bytes_of_a_compressed_file_end_no_run(
    tmp_path: Path, write_tar: WriteTar, pack: Callable[[bytes], bytes], name: str
) -> None:
    numbers = "\n".join(map(str, range(100_000))).encode()
    data = b"url\n" + numbers if name == "a.csv" else write_tar(tmp_path / "b.tar", [("a.jpg", numbers)]).read_bytes()
    packed, path = bytearray(pack(data)), tmp_path / f"{name}.gz"
    packed[len(packed) // 2 : len(packed) // 2 + 50] = b"\xff" * 50
    path.write_bytes(packed)

    if name == "a.tar":
        reasons = [item.reason for item in read_members(str(path), bool) if isinstance(item, Damage)]
    else:
        table = CsvTable(str(path), {"url": "text"}, {"url": "text"}, ",")
        reasons = [item.reason for item in table.rows(0, None, ["url"]) if isinstance(item, Failure)]

    assert reasons == ["corrupt"]
