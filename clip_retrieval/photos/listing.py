"""A cheap look at a folder: names, sizes and times say whether its pictures have changed; no file is read."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from clip_retrieval.encoder.picture_suffixes import IMAGE_SUFFIXES
from clip_retrieval.media.places import SUFFIXES, Kind, advice, can_read, kind_of
from clip_retrieval.words import counted, is_hidden

RAW_SUFFIXES = frozenset(
    ".3fr .arw .cr2 .cr3 .crw .dng .erf .fff .iiq .kdc .mef .mos .mrw .nef .nrw .orf .pef .raf .raw .rw2 .rwl .sr2 "
    ".srf .srw .x3f".split()
)

WORDS: dict[Kind, str] = {"document": "PDF", "video": "video"}


@dataclass
class Look:
    """What a folder holds: a digest of the names, sizes and times of its pictures, and RAW files without a JPEG."""

    files: int = 0  # pictures, and files that hold many
    holders: Counter[Kind] = field(default_factory=Counter)  # files that hold many pictures, by their kind
    raw_only: int = 0
    example_raw: str | None = None
    unread: Counter[Kind] = field(default_factory=Counter)  # files that hold many pictures and whose package is missing
    closed: list[str] = field(default_factory=list)  # folders that cannot be listed, each with the reason
    digester: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=16))

    @property
    def digest(self) -> str:
        return str(self.digester.hexdigest())

    def count_holder(self, name: str, suffix: str) -> None:
        """Count a file that holds many pictures."""
        holder = None if suffix in IMAGE_SUFFIXES else kind_of(name)
        if holder is not None:
            self.holders[holder] += 1

    def counted_files(self) -> str:
        """Return how many pictures, PDFs and videos there are, in words; absent kinds are left out."""
        pictures = self.files - self.holders.total()
        counts = [("picture", pictures), *((word, self.holders[kind]) for kind, word in WORDS.items())]
        return ", ".join(counted(count, word) for word, count in counts if count) or "0 pictures"

    def passed_over(self) -> list[str]:
        """Return a sentence for each kind of file that needs a package."""
        return [f"{counted(count, WORDS[kind])} skipped: {advice(kind)}" for kind, count in self.unread.items()]


def look_at(folder: str) -> Look:
    """List all pictures, PDFs and videos below a folder; hidden ones, and links to folders, are left out."""
    look = Look()
    suffixes = IMAGE_SUFFIXES.union(*(some for kind, some in SUFFIXES.items() if can_read(kind)))
    for place, files in walk(folder, look.closed):
        pictures, raws = list[str](), list[os.DirEntry[str]]()
        for entry in files:
            kind = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 -- there may be millions
            if kind in suffixes:
                pictures.append(f"{entry.name}\0{state_of(entry)}\0")
                look.count_holder(entry.name, kind)
            elif kind in RAW_SUFFIXES:
                raws.append(entry)
            elif (holder := kind_of(entry.name)) is not None:
                look.unread[holder] += 1
        look.files += len(pictures)
        if pictures:
            pictures.sort()
            look.digester.update(os.fsencode(f"{place}\0\0{''.join(pictures)}"))
        if raws:
            count_lone(raws, pictures, look, folder)
    return look


def count_lone(raws: list[os.DirEntry[str]], pictures: list[str], look: Look, folder: str) -> None:
    """Count the RAW files of a folder that have no picture of the same name next to them."""
    stems = {stem_of(line.partition("\0")[0]) for line in pictures}
    lone = sorted(entry.path for entry in raws if stem_of(entry.name) not in stems)
    look.raw_only += len(lone)
    if lone and look.example_raw is None:
        look.example_raw = os.path.relpath(lone[0], folder)


def stem_of(name: str) -> str:
    return name.rpartition(".")[0].lower()


def walk(folder: str, closed: list[str]) -> Iterator[tuple[str, list[os.DirEntry[str]]]]:
    """Yield each folder with its files, in name order; folders that cannot be listed are added to `closed`."""
    waiting = [folder]
    while waiting:
        place = waiting.pop()
        files, folders = list[os.DirEntry[str]](), list[str]()
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    if is_hidden(entry.name):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    else:
                        files.append(entry)
        except OSError as error:  # not permitted to this user, or just deleted; inference names it in failures/
            closed.append(f"{place}: {error.strerror}")
            continue
        waiting += sorted(folders, reverse=True)
        yield place, files


def state_of(entry: os.DirEntry[str]) -> str:
    try:
        state = entry.stat()
    except OSError:
        return "?"  # a dangling link
    return f"{state.st_size} {state.st_mtime_ns}"
