"""Zips and tars of loose pictures: captions and json next to a picture join it by name, as in a folder of files."""

from __future__ import annotations

import zipfile
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import groupby
from typing import IO

from clip_retrieval.blobs import (
    Blob,
    BlobRef,
    Lost,
    Stamp,
    fetch_to_cache,
    is_plain,
    may_pass,
    open_raw,
    open_url,
    replaced,
)
from clip_retrieval.compression import DAMAGE
from clip_retrieval.errors import SourceError, first_line
from clip_retrieval.sources.config import SourceConfig
from clip_retrieval.sources.joining import Joined, join, switch_off_missing
from clip_retrieval.sources.packed import Mapped
from clip_retrieval.sources.patterns import list_inputs
from clip_retrieval.sources.saving import Codec, Restored, as_they_are
from clip_retrieval.sources.stamps import has_stamp, stamp_at
from clip_retrieval.sources.tar import Damage, read_members
from clip_retrieval.sources.types import Failure, Origin, Sample
from clip_retrieval.sources.webdataset import TAR_SUFFIXES, TORN
from clip_retrieval.sources.zips import is_stored, is_zip, list_zip, place_of, plain_name, read_member
from clip_retrieval.words import clean

ZIP_SUFFIX = ".zip"
Held = zipfile.ZipInfo | Blob  # a member of a zip, or of a tar


@dataclass(eq=False)
class Archive:
    """One archive: its members by name, and the samples that they make."""

    url: str
    members: dict[str, Held]
    stamp: Stamp | str | None = None  # of a zip as it was listed; members of tars have it themselves
    samples: dict[str, Joined] = field(default_factory=dict)  # keyed by the picture's name, or the caption's
    ignored: list[Failure] = field(default_factory=list)
    torn: set[str] = field(default_factory=set)  # samples of a damaged tar that may have had more parts

    @property
    def is_zip(self) -> bool:
        return any(isinstance(member, zipfile.ZipInfo) for member in self.members.values())


@dataclass(frozen=True)
class ArchiveSource:
    """Samples by archive, then by name, one per unit; an archive without samples is a unit of its own."""

    config: SourceConfig
    samples: Sequence[tuple[Archive, str]]  # the str is the key of the sample in its archive
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

    @property
    def shards(self) -> Sequence[str]:
        return list(self.archives)

    @cached_property
    def archives(self) -> dict[str, Archive]:
        return {archive.url: archive for archive, _ in self.samples}

    def read_shard(self, url: str) -> Iterator[Sample | Failure]:
        archive = self.archives[url]
        yield from archive.ignored
        yield from self.samples_of(archive, names_of(archive))

    def samples_of(self, archive: Archive, names: Sequence[str]) -> Iterator[Sample | Failure]:
        try:
            with opened(archive.url, is_zip=archive.is_zip) as zipped:
                is_same = zipped is None or has_stamp(archive.url, file_of(zipped), archive.stamp)
                for name in filter(None, names):
                    is_there = is_same and name in archive.samples
                    if not is_there or name in archive.torn:
                        yield self.lost(archive, name, TORN if is_there else replaced(archive.url))
                    else:
                        yield self.sample(archive, name, zipped)
        except (OSError, zipfile.BadZipFile) as error:  # the archive changed after it was listed
            detail = f"{len(names)} samples from {names[0]} on are lost: {first_line(error)}"
            yield Failure.of_shard(archive.url, "unreadable", detail)

    def sample(self, archive: Archive, name: str, zipped: zipfile.ZipFile | None) -> Sample:
        joined, config = archive.samples[name], self.config
        is_image = joined.image is not None
        image = blob_of(archive, joined.image if config.enable_image else None, zipped)
        return Sample(
            key=name,
            image_path=self.path_of(archive, name) if is_image else None,
            image=image,
            text=blob_of(archive, joined.text if config.enable_text else None, zipped),
            metadata=blob_of(archive, joined.metadata if config.enable_metadata else None, zipped),
            origin=origin_of(archive, name, zipped) if is_image else Origin(archive.url, None, None),
        )

    def lost(self, archive: Archive, name: str, why: Lost) -> Sample:
        """Return a sample without its parts, of an archive that was replaced since it was listed, or is damaged."""
        config = self.config
        return Sample(
            key=name,
            image_path=None,
            image=why if config.enable_image else None,
            text=why if config.enable_text else None,
            metadata=why if config.enable_metadata else None,
            origin=Origin(archive.url, None, None),
        )

    def path_of(self, archive: Archive, name: str) -> str:
        """Return the name under which `filter` finds the picture: for a link in a zip, the name of its target."""
        member = archive.members[name]
        return member.filename if isinstance(member, zipfile.ZipInfo) and plain_name(member.filename) != name else name


@contextmanager
def opened(url: str, *, is_zip: bool) -> Iterator[zipfile.ZipFile | None]:
    if not is_zip:
        yield None
        return
    with open_raw(url) as file, zipfile.ZipFile(file) as zipped:
        yield zipped


def file_of(zipped: zipfile.ZipFile) -> IO[bytes]:
    assert zipped.fp is not None
    return zipped.fp


def blob_of(archive: Archive, name: str | None, zipped: zipfile.ZipFile | None) -> Blob | None:
    """Return a member's bytes, a reference to them, or Lost if they cannot be read."""
    member = None if name is None else archive.members[name]
    if isinstance(member, zipfile.ZipInfo):
        assert zipped is not None
        return read_member(member, archive.url, zipped, archive.stamp if isinstance(archive.stamp, tuple) else None)
    return member


def origin_of(archive: Archive, name: str, zipped: zipfile.ZipFile | None) -> Origin:
    """Return where a picture's bytes are; compressed and sparse ones have no offset and are found by name."""
    member = archive.members[name]
    if isinstance(member, BlobRef) and member.extents is None:
        return Origin(archive.url, member.offset, member.size)
    if zipped is None or not isinstance(member, zipfile.ZipInfo) or not is_stored(member):
        return Origin(archive.url, None, None)
    try:
        return Origin(archive.url, place_of(member, zipped), member.file_size)
    except (zipfile.BadZipFile, OSError):
        return Origin(archive.url, None, None)


def restore_archives(saved: Restored[tuple[str, str]]) -> ArchiveSource:
    """Return the source of saved samples; an archive is listed when the first of its samples is read."""
    opened = cache(lambda url: open_archive(url, saved.config))
    samples = Mapped(saved.items, lambda item: (opened(item[0]), item[1]))
    return ArchiveSource(saved.config, samples, Mapped(saved.items, name_of_unit))


def name_of_unit(item: tuple[str, str]) -> str:
    return f"{item[0].rpartition('/')[2]}:{item[1]}"


CODEC = Codec(
    items_of=lambda source: Mapped(source.samples, lambda item: (item[0].url, item[1])),
    pack=as_they_are,
    unpack=lambda packed: [(url, name) for url, name in packed],
    restore=restore_archives,
)


def open_archives(config: SourceConfig, output_folder: str) -> ArchiveSource:
    """List the members of all archives, join them by name, and disable parts that no sample has."""
    urls = list_inputs(config.input_dataset, (ZIP_SUFFIX, *TAR_SUFFIXES), "archive", output_folder)
    archives = [open_archive(url, config) for url in urls]
    joined = [sample for archive in archives for sample in archive.samples.values()]
    has_images = any(sample.image for sample in joined)
    has_texts = any(sample.text for sample in joined)
    config = switch_off_missing(config, has_images=has_images, has_texts=has_texts)
    if not has_images and not has_texts:
        why = next((f" ({failure.detail})" for archive in archives for failure in archive.ignored), "")
        raise SourceError(f"{config.input_dataset} holds no sample: no picture, and no .txt caption{why}")
    samples = [(archive, name) for archive in archives for name in names_of(archive)]
    return ArchiveSource(config, samples, Mapped(samples, lambda item: name_of_unit((item[0].url, item[1]))))


def names_of(archive: Archive) -> list[str]:
    return sorted(archive.samples) or [""]  # a unit is needed even without samples, to report what was ignored


def open_archive(url: str, config: SourceConfig) -> Archive:
    """List the members of a zip or tar; raises SourceError if it must be copied first and cache_path is not set."""
    archive = Archive(url, {})
    try:
        listed: Iterable[tuple[str, Held | Damage | None]]
        if is_zip(url):
            archive.stamp = stamp_at(url)  # before it is listed, so that a zip replaced meanwhile is noticed
            listed = list(list_zip(url))
        else:
            listed = list_tar(place_of_tar(url, config))
    except FileNotFoundError as error:
        listed = [("", Damage("missing", f"cannot be opened: {first_line(error)}"))]
    except (zipfile.BadZipFile, EOFError, ValueError, OSError, *DAMAGE) as error:
        cut = f"cut off or damaged ({first_line(error)})"
        listed = [("", Damage("unreadable", first_line(error)) if may_pass(error) else Damage("corrupt", cut))]
    for name, member in listed:
        add_member(archive, name, member)
    for item in join(list(archive.members), wants_images=config.enable_image):
        if isinstance(item, Failure):
            archive.ignored.append(Failure(item.key, url, item.part, item.reason, item.detail))
        else:
            archive.samples[item.key] = item
    archive.torn = set(find_torn(archive, config))
    return archive


def find_torn(archive: Archive, config: SourceConfig) -> Iterator[str]:
    """Yield the samples that lack a chosen part that others have: only the last one, if parts follow each other."""
    if archive.is_zip or not any(failure.part == "shard" for failure in archive.ignored):
        return
    chosen = {"image": config.enable_image, "text": config.enable_text, "metadata": config.enable_metadata}
    found = {name: names_in(joined) for name, joined in archive.samples.items()}
    there = {part for parts in found.values() for part in parts if chosen[part]}
    places = {name: place for place, name in enumerate(archive.members)}
    spans = [[places[member] for member in parts.values()] for parts in found.values() if parts]
    is_grouped = all(max(span) - min(span) < len(span) for span in spans)
    for name, parts in found.items():
        is_last = len(archive.members) - 1 in (places[member] for member in parts.values())
        if not there <= parts.keys() and (is_last or not is_grouped):
            yield name


def names_in(joined: Joined) -> dict[str, str]:
    """Return the members of a sample by their parts."""
    parts = {"image": joined.image, "text": joined.text, "metadata": joined.metadata}
    return {part: name for part, name in parts.items() if name is not None}


def add_member(archive: Archive, name: str, member: Held | Damage | None) -> None:
    """Register a member under its plain name."""
    if member is None or isinstance(member, Damage):
        if member is not None:
            archive.ignored.append(Failure.of_shard(archive.url, member.reason, member.detail))
        return
    name = plain_name(name)
    if name in archive.members:
        detail = "the archive has a member of this name already"
        archive.ignored.append(Failure(name, archive.url, "other", "duplicate", detail))
    else:
        archive.members[name] = member


def list_tar(place: str) -> Iterator[tuple[str, Held | Damage | None]]:
    for item in read_members(place, lambda _: True):
        yield ("", item) if isinstance(item, Damage) else (item.name, item.blob)


def place_of_tar(url: str, config: SourceConfig) -> str:
    """Return a local, uncompressed tar: its members are read sorted by name, which takes random access."""
    if config.cache_path is not None:
        return fetch_to_cache(url, config.cache_path)
    with open_url(url) as file:
        if is_plain(url, file):
            return url
    raise SourceError(
        f"{url} is compressed, or not on this machine; give --cache_path, a folder in which to unpack it once "
        "(or --input_format webdataset, where captions stand next to their pictures)"
    )
