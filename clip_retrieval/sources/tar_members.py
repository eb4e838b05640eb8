"""One member of a tar: a reference to its bytes, the bytes themselves, or why it cannot be read."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from typing import IO, Protocol, cast

from clip_retrieval.blobs import LARGEST_BLOB, Blob, BlobRef, Lost, stamp_of, too_large
from clip_retrieval.sources.links import KEPT_BYTES, Entries, Entry, Kind
from clip_retrieval.sources.tar_headers import Tar


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a tar: its name, where its bytes are in the (decompressed) tar, and the bytes or a reference."""

    name: str
    offset: int | None = None  # None if the bytes are not in one piece, or cannot be read
    size: int | None = None
    blob: Blob | None = None  # None if the bytes of such a member are not wanted


class CutError(Exception):
    """The tar ends inside a member."""


class MemberReader(Protocol):
    """Makes members from headers, in their order."""

    def read(self, tar: Tar, info: tarfile.TarInfo, *, is_wanted: bool) -> Member:
        """Return the member; raises CutError."""
        ...


class PlainReader:
    """Members of a tar on this machine, as references; a link may lead to any other member."""

    def __init__(self, file: IO[bytes], url: str) -> None:
        self.file, self.url, self.stamp = file, url, stamp_of(file)
        self.byte_count = file.seek(0, 2)
        file.seek(0)
        self.entries: Entries | None = None  # read at the first link

    def read(self, tar: Tar, info: tarfile.TarInfo, *, is_wanted: bool) -> Member:
        del tar
        if not is_wanted:
            return Member(info.name)
        if info.isfile():
            if info.offset_data + stored_size(info) > self.byte_count:
                raise CutError
            return Member(info.name, place_of(info), info.size, self.blob_of(info))
        return linked(info, self.all_entries()) if is_link(info) else special(info)

    def blob_of(self, info: tarfile.TarInfo) -> Blob:
        return misplaced(info) or BlobRef(
            self.url, info.offset_data, info.size, extents=extents_of(info), stamp=self.stamp
        )

    def all_entries(self) -> Entries:
        """Return all members by name, from a second pass over the headers."""
        if self.entries is None:
            self.entries = Entries(is_whole=True)
            self.file.seek(0)
            try:
                with Tar.open(fileobj=self.file, mode="r:") as tar:
                    for info in tar:
                        self.entries.add(entry_of(info, self.blob_of(info) if info.isfile() else None))
                        tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header it saw
            except (tarfile.ReadError, ValueError):
                return self.entries  # the first pass reports the damage when it gets there
        return self.entries


class StreamReader:
    """Members of a stream, with their bytes; a link is read if its target came at most KEPT_BYTES earlier."""

    def __init__(self) -> None:
        self.entries = Entries()

    def read(self, tar: Tar, info: tarfile.TarInfo, *, is_wanted: bool) -> Member:
        if is_link(info) and is_wanted:
            member = linked(info, self.entries)
        elif info.isfile() and (is_wanted or info.size <= KEPT_BYTES // 4):
            member = Member(info.name, place_of(info), info.size, content_of(tar, info))
        else:
            member = special(info) if is_wanted else Member(info.name)
        self.entries.add(entry_of(info, member.blob))
        return member


def linked(info: tarfile.TarInfo, entries: Entries) -> Member:
    """Return a link as a member with the place and bytes of the file that it leads to."""
    found = entries.follow(entry_of(info, None))
    return Member(info.name, found.offset, found.size, found.blob) if isinstance(found, Entry) else lost(info, found)


def entry_of(info: tarfile.TarInfo, blob: Blob | None) -> Entry:
    kind: Kind = "file" if info.isfile() else "folder" if info.isdir() else "other"
    if is_link(info):
        kind, blob = "symbolic" if info.issym() else "hard", None
    return Entry(
        name=info.name,
        kind=kind,
        target=info.linkname,
        header=info.offset,
        offset=place_of(info),
        size=info.size,
        blob=blob,
    )


def special(info: tarfile.TarInfo) -> Member:
    return lost(info, Lost("not_a_file", "a named pipe, a device, or a kind of member that is not known here"))


def lost(info: tarfile.TarInfo, why: Lost) -> Member:
    return Member(info.name, blob=why)


def is_link(info: tarfile.TarInfo) -> bool:
    return info.issym() or info.islnk()


def place_of(info: tarfile.TarInfo) -> int | None:
    return info.offset_data if info.sparse is None else None


def extents_of(info: tarfile.TarInfo) -> tuple[tuple[int, int], ...] | None:
    """Return (place, size) of the pieces of data of a sparse file; None for other files."""
    pieces = cast("list[tuple[int, int]] | None", info.sparse)
    return None if pieces is None else tuple((place, count) for place, count in pieces)


def stored_size(info: tarfile.TarInfo) -> int:
    """Return the bytes that a member takes in the tar: for a sparse file, its pieces of data alone."""
    extents = extents_of(info)
    return info.size if extents is None else sum(count for _, count in extents)


def misplaced(info: tarfile.TarInfo) -> Lost | None:
    """Return Lost for a sparse file with pieces of data outside of it, else None."""
    for place, count in extents_of(info) or ():
        if place < 0 or count < 0 or place + count > info.size:
            return Lost("corrupt", "a sparse file whose pieces of data are not inside of it")
    return None


def content_of(tar: Tar, info: tarfile.TarInfo) -> Blob:
    """Return the bytes of a member of a stream; the next header follows them. Raises CutError."""
    refusal = misplaced(info) or (too_large(info.size) if info.size > LARGEST_BLOB else None)
    if refusal is not None:
        return refusal
    content = tar.extractfile(info)
    data = content.read() if content else b""
    if len(data) < info.size:
        raise CutError
    return data
