"""What tars hold besides plain files: links, sparse files, devices, further tars; in place and as a stream."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from clip_retrieval import clip_filter, clip_index, clip_inference
from clip_retrieval.blobs import BlobRef, Lost, read_blob
from clip_retrieval.query.pictures import find_picture
from clip_retrieval.sources import open_source
from clip_retrieval.sources.config import SourceConfig
from clip_retrieval.sources.tar import Damage, read_members
from clip_retrieval.sources.types import Failure, Sample

WriteTar = Callable[[Path, Iterable[tuple[str, bytes]]], Path]
Content = bytes | str  # of a member, or the word for why there is none
HOLE, DATA = 4096, b"x" * 512
EXPANDED = DATA + bytes(HOLE - 512) + DATA[::-1] + bytes(1000)


@pytest.fixture(params=["plain", "stream"])
def finish(request: pytest.FixtureRequest) -> Callable[[Path], str]:
    """Give a function that leaves a tar unchanged, or compresses it so that it can only be read from front to back."""

    def pack(tar: Path) -> str:
        if request.param == "stream":
            tar.write_bytes(gzip.compress(tar.read_bytes()))
        return str(tar)

    return pack


def contents(url: str) -> Iterator[tuple[str, Content]]:
    for item in read_members(url, lambda _: True):
        if isinstance(item, Damage):
            yield "", item.reason
        else:
            assert item.blob is not None
            yield item.name, item.blob.reason if isinstance(item.blob, Lost) else read_blob(item.blob)


def add(tar: tarfile.TarFile, name: str, kind: bytes = tarfile.REGTYPE, target: str = "", data: bytes = b"") -> None:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, len(data)
    tar.addfile(info, io.BytesIO(data))


def test_links_are_read_where_they_lead(tmp_path: Path, finish: Callable[[Path], str]) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add(tar, "d/a.jpg", data=b"picture")
        add(tar, "hard.jpg", tarfile.LNKTYPE, "d/a.jpg")
        add(tar, "d/soft.jpg", tarfile.SYMTYPE, "a.jpg")
        add(tar, "e/up.jpg", tarfile.SYMTYPE, "../d/./soft.jpg")
        add(tar, "folder", tarfile.SYMTYPE, "d")
        add(tar, "through.jpg", tarfile.SYMTYPE, "folder/soft.jpg")

    found = dict(contents(finish(tmp_path / "x.tar")))

    assert found.pop("folder") in ("linked_folder", "unreachable_link")
    assert set(found.values()) == {b"picture"}
    assert len(found) == 5


def test_a_target_may_come_later_where_the_tar_can_be_read_again(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add(tar, "soft.jpg", tarfile.SYMTYPE, "blobs/0123")
        add(tar, "blobs/0123", data=b"picture")

    assert dict(contents(str(tmp_path / "x.tar")))["soft.jpg"] == b"picture"


def test_what_a_stream_cannot_reach_is_named_with_what_to_do(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as tar:
        add(tar, "soft.jpg", tarfile.SYMTYPE, "a.jpg")
        add(tar, "a.jpg", data=b"picture")

    link = next(read_members(str(tmp_path / "x.tar.gz"), lambda _: True))

    assert not isinstance(link, Damage)
    assert isinstance(link.blob, Lost)
    assert link.blob.reason == "unreachable_link"
    assert "--cache_path" in link.blob.detail


def test_a_stream_forgets_the_oldest_members_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clip_retrieval.sources.links.KEPT_BYTES", 4000)
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as tar:
        for name in ("a.jpg", "b.jpg"):
            add(tar, name, data=name[:1].encode() * 3000)
        for name in ("a.jpg", "b.jpg"):
            add(tar, f"to_{name}", tarfile.LNKTYPE, name)

    found = dict(contents(str(tmp_path / "x.tar.gz")))

    assert found["to_a.jpg"] == "unreachable_link"
    assert found["to_b.jpg"] == b"b" * 3000


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("/etc/hostname", "link_outside"),
        ("../a.jpg", "link_outside"),
        ("nothing.jpg", "broken_link"),
        ("other.jpg", "link_loop"),
        ("self.jpg", "link_loop"),
        ("folder", "linked_folder"),
        ("pipe", "not_a_file"),
    ],
)
def test_links_that_lead_to_no_file_of_the_tar_are_named(tmp_path: Path, target: str, reason: str) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add(tar, "a.jpg", data=b"picture")
        add(tar, "self.jpg", tarfile.SYMTYPE, target)
        add(tar, "other.jpg", tarfile.SYMTYPE, "self.jpg")
        add(tar, "folder/b.jpg", data=b"other")
        add(tar, "pipe", tarfile.FIFOTYPE)

    assert dict(contents(str(tmp_path / "x.tar")))["self.jpg"] == reason


def test_a_hard_link_is_to_the_file_that_had_the_name_before_it(tmp_path: Path, finish: Callable[[Path], str]) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add(tar, "a.jpg", data=b"old")
        add(tar, "b.jpg", tarfile.LNKTYPE, "a.jpg")
        add(tar, "a.jpg", data=b"new")

    assert ("b.jpg", b"old") in list(contents(finish(tmp_path / "x.tar")))


@pytest.mark.parametrize("kind", [tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, b"M"])
def test_devices_and_pipes_are_named(tmp_path: Path, finish: Callable[[Path], str], kind: bytes) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add(tar, "a.jpg", kind)
        add(tar, "b.jpg", data=b"picture")

    assert dict(contents(finish(tmp_path / "x.tar"))) == {"a.jpg": "not_a_file", "b.jpg": b"picture"}


@pytest.mark.parametrize("form", ["webdataset", "archive"])
def test_pictures_behind_links_are_embedded_and_exported(
    tmp_path: Path, make_jpeg: Callable[[int], bytes], read_table: Any, form: str
) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add(tar, "0.jpg", data=make_jpeg(1))
        add(tar, "1.jpg", tarfile.LNKTYPE, "0.jpg")
        add(tar, "2.jpg", tarfile.SYMTYPE, "0.jpg")
        add(tar, "3.jpg", tarfile.SYMTYPE, "/etc/hostname")

    clip_inference(tmp_path / "x.tar", tmp_path / "e", form, clip_model="hash:16?size=32", num_prepro_workers=0)
    clip_index(tmp_path / "e", tmp_path / "i")
    hits = clip_filter("anything", tmp_path / "hits", tmp_path / "i", num_results=9)

    assert len(hits) == 3
    assert {path.read_bytes() for path in (tmp_path / "hits" / "images").iterdir()} == {make_jpeg(1)}
    failures = read_table(tmp_path / "e", "failures")[["key", "reason"]].values.tolist()
    assert failures == [["3" if form == "webdataset" else "3.jpg", "link_outside"]]


def test_joined_tars_are_read_to_the_last(tmp_path: Path, write_tar: WriteTar, finish: Callable[[Path], str]) -> None:
    tars = [write_tar(tmp_path / f"{name}.tar", [(f"{name}.jpg", name.encode())]) for name in "abc"]
    (tmp_path / "all.tar").write_bytes(b"".join(tar.read_bytes() for tar in tars))

    found = list(contents(finish(tmp_path / "all.tar")))

    assert found == [("a.jpg", b"a"), ("b.jpg", b"b"), ("c.jpg", b"c")]


def test_a_cut_second_tar_is_told_of(tmp_path: Path, write_tar: WriteTar, finish: Callable[[Path], str]) -> None:
    tar = write_tar(tmp_path / "a.tar", [("a.jpg", b"a")])
    second = write_tar(tmp_path / "b.tar", [("b.jpg", b"b")]).read_bytes()
    tar.write_bytes(tar.read_bytes() + second[:1024])

    assert list(contents(finish(tar))) == [("a.jpg", b"a"), ("b.jpg", b"b"), ("", "truncated")]


@pytest.mark.parametrize("zeroed", [range(1, 2), range(2, 4)], ids=["a block of zeros between members", "a header"])
def test_what_comes_after_zeros_is_read_or_told_of(
    tmp_path: Path, write_tar: WriteTar, finish: Callable[[Path], str], zeroed: range
) -> None:
    tar = write_tar(tmp_path / "a.tar", [("a.jpg", b"a" * 512), ("b.jpg", b"b" * 512), ("c.jpg", b"c" * 512)])
    data = bytearray(tar.read_bytes())
    if zeroed.start == 1:
        data[1024:1024] = bytes(512)
    else:
        data[1024:1536] = bytes(512)
    tar.write_bytes(data)

    found = list(contents(finish(tar)))

    assert found[0] == ("a.jpg", b"a" * 512)
    assert found[1:] == ([("b.jpg", b"b" * 512), ("c.jpg", b"c" * 512)] if zeroed.start == 1 else [("", "corrupt")])


def pax_records(records: Iterable[tuple[str, str]]) -> bytes:
    """Return pax records as they are stored: each begins with its own length."""
    lines = [f" {name}={value}\n".encode() for name, value in records]
    return b"".join(f"{len(line) + 2}".encode() + line for line in lines)


def fields_of(piece: tuple[int, int]) -> list[tuple[str, str]]:
    return [("GNU.sparse.offset", str(piece[0])), ("GNU.sparse.numbytes", str(piece[1]))]


def hit_of(sample: Sample) -> dict[str, object]:
    """Return what metadata says about a picture."""
    origin = sample.origin
    assert origin is not None
    return {
        "image_path": sample.image_path, "shard": origin.shard, "shard_offset": origin.offset,
        "shard_size": origin.size,
    }  # fmt: skip


def write_sparse(path: Path, form: str, name: str = "a.bmp") -> Path:
    """Write a tar with a sparse file, two pieces of data with zeros between and after them, and a plain one."""
    pieces = [(0, 512), (HOLE, 512)]
    data, size = DATA + DATA[::-1], str(len(EXPANDED))
    flat = [str(number) for piece in pieces for number in piece]
    records = {
        "0.0": [("GNU.sparse.size", size), *(field for piece in pieces for field in fields_of(piece))],
        "0.1": [("GNU.sparse.size", size), ("GNU.sparse.map", ",".join(flat)), ("GNU.sparse.name", name)],
        "1.0": [
            ("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"),
            ("GNU.sparse.name", name), ("GNU.sparse.realsize", size),
        ],
    }.get(form)  # fmt: skip
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        if form == "gnu":
            info = tarfile.TarInfo(name)
            info.type, info.size = tarfile.GNUTYPE_SPARSE, len(data)
            header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
            header[386:434] = b"".join(b"%011o\0" % int(number) for number in flat)
            header[483:495] = b"%011o\0" % len(EXPANDED)
            header[148:156] = b" " * 8
            header[148:156] = b"%06o\0 " % sum(header)
            assert tar.fileobj is not None
            tar.fileobj.write(bytes(header) + data)
            tar.offset += len(header) + len(data)
        else:
            add(tar, "x", tarfile.XHDTYPE, data=pax_records(records or []))
            if form == "1.0":
                data = "\n".join(["2", *flat, ""]).encode().ljust(512, b"\0") + data
            add(tar, name, data=data)
        add(tar, "b.jpg", data=b"picture")
    return path


@pytest.mark.parametrize("form", ["gnu", "0.0", "0.1", "1.0"])
def test_sparse_files_are_read_with_their_holes(tmp_path: Path, finish: Callable[[Path], str], form: str) -> None:
    tar = write_sparse(tmp_path / "x.tar", form)

    assert list(contents(finish(tar))) == [("a.bmp", EXPANDED), ("b.jpg", b"picture")]


def test_a_sparse_file_has_no_place_in_its_tar(tmp_path: Path) -> None:
    tar = write_sparse(tmp_path / "x.tar", "gnu")

    sparse, plain = read_members(str(tar), lambda _: True)

    assert not isinstance(sparse, Damage)
    assert sparse.offset is None
    assert not isinstance(plain, Damage)
    assert isinstance(plain.blob, BlobRef)
    assert plain.offset == plain.blob.offset


@pytest.mark.parametrize("form", ["gnu", "0.0", "0.1", "1.0"])
def test_a_sparse_picture_is_found_again_by_its_name(tmp_path: Path, finish: Callable[[Path], str], form: str) -> None:
    tar = Path(finish(write_sparse(tmp_path / "x.tar", form)))

    samples, failures = read_all(tar)

    assert not failures
    assert [find_picture(hit_of(sample)).data for sample in samples] == [EXPANDED, b"picture"]


def test_a_sparse_picture_of_a_tar_of_loose_pictures_is_found_again_by_its_path(tmp_path: Path) -> None:
    tar = write_sparse(tmp_path / "x.tar", "1.0", name="./d/a.v1.bmp")
    source = open_source(SourceConfig(input_dataset=str(tar), input_format="archive"), "out")

    samples = [item for item in source.read(0, len(source.units)) if isinstance(item, Sample)]

    assert [sample.image_path for sample in samples] == ["b.jpg", "d/a.v1.bmp"]
    assert [find_picture(hit_of(sample)).data for sample in samples] == [b"picture", EXPANDED]


def test_of_two_sparse_pictures_with_one_key_none_is_taken_for_the_other(tmp_path: Path) -> None:
    tars = [write_sparse(tmp_path / f"{name}.tar", "1.0", name=name) for name in ("a.bmp", "a.png")]
    tars[0].write_bytes(b"".join(tar.read_bytes() for tar in tars))
    hit = {"image_path": "a", "shard": str(tars[0])}

    assert find_picture(hit).problem == f"2 sparse files of {tars[0]} are called a in the metadata"
    assert find_picture(hit | {"image_path": "a.png"}).data == EXPANDED


def test_a_sparse_file_with_pieces_outside_of_it_is_named(tmp_path: Path, finish: Callable[[Path], str]) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        records = [("GNU.sparse.size", "10"), ("GNU.sparse.map", "5,512"), ("GNU.sparse.name", "a.bmp")]
        add(tar, "x", tarfile.XHDTYPE, data=pax_records(records))
        add(tar, "a.bmp", data=DATA)
        add(tar, "b.jpg", data=b"picture")

    assert list(contents(finish(tmp_path / "x.tar"))) == [("a.bmp", "corrupt"), ("b.jpg", b"picture")]


@pytest.mark.parametrize("name", ["x.tar", "x.tar.zst"])
@pytest.mark.parametrize("packer", ["gz", "bz2", "xz", "zstd"])
def test_a_compressed_tar_is_known_by_its_content(tmp_path: Path, write_tar: WriteTar, name: str, packer: str) -> None:
    data = write_tar(tmp_path / "plain.tar", [("a.jpg", b"picture")]).read_bytes()
    if packer == "zstd":
        with pa.OSFile(str(tmp_path / name), "wb") as file, pa.CompressedOutputStream(file, "zstd") as packed:
            packed.write(data)
    else:
        module: Any = {"gz": gzip, "bz2": bz2, "xz": lzma}[packer]
        (tmp_path / name).write_bytes(module.compress(data))

    assert list(contents(str(tmp_path / name))) == [("a.jpg", b"picture")]


def test_a_member_of_a_compressed_tar_is_found_again_whatever_the_name(tmp_path: Path, write_tar: WriteTar) -> None:
    tar = write_tar(tmp_path / "x.tar", [("a.jpg", b"picture")])
    tar.write_bytes(gzip.compress(tar.read_bytes()))

    assert read_blob(BlobRef(str(tar), 512, 7)) == b"picture"


def test_a_git_lfs_pointer_in_place_of_a_tar_says_so(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")

    (damage,) = read_members(str(tmp_path / "x.tar"), lambda _: True)

    assert isinstance(damage, Damage)
    assert damage.reason == "git_lfs_pointer"
    assert "git lfs pull" in damage.detail


def read_all(tar: Path, **options: Any) -> tuple[list[Sample], list[Failure]]:
    config = SourceConfig(input_dataset=str(tar), input_format="webdataset", **options)
    items = list(open_source(config, "/nowhere").read(0, 1))
    return [i for i in items if isinstance(i, Sample)], [i for i in items if isinstance(i, Failure)]


@pytest.mark.parametrize("prefix", ["", "./", "./d/"])
def test_hidden_members_tear_no_sample_and_are_named(tmp_path: Path, write_tar: WriteTar, prefix: str) -> None:
    names = ["._0.jpg", "0.jpg", "._0.txt", "0.txt", "__MACOSX/0.json", "0.json"]
    tar = write_tar(tmp_path / "x.tar", [(f"{prefix}{name}", name.encode()) for name in names])

    (sample,), failures = read_all(tar, enable_metadata=True)

    parts = (sample.image, sample.text, sample.metadata)
    assert [read_blob(part) for part in parts if isinstance(part, bytes | BlobRef)] == [
        b"0.jpg", b"0.txt", b"0.json",
    ]  # fmt: skip
    assert [failure.reason for failure in failures] == ["hidden"] * 3


def test_dotted_keys_make_the_pairs_that_webdataset_makes(tmp_path: Path, write_tar: WriteTar) -> None:
    names = ["d/1.input.jpg", "d/1.outputs.txt", "d/2.input.jpg", "d/2.OUTPUTS.TXT", "d/2.json", "d/3.input.jpg"]
    tar = write_tar(tmp_path / "x.tar", [(name, b"x") for name in names])

    samples, failures = read_all(tar, wds_image_key="input.jpg", wds_caption_key="outputs.txt", enable_metadata=True)

    assert [(s.key, bool(s.text), bool(s.metadata)) for s in samples] == [
        ("d/1", True, False), ("d/2", True, True), ("d/3", False, False),
    ]  # fmt: skip
    assert not failures


def test_a_caption_whose_name_has_more_dots_than_its_picture_s_is_named_with_advice(
    tmp_path: Path, write_tar: WriteTar
) -> None:
    names = ("d/1.input.jpg", "d/1.outputs.txt", "d/1.more.json", "d/1.mask.jpg")
    tar = write_tar(tmp_path / "x.tar", [(name, b"x") for name in names])

    unnamed = "no picture has its name"
    [sample], failures = read_all(tar, wds_image_key="input.jpg;jpg")

    assert (sample.key, sample.text) == ("d/1", None)
    assert [(failure.key, failure.reason, failure.detail) for failure in failures] == [
        ("d/1.outputs.txt", "not_joined", f"{unnamed}; --wds_caption_key outputs.txt makes it the caption of d/1.*"),
        ("d/1.more.json", "not_joined", f"{unnamed}; the json of d/1.* is d/1.json"),
        ("d/1.mask.jpg", "duplicate", "the picture of its sample is d/1.*"),
    ]  # fmt: skip


def test_without_dotted_keys_each_version_is_a_sample(tmp_path: Path, write_tar: WriteTar) -> None:
    tar = write_tar(tmp_path / "x.tar", [(name, b"x") for name in ("a.v1.jpg", "a.v1.txt", "a.v2.jpg")])

    samples, _ = read_all(tar)

    assert [(sample.key, bool(sample.text)) for sample in samples] == [("a.v1", True), ("a.v2", False)]
