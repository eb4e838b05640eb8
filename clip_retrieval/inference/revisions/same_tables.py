"""Whether a table that is read again is the one whose rows are there: another file may have its name.

Rows that were left out are found by their numbers. So the rows before and after them must follow each other in the
folder, by their captions and paths.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from clip_retrieval.inference.readers.prepare import PartError, decode_caption
from clip_retrieval.inference.revisions.failed_samples import Failed
from clip_retrieval.layout import CAPTION, IMAGE_PATH, EmbeddingsFolder, Partition
from clip_retrieval.metadata import open_parquet
from clip_retrieval.sources.config import SourceConfig
from clip_retrieval.sources.protocol import Source
from clip_retrieval.sources.tables import Roles, TablePart, TableSource, caption_of, picture_at, roles_of
from clip_retrieval.sources.types import Failure
from clip_retrieval.sources.urls import UrlSource
from clip_retrieval.words import clean

MOST_COMPARED = 10_000  # places in one table
ROWS_AT_ONCE = 4096

Said = tuple[str | None, str | None]  # image_path, None if it is not known; and caption
Around = tuple[Said, ...]  # the rows before and after rows that were left out; one of them at an end


def find_replaced_tables(
    folder: EmbeddingsFolder, partitions: Sequence[Partition], source: Source, failed: Failed
) -> dict[str, str]:
    """Return, by table, a sentence on those whose rows around the ones that were left out are others now."""
    tables = source.tables if isinstance(source, UrlSource) else source
    if not isinstance(tables, TableSource) or tables.config.subset_size is not None:
        return {}  # of a subset, the row after one that was left out may be beyond its end
    wanted = Wanted()
    for part in tables.parts:
        url = "" if part.table is None else part.table.url
        if url and clean(url) not in failed.unlisted and part.holds(failed.left_out):
            for around, number in places_in(part, tables.config, failed):
                wanted.add(url, around, number)
    likely = set(failed.partition_of.values())
    for partition in sorted(partitions, key=lambda one: not (one in likely or one.is_appended)):
        if wanted.tables_of:
            take_out(wanted, folder, partition)
    return {url: say_replaced(url, min(left.values())) for url, left in wanted.places.items() if left}


class Wanted:
    """The rows around those that were left out, of all tables, found by what a row of the folder says."""

    def __init__(self) -> None:
        self.places: dict[str, dict[Around, int]] = {}  # table -> rows around -> number of the first that was left out
        self.tables_of: dict[Around, set[str]] = {}
        self.with_row: dict[Said, set[Around]] = {}

    def add(self, url: str, around: Around, number: int) -> None:
        found = self.places.setdefault(url, {})
        if len(found) >= MOST_COMPARED or around in found:
            return
        found[around] = number
        self.tables_of.setdefault(around, set()).add(url)
        for said in around:
            self.with_row.setdefault(said, set()).add(around)

    def take(self, around: Around) -> None:
        """Remove rows that are there from the places of every table."""
        for url in self.tables_of.pop(around, ()):
            del self.places[url][around]

    def take_all_with(self, said: Said) -> None:
        for around in self.with_row.pop(said, ()):
            self.take(around)


def places_in(part: TablePart, config: SourceConfig, failed: Failed) -> Iterator[tuple[Around, int]]:
    """Yield the rows around each run of rows that were left out, and the number of its first."""
    table = part.table
    assert table is not None
    roles = roles_of(table, config)
    has_paths = roles.image is not None and table.kinds[roles.image] == "text"
    texts = Roles(roles.image if has_paths else None, roles.caption)
    name = f"{table.url}#{roles.image}" if roles.image is not None and table.kinds[roles.image] == "bytes" else None
    rows = table.rows(part.start, part.stop, texts.columns())
    before: list[Said] = []
    run: list[int] = []
    for is_gone, items in groupby(
        (item for item in rows if not isinstance(item, Failure)),
        lambda item: (table.url, str(item[0])) in failed.gone,
    ):
        numbered = list(items)
        if is_gone:
            run = [number for number, _ in numbered if (table.url, str(number)) in failed.left_out]
            continue
        ends = [
            []
            if (table.url, str(number)) in failed.unclear
            else [
                (path_in(row, texts, table.url, config) or (name and clean(f"{name}/{number}")), caption_in(row, texts))
            ]
            for number, row in (numbered[0], numbered[-1])
        ]
        if run and (before or ends[0]):
            yield (*before, *ends[0]), run[0]
        before, run = ends[1], []
    if run and before:
        yield (*before,), run[0]


def path_in(row: Mapping[str, Any], roles: Roles, url: str, config: SourceConfig) -> str | None:
    value = row[roles.image] if roles.image is not None else None
    if not isinstance(value, str):
        return None
    path = value if config.input_format == "urls" else picture_at(value, url)[1]
    return None if path is None else clean(path)


def caption_in(row: Mapping[str, Any], roles: Roles) -> str | None:
    value = caption_of(row[roles.caption]) if roles.caption is not None else None
    try:
        return decode_caption(value) if isinstance(value, bytes) else None
    except PartError:
        return None


def take_out(wanted: Wanted, folder: EmbeddingsFolder, partition: Partition) -> None:
    """Remove from `wanted` what a partition has; rows that a retry appended say nothing of their neighbors."""
    last: Said | None = None
    for row in said_in(folder, partition):
        if partition.is_appended:
            wanted.take_all_with(row)
            wanted.take_all_with((None, row[1]))
            continue
        for here, before in ((row, last), ((None, row[1]), (None, last[1]) if last is not None else None)):
            wanted.take((here,))
            if before is not None:
                wanted.take((before, here))
        last = row


def said_in(folder: EmbeddingsFolder, partition: Partition) -> Iterator[Said]:
    """Yield paths and captions of a partition's rows, null for a column that it has not."""
    with open_parquet(folder, folder.metadata_name(partition)) as file:
        columns = [name for name in (IMAGE_PATH, CAPTION) if name in file.schema_arrow.names]
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=columns) if columns else ():
            rows = batch.to_pydict()
            nothing = [None] * len(rows[columns[0]])
            yield from zip(rows.get(IMAGE_PATH, nothing), rows.get(CAPTION, nothing), strict=True)


def say_replaced(url: str, number: int) -> str:
    return (
        f"{url} is not the file that was embedded: the rows around row {number} are others now; nothing of it is tried "
        "again, embed it into a new folder"
    )
