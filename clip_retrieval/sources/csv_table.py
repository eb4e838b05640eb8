"""CSV, TSV and lists of urls. Each file is read once to count its rows and once for each partition."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clip_retrieval.compression import DAMAGE
from clip_retrieval.errors import SourceError, first_line
from clip_retrieval.paths import without_query
from clip_retrieval.sources.content import describe_start
from clip_retrieval.sources.csv_rows import LONGEST_CELL, read_rows
from clip_retrieval.sources.stamps import version_at
from clip_retrieval.sources.tables import Table
from clip_retrieval.sources.text_files import open_text
from clip_retrieval.sources.types import Failure

CSV_SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".txt", ".txt.gz")
DELIMITERS = "\t,;|"


@dataclass(frozen=True)
class CsvTable(Table):
    """A text file with a header row; a .txt list of urls has no header and one column, `url`."""

    delimiter: str | None

    def rows(
        self, start: int, stop: int | None, columns: Sequence[str]
    ) -> Iterator[tuple[int, Mapping[str, Any]] | Failure]:
        """Yield the rows, empty cells as None; cells beyond the last column name are reported."""
        names = list(self.kinds)
        number = -1
        try:
            for number, (cells, open_line) in enumerate(self.cells()):
                if stop is not None and number >= stop:
                    return
                if number >= start:
                    if open_line is not None:
                        detail = f"a quote in line {open_line} has no end; the line is read as it stands"
                        yield Failure(str(number), self.url, "other", "open_quote", detail, row_kept=True)
                    if len(cells) > len(names):
                        extra = f"{len(cells)} cells under {len(names)} column names; the last ones are left out"
                        yield Failure(str(number), self.url, "other", "extra_cells", extra, row_kept=True)
                    row = dict(zip(names, cells, strict=False))
                    yield number, {name: row.get(name) or None for name in columns}
        except (csv.Error, OSError, EOFError, ValueError, *DAMAGE) as error:
            yield Failure.of_rest(self.url, number + 1, error)

    def cells(self) -> Iterator[tuple[list[str], int | None]]:
        """Yield the cells of each row below the header, with the line number of an unclosed quote in it, or None.

        Blank lines are skipped.
        """
        with open_text(self.url) as text:
            if self.delimiter is None:
                yield from (([line.strip()], None) for line in text if line.strip())
                return
            rows = read_rows(text, self.delimiter, len(self.kinds))
            next(rows, None)
            yield from (row for row in rows if any(row[0]))


def open_csv(url: str) -> CsvTable:
    """Read the header row; raises SourceError if it cannot be one."""
    version = version_at(url)
    try:
        with open_text(url) as text:
            line = text.readline(LONGEST_CELL)
            delimiter = max(DELIMITERS, key=lambda mark: count_outside_quotes(line, mark))
            text.seek(0)
            names, open_line = next(read_rows(text, delimiter), ([], None))
    except FileNotFoundError as error:
        raise SourceError(f"{url} does not exist") from error
    except (csv.Error, OSError, EOFError, ValueError, *DAMAGE) as error:
        raise SourceError(f"{url} cannot be read: {first_line(error)}") from error
    known = describe_start(line.encode("utf-8", "surrogateescape"))
    if known is not None or "\0" in line:
        raise SourceError(f"{url} is {known or 'not text: its first line holds NUL characters'}")
    if without_query(url).endswith((".txt", ".txt.gz")):
        return CsvTable(url, {"url": "text"}, {"url": "text"}, None, version=version)
    if open_line is not None or any("\n" in name and "://" in name for name in names):
        raise SourceError(
            f"a quote in the first line of {url}, which names the columns, has no end; close or remove it"
        )
    if any("://" in name for name in names):
        raise SourceError(
            f"the first line of {url} holds a url already; put column names such as url,caption before it"
        )
    unique = [name.strip() or f"column_{place}" for place, name in enumerate(names)]
    if len(set(unique)) < len(unique):
        raise SourceError(f"{url} has two columns of one name in {', '.join(unique)}")
    return CsvTable(url, dict.fromkeys(unique, "text"), dict.fromkeys(unique, "text"), delimiter, version=version)


def count_outside_quotes(line: str, mark: str) -> int:
    return sum(part.count(mark) for part in line.split('"')[::2])
