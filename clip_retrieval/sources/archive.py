"""Zips and tars of loose pictures: captions and json beside a picture join it by name, as in a folder of files."""

from __future__ import annotations

import lzma
import posixpath
import zipfile
import zlib
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, cast

from clip_retrieval.blobs import Blob, BlobRef, Lost, fetch_to_cache, local_path, may_pass, open_raw, open_url
from clip_retrieval.errors import SourceError, first_line
from clip_retrieval.sources.config import SourceConfig
from clip_retrieval.sources.joining import Joined, join, switch_off_missing
from clip_retrieval.sources.patterns import list_inputs
from clip_retrieval.sources.tar import Damage, read_members
from clip_retrieval.sources.types import Failure, Origin, Sample
from clip_retrieval.sources.webdataset import TAR_SUFFIXES
from clip_retrieval.words import clean

ZIP_SUFFIX = ".zip"
LARGEST_MEMBER = 1 << 29  # bytes
LOCAL_HEADER = 30  # bytes before name and extra field
ENCRYPTED = 0x1


@dataclass(eq=False)
class Archive:
    """One archive: its members by name, and the samples that they make."""

    url: str
    members: dict[str, Any]  # name -> ZipInfo, or the BlobRef of a tar's member
    samples: dict[str, Joined] = field(default_factory=dict)  # by the name of their picture or caption
    ignored: list[Failure] = field(default_factory=list)

    @property
    def is_zip(self) -> bool:
        return any(isinstance(member, zipfile.ZipInfo) for member in self.members.values())


@dataclass(frozen=True)
class ArchiveSource:
    """Samples by archive, then by name; one unit is one sample, or an archive that has none."""

    config: SourceConfig
    samples: Sequence[tuple[Archive, str]]  # name of the picture, or of the caption where there is no picture
    units: Sequence[str]

    @property
    def samples_per_unit(self) -> int:
        return 1

    def estimate_total(self) -> int:
        return len(self.units)

    def read(self, start: int, stop: int) -> Iterator[Sample | Failure]:
        for archive, items in groupby(range(start, stop), lambda number: self.samples[number][0]):
            numbers = list(items)
            if numbers[0] == 0 or self.samples[numbers[0] - 1][0] is not archive:
                yield from archive.ignored
            yield from self.samples_of(archive, [self.samples[number][1] for number in numbers])

    def read_only(self, names: Container[tuple[str, str]]) -> Iterator[Sample | Failure]:
        """Yield the samples with these pairs of archive and name."""
        chosen = [item for item in self.samples if (item[0].url, clean(item[1])) in names]
        for archive, items in groupby(chosen, lambda item: item[0]):
            yield from self.samples_of(archive, [name for _, name in items])

    def samples_of(self, archive: Archive, names: Sequence[str]) -> Iterator[Sample | Failure]:
        try:
            with opened(archive.url, is_zip=archive.is_zip) as zipped:
                yield from (self.sample(archive, name, zipped) for name in names if name)
        except (OSError, zipfile.BadZipFile) as error:  # it was there when its members were listed
            detail = f"{len(names)} samples from {names[0]} on are lost: {first_line(error)}"
            yield Failure.of_shard(archive.url, "unreadable", detail)

    def sample(self, archive: Archive, name: str, zipped: zipfile.ZipFile | None) -> Sample:
        joined, config = archive.samples[name], self.config
        is_image = joined.image is not None
        image = blob_of(archive, joined.image if config.enable_image else None, zipped)
        return Sample(
            key=name,
            image_path=name if is_image else None,
            image=image,
            text=blob_of(archive, joined.text if config.enable_text else None, zipped),
            metadata=blob_of(archive, joined.metadata if config.enable_metadata else None, zipped),
            origin=origin_of(archive, name, zipped) if is_image else Origin(archive.url, None, None),
        )


@contextmanager
def opened(url: str, *, is_zip: bool) -> Iterator[zipfile.ZipFile | None]:
    if not is_zip:
        yield None
        return
    with open_raw(url) as file, zipfile.ZipFile(file) as zipped:
        yield zipped


def blob_of(archive: Archive, name: str | None, zipped: zipfile.ZipFile | None) -> Blob | None:
    """Return a member's bytes, or where they are; what cannot be had is Lost."""
    if name is None:
        return None
    member = archive.members[name]
    if zipped is None or not isinstance(member, zipfile.ZipInfo):
        return cast("Blob", member)
    try:
        return refusal_of(member, name) or read_zipped(member, archive.url, zipped)
    except NotImplementedError as error:
        return Lost("compression", f"{name}: {first_line(error)}")
    except OSError as error:
        return Lost("unreadable", f"{name}: {first_line(error)}")
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError) as error:
        return Lost("corrupt", f"{name}: {first_line(error)}")


def refusal_of(member: zipfile.ZipInfo, name: str) -> Lost | None:
    if member.flag_bits & ENCRYPTED:
        return Lost("encrypted", f"{name} is encrypted; unpack the archive with its password first")
    if member.file_size > LARGEST_MEMBER:
        return Lost("too_large", f"{name} unpacks to {member.file_size:,} bytes, more than {LARGEST_MEMBER:,}")
    return None


def read_zipped(member: zipfile.ZipInfo, url: str, zipped: zipfile.ZipFile) -> Blob:
    if member.compress_type == zipfile.ZIP_STORED and local_path(url) is not None:
        return BlobRef(url, place_of(member, zipped), member.file_size)
    return zipped.read(member)


def place_of(member: zipfile.ZipInfo, zipped: zipfile.ZipFile) -> int:
    """Return where a stored member's bytes begin: after the header before it, whose length only it knows."""
    file = zipped.fp
    assert file is not None
    file.seek(member.header_offset)
    header = file.read(LOCAL_HEADER)
    if len(header) < LOCAL_HEADER or header[:4] != b"PK\x03\x04":
        raise zipfile.BadZipFile("no member begins where the list of members says so")
    return member.header_offset + LOCAL_HEADER + sum(int.from_bytes(header[i : i + 2], "little") for i in (26, 28))


def origin_of(archive: Archive, name: str, zipped: zipfile.ZipFile | None) -> Origin:
    """Return the place of a picture; a compressed one has none, and is found by its name."""
    member = archive.members[name]
    if isinstance(member, BlobRef):
        return Origin(archive.url, member.offset, member.size)
    if zipped is None or member.compress_type != zipfile.ZIP_STORED or member.flag_bits & ENCRYPTED:
        return Origin(archive.url, None, None)
    try:
        return Origin(archive.url, place_of(member, zipped), member.file_size)
    except (zipfile.BadZipFile, OSError):
        return Origin(archive.url, None, None)


def open_archives(config: SourceConfig) -> ArchiveSource:
    """List the members of every archive, join them by name, and switch off the parts that none has."""
    urls = list_inputs(config.input_dataset, (ZIP_SUFFIX, *TAR_SUFFIXES), "archive")
    archives = [open_archive(url, config) for url in urls]
    joined = [sample for archive in archives for sample in archive.samples.values()]
    has_images = any(sample.image for sample in joined)
    has_texts = any(sample.text for sample in joined)
    config = switch_off_missing(config, has_images=has_images, has_texts=has_texts)
    if not has_images and not has_texts:
        why = next((f": {failure.detail}" for archive in archives for failure in archive.ignored), "")
        raise SourceError(f"{config.input_dataset} holds no sample: no picture, and no .txt caption{why}")
    samples = [(archive, name) for archive in archives for name in names_of(archive)]
    return ArchiveSource(config, samples, [f"{a.url.rpartition('/')[2]}:{name}" for a, name in samples])


def names_of(archive: Archive) -> list[str]:
    return sorted(archive.samples) or [""]  # what was ignored in it is to be told


def open_archive(url: str, config: SourceConfig) -> Archive:
    """List the members of a zip or tar; raises SourceError where it must be copied first, and may not be."""
    archive = Archive(url, {})
    try:
        with open_raw(url) as file:
            magic = file.read(4)
        listed = list_zip(url) if magic[:2] == b"PK" else list_tar(place_of_tar(url, config))
    except FileNotFoundError as error:
        listed = iter([("", Damage("missing", f"cannot be opened: {first_line(error)}"))])
    except (zipfile.BadZipFile, EOFError, ValueError, OSError) as error:
        listed = iter([("", Damage("unreadable" if may_pass(error) else "corrupt", first_line(error)))])
    for name, member in listed:
        add_member(archive, name, member)
    for item in join(list(archive.members), wants_images=config.enable_image):
        if isinstance(item, Failure):
            archive.ignored.append(Failure(item.key, url, item.part, item.reason, item.detail))
        else:
            archive.samples[item.key] = item
    return archive


def add_member(archive: Archive, name: str, member: Any) -> None:
    """Take in a member; normal names only: nothing is ever written under them."""
    if isinstance(member, Damage):
        archive.ignored.append(Failure.of_shard(archive.url, member.reason, member.detail))
        return
    name = posixpath.normpath(name).lstrip("/")
    if name in archive.members:
        detail = "the archive has a member of this name already"
        archive.ignored.append(Failure(name, archive.url, "other", "duplicate", detail))
    else:
        archive.members[name] = member


def list_zip(url: str) -> Iterator[tuple[str, Any]]:
    with open_raw(url) as file, zipfile.ZipFile(file) as zipped:
        members = [(info.filename, info) for info in zipped.infolist() if not info.is_dir()]
    return iter(members)


def list_tar(place: str) -> Iterator[tuple[str, Any]]:
    for item in read_members(place, lambda _: True):
        yield ("", item) if isinstance(item, Damage) else (item.name, item.blob)


def place_of_tar(url: str, config: SourceConfig) -> str:
    """Return a plain tar on this machine: members are read in the order of their names, not in the tar's."""
    if config.cache_path is not None:
        return fetch_to_cache(url, config.cache_path)
    if local_path(url) is None or not is_plain(url):
        raise SourceError(
            f"{url} is compressed, or not on this machine: give --cache_path, a folder in which to unpack it once "
            "(or --input_format webdataset, where captions stand next to their pictures)"
        )
    return url


def is_plain(url: str) -> bool:
    with open_url(url) as file:
        return type(file).__name__ == "BufferedReader"
