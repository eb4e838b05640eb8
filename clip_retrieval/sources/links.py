"""Hard and symbolic links in an archive: which member of the same archive each one leads to."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, field
from typing import Literal

from clip_retrieval.blobs import Blob, Lost

Kind = Literal["file", "folder", "hard", "symbolic", "other"]

MOST_HOPS = 40  # links on the way from one link to its file; Linux has the same bound
KEPT_BYTES = 64 << 20  # bytes of a stream's members kept for later links
ENTRY_BYTES = 300  # rough memory of a member without its content
ADVICE = "give --cache_path, a folder in which to keep the tar, so that all of it can be reached"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What has one name in an archive: a file, a folder, a link, or something that cannot be read."""

    name: str
    kind: Kind
    target: str = ""  # target of a link
    header: int = 0  # offset of its header: a tar may hold a name several times
    offset: int | None = None
    size: int | None = None
    blob: Blob | None = None

    @property
    def path(self) -> str:
        return posixpath.normpath(self.name)

    @property
    def byte_count(self) -> int:
        return ENTRY_BYTES + (len(self.blob) if isinstance(self.blob, bytes) else 0)


@dataclass
class Entries:
    """The members of an archive by normalized name, as far as they are known."""

    is_whole: bool = False  # False for a stream: members that passed long ago, or are still to come, are unknown
    by_path: dict[str, Entry] = field(default_factory=dict)
    folders: set[str] = field(default_factory=lambda: {"."})
    behind_hard_links: dict[int, Entry] = field(default_factory=dict)  # key: offset of the link's header
    held_bytes: int = 0

    def add(self, entry: Entry) -> None:
        """Add a member; the entries of a stream are forgotten, oldest first, beyond KEPT_BYTES."""
        path = entry.path
        if self.is_whole:
            # A hard link leads to the earlier member of that name; the name may come again.
            held = self.by_path.get(posixpath.normpath(entry.target)) if entry.kind == "hard" else None
            if held is not None:
                self.behind_hard_links[entry.header] = entry = held
            self.add_folders(posixpath.dirname(path))
        else:
            self.drop(path)
            self.held_bytes += entry.byte_count
        self.by_path[path] = entry
        while self.held_bytes > KEPT_BYTES:
            self.drop(next(iter(self.by_path)))

    def add_folders(self, folder: str) -> None:
        while folder and folder not in self.folders:
            self.folders.add(folder)
            folder = posixpath.dirname(folder)

    def drop(self, path: str) -> None:
        entry = self.by_path.pop(path, None)
        if entry is not None:
            self.held_bytes -= entry.byte_count

    def follow(self, link: Entry) -> Entry | Lost:
        """Return the file that a link leads to, through other links and linked folders, or why there is none."""
        path, entry = link.path, self.behind_hard_links.get(link.header, link)
        for _ in range(MOST_HOPS):
            if entry.kind == "file":
                return entry if entry.blob is not None else self.unreachable(link, "whose bytes were not kept")
            if entry.kind == "folder":
                return Lost("linked_folder", f"a link to the folder {path}")
            if entry.kind == "other":
                return Lost("not_a_file", f"a link to {path}, which is a pipe or a device")
            target = entry.target if entry.kind == "hard" else posixpath.join(posixpath.dirname(path), entry.target)
            path = self.through_folders(posixpath.normpath(target))
            found = self.by_path.get(path)
            if found is None:
                return self.missing(link, entry.target, path)
            entry = found
        return Lost("link_loop", f"a link to {link.target}, which leads through more than {MOST_HOPS} links")

    def through_folders(self, path: str) -> str:
        """Return a path with the symbolic links among its folders replaced by what they lead to."""
        for _ in range(MOST_HOPS):
            parts = path.split("/")
            folders = ("/".join(parts[:count]) for count in range(1, len(parts)))
            link = next((folder for folder in folders if self.is_symbolic(folder)), None)
            if link is None:
                return path
            target = posixpath.join(posixpath.dirname(link), self.by_path[link].target)
            path = posixpath.normpath(target + path.removeprefix(link))
        return path

    def is_symbolic(self, path: str) -> bool:
        entry = self.by_path.get(path)
        return entry is not None and entry.kind == "symbolic"

    def missing(self, link: Entry, target: str, path: str) -> Lost:
        if path in self.folders:
            return Lost("linked_folder", f"a link to the folder {path}")
        if path == ".." or path.startswith(("/", "../")):
            return Lost("link_outside", f"a link to {target}, which is outside of the archive")
        if not self.is_whole:
            return self.unreachable(link, "which comes later in this stream, passed long before, or is not in it")
        return Lost("broken_link", f"a link to {target}, which the archive does not hold")

    def unreachable(self, link: Entry, why: str) -> Lost:
        return Lost("unreachable_link", f"a link to {link.target}, {why}; {ADVICE}")
