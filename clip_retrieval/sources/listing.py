"""A folder's files as samples, in the order of their paths, with the names of one subfolder in memory at once.

Each page of a PDF and each wanted frame of a video is a sample: so they are listed here, by a separate process.
"""

from __future__ import annotations

import dataclasses
import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from heapq import merge
from operator import itemgetter
from typing import NamedTuple

from clip_retrieval.blobs import LARGEST_BLOB
from clip_retrieval.errors import ImageError
from clip_retrieval.media.config import VideoConfig
from clip_retrieval.media.helper import Helpers
from clip_retrieval.media.listed import list_video
from clip_retrieval.media.places import (
    SUFFIXES,
    Kind,
    PlaceRef,
    advice,
    can_read,
    in_seconds,
    is_video,
    kind_of,
    place_path,
)
from clip_retrieval.paths import literal
from clip_retrieval.sources.joining import Joined, join
from clip_retrieval.sources.stamps import mark_of
from clip_retrieval.sources.suffixes import IMAGE_SUFFIXES
from clip_retrieval.sources.types import Failure
from clip_retrieval.storage import Folder

NOT_A_FILE = "a named pipe, a socket or a device"
AHEAD = 256  # items of a folder, while a file that holds many is looked into
MOST_SUBFOLDERS = 1000  # up to here a store lists each one separately, beyond it all files at once

CUT = "the rest of its file is missing"
OF_LISTING = ("too_many_frames", "killed_reader", "timeout")  # reasons that reading one frame does not meet

State = tuple[str, int | None, str]  # path, size and stamp, as in FileState
Row = tuple[State | None, State | None, State | None]  # the picture, caption and json of a sample


class Listing(NamedTuple):
    """The contents of a folder, or of all folders below it: paths relative to the input, sorted."""

    files: list[str]  # links to folders end with a slash
    subfolders: list[str]  # not listed yet; each ends with a slash
    state_of: Callable[[str], State]
    left_out: Sequence[Failure] = ()


class Found(NamedTuple):
    """The numbers of pages or times of frames in a file, and what was wrong with it."""

    places: Sequence[int]
    failure: Failure | None = None


class Holder(NamedTuple):
    """A sample whose file holds many pictures, and the future result of listing them."""

    row: Row
    found: Future[Found]


@dataclass(frozen=True)
class Within:
    """Which kinds of files that hold many pictures are samples, and how they are listed."""

    helpers: Helpers
    threads: ThreadPoolExecutor  # which ask the helpers
    kinds: Collection[Kind]
    videos: VideoConfig = VideoConfig()
    takes_pictures: bool = True  # False: only such files


@dataclass(frozen=True)
class Tree:
    """An input folder, walked without the output folder inside it."""

    folder: Folder
    output: Folder
    wants_images: bool
    within: Within | None = None  # without it, files that hold many pictures are not samples

    @cached_property
    def suffixes(self) -> frozenset[str]:
        """The suffixes of pictures, and of files that hold many."""
        own = frozenset[str]() if self.takes_videos_alone else IMAGE_SUFFIXES
        return own.union(*(SUFFIXES[kind] for kind in self.kinds if can_read(kind)))

    @property
    def kinds(self) -> Collection[Kind]:
        return () if self.within is None else self.within.kinds

    @property
    def takes_videos_alone(self) -> bool:
        return self.within is not None and not self.within.takes_pictures

    @property
    def prefix(self) -> str:
        return f"{self.folder.root.rstrip('/')}/"

    def items(self) -> Iterator[Row | Failure]:
        """Yield every sample, and a Failure for every file that belongs to none, sorted by path."""
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
        """Yield the items of one folder, with each subfolder's name at its place in the order.

        A subfolder is sorted by its name and a slash, because every path below it begins like that.
        """
        try:
            listing = self.list_local(subfolder) if self.folder.is_local else self.list_store(subfolder)
        except FileNotFoundError:
            return  # the folder was deleted after its parent was listed
        except OSError as error:
            if not self.folder.is_local:
                raise
            yield Failure(subfolder, "", "other", "unlistable", f"the folder cannot be listed: {error.strerror}")
            return
        yield from sorted(listing.left_out, key=lambda failure: failure.key)
        joined = join(listing.files, wants_images=self.wants_images, images=self.suffixes)
        named = ((item.key, item) for item in joined)
        folders = ((name, name) for name in listing.subfolders)
        for _, item in self.looking_ahead(merge(named, folders, key=itemgetter(0)), listing.state_of):
            if isinstance(item, Holder):
                yield from self.rows_in(item.row, item.found.result())
            else:
                yield self.explained(item) if isinstance(item, Failure) else item

    def looking_ahead(
        self, items: Iterable[tuple[str, Joined | Failure | str]], state_of: Callable[[str], State]
    ) -> Iterator[tuple[str, Row | Holder | Failure | str]]:
        """Yield items in their order, samples with the states of their files; several files are looked into at once."""
        waiting = deque[tuple[str, Row | Holder | Failure | str]]()
        for key, item in items:
            waiting.append((key, self.looked_at(item, state_of) if isinstance(item, Joined) else item))
            while waiting and (len(waiting) > AHEAD or not isinstance(waiting[0][1], Holder)):
                yield waiting.popleft()
        yield from waiting

    def looked_at(self, item: Joined, state_of: Callable[[str], State]) -> Row | Holder:
        image, text, metadata = (None if path is None else state_of(path) for path in item)
        if self.within is None or image is None or kind_of(image[0]) is None:
            return image, text, metadata
        return Holder((image, text, metadata), self.within.threads.submit(self.look_into, image, self.within))

    def look_into(self, state: State, within: Within) -> Found:
        """Return the pages or frames of a file; none if it cannot be opened."""
        path, size, stamp = state
        try:
            if is_video(path):
                listed = list_video(within.helpers, PlaceRef(self.url(path), None, size, stamp), within.videos)
                detail = f"the video ends after {in_seconds(listed.end)} s: {CUT}"
                return Found(listed.moments, Failure(path, "", "other", "cut_off", detail) if listed.is_cut else None)
            if size is None or size <= LARGEST_BLOB:
                return Found(range(1, 1 + within.helpers.ask("count_pages", self.url(path))))
        except ImageError as error:
            if is_video(path) and error.reason in OF_LISTING:
                detail = f"its frames cannot be listed: {error}"
                return Found((), Failure(path, "", "other", error.reason, detail))
        return Found(())

    def rows_in(self, row: Row, found: Found) -> Iterator[Row | Failure]:
        """Yield the pages or frames of a file; the file itself if it cannot be opened, so that its reader explains why.

        Errors that only listing meets are failures here.
        """
        assert row[0] is not None
        path, size, stamp = row[0]
        if found.failure is not None:
            yield found.failure
        yield from (((place_path(path, place), size, stamp), *row[1:]) for place in found.places)
        if not found.places and found.failure is None:
            yield row

    def explained(self, failure: Failure) -> Failure:
        """Return the failure of a file that is not a sample, with advice on how it becomes one."""
        kind = kind_of(failure.key)
        if failure.reason != "not_an_image":
            return failure
        if kind is not None and kind in self.kinds:
            return dataclasses.replace(failure, reason="needs_plugin", detail=advice(kind))
        if kind == "video":
            return dataclasses.replace(failure, detail="a video: --video_frames rate takes frames of it as samples")
        detail = "no video, .srt, .vtt, .txt or .json suffix" if self.takes_videos_alone else failure.detail
        if kind == "document":
            detail = "a PDF: --input_format files takes its pages as samples, unless --enable_pages is False"
        return dataclasses.replace(
            failure, reason="not_a_video" if self.takes_videos_alone else failure.reason, detail=detail
        )

    def url(self, path: str) -> str:
        return literal(f"{self.folder.url.rstrip('/')}/{path}")

    @cached_property
    def own(self) -> str | None:
        """The output folder relative to the input, with a slash at the end; None unless it is inside the input."""
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
        except OSError:  # a dangling link, or deleted just now: reading it will report it
            return path, 0, ""
        return path, info.st_size, str(info.st_mtime)

    def list_store(self, subfolder: str) -> Listing:
        """List the top folder, or everything below one subfolder: object stores answer that with one request."""
        fs, root = self.folder.fs, self.folder.root
        with self.folder.answering():
            fs.invalidate_cache()
            top = [] if subfolder else fs.ls(root, detail=True)
            names = [str(info["name"]).rstrip("/") for info in top if info["type"] == "directory"]
            subfolders = sorted(f"{name.removeprefix(self.prefix)}/" for name in names)
            if subfolder or not self.are_plain(names):
                top, subfolders = fs.find(self.prefix + subfolder.rstrip("/"), detail=True).values(), []
            fs.invalidate_cache()  # fsspec would keep the whole listing in memory
            states = {}
            for info in top:
                path = str(info["name"]).removeprefix(self.prefix)
                if (info["type"] == "file" or info.get("islink")) and not self.is_own(path):
                    path += "/" * (bool(info.get("islink")) and fs.isdir(info["name"]))
                    states[path] = path, info.get("size"), mark_of(info)
        subfolders = [name for name in subfolders if not self.is_own(name)]
        return Listing(sorted(states), subfolders, states.__getitem__)

    def are_plain(self, names: list[str]) -> bool:
        """Say whether subfolders can be listed one by one: few enough, and each has a name."""
        return len(names) <= MOST_SUBFOLDERS and all(name.startswith(self.prefix) for name in names)


def ending_of(entry: os.DirEntry[str]) -> str | None:
    """Return a slash for a link to a folder, nothing for a file or other link, None for pipes, sockets and devices."""
    if not entry.is_symlink():
        return "" if entry.is_file() else None
    try:
        return "/" if entry.is_dir() else ""
    except OSError:
        return ""  # a link to itself: reading it will report it
