"""A folder's files as samples, in the order of their paths, with the names of one subfolder in memory at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import merge
from typing import Any, NamedTuple

from clip_retrieval.sources.joining import join
from clip_retrieval.sources.types import Failure
from clip_retrieval.storage import Folder

NOT_A_FILE = "a named pipe, a socket or a device"
STAMPS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created")
MOST_SUBFOLDERS = 1000  # of a store's folder, that are worth a request each

State = tuple[str, int | None, str]  # path, size and stamp, as in FileState
Row = tuple[State | None, State | None, State | None]  # the picture, caption and json of a sample


class Listing(NamedTuple):
    """A folder, or all that is below it: paths relative to the input, sorted."""

    files: list[str]  # a link to a folder has a slash at its end
    subfolders: list[str]  # that are still to be listed, each with a slash at its end
    state_of: Callable[[str], State]
    left_out: Sequence[Failure] = ()


@dataclass(frozen=True)
class Tree:
    """An input folder without what lies below `output`."""

    folder: Folder
    output: Folder
    wants_images: bool

    @property
    def prefix(self) -> str:
        return f"{self.folder.root.rstrip('/')}/"

    def items(self) -> Iterator[Row | Failure]:
        """Yield every sample, and every file that is part of none, in the order of their whole paths."""
        stack = [self.items_of("")]
        while stack:
            item = next(stack[-1], None)
            if item is None:
                stack.pop()
            elif isinstance(item, str):
                stack.append(self.items_of(item))
            else:
                yield item

    def items_of(self, subfolder: str) -> Iterator[Row | Failure | str]:
        """Yield the items of one folder, and its subfolders where they are in the order.

        Every path below a subfolder begins with its name and a slash, so that is what it is sorted by.
        """
        try:
            listing = self.list_local(subfolder) if self.folder.is_local else self.list_store(subfolder)
        except FileNotFoundError:
            return  # deleted just now
        except OSError as error:
            if not self.folder.is_local:
                raise
            yield Failure(subfolder, "", "other", "unlistable", f"the folder cannot be listed: {error.strerror}")
            return
        yield from sorted(listing.left_out, key=lambda failure: failure.key)
        named = ((item.key, item) for item in join(listing.files, wants_images=self.wants_images))
        folders = ((name, name) for name in listing.subfolders)
        for _, item in merge(named, folders, key=lambda pair: pair[0]):
            if isinstance(item, str | Failure):
                yield item
            else:
                image, text, metadata = (None if path is None else listing.state_of(path) for path in item)
                yield image, text, metadata

    @cached_property
    def own(self) -> str | None:
        """The output folder as a path below the input, with a slash at its end; None where it is elsewhere or above."""
        place, output = self.folder.place.rstrip("/") + "/", self.output.place.rstrip("/") + "/"
        return output.removeprefix(place) if output.startswith(place) and output != place else None

    def is_own(self, path: str) -> bool:
        return self.own is not None and path.startswith(self.own)

    def list_local(self, subfolder: str) -> Listing:
        files, subfolders, left_out = list[str](), list[str](), list[Failure]()
        if not self.is_own(subfolder):
            with os.scandir(self.prefix + subfolder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        subfolders.append(f"{subfolder}{entry.name}/")
                    elif (ending := ending_of(entry)) is not None:
                        files.append(f"{subfolder}{entry.name}{ending}")
                    else:
                        left_out.append(Failure(f"{subfolder}{entry.name}", "", "other", "not_a_file", NOT_A_FILE))
        return Listing(sorted(files), sorted(subfolders), self.local_state, left_out)

    def local_state(self, path: str) -> State:
        try:
            info = os.stat(self.prefix + path)  # noqa: PTH116 -- a plain string: there may be millions
        except OSError:  # a dangling link, or just deleted: it is told of when it is read
            return path, 0, ""
        return path, info.st_size, str(info.st_mtime)

    def list_store(self, subfolder: str) -> Listing:
        """List the folder itself, or wholly what is below one of its subfolders: object stores do that at once."""
        fs, root = self.folder.fs, self.folder.root
        with self.folder.answering():
            fs.invalidate_cache()
            top = [] if subfolder else fs.ls(root, detail=True)
            names = [str(info["name"]).rstrip("/") for info in top if info["type"] == "directory"]
            subfolders = sorted(f"{name.removeprefix(self.prefix)}/" for name in names)
            if subfolder or not self.are_plain(names):
                top, subfolders = fs.find(self.prefix + subfolder.rstrip("/"), detail=True).values(), []
            fs.invalidate_cache()  # it would hold on to everything that was listed
            states = {}
            for info in top:
                path = str(info["name"]).removeprefix(self.prefix)
                if (info["type"] == "file" or info.get("islink")) and not self.is_own(path):
                    path += "/" * (bool(info.get("islink")) and fs.isdir(info["name"]))
                    states[path] = path, info.get("size"), stamp_of(info)
        subfolders = [name for name in subfolders if not self.is_own(name)]
        return Listing(sorted(states), subfolders, states.__getitem__)

    def are_plain(self, names: list[str]) -> bool:
        """Say whether these are subfolders to be listed one by one: not too many, and none without a name."""
        return len(names) <= MOST_SUBFOLDERS and all(name.startswith(self.prefix) for name in names)


def ending_of(entry: os.DirEntry[str]) -> str | None:
    """Return a slash for a link to a folder, nothing for a file or other link, None for pipes, sockets and devices."""
    if not entry.is_symlink():
        return "" if entry.is_file() else None
    try:
        return "/" if entry.is_dir() else ""
    except OSError:
        return ""  # a link to itself: it is told of when it is read


def stamp_of(info: Mapping[str, Any]) -> str:
    """Return what the store notes of a file's last change."""
    return next((str(info[name]) for name in STAMPS if info.get(name) is not None), "")
