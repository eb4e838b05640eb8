"""The members of one tar, in order, and how it ended: Python's tarfile, except that no damage is silent."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO

from clip_retrieval import compression
from clip_retrieval.blobs import is_plain, open_url
from clip_retrieval.errors import one_line
from clip_retrieval.sources.content import explain_refusal
from clip_retrieval.sources.tar_headers import Tar, Window
from clip_retrieval.sources.tar_members import CutError, Member, MemberReader, PlainReader, StreamReader

WITHOUT_FILE = (tarfile.DIRTYPE, b"D", b"V")  # folders, and GNU tar's lists of a folder's files and volume labels


@dataclass(frozen=True, slots=True)
class Damage:
    """Why reading stopped before the end of the tar, or why it has nothing: reason in one word, and detail."""

    reason: str
    detail: str


def read_members(url: str, wanted: Callable[[str], bool]) -> Iterator[Member | Damage]:
    """Yield the files of the tar behind `url`; a Damage comes last, if there is any.

    Members of a plain tar on this machine come as references, those of a stream with their bytes. A wanted member that
    cannot be read, such as a link that leads out of the tar, comes as Lost.
    """
    damage: Damage | None = None
    try:
        with open_url(url) as file:
            for item in walk(file, wanted, PlainReader(file, url) if is_plain(url, file) else StreamReader()):
                if isinstance(item, Damage):
                    damage = item
                else:
                    yield item
    except FileNotFoundError as error:
        damage = Damage("missing", f"cannot be opened: {error}")
    except (OSError, EOFError, ValueError, ImportError) as error:
        damage = Damage("unreadable", one_line(error))
    if damage is not None:
        yield named(damage, url)


def named(damage: Damage, url: str) -> Damage:
    """Return the damage of a file that is not a tar, with what it is, if that is known."""
    return (
        Damage(*explain_refusal(url, damage.reason, damage.detail, "a tar")) if damage.reason == "not_a_tar" else damage
    )


def walk(file: IO[bytes], wanted: Callable[[str], bool], reader: MemberReader) -> Iterator[Member | Damage]:
    last, count = "the first member", 0
    try:
        with Tar.open(fileobj=file, mode="r:" if isinstance(reader, PlainReader) else "r|") as tar:
            tar.window = Window(file) if isinstance(reader, PlainReader) and hasattr(os, "pread") else None
            for info in tar:
                last, count = info.name, count + 1
                if info.type not in WITHOUT_FILE:
                    yield reader.read(tar, info, is_wanted=wanted(info.name))
                tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header it saw
            yield from explain_end(tar, last, count)
    except (CutError, EOFError, *compression.DAMAGE, tarfile.ReadError) as error:
        yield explain_error(error, last, count, is_empty=getattr(reader, "byte_count", None) == 0)


def explain_error(error: Exception, last: str, count: int, *, is_empty: bool) -> Damage:
    """Return why reading stopped, after `count` members."""
    if isinstance(error, CutError):
        return Damage("truncated", f"cut inside {last}; that and everything after it is lost")
    if isinstance(error, compression.DAMAGE):
        return Damage("corrupt", f"damaged inside or after {last}: {one_line(error)}")
    if count or isinstance(error, EOFError):  # EOFError: of a decompressor
        return Damage("truncated", f"ends inside or after {last}: {one_line(error)}")
    if is_empty or str(error) == "empty file":
        return Damage("empty", "holds nothing: no bytes, or zeros alone")
    return Damage("not_a_tar", str(error))


def explain_end(tar: Tar, last: str, count: int) -> Iterator[Damage]:
    """Yield the damage that tarfile took for a proper end, if any."""
    if tar.end in ("EmptyHeaderError", "TruncatedHeaderError"):
        if not tar.has_end_mark:
            yield Damage("truncated", f"ends after {last} without an end-of-archive mark")
        elif not count:
            yield Damage("empty", "has no members")
    elif tar.has_end_mark:
        yield Damage("corrupt", f"zeros come after {last}, and then bytes that are no tar; they are left out")
    elif tar.end:
        yield Damage("corrupt", f"the header after {last} is damaged; everything after it is lost")
