"""Csv, tsv and lists of urls: rows of text, read once to count them and once for each partition."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from clip_retrieval.blobs import may_pass, open_url
from clip_retrieval.errors import SourceError, first_line
from clip_retrieval.sources.tables import Kind, Part
from clip_retrieval.sources.types import Failure

CSV_SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".txt", ".txt.gz")
ROWS_PER_UNIT = 10_000
LONGEST_CELL = 1 << 24  # characters; a quote that is never closed would take the whole file for one cell
DELIMITERS = "\t,;|"
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")

csv.field_size_limit(LONGEST_CELL)


@dataclass(frozen=True)
class CsvTable:
    """One file of text rows under a line of column names; a .txt list of urls has the one column `url`."""

    url: str
    kinds: Mapping[str, Kind]
    types: Mapping[str, str]
    delimiter: str | None

    def rows(
        self, start: int, stop: int | None, columns: Sequence[str]
    ) -> Iterator[tuple[int, Mapping[str, Any]] | Failure]:
        """Yield the rows, empty cells as null; cells under no column name are reported."""
        names = list(self.kinds)
        number = -1
        try:
            for number, cells in enumerate(self.cells()):
                if stop is not None and number >= stop:
                    return
                if number >= start:
                    if len(cells) > len(names):
                        extra = f"{len(cells)} cells under {len(names)} column names; the last ones are left out"
                        yield Failure(str(number), self.url, "other", "extra_cells", extra, row_kept=True)
                    row = dict(zip(names, cells, strict=False))
                    yield number, {name: row.get(name) or None for name in columns}
        except (csv.Error, OSError, EOFError, ValueError) as error:
            reason = "unreadable" if may_pass(error) else "corrupt"
            detail = f"what comes after row {number} cannot be read: {first_line(error)}"
            yield Failure.of_shard(self.url, reason, detail)

    def cells(self) -> Iterator[list[str]]:
        """Yield the cells of each row below the column names; blank lines are no rows."""
        with open_text(self.url) as text:
            if self.delimiter is None:
                yield from ([line.strip()] for line in text if line.strip())
                return
            lines = csv.reader(text, delimiter=self.delimiter)
            next(lines, None)
            yield from (cells for cells in lines if any(cells))


@contextmanager
def open_text(url: str) -> Iterator[io.TextIOWrapper]:
    """Open a text; bytes that are not UTF-8 stay what they are, as surrogates."""
    with open_url(url) as file:
        is_wide = file.read(2) in UTF_16_MARKS
        file.seek(0)
        encoding = "utf-16" if is_wide else "utf-8-sig"
        with io.TextIOWrapper(file, encoding, errors="replace" if is_wide else "surrogateescape", newline="") as text:
            yield text


def open_csv(url: str) -> CsvTable:
    """Read the line of column names; raises SourceError where it cannot be one."""
    if url.endswith((".txt", ".txt.gz")):
        return CsvTable(url, {"url": "text"}, {"url": "text"}, None)
    try:
        with open_text(url) as text:
            line = text.readline(LONGEST_CELL)
            delimiter = max(DELIMITERS, key=lambda mark: count_outside_quotes(line, mark))
            text.seek(0)
            names = next(csv.reader(text, delimiter=delimiter), [])
    except FileNotFoundError as error:
        raise SourceError(f"{url} does not exist") from error
    except (csv.Error, OSError, EOFError, ValueError) as error:
        raise SourceError(f"{url} cannot be read: {first_line(error)}") from error
    if any("://" in name for name in names):
        raise SourceError(
            f"the first line of {url} holds a url already; put column names such as url,caption before it"
        )
    unique = [name.strip() or f"column_{place}" for place, name in enumerate(names)]
    if len(set(unique)) < len(unique):
        raise SourceError(f"{url} has two columns of one name in {', '.join(unique)}")
    return CsvTable(url, dict.fromkeys(unique, "text"), dict.fromkeys(unique, "text"), delimiter)


def count_outside_quotes(line: str, mark: str) -> int:
    return sum(part.count(mark) for part in line.split('"')[::2])


def parts_of_csv(url: str) -> tuple[list[Part], int]:
    """Return units of at most 10,000 rows, and the number of rows."""
    table, name = open_csv(url), url.rpartition("/")[2]
    count = sum(not isinstance(item, Failure) for item in table.rows(0, None, []))
    starts = range(0, max(count, 1), ROWS_PER_UNIT)
    # The last unit has no end: it meets, and tells of, the damage that ended the counting.
    return [
        Part(f"{name}:{start}", table, start, start + ROWS_PER_UNIT if start + ROWS_PER_UNIT < count else None)
        for start in starts
    ], count
