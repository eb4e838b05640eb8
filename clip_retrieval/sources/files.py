"""A folder of pictures and PDFs, with captions (.txt) and metadata (.json) beside them; any fsspec store."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from clip_retrieval.blobs import LARGEST_BLOB, Blob, BlobRef, too_large
from clip_retrieval.errors import SourceError
from clip_retrieval.media.helper import Helper
from clip_retrieval.media.pages import PageRef, in_page_order, is_document, split_page
from clip_retrieval.paths import literal
from clip_retrieval.sources.config import SourceConfig
from clip_retrieval.sources.hints import hint_of
from clip_retrieval.sources.joining import switch_off_missing
from clip_retrieval.sources.listing import Row, State, Tree
from clip_retrieval.sources.packed import InBlocks, Mapped, Packed
from clip_retrieval.sources.saving import Codec, Restored, as_they_are
from clip_retrieval.sources.types import SAMPLE_PARTS, Failure, FileState, Part, Sample
from clip_retrieval.storage import Folder
from clip_retrieval.words import clean


@dataclass(frozen=True)
class FilesSource:
    """Samples sorted by path, one per unit, a page of a PDF too; the list of them is held on disk."""

    config: SourceConfig
    folder: Folder
    rows: InBlocks[Row]  # sorted by unit name
    ignored: Sequence[Failure]

    @property
    def units(self) -> Sequence[str]:
        """The path of each picture or page, or of the caption where there is no picture."""
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
        page = None if image is None else self.page(image)
        return Sample(
            key=unit_of(row),
            image_path=None if image is None else self.url(image[0]),
            image=(page or self.blob(image)) if self.config.enable_image else None,
            text=(self.blob(text) or self.page_text(page)) if self.config.enable_text else None,
            metadata=self.blob(metadata) if self.config.enable_metadata else None,
            page=None if page is None else page.page,
        )

    def page_text(self, page: PageRef | None) -> PageRef | None:
        """Return where the text of a page is; a document that cannot be opened is told of once, with its picture."""
        return None if page is None or (page.page is None and self.config.enable_image) else page

    def files_of(self, key: str) -> dict[Part, FileState]:
        """Return the wanted files of the sample of a unit, as they were listed."""
        return self.files_in(self.row(key))

    def files_in(self, row: Row) -> dict[Part, FileState]:
        config, (image, text, _) = self.config, row
        is_read_for_text = config.enable_text and text is None and image is not None and self.page(image) is not None
        wanted = config.enable_image or is_read_for_text, config.enable_text, config.enable_metadata
        return {
            part: FileState(*state)
            for part, state, is_wanted in zip(SAMPLE_PARTS, row, wanted, strict=True)
            if state is not None and is_wanted
        }

    def place_of(self, key: str, before: int = -1) -> int | None:
        """Return the index of the unit with this name, or None; found at once where it follows that at `before`."""
        after = before + 1
        if after < len(self.rows) and unit_of(self.rows[after]) == key:
            return after
        return self.rows.find(in_page_order(key), lambda row: in_page_order(unit_of(row)))

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

    def page(self, state: State) -> PageRef | None:
        """Return a page of a document, or a document whose pages could not be counted; None for a picture."""
        path, size, stamp = state
        if is_document(path):
            return PageRef(self.url(path), None, size, stamp)
        found = split_page(path)
        return None if found is None else PageRef(self.url(found[0]), found[1], size, stamp)


def missing_package(ignored: Iterable[Failure]) -> str:
    """Return what to install where documents are there alone, to be appended to an error."""
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
        raise SourceError(f"{folder.url} is a file, not a folder{hint_of([folder.root])}")
    rows, ignored = Packed[Row](), Packed[Failure]()
    has_images = has_texts = has_pages = False
    with Helper() as helper:
        for item in Tree(
            folder, Folder(output_folder), config.enable_image, helper if config.enable_pages else None
        ).items():
            if isinstance(item, Failure):
                ignored.append(item)
                continue
            rows.append(item)
            has_images = has_images or item[0] is not None
            has_pages = has_pages or (item[0] is not None and split_page(item[0][0]) is not None)
            has_texts = has_texts or item[1] is not None or has_pages
    if not has_images and not has_texts:
        refused = next((failure for failure in ignored if failure.reason == "unlistable"), None)
        if refused is not None:
            raise SourceError(
                f"{folder.path(refused.key).rstrip('/')}: {refused.detail}; nothing else there is a sample"
            )
        raise SourceError(
            f"{config.input_dataset} holds no sample: no file with an image suffix, no .txt caption"
            f"{hint_of(failure.key for failure in ignored)}{missing_package(ignored)}"
        )
    config = switch_off_missing(config, has_images=has_images, has_texts=has_texts)
    return FilesSource(dataclasses.replace(config, enable_pages=has_pages), folder, rows, ignored)
