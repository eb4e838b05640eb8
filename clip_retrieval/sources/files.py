"""A folder of pictures, PDFs and videos, with captions (.txt) and metadata (.json) next to them; any fsspec store."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from clip_retrieval.blobs import LARGEST_BLOB, Blob, BlobRef, too_large
from clip_retrieval.errors import SourceError
from clip_retrieval.media.helper import Helpers
from clip_retrieval.media.places import Kind, PlaceRef, in_place_order, is_document, is_video, kind_of, split_place
from clip_retrieval.paths import literal
from clip_retrieval.process.resources import count_cores
from clip_retrieval.sources.config import SourceConfig
from clip_retrieval.sources.hints import hint_of
from clip_retrieval.sources.joining import switch_off_missing
from clip_retrieval.sources.listing import Row, State, Tree, Within
from clip_retrieval.sources.packed import InBlocks, Mapped, Packed
from clip_retrieval.sources.saving import Codec, Restored, as_they_are
from clip_retrieval.sources.suffixes import IMAGE_SUFFIXES, SUBTITLE_SUFFIXES, split_key
from clip_retrieval.sources.types import SAMPLE_PARTS, Failure, FileState, Part, Sample
from clip_retrieval.storage import Folder
from clip_retrieval.words import clean

UNLISTED = ("unlistable", "too_many_frames", "killed_reader", "timeout")  # a folder, or a video's frames


@dataclass(frozen=True)
class FilesSource:
    """Samples sorted by path, one per unit (also each page or frame); their list is held on disk."""

    config: SourceConfig
    folder: Folder
    rows: InBlocks[Row]  # sorted by unit name
    ignored: Sequence[Failure]

    @property
    def units(self) -> Sequence[str]:
        """The path of each picture, page or frame, or of the caption if there is no picture."""
        return Mapped(self.rows, unit_of)

    @property
    def samples_per_unit(self) -> int:
        return 1

    def first(self, count: int) -> FilesSource:
        """Return the source of the first samples alone."""
        rows = Packed[Row]()
        for row in self.rows.between(0, min(count, len(self.rows))):
            rows.append(row)
        return dataclasses.replace(self, rows=rows)

    def read(self, start: int, stop: int) -> Iterator[Sample | Failure]:
        if start == 0:
            yield from self.ignored
        yield from map(self.sample_of, self.rows.between(start, stop))

    def read_only(self, names: Container[tuple[str, str]]) -> Iterator[Sample]:
        yield from (self.sample_of(row) for row in self.rows if ("", clean(unit_of(row))) in names)

    def estimate_total(self) -> int:
        return len(self.rows)

    def sample(self, path: str) -> Sample:
        return self.sample_of(self.row(path))

    def sample_of(self, row: Row) -> Sample:
        image, text, metadata = row
        place = None if image is None else self.place(image)
        return Sample(
            key=unit_of(row),
            image_path=None if image is None else self.url(image[0]),
            image=(place or self.blob(image)) if self.config.enable_image else None,
            text=self.text_of(text, place) if self.config.enable_text else None,
            metadata=self.blob(metadata) if self.config.enable_metadata else None,
        )

    def text_of(self, text: State | None, place: PlaceRef | None) -> Blob | PlaceRef | None:
        """Return where the text of a sample is: in a caption, in the subtitles of a video, or on the page itself.

        A document that cannot be opened is reported once, with its picture.
        """
        if text is not None and text[0].lower().endswith(SUBTITLE_SUFFIXES):
            path, size, stamp = text
            return None if place is None or place.place is None else PlaceRef(self.url(path), place.place, size, stamp)
        if text is not None or place is None or is_video(place.url):
            return self.blob(text)
        return None if place.place is None and self.config.enable_image else place

    def files_of(self, key: str) -> dict[Part, FileState]:
        """Return the wanted files of the sample of a unit, as they were listed."""
        return self.files_in(self.row(key))

    def files_in(self, row: Row) -> dict[Part, FileState]:
        config, (image, text, _) = self.config, row
        is_read_for_text = config.enable_text and text is None and image is not None and is_page(image[0])
        wanted = config.enable_image or is_read_for_text, config.enable_text, config.enable_metadata
        return {
            part: FileState(*state)
            for part, state, is_wanted in zip(SAMPLE_PARTS, row, wanted, strict=True)
            if state is not None and is_wanted
        }

    def place_of(self, key: str, before: int = -1) -> int | None:
        """Return the index of the unit with this name, or None; found at once if it follows the unit at `before`."""
        after = before + 1
        if 0 < after < len(self.rows) and unit_of(self.rows[after]) == key:
            return after
        return self.rows.find(in_place_order(key), lambda row: in_place_order(unit_of(row)))

    def row(self, key: str) -> Row:
        place = self.place_of(key)
        if place is None:
            raise KeyError(key)
        return self.rows[place]

    def url(self, path: str) -> str:
        return literal(f"{self.folder.url.rstrip('/')}/{path}")

    def blob(self, state: State | None) -> Blob | None:
        if state is None:
            return None
        path, size, _ = state
        return BlobRef(self.url(path)) if size is None or size <= LARGEST_BLOB else too_large(size)

    def place(self, state: State) -> PlaceRef | None:
        """Return a page or a frame, or a file whose pictures could not be listed; None for a picture."""
        path, size, stamp = state
        file, place = split_place(path) or (path, None)
        return None if kind_of(file) is None else PlaceRef(self.url(file), place, size, stamp)


def is_page(path: str) -> bool:
    """Say whether a path is that of a page, or of a document whose pages could not be counted."""
    return is_document((split_place(path) or (path, 0))[0])


def missing_package(ignored: Iterable[Failure]) -> str:
    """Return what to install if there are only documents, to be appended to an error."""
    return next((f"; {failure.detail}" for failure in ignored if failure.reason == "needs_plugin"), "")


def unit_of(row: Row) -> str:
    state = row[0] or row[1] or row[2]
    assert state is not None
    return state[0]


def unpack_rows(packed: Any) -> list[Row]:
    return [(as_state(image), as_state(text), as_state(metadata)) for image, text, metadata in packed]


def as_state(state: Any) -> State | None:
    return None if state is None else (state[0], state[1], state[2])


def restore_files(saved: Restored[Row]) -> FilesSource:
    return FilesSource(saved.config, Folder(saved.config.input_dataset), saved.items, saved.ignored)


CODEC = Codec(
    items_of=lambda source: source.rows, pack=as_they_are, unpack=unpack_rows, restore=restore_files, is_sorted=True
)


def open_files(config: SourceConfig, output_folder: str) -> FilesSource:
    """List the folder, join files that share a path up to the suffix, and disable parts that no sample has."""
    folder = Folder(config.input_dataset)
    if not folder.exists():
        raise SourceError(f"there is no folder {config.input_dataset}{hint_of([config.input_dataset])}")
    if not folder.fs.isdir(folder.root):
        is_wanted = kind_of(folder.root) is not None or split_key(folder.root)[1] in IMAGE_SUFFIXES
        advice = "; give the folder that it is in" if is_wanted else hint_of([folder.root])
        raise SourceError(f"{folder.url} is a file, not a folder{advice}")
    rows, ignored, seen = Packed[Row](), Packed[Failure](), set[Kind | None]()
    has_images = has_texts = False
    count = count_cores()
    with ThreadPoolExecutor(count) as threads, Helpers(count) as helpers:
        within = Within(
            helpers, threads, kinds_of(config), config.videos, takes_pictures=config.input_format == "files"
        )
        for item in Tree(folder, Folder(output_folder), config.enable_image, within).items():
            if isinstance(item, Failure):
                ignored.append(item)
                continue
            rows.append(item)
            if item[0] is not None:
                has_images = True
                found = split_place(item[0][0])
                seen.add(None if found is None else kind_of(found[0]))
            has_texts = has_texts or item[1] is not None or "document" in seen
    lacks_videos = config.input_format == "video" and config.enable_image and not has_images
    if lacks_videos or not (has_images or has_texts):
        refused = next((failure for failure in ignored if failure.reason in UNLISTED), None)
        if refused is not None:
            raise SourceError(
                f"{folder.path(refused.key).rstrip('/')}: {refused.detail}; nothing else there is a sample"
            )
        wanted = (
            "sample: no file with an image suffix, no .txt caption"
            if config.input_format == "files"
            else "video: no file with the suffix of one"
        )
        raise SourceError(
            f"{config.input_dataset} holds no {wanted}"
            f"{missing_package(ignored) or hint_of(failure.key for failure in ignored)}"
        )
    config = switch_off_missing(config, has_images=has_images, has_texts=has_texts)
    videos = config.videos if "video" in seen else dataclasses.replace(config.videos, video_frames=None)
    return FilesSource(
        dataclasses.replace(config, enable_pages="document" in seen, videos=videos), folder, rows, ignored
    )


def kinds_of(config: SourceConfig) -> list[Kind]:
    """Return which kinds of files that hold many pictures are wanted."""
    wanted: dict[Kind, bool] = {"document": config.takes_pages, "video": config.takes_videos}
    return [kind for kind, is_wanted in wanted.items() if is_wanted]
