"""Hard and symbolic links of a tar: which member of the same tar each one leads to."""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from clip_retrieval.blobs import Blob, Lost

MOST_HOPS = 40  # links on the way from one link to its file; Linux has the same bound
KEPT_BYTES = 64 << 20  # of a stream's members, for links that come after them
ENTRY_BYTES = 300  # what a member without its bytes takes in memory, about
ADVICE = "give --cache_path, a folder in which to keep the tar, so that all of it can be reached"


@dataclass(frozen=True, slots=True)
class Entry:
    """What stands under one name of a tar: a file, a folder, a link, or what cannot be read."""

    kind: Literal["file", "folder", "hard", "symbolic", "other"]
    target: str = ""  # of a link
    offset: int | None = None
    size: int | None = None
    blob: Blob | None = None


def entry_of(info: tarfile.TarInfo, blob: Blob | None) -> Entry:
    if info.isdir():
        return Entry("folder")
    if info.issym() or info.islnk():
        return Entry("symbolic" if info.issym() else "hard", info.linkname)
    if not info.isfile():
        return Entry("other")
    return Entry("file", "", None if info.sparse else info.offset_data, info.size, blob)


def size_of(entry: Entry) -> int:
    return ENTRY_BYTES + (len(entry.blob) if isinstance(entry.blob, bytes) else 0)


@dataclass
class Entries:
    """The members of a tar by normalized name, as far as they are known."""

    is_whole: bool = False  # False for a stream: what passed long ago, or is still to come, is not known
    by_name: dict[str, Entry] = field(default_factory=dict)
    folders: set[str] = field(default_factory=lambda: {"."})
    behind_hard_links: dict[int, Entry] = field(default_factory=dict)  # by the place of the link's header
    held_bytes: int = 0

    def add(self, info: tarfile.TarInfo, blob: Blob | None) -> None:
        """Take in a member; the entries of a stream are forgotten, oldest first, beyond KEPT_BYTES."""
        name, entry = posixpath.normpath(info.name), entry_of(info, blob)
        if self.is_whole:
            # A hard link is to what had the name before it; the name may come again.
            held = self.by_name.get(posixpath.normpath(info.linkname)) if info.islnk() else None
            if held is not None:
                self.behind_hard_links[info.offset] = entry = held
            self.add_folders(posixpath.dirname(name))
        else:
            self.drop(name)
            self.held_bytes += size_of(entry)
        self.by_name[name] = entry
        while self.held_bytes > KEPT_BYTES:
            self.drop(next(iter(self.by_name)))

    def add_folders(self, folder: str) -> None:
        while folder and folder not in self.folders:
            self.folders.add(folder)
            folder = posixpath.dirname(folder)

    def drop(self, name: str) -> None:
        entry = self.by_name.pop(name, None)
        if entry is not None:
            self.held_bytes -= size_of(entry)

    def follow(self, info: tarfile.TarInfo) -> Entry | Lost:
        """Return the file that a link leads to, through other links and linked folders, or why there is none."""
        name = posixpath.normpath(info.name)
        entry = self.behind_hard_links.get(info.offset) or entry_of(info, None)
        for _ in range(MOST_HOPS):
            if entry.kind == "file":
                return entry if entry.blob is not None else self.unreachable(info, "whose bytes were not kept")
            if entry.kind == "folder":
                return Lost("linked_folder", f"a link to the folder {name}")
            if entry.kind == "other":
                return Lost("not_a_file", f"a link to {name}, which is a pipe or a device")
            target = entry.target if entry.kind == "hard" else posixpath.join(posixpath.dirname(name), entry.target)
            name = self.through_folders(posixpath.normpath(target))
            found = self.by_name.get(name)
            if found is None:
                return self.missing(info, entry.target, name)
            entry = found
        return Lost("link_loop", f"a link to {info.linkname}, which leads through more than {MOST_HOPS} links")

    def through_folders(self, name: str) -> str:
        """Return a name with the symbolic links among its folders replaced by what they lead to."""
        for _ in range(MOST_HOPS):
            parts = name.split("/")
            folders = ("/".join(parts[:count]) for count in range(1, len(parts)))
            link = next((folder for folder in folders if self.is_symbolic(folder)), None)
            if link is None:
                return name
            target = posixpath.join(posixpath.dirname(link), self.by_name[link].target)
            name = posixpath.normpath(target + name.removeprefix(link))
        return name

    def is_symbolic(self, name: str) -> bool:
        entry = self.by_name.get(name)
        return entry is not None and entry.kind == "symbolic"

    def missing(self, info: tarfile.TarInfo, target: str, name: str) -> Lost:
        if name in self.folders:
            return Lost("linked_folder", f"a link to the folder {name}")
        if name == ".." or name.startswith(("/", "../")):
            return Lost("link_outside", f"a link to {target}, which is outside of the tar")
        if not self.is_whole:
            return self.unreachable(info, "which comes later in this stream, passed long before, or is not in it")
        return Lost("broken_link", f"a link to {target}, which the tar does not hold")

    def unreachable(self, info: tarfile.TarInfo, why: str) -> Lost:
        return Lost("unreachable_link", f"a link to {info.linkname}, {why}; {ADVICE}")


def index_tar(tar: tarfile.TarFile, blob_of: Callable[[tarfile.TarInfo], Blob | None]) -> Entries:
    """Read the headers of a whole tar that can seek."""
    entries = Entries(is_whole=True)
    for info in tar:
        entries.add(info, blob_of(info) if info.isfile() else None)
        tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header it saw
    return entries
