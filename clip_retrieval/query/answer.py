"""A query to its hits: rows that meet the condition are searched, cut at thresholds, deduplicated, diversified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clip_retrieval.errors import ConfigError
from clip_retrieval.metadata import number_array
from clip_retrieval.query.config import SelectionConfig
from clip_retrieval.query.embed import Query
from clip_retrieval.query.searcher import Searcher
from clip_retrieval.query.selection import choose_diverse, find_leaders
from clip_retrieval.search.results import SearchResult

if TYPE_CHECKING:
    from clip_retrieval.query.surprise import Spread
    from clip_retrieval.search.within import Within

MORE = 4  # times the wanted hits are looked at, if near-duplicates or similar ones are left out
FIRST_ASKED = 4_096  # hits of the first search, if all above a threshold are wanted; then MORE times as many
MOST_COMPARED = 20_000  # hits whose embeddings are compared with each other: 20,000 x 512 are 40 MB


@dataclass(frozen=True)
class Answer:
    """The hits of one query, best first (or in the order of their choice), and how they were found."""

    query: Query
    found: SearchResult
    expected: NDArray[np.float64] | None = None  # [k] rows that would score as high by chance; None if not asked for
    how: tuple[str, ...] = ()
    spreads: tuple[Spread, ...] = ()  # the source of `expected`; for an index in parts, one for each part

    def pick(self, places: NDArray[np.int64] | NDArray[np.bool_] | slice) -> Answer:
        """Return the hits at some places, in their order."""
        found = SearchResult(self.found.ids[places], self.found.scores[places])
        return replace(self, found=found, expected=None if self.expected is None else self.expected[places])

    def first(self, count: int) -> Answer:
        """Return the best hits; the answer itself if it has no more."""
        return self if len(self.found.ids) <= count else self.pick(slice(count))

    def told(self, sentence: str) -> Answer:
        return replace(self, how=(*self.how, sentence))


def answer(searcher: Searcher, query: Query, selection: SelectionConfig) -> Answer:
    """Return the hits of a query. Raises QueryError for a bad condition, and for another dimension."""
    return answer_many(searcher, [query], selection)[0]


def answer_many(searcher: Searcher, queries: Sequence[Query], selection: SelectionConfig) -> list[Answer]:
    """Return the hits of each query; all are searched at once. Raises the same errors as `answer`."""
    if not queries:
        return []
    within = None
    if selection.where is not None:
        within = searcher.within(searcher.rows_where(selection.where), every_row=not selection.num_results)
    row_count = searcher.index.row_count if within is None else len(within.rows)
    wanted = selection.num_results or max(1, row_count)
    if selection.is_compared and wanted > MOST_COMPARED:
        raise ConfigError(
            f"deduplicate and diverse compare up to {MOST_COMPARED:,} hits, not {wanted:,}; give a smaller num_results"
        )
    asked = wanted if selection.num_results else FIRST_ASKED
    asked = min(MORE * wanted, MOST_COMPARED) if selection.is_compared else asked
    asked += max((len(query.own_rows) for query in queries), default=0)
    search = Search(searcher, selection, within, wanted)
    return [search.complete(found, asked) for found in search.find(queries, asked)]


class Search(msgspec.Struct, frozen=True):
    """What the queries of a batch share."""

    searcher: Searcher
    selection: SelectionConfig
    within: Within | None  # the rows that meet the condition
    wanted: int

    def find(self, queries: Sequence[Query], count: int) -> list[Answer]:
        """Search all rows, or only the rows that meet the condition."""
        how: tuple[str, ...]
        if self.within is None:
            hits, how = self.searcher.search_many(queries, count, every_row=not self.selection.num_results), ()
        else:
            from clip_retrieval.search.within import search_within

            embeddings = np.stack([query.embedding for query in queries])
            found = search_within(self.searcher.index, embeddings, count, self.within, self.searcher.settings)
            hits, how = found.hits, (found.sentence(),)
        answers = [Answer(query, found, how=how) for query, found in zip(queries, hits, strict=True)]
        return [
            found.pick(~np.isin(found.found.ids, found.query.own_rows)) if found.query.own_rows else found
            for found in answers
        ]

    def complete(self, found: Answer, asked: int) -> Answer:
        """Cut and choose among the hits of a query; search for more until they suffice or there are no more."""
        selection, own_count = self.selection, len(found.query.own_rows)
        is_compared = selection.is_compared
        most = min(self.searcher.index.row_count, MOST_COMPARED) if is_compared else self.searcher.index.row_count
        while True:
            kept = cut(found, self.searcher, selection)
            is_all = len(kept.found.ids) < asked - own_count or asked >= most
            chosen = self.choose(kept) if is_compared else kept.first(self.wanted)
            if len(chosen.found.ids) >= self.wanted or is_all or (selection.num_results and not is_compared):
                return chosen
            asked = min(MORE * asked, most)
            found = self.find([found.query], asked)[0]

    def choose(self, found: Answer) -> Answer:
        """Leave out near-duplicates, then take hits that differ."""
        if not len(found.found.ids):
            return found
        return choose_among(found, self.searcher.rows(found.found.ids), self.selection, self.wanted)


def choose_among(found: Answer, rows: NDArray[np.float32], selection: SelectionConfig, wanted: int) -> Answer:
    """Leave out near-duplicates among hits, then take hits that differ; without diversity the order stays."""
    if selection.deduplicate is not None:
        found, rows = leave_out_duplicates(found, rows, selection.deduplicate)
    if selection.diverse is None:
        return found.pick(slice(wanted))
    return found.pick(choose_diverse(rows, found.found.scores, wanted, selection.diverse))


def without_duplicates(found: Answer, searcher: Searcher, threshold: float) -> Answer:
    """Leave out near-duplicates of nearer hits, without searching for replacements."""
    if not len(found.found.ids):
        return found
    return leave_out_duplicates(found, searcher.rows(found.found.ids), threshold)[0]


def leave_out_duplicates(
    found: Answer, rows: NDArray[np.float32], threshold: float
) -> tuple[Answer, NDArray[np.float32]]:
    """Return the hits and rows [n, d] without near-duplicates of nearer hits."""
    kept = find_leaders(rows, threshold) == np.arange(len(rows))
    left_out = int((~kept).sum())
    found = found.pick(kept)
    return (found.told(f"{left_out:,} near-duplicates of nearer hits were left out") if left_out else found), rows[kept]


def cut(found: Answer, searcher: Searcher, selection: SelectionConfig) -> Answer:
    """Leave out hits below the threshold, and hits that chance explains."""
    if selection.threshold is not None:
        found = found.pick(found.found.scores >= selection.threshold)
    if selection.surprise is None:
        return found
    from clip_retrieval.query.surprise import expected_by

    spread = searcher.background().spread(found.query.embedding)
    spreads = () if spread is None else (spread,)
    found = replace(found, spreads=spreads, expected=expected_by(spreads, found.found.scores))
    return leave_out_chance(found, selection.surprise)


def leave_out_chance(found: Answer, surprise: float) -> Answer:
    """Leave out hits that `surprise` rows or more would equal by chance; none if the index has too few rows."""
    expected = found.expected
    assert expected is not None
    if np.isnan(expected).any():
        return found.told("the index has too few rows to distinguish hits from chance: all are kept")
    kept = expected < surprise
    left_out = int((~kept).sum())
    found = found.pick(kept)
    return (
        found
        if not left_out
        else found.told(f"{left_out:,} of the nearest rows were left out: chance explains their scores")
    )


def tabulate(found: Answer, searcher: Searcher) -> pa.Table:
    """Return the hits as a table: rank, id, similarity, surprise if it was asked for, and the metadata."""
    table = searcher.join(found.found)
    return table if found.expected is None else table.add_column(3, "surprise", number_array(found.expected))
