"""The hits of one or many queries as a table, made block by block: memory holds ids, scores and one block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clip_retrieval.metadata import number_array, text_array
from clip_retrieval.query.answer import Answer
from clip_retrieval.query.searcher import Searcher
from clip_retrieval.query.unknown_column import name_apart
from clip_retrieval.search.results import SearchResult

BLOCK_ROWS = 1 << 16  # as many as all cores fetch at once; 25 MB with img2dataset's columns
PICTURE, PROBLEM = "picture", "problem"
QUERY_NUMBER, QUERY_TEXT = "query", "query_text"


class Asked(msgspec.Struct, frozen=True):
    """A query of a batch: its number in the file, from 1, and its answer, or the reason why it has none."""

    number: int
    text: str
    answer: Answer | None
    problem: str | None = None


class Hits(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """The hits of all queries one after the other, best first; export adds the name or problem of each picture."""

    searcher: Searcher
    asked: Sequence[Asked]
    is_batch: bool  # a file of queries: the table begins with the query's number and text
    ids: NDArray[np.int64]  # [n]
    scores: NDArray[np.float32]  # [n]
    expected: NDArray[np.float64] | None  # [n] rows that would score as high by chance
    starts: NDArray[np.int64]  # [queries + 1], places in ids
    names: dict[int, str] = msgspec.field(default_factory=dict)  # exported picture by place
    problems: dict[int, str] = msgspec.field(default_factory=dict)  # by place: why the hit could not be exported
    joined: dict[int, pa.Table] = msgspec.field(default_factory=dict)  # the metadata read last, by its first place

    @property
    def count(self) -> int:
        return len(self.ids)

    @property
    def failed(self) -> list[Asked]:
        return [asked for asked in self.asked if asked.problem is not None]

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[pa.Table]:
        """Yield the table of the hits at some places; it has at least one block, which may be empty."""
        stop = self.count if stop is None else min(stop, self.count)
        yield self.block(start, min(start + BLOCK_ROWS, stop))
        for first in range(start + BLOCK_ROWS, stop, BLOCK_ROWS):
            yield self.block(first, min(first + BLOCK_ROWS, stop))

    def block(self, start: int, stop: int) -> pa.Table:
        """Return some hits: rank, id, similarity, surprise, picture, problem if any has one, and the metadata."""
        places = np.arange(start, stop)
        owners = np.searchsorted(self.starts, places, side="right") - 1
        table = self.join(start, stop)
        table = table.set_column(0, "rank", number_array(places - self.starts[owners] + 1))
        if self.expected is not None:
            table = table.add_column(3, "surprise", number_array(self.expected[start:stop]))
        place = table.column_names.index("similarity") + 1
        table = table.add_column(place, PICTURE, text_array([self.names.get(i) for i in range(start, stop)]))
        if self.problems or self.failed:
            problems = text_array([self.problems.get(i) for i in range(start, stop)])
            table = table.add_column(place + 1, PROBLEM, problems)
        return self.with_queries(table, owners) if self.is_batch else table

    def join(self, start: int, stop: int) -> pa.Table:
        """Return some hits and their metadata, from the block that was read last if it holds them.

        Pictures, tables, sheet and report ask for the same block one after the other.
        """
        for first, block in self.joined.items():
            if first <= start and stop <= first + len(block):
                return block.slice(start - first, stop - start)
        self.joined.clear()  # before the next is read: memory holds one
        block = self.joined[start] = self.searcher.join(SearchResult(self.ids[start:stop], self.scores[start:stop]))
        return block

    def with_queries(self, table: pa.Table, owners: NDArray[np.int64]) -> pa.Table:
        """Return a block with the number and text of the query first; metadata of these names is renamed."""
        own = (QUERY_NUMBER, QUERY_TEXT)
        theirs = frozenset(table.column_names)
        names = [name_apart(name, theirs) if name in own else name for name in table.column_names]
        numbers = np.array([asked.number for asked in self.asked], np.int64)
        texts = text_array([self.asked[owner].text for owner in owners])
        table = table.rename_columns(names).add_column(0, QUERY_NUMBER, number_array(numbers[owners]))
        return table.add_column(1, QUERY_TEXT, texts)

    def failures(self) -> pa.Table:
        """Return a row for each query that has no answer: its number, its text and the problem; the rest is null."""
        schema = self.first_row().schema
        own = {
            QUERY_NUMBER: number_array(np.array([asked.number for asked in self.failed], np.int64)),
            QUERY_TEXT: text_array([asked.text for asked in self.failed]),
            PROBLEM: text_array([asked.problem for asked in self.failed]),
        }
        columns = [
            own[name] if name in own else pa.nulls(len(self.failed), schema.field(name).type) for name in schema.names
        ]
        return pa.table(columns, schema=schema)

    def first_row(self) -> pa.Table:
        """Return the first hit, which has the columns of all; an empty table would load pandas."""
        return self.block(0, min(1, self.count))

    def table(self) -> pa.Table:
        """Return all hits at once."""
        return pa.concat_tables(self.blocks())

    def query_of(self, place: int) -> Asked:
        return self.asked[int(np.searchsorted(self.starts, place, side="right")) - 1]


def collect_hits(searcher: Searcher, asked: Sequence[Asked], *, is_batch: bool) -> Hits:
    """Return the hits of some answers, one after the other."""
    answers = [one.answer for one in asked if one.answer is not None]
    expected = [answer.expected for answer in answers if answer.expected is not None]
    sizes = [0 if one.answer is None else len(one.answer.found.ids) for one in asked]
    return Hits(
        searcher=searcher,
        asked=asked,
        is_batch=is_batch,
        ids=np.concatenate([np.empty(0, np.int64), *[answer.found.ids for answer in answers]]),
        scores=np.concatenate([np.empty(0, np.float32), *[answer.found.scores for answer in answers]]),
        expected=np.concatenate(expected) if expected else None,
        starts=np.cumsum([0, *sizes]),
    )
