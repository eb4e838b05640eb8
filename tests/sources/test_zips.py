"""Members of zips: checked against their checksums, found behind links and behind the program of a self-extractor."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from clip_retrieval.blobs import BlobRef, LostError, read_blob
from clip_retrieval.media.places import PlaceRef
from clip_retrieval.query.pictures import find_picture
from clip_retrieval.sources import open_source
from clip_retrieval.sources.config import SourceConfig
from clip_retrieval.sources.types import Failure, Sample
from clip_retrieval.sources.zip_headers import stored_crc

STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
PICTURE = b"picture " * 20


class Unseekable(io.BytesIO):
    """A file that zipfile writes to as to a pipe: then the checksum comes after the data."""

    def seekable(self) -> bool:
        return False

    def tell(self) -> int:
        raise OSError("no place")


def write_zip(path: Path, members: Iterable[tuple[str, bytes]], compression: int = STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as zipped:
        for name, data in members:
            zipped.writestr(name, data)
    return path


def read_items(path: Path) -> list[Sample | Failure]:
    source = open_source(SourceConfig(input_dataset=str(path), input_format="archive"), "/nowhere")
    return list(source.read(0, len(source.units)))


def read_samples(path: Path) -> list[Sample]:
    return [item for item in read_items(path) if isinstance(item, Sample)]


def image_of(sample: Sample) -> bytes:
    assert sample.image is not None
    assert not isinstance(sample.image, PlaceRef)
    return read_blob(sample.image)


def hit_of(sample: Sample) -> dict[str, object]:
    origin = sample.origin
    assert origin is not None
    return {
        "image_path": sample.image_path,
        "shard": origin.shard,
        "shard_offset": origin.offset,
        "shard_size": origin.size,
    }


def test_a_damaged_stored_picture_is_neither_read_nor_exported(tmp_path: Path) -> None:
    source = write_zip(tmp_path / "x.zip", [("a.jpg", PICTURE), ("b.jpg", PICTURE)])
    first, second = read_samples(source)
    source.write_bytes(source.read_bytes().replace(b"picture", b"pictUre", 1))
    again = read_samples(source)

    with pytest.raises(LostError) as caught:
        image_of(again[0])
    assert caught.value.reason == "corrupt"
    assert find_picture(hit_of(first)).data is None
    assert "checksum" in (find_picture(hit_of(first)).problem or "")
    assert find_picture(hit_of(second)).data == image_of(again[1]) == PICTURE


def test_the_checksum_of_a_stored_member_is_found_by_its_place(tmp_path: Path) -> None:
    members = [("a.jpg", PICTURE), ("PK\x03\x04.jpg", PICTURE[1:])]
    piped = Unseekable()
    with zipfile.ZipFile(piped, "w") as zipped:
        for name, data in members:
            zipped.writestr(name, data)
    (tmp_path / "piped.zip").write_bytes(piped.getvalue())
    for path in (write_zip(tmp_path / "x.zip", members), tmp_path / "piped.zip"):
        for sample in read_samples(path):
            assert isinstance(sample.image, BlobRef)
            assert stored_crc(str(path), sample.image.offset, sample.image.size or 0) == sample.image.crc
            assert stored_crc(str(path), sample.image.offset + 1, 5) is None


@pytest.mark.parametrize("compression", [STORED, DEFLATED])
def test_a_zip_behind_a_program_is_a_zip(tmp_path: Path, compression: int) -> None:
    plain = write_zip(tmp_path / "x.zip", [("a.jpg", PICTURE)], compression)
    (tmp_path / "x.exe").write_bytes(b"MZ" + bytes(1000) + plain.read_bytes())

    (sample,) = read_samples(tmp_path / "x.exe")

    assert image_of(sample) == PICTURE
    assert find_picture(hit_of(sample)).data == PICTURE


def test_a_tar_whose_last_member_is_a_zip_is_a_tar(tmp_path: Path) -> None:
    inner = write_zip(tmp_path / "inner.zip", [("b.jpg", b"inner")]).read_bytes()
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, data in (("a.jpg", PICTURE), ("inner.zip", inner)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))

    assert [sample.key for sample in read_samples(tmp_path / "x.tar")] == ["a.jpg"]


@pytest.mark.parametrize("compression", [STORED, DEFLATED])
@pytest.mark.parametrize(
    "name", ["./a.jpg", "d//a.jpg", "/a.jpg", "d/x::y.jpg", "d/x#y?.jpg", "d/../[a].jpg", "\u00e4.jpg"]
)
def test_members_are_found_again_whatever_the_zip_calls_them(tmp_path: Path, name: str, compression: int) -> None:
    write_zip(tmp_path / "x.zip", [("b.jpg", b"other"), (name, PICTURE)], compression)

    [sample] = [sample for sample in read_samples(tmp_path / "x.zip") if sample.key != "b.jpg"]

    assert image_of(sample) == find_picture(hit_of(sample)).data == PICTURE


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("second", ["a.jpg", "./a.jpg"])
def test_of_two_members_with_one_name_the_first_is_embedded_and_found_again(tmp_path: Path, second: str) -> None:
    write_zip(tmp_path / "x.zip", [("a.jpg", PICTURE), (second, b"other")], DEFLATED)

    [sample] = read_samples(tmp_path / "x.zip")

    assert image_of(sample) == find_picture(hit_of(sample)).data == PICTURE


@pytest.mark.parametrize("compression", [STORED, DEFLATED])
def test_symbolic_links_in_a_zip_are_read_where_they_lead(tmp_path: Path, compression: int) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", compression) as zipped:
        zipped.writestr("d/a.jpg", PICTURE)
        for name, target in (("b.jpg", "d/a.jpg"), ("out.jpg", "/etc/hostname")):
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            zipped.writestr(info, target)

    samples = {sample.key: sample for sample in read_samples(tmp_path / "x.zip")}

    assert image_of(samples["b.jpg"]) == PICTURE
    assert find_picture(hit_of(samples["b.jpg"])).data == PICTURE
    with pytest.raises(LostError, match="outside of the archive"):
        image_of(samples["out.jpg"])


def test_a_damaged_symbolic_link_in_a_zip_says_that_it_is_damaged(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as zipped:
        info = zipfile.ZipInfo("b.jpg")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        zipped.writestr(info, "d/target.jpg")
    whole = (tmp_path / "x.zip").read_bytes()
    (tmp_path / "x.zip").write_bytes(whole.replace(b"d/target.jpg", b"d/tarGet.jpg"))

    (sample,) = read_samples(tmp_path / "x.zip")

    with pytest.raises(LostError, match="CRC-32"):
        image_of(sample)


def test_a_hit_in_a_tar_without_a_place_says_why(
    tmp_path: Path, write_tar: Callable[[Path, list[tuple[str, bytes]]], Path]
) -> None:
    tar = write_tar(tmp_path / "x.tar", [("a.jpg", PICTURE)])

    problem = find_picture({"image_path": "a", "shard": str(tar), "shard_offset": None}).problem

    assert problem == f"it is not found in {tar}: it has changed since it was embedded"
