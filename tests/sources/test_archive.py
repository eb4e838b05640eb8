"""Zips and tars of loose pictures: the rows of a folder, damage and odd names reported, nothing unpacked."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from clip_retrieval import clip_filter, clip_index, clip_inference
from clip_retrieval.errors import SourceError
from clip_retrieval.inference.summary import RunSummary
from clip_retrieval.sources import open_source
from clip_retrieval.sources.archive import ArchiveSource
from clip_retrieval.sources.config import SourceConfig
from clip_retrieval.sources.types import Failure

MODEL = "hash:64?size=32"
Read = Callable[[Path, str], pd.DataFrame]
ReadEmbeddings = Callable[[Path, str], NDArray[np.float16]]
Snapshot = Callable[[Path], dict[str, bytes]]
Members = Iterable[tuple[str, bytes]]
MakeJpeg = Callable[[int], bytes]


def embed(source: object, output: object, **options: object) -> RunSummary:
    return clip_inference(source, output, "archive", clip_model=MODEL, **{"num_prepro_workers": 0, **options})


def write_zip(path: Path, members: Members, compression: int = zipfile.ZIP_STORED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as zipped:
        for name, payload in members:
            zipped.writestr(name, payload)
    return path


def rewrite(path: Path, old: bytes, new: bytes) -> Path:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))
    return path


@pytest.fixture
def members(make_sample: Callable[[int], list[tuple[str, bytes]]]) -> list[tuple[str, bytes]]:
    """Four samples in two folders, all pictures first: captions join by name, wherever they are."""
    found = [(f"{'ab'[i % 2]}/deep/{name}", data) for i in range(4) for name, data in make_sample(i)]
    return sorted(found, key=lambda member: member[0].rpartition(".")[2])


@pytest.fixture
def loose(tmp_path: Path, members: list[tuple[str, bytes]]) -> Path:
    for name, data in members:
        (tmp_path / "loose" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "loose" / name).write_bytes(data)
    return tmp_path / "loose"


@pytest.mark.parametrize("form", ["stored", "deflated", "lzma", "tar", "dotted tar", "tar.gz", "zip on a store"])
def test_archives_give_the_rows_of_a_folder(
    form: str,
    tmp_path: Path,
    loose: Path,
    members: list[tuple[str, bytes]],
    write_tar: Callable[[Path, Members], Path],
    read_embeddings: ReadEmbeddings,
    read_table: Read,
) -> None:
    compression = {"deflated": zipfile.ZIP_DEFLATED, "lzma": zipfile.ZIP_LZMA}.get(form, zipfile.ZIP_STORED)
    source: Path | str = tmp_path / "x.zip"
    if "tar" in form:
        dot = "./" if form == "dotted tar" else ""
        source = write_tar(tmp_path / "x.tar", [(dot + name, data) for name, data in members])
    else:
        write_zip(tmp_path / "x.zip", members, compression)
    if form == "tar.gz":
        source = tmp_path / "x.tar.gz"
        source.write_bytes(gzip.compress((tmp_path / "x.tar").read_bytes()))
    if form == "zip on a store":
        fsspec.filesystem("memory").pipe("/archives/x.zip", (tmp_path / "x.zip").read_bytes())
        source = "memory://archives/x.zip"
    clip_inference(loose, tmp_path / "files", clip_model=MODEL, num_prepro_workers=0, enable_metadata=True)

    summary = embed(source, tmp_path / "output", enable_metadata=True, cache_path=str(tmp_path / "cache"))

    assert summary.stats.reasons == {}
    for folder in ("img_emb", "text_emb"):
        expected = read_embeddings(tmp_path / "files", folder)
        np.testing.assert_array_equal(read_embeddings(tmp_path / "output", folder), expected)
    table, files = (read_table(tmp_path / name, "metadata") for name in ("output", "files"))
    assert [f"{loose}/{path}" for path in table["image_path"]] == files["image_path"].tolist()
    assert table[["caption", "key", "source.site"]].equals(files[["caption", "key", "source.site"]])
    assert set(table["shard"]) == {str(source)}


@pytest.mark.parametrize("form", ["stored", "deflated", "tar"])
def test_filter_finds_the_pictures_again(
    form: str, tmp_path: Path, members: list[tuple[str, bytes]], write_tar: Callable[[Path, Members], Path]
) -> None:
    if form == "tar":
        source = write_tar(tmp_path / "x.tar", members)
    else:
        source = write_zip(
            tmp_path / "x.zip", members, zipfile.ZIP_STORED if form == "stored" else zipfile.ZIP_DEFLATED
        )
    embed(source, tmp_path / "output")
    clip_index(tmp_path / "output", tmp_path / "index", engine="faiss")

    clip_filter("picture number 2", tmp_path / "hits", tmp_path / "index", num_results=4)

    found = {path.read_bytes() for path in (tmp_path / "hits" / "images").iterdir()}
    assert found == {data for name, data in members if name.endswith(".jpg")}


def test_partitions_and_resuming_change_no_byte(
    tmp_path: Path, members: list[tuple[str, bytes]], snapshot: Snapshot
) -> None:
    source = write_zip(tmp_path / "x.zip", [*members, ("README", b"hello")], zipfile.ZIP_DEFLATED)
    embed(source, tmp_path / "output", output_partition_count=3)
    whole = snapshot(tmp_path / "output")
    (tmp_path / "output" / "metadata" / "metadata_1.parquet").unlink()

    again = embed(source, tmp_path / "output", output_partition_count=3, num_prepro_workers=1)

    assert again.already_done == 2
    assert snapshot(tmp_path / "output") == whole


def test_single_members_are_read_without_the_others(tmp_path: Path, members: list[tuple[str, bytes]]) -> None:
    source = write_zip(tmp_path / "x.zip", members)
    opened = open_source(SourceConfig(input_dataset=str(source), input_format="archive"), "nowhere")
    assert isinstance(opened, ArchiveSource)

    samples = list(opened.read_only({(str(source), "b/deep/00001.jpg"), (str(source), "no")}))

    assert [sample.key for sample in samples] == ["b/deep/00001.jpg"]


def test_an_archive_that_is_gone_by_its_turn_is_named(tmp_path: Path, members: list[tuple[str, bytes]]) -> None:
    source = write_zip(tmp_path / "x.zip", members)
    opened = open_source(SourceConfig(input_dataset=str(source), input_format="archive"), "nowhere")
    source.unlink()

    items = list(opened.read(0, 4))

    assert [(item.part, item.reason) for item in items if isinstance(item, Failure)] == [("shard", "unreadable")]
    assert len(items) == 1


def test_several_archives_follow_each_other(
    tmp_path: Path, make_jpeg: MakeJpeg, write_tar: Callable[[Path, Members], Path], read_table: Read
) -> None:
    write_zip(tmp_path / "in" / "b.zip", [("0.jpg", make_jpeg(0)), ("0.txt", b"zip")])
    write_tar(tmp_path / "in" / "a.tar", [("0.txt", b"tar"), ("0.jpg", make_jpeg(1))])

    embed(tmp_path / "in", tmp_path / "output")

    table = read_table(tmp_path / "output", "metadata")
    assert sorted(table["caption"]) == ["tar", "zip"]
    assert sorted(table["image_path"]) == ["0.jpg", "0.jpg"]


def test_an_encrypted_member_costs_its_part_alone(tmp_path: Path, make_jpeg: MakeJpeg, read_table: Read) -> None:
    source = write_zip(tmp_path / "x.zip", [("a.jpg", make_jpeg(0)), ("a.txt", b"a"), ("b.jpg", make_jpeg(1))])
    data = bytearray(source.read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + 8] |= 1
    data[6] |= 1
    source.write_bytes(bytes(data))

    summary = embed(source, tmp_path / "output")

    assert summary.stats.reasons == {"image:encrypted": 1}
    assert (summary.stats.sample_count, summary.stats.image_count) == (2, 1)
    assert read_table(tmp_path / "output", "failures")["shard"].tolist() == [str(source)]


def test_a_member_with_damage_costs_its_part_alone(tmp_path: Path, make_jpeg: MakeJpeg) -> None:
    members = [("a.jpg", make_jpeg(0)), ("b.jpg", make_jpeg(1)), ("b.txt", b"b" * 500)]
    source = write_zip(tmp_path / "x.zip", members, zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(source) as zipped:
        place = zipped.getinfo("b.jpg").header_offset + 60
    data = bytearray(source.read_bytes())
    data[place : place + 20] = bytes(20)
    source.write_bytes(bytes(data))

    summary = embed(source, tmp_path / "output")

    assert summary.stats.reasons == {"image:corrupt": 1}
    assert (summary.stats.sample_count, summary.stats.text_count) == (2, 1)


def test_a_member_that_unpacks_to_too_much_is_not_unpacked(
    tmp_path: Path, make_jpeg: MakeJpeg, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clip_retrieval.sources.zips.LARGEST_BLOB", 10_000)
    bomb = bytes(20_000)
    source = write_zip(tmp_path / "x.zip", [("a.jpg", make_jpeg(0)), ("b.jpg", bomb)], zipfile.ZIP_DEFLATED)

    assert embed(source, tmp_path / "output").stats.reasons == {"image:too_large": 1}


def test_odd_names_are_told_or_harmless(tmp_path: Path, make_jpeg: MakeJpeg, read_table: Read) -> None:
    names = ["../../up.jpg", "/root.jpg", "a b/ü.JPG", "back\\slash.jpg", ".hidden.jpg", "__MACOSX/._a.jpg", "x.zip"]
    source = write_zip(tmp_path / "in" / "x.zip", [(name, make_jpeg(i)) for i, name in enumerate(names)])
    before = sorted(tmp_path.rglob("*"))

    embed(source, tmp_path / "output")

    assert sorted(path for path in tmp_path.rglob("*") if "output" not in path.parts) == before
    table, failures = (read_table(tmp_path / "output", folder) for folder in ("metadata", "failures"))
    assert table["image_path"].tolist() == ["../../up.jpg", "a b/ü.JPG", "back\\slash.jpg", "root.jpg"]
    assert dict(zip(failures["key"], failures["reason"], strict=True)) == {
        ".hidden.jpg": "hidden",
        "__MACOSX/._a.jpg": "hidden",
        "x.zip": "not_an_image",
    }


def test_pdfs_and_videos_in_an_archive_are_told_where_they_are_read(
    tmp_path: Path, make_jpeg: MakeJpeg, read_table: Read
) -> None:
    source = write_zip(tmp_path / "x.zip", [("a.jpg", make_jpeg(1)), ("b.pdf", b"%PDF"), ("c.MP4", b""), ("d.x", b"")])

    embed(source, tmp_path / "output")

    failures = read_table(tmp_path / "output", "failures").set_index("key")["detail"].to_dict()
    told = "PDFs and videos are read from folders alone"
    assert failures == {"b.pdf": told, "c.MP4": told, "d.x": "no image, .txt or .json suffix"}


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_the_second_of_two_members_with_one_name_is_named(
    tmp_path: Path, make_jpeg: MakeJpeg, read_table: Read
) -> None:
    source = write_zip(tmp_path / "x.zip", [("a.jpg", make_jpeg(1)), ("a.jpg", b"other")])

    summary = embed(source, tmp_path / "output")

    assert summary.stats.image_count == 1
    assert read_table(tmp_path / "output", "failures")[["key", "reason"]].values.tolist() == [["a.jpg", "duplicate"]]


def test_names_of_a_tar_that_are_not_utf8_do_not_stop_it(tmp_path: Path, make_jpeg: MakeJpeg, read_table: Read) -> None:
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        info = tarfile.TarInfo("caf\udce9.jpg")
        info.size = len(make_jpeg(0))
        tar.addfile(info, io.BytesIO(make_jpeg(0)))

    assert embed(tmp_path / "x.tar", tmp_path / "output", num_prepro_workers=1).stats.image_count == 1
    assert read_table(tmp_path / "output", "metadata")["image_path"].tolist() == ["caf\ufffd.jpg"]


def test_a_cut_archive_among_others_is_named(
    tmp_path: Path, members: list[tuple[str, bytes]], make_jpeg: MakeJpeg, read_table: Read
) -> None:
    good = write_zip(tmp_path / "a.zip", [("a.jpg", make_jpeg(0)), ("a.txt", b"a")])
    cut = write_zip(tmp_path / "b.zip", members)
    cut.write_bytes(cut.read_bytes()[:-100])
    empty = tmp_path / "c.zip"
    empty.write_bytes(b"")

    summary = embed(str([str(good), str(cut), str(empty)]), tmp_path / "output")

    assert summary.stats.sample_count == 1
    failures = read_table(tmp_path / "output", "failures")
    assert failures[["shard", "part", "reason"]].values.tolist() == [
        [str(cut), "shard", "corrupt"],
        [str(empty), "shard", "empty"],
    ]


def test_a_compressed_tar_asks_for_a_place_to_unpack_it(
    tmp_path: Path, members: list[tuple[str, bytes]], write_tar: Callable[[Path, Members], Path]
) -> None:
    source = tmp_path / "x.tar.gz"
    source.write_bytes(gzip.compress(write_tar(tmp_path / "x.tar", members).read_bytes()))

    with pytest.raises(SourceError, match="give --cache_path"):
        embed(source, tmp_path / "output")


def test_an_archive_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no sample"):
        embed(write_zip(tmp_path / "x.zip", [("README", b"hello")]), tmp_path / "output")
