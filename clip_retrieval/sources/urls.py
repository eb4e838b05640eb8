"""Tables of urls: pictures are fetched ahead, many at once, and yielded in the order of the rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from clip_retrieval.blobs import Lost
from clip_retrieval.network.connections import FetchError
from clip_retrieval.network.fetch import fetch
from clip_retrieval.network.fetch_many import InOrder
from clip_retrieval.paths import without_query
from clip_retrieval.sources.config import SourceConfig
from clip_retrieval.sources.csv_table import CSV_SUFFIXES, open_csv
from clip_retrieval.sources.json_lines import JSON_SUFFIXES, open_json_lines
from clip_retrieval.sources.parquet import PARQUET_SUFFIXES, ROWS_PER_UNIT, parts_of
from clip_retrieval.sources.patterns import list_inputs
from clip_retrieval.sources.tables import Table, TablePart, TableSource, open_tables
from clip_retrieval.sources.types import Failure, Sample


@dataclass(frozen=True)
class UrlSource:
    """The rows of a TableSource, with their pictures fetched."""

    tables: TableSource

    @property
    def config(self) -> SourceConfig:
        return self.tables.config

    @property
    def units(self) -> Sequence[str]:
        return self.tables.units

    @property
    def samples_per_unit(self) -> int | None:
        return self.tables.samples_per_unit

    def estimate_total(self) -> int | None:
        return self.tables.estimate_total()

    def read(self, start: int, stop: int) -> Iterator[Sample | Failure]:
        return self.fetched(self.tables.read(start, stop))

    def read_only(self, names: Container[tuple[str, str]]) -> Iterator[Sample | Failure]:
        return self.fetched(self.tables.read_only(names))

    def fetched(self, rows: Iterable[Sample | Failure]) -> Iterator[Sample | Failure]:
        limits = self.config.fetch
        fetcher: InOrder[Sample | Failure] = InOrder(
            partial(fetch, limits=limits), self.config.fetch_concurrency, self.config.fetch_per_host
        )
        items = ((item, url_of(item)) for item in rows)
        for item, result in fetcher.results(items):
            if isinstance(item, Failure) or result is None:
                yield item
            else:
                image = Lost(result.reason, str(result)) if isinstance(result, FetchError) else result
                yield dataclasses.replace(item, image=image)


def url_of(item: Sample | Failure) -> str | None:
    return None if isinstance(item, Failure) else item.image_path


def open_urls(config: SourceConfig, output_folder: str) -> UrlSource:
    """Count the rows of the files; raises SourceError if there are none, or no column of urls."""
    parts: list[TablePart] = []
    row_count = 0
    suffixes = (*PARQUET_SUFFIXES, *CSV_SUFFIXES, *JSON_SUFFIXES)
    for url in list_inputs(config.input_dataset, suffixes, "table", output_folder):
        name = without_query(url)
        if name.endswith(PARQUET_SUFFIXES):
            found, count = parts_of(url)
        else:
            found, count = parts_of_rows(open_json_lines(url) if name.endswith(JSON_SUFFIXES) else open_csv(url))
        parts += found
        row_count += count
    return UrlSource(open_tables(config, parts, row_count))


def parts_of_rows(table: Table) -> tuple[list[TablePart], int]:
    """Return units of at most 10,000 rows of a table of text, and the number of rows."""
    name = table.url.rpartition("/")[2]
    count = sum(not isinstance(item, Failure) for item in table.rows(0, None, []))
    starts = range(0, max(count, 1), ROWS_PER_UNIT)
    # The last unit is open-ended, so that reading it reaches and reports the damage that ended the count.
    return [
        TablePart(f"{name}:{start}", table, start, start + ROWS_PER_UNIT if start + ROWS_PER_UNIT < count else None)
        for start in starts
    ], count
