"""The members of one tar, in order, and how it ended: Python's tarfile, but nothing ends in silence."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, Self

from clip_retrieval.blobs import Blob, BlobRef, local_path, open_url


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a tar: its name, its place in the (decompressed) tar, and its bytes or where they are."""

    name: str
    offset: int
    size: int
    blob: Blob | None  # None where nobody wants the bytes of such a member


@dataclass(frozen=True, slots=True)
class Damage:
    """Why reading stopped before the end of the tar, or why it has nothing: reason in one word, and detail."""

    reason: str
    detail: str


class HeaderWitness(tarfile.TarInfo):
    """Remembers on the TarFile why its headers ended; tarfile itself takes damage for the end."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tar)
        except tarfile.HeaderError as error:
            tar.last_header_error = error  # type: ignore[attr-defined]
            raise


def read_members(url: str, wanted: Callable[[str], bool]) -> Iterator[Member | Damage]:
    """Yield the files of the tar behind `url`; a Damage comes last, where there is any.

    Members of a plain tar on this machine come as references, those of a stream with their bytes.
    """
    damage: Damage | None = None
    try:
        with open_url(url) as file:
            for item in walk(file, url, wanted):
                if isinstance(item, Damage):
                    damage = item
                else:
                    yield item
    except FileNotFoundError as error:
        damage = Damage("missing", f"cannot be opened: {error}")
    except (OSError, EOFError, ValueError, ImportError) as error:
        damage = Damage("unreadable", " ".join(str(error).split()) or type(error).__name__)
    if damage is not None:
        yield damage


def walk(file: IO[bytes], url: str, wanted: Callable[[str], bool]) -> Iterator[Member | Damage]:
    is_plain = local_path(url) is not None and type(file).__name__ == "BufferedReader"
    length = measure(file) if is_plain else None
    last, count = "the first member", 0
    try:
        with tarfile.open(fileobj=file, mode="r:" if is_plain else "r|", tarinfo=HeaderWitness) as tar:
            for info in tar:
                last, count = info.name, count + 1
                if info.isfile():
                    member = read_member(tar, info, url, wanted, length)
                    if isinstance(member, Damage):
                        yield member
                        return
                    yield member
                tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header it saw
            yield from explain_end(tar, last, count)
    except tarfile.ReadError as error:
        if count:
            yield Damage("truncated", f"ends inside or after {last}: {error}")
        elif length == 0 or str(error) == "empty file":
            yield Damage("empty", "has no bytes")
        else:
            yield Damage("not_a_tar", str(error))


def measure(file: IO[bytes]) -> int:
    length = file.seek(0, 2)
    file.seek(0)
    return length


def read_member(
    tar: tarfile.TarFile, info: tarfile.TarInfo, url: str, wanted: Callable[[str], bool], length: int | None
) -> Member | Damage:
    if not wanted(info.name):
        return Member(info.name, info.offset_data, info.size, None)
    if length is not None:
        if info.offset_data + info.size > length:
            return Damage("truncated", f"cut inside {info.name}; that and everything after it is lost")
        return Member(info.name, info.offset_data, info.size, BlobRef(url, info.offset_data, info.size))
    content = tar.extractfile(info)
    data = content.read() if content else b""
    if len(data) < info.size:
        return Damage("truncated", f"cut inside {info.name}; that and everything after it is lost")
    return Member(info.name, info.offset_data, info.size, data)


def explain_end(tar: Any, last: str, count: int) -> Iterator[Damage]:
    """Tell a proper end from damage that tarfile took for one."""
    error = getattr(tar, "last_header_error", None)
    kind = type(error).__name__  # tarfile does not export these classes
    if kind == "EOFHeaderError":
        if count == 0:
            yield Damage("empty", "has no members")
    elif kind in ("EmptyHeaderError", "TruncatedHeaderError"):
        yield Damage("truncated", f"ends after {last} without an end-of-archive mark")
    elif error is not None:
        yield Damage("corrupt", f"the header after {last} is damaged; everything after it is lost")
