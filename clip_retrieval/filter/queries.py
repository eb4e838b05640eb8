"""A file of queries: read, embedded in batches, searched together; a query that fails does not affect the others."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from clip_retrieval.errors import QueryError, SourceError
from clip_retrieval.filter.hits import Asked
from clip_retrieval.filter.query import open_queries
from clip_retrieval.query.answer import answer_many
from clip_retrieval.query.config import SelectionConfig
from clip_retrieval.query.embed import Query
from clip_retrieval.query.searcher import Searcher
from clip_retrieval.sources.csv_table import CSV_SUFFIXES, CsvTable, open_csv
from clip_retrieval.sources.json_lines import JSON_SUFFIXES, open_json_lines
from clip_retrieval.sources.parquet import PARQUET_SUFFIXES, parts_of
from clip_retrieval.sources.tables import Table
from clip_retrieval.sources.text_files import open_text
from clip_retrieval.sources.types import Failure
from clip_retrieval.words import clean, counted

logger = logging.getLogger(__name__)

QUERIES_AT_ONCE = 256
COLUMN = "query"
TABLES_OF_TEXT = tuple(suffix for suffix in CSV_SUFFIXES if not suffix.startswith(".txt"))

Line = tuple[int, str | QueryError]  # number of the query in its file, from 1, and its text or its error


def answer_file(path: str, searcher: Searcher, selection: SelectionConfig) -> list[Asked]:
    """Return the answer to each query of a file, in their order. Raises QueryError if none can be answered."""
    lines = list(read_queries(path))
    if not lines:
        raise QueryError(f"{path} holds no query; write one per line")
    starts = range(0, len(lines), QUERIES_AT_ONCE)
    found = [
        asked for start in starts for asked in answer_lines(lines[start : start + QUERIES_AT_ONCE], searcher, selection)
    ]
    if all(asked.answer is None for asked in found):
        all_of_them = counted(len(found), "query", "queries")
        raise QueryError(f"none of {all_of_them} could be asked; the first: {found[0].problem}")
    return found


def answer_lines(lines: Sequence[Line], searcher: Searcher, selection: SelectionConfig) -> Iterator[Asked]:
    """Embed some queries in one batch, search the embedded ones together, and yield all in their order."""
    texts = [text for _, text in lines if isinstance(text, str)]
    opened = iter(open_queries(texts, searcher))
    queries = [next(opened) if isinstance(text, str) else text for _, text in lines]
    answers = iter(answer_many(searcher, [query for query in queries if isinstance(query, Query)], selection))
    for (number, text), query in zip(lines, queries, strict=True):
        shown = text if isinstance(text, str) else ""
        if isinstance(query, QueryError):
            yield Asked(number, shown, None, str(query))
        else:
            yield Asked(number, shown, next(answers))


def read_queries(path: str) -> Iterator[Line]:
    """Yield the queries of a file; blank lines of a txt are skipped. Raises QueryError."""
    try:
        table = open_table(path)
    except (SourceError, OSError, ValueError) as error:
        raise QueryError(f"the queries cannot be read: {error}") from error
    name = choose_column(path, table)
    for row in table.rows(0, None, [name]):
        if not isinstance(row, Failure):
            number, values = row
            text = values[name]
            is_text = isinstance(text, str) and text.strip()
            yield number + 1, clean(text).strip() if is_text else QueryError("the query is empty or not a text")
        elif row.part == "shard":
            raise QueryError(f"the queries in {path} cannot all be read: {row.detail}")
        elif row.reason == "json":
            yield int(row.key) + 1, QueryError(row.detail)


def open_table(path: str) -> Table:
    """Open a file of queries by its suffix; any suffix other than a table's means one query per line."""
    low = path.lower()
    if low.endswith(PARQUET_SUFFIXES):
        parts, count = parts_of(path)
        if parts and parts[0].table is None:
            damage = parts[0].damage
            raise SourceError(f"{path} is not a parquet file" + (f": {damage.detail}" if damage else ""))
        if not count:
            raise SourceError(f"{path} has no rows")
        table = parts[0].table
        assert table is not None
        return table
    if low.endswith(JSON_SUFFIXES):
        return open_json_lines(path)
    return open_csv(path) if low.endswith(TABLES_OF_TEXT) else open_lines(path)


def open_lines(path: str) -> CsvTable:
    table = CsvTable(path, {COLUMN: "text"}, {COLUMN: "text"}, None)
    with open_text(path) as text:
        text.read(1)
    return table


def choose_column(path: str, table: Table) -> str:
    """Return the column `query`, in upper or lower case, else the first column of texts. Raises QueryError."""
    named = [name for name in table.kinds if name.strip().lower() == COLUMN]
    texts = [name for name, kind in table.kinds.items() if kind == "text"]
    if not named and not texts:
        raise QueryError(
            f"{path} has no column {COLUMN} and no column of texts; its columns are {', '.join(table.kinds)}"
        )
    if not named and isinstance(table, CsvTable):
        logger.warning(
            "the first line of %s is read as the names of its columns (%s), not as a query; add a line %s above it",
            path, ", ".join(table.kinds), COLUMN,
        )  # fmt: skip
    return (named or texts)[0]
