"""A question to all parts, answered like a question to one index: `query.answer`, with hits merged from the parts."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from http import HTTPStatus
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from clip_retrieval.query.answer import (
    MORE,
    MOST_COMPARED,
    Answer,
    choose_among,
    leave_out_chance,
    leave_out_duplicates,
)
from clip_retrieval.query.embed import Query
from clip_retrieval.query.surprise import expected_by
from clip_retrieval.query.unknown_column import ROW_ID
from clip_retrieval.server.asking import Asker
from clip_retrieval.server.builds import Found, FoundRows, Missing, Question, Row, Wanted
from clip_retrieval.server.messages import HttpError
from clip_retrieval.server.parts.exchange import Exchange
from clip_retrieval.server.parts.link import Call
from clip_retrieval.server.parts.merge import (
    ALL_KEPT,
    OfPart,
    Results,
    join_how,
    join_spreads,
    merge,
    without,
)

ONE_TRIP = 200  # up to this many hits, each part sends their metadata along, though most are not shown
HITS_PER_RESULT = 10  # a server gives this many times its `max_results` hits in one request
SUMMED = "surprise is the sum over the parts, each compared with its own background"
UNCALIBRATED = "surprise is without the parts that are missing"

FetchRows = Callable[[Wanted], Awaitable[FoundRows]]


@dataclass
class PartedSearch:
    """One question, and its state."""

    exchange: Exchange
    fetch: FetchRows
    asker: Asker
    question: Question
    shows_thumbnails: bool
    missing: dict[int, Missing] = field(default_factory=dict)  # by the first id
    rows: dict[int, Row] = field(default_factory=dict)  # metadata that came along

    @property
    def wanted(self) -> int:
        return self.question.selection.num_results

    @property
    def is_one_trip(self) -> bool:
        question = self.question
        is_plain = not question.selection.is_compared and question.near_duplicate is None
        is_bare = not question.with_embeddings and not (question.with_thumbnails and self.shows_thumbnails)
        return is_plain and is_bare and self.wanted * len(question.queries) <= ONE_TRIP

    async def run(self) -> Found:
        """Return the hits of each query. Raises HttpError, QueryError and StaleError."""
        await self.check_condition()
        queries, selection = self.question.queries, self.question.selection
        asked = min(MORE * self.wanted, MOST_COMPARED) if selection.is_compared else self.wanted
        asked += max(len(query.own_rows) for query in queries)
        self.check_count(asked)
        asked = min(asked, self.most)
        answers = [await self.complete(found, asked) for found in await self.find(queries, asked)]
        if self.question.near_duplicate is not None:
            answers = [await self.leave_out_near(found, self.question.near_duplicate) for found in answers]
        found = await self.show(answers)
        missing = tuple(self.missing[part] for part in sorted(self.missing))
        return replace(found, answers=[tell(answer, missing) for answer in found.answers], missing=missing)

    @property
    def most(self) -> int:
        return self.exchange.layout.max_results

    async def check_condition(self) -> None:
        """Refuse a condition about ids, since a part has its own ids. Raises QueryError and HttpError."""
        condition = self.question.selection.where
        if condition is None:
            return
        from clip_retrieval.query.predicates import names_in

        names = await self.asker.others.do(lambda: names_in(condition))
        about_ids = [name for name in names if name.lower() == ROW_ID]
        parts = self.exchange.layout.parts
        if any(name == ROW_ID or not all(name in part.columns for part in parts) for name in about_ids):
            raise bad(
                "where: an index in parts has no condition over id, since each part would apply it to its own ids; "
                "leave it out, or use another column"
            )

    def check_count(self, asked: int) -> None:
        """Refuse more hits than the parts can give, and a choice among fewer hits than one index would have."""
        selection = self.question.selection
        if not selection.is_compared and asked > self.most:
            raise bad(
                f"the parts of this index give at most {self.most:,} hits of a query, including rows in the query"
            )
        if selection.diverse is not None and min(asked, self.exchange.layout.row_count) > self.most:
            raise bad(
                f"diverse chooses among {MORE} times as many hits, and the parts of this index give at most "
                f"{self.most:,} of a query; ask for at most {self.most // MORE:,}"
            )

    async def find(self, queries: Sequence[Query], count: int) -> list[Answer]:
        """Search all parts; return up to `count` hits of each query."""
        found: list[Answer] = []
        at_once = max(1, min(self.exchange.layout.max_queries, HITS_PER_RESULT * self.most // count))
        for start in range(0, len(queries), at_once):
            found += await self.find_some(queries[start : start + at_once], count)
        return found

    async def find_some(self, queries: Sequence[Query], count: int) -> list[Answer]:
        layout = self.exchange.layout
        terms = [
            [{"embedding": base64.b64encode(query.embedding.astype("<f4").tobytes()).decode()}] for query in queries
        ]
        calls = {
            place: Call("POST", "/v1/search", msgspec.json.encode(self.body(place, terms, count)))
            for place in range(len(layout.parts))
        }
        replies, missing = await self.exchange.ask(calls)
        if not replies:
            raise self.exchange.unanswered(missing)
        self.note(missing)
        read = {place: msgspec.json.decode(reply.body, type=Results) for place, reply in replies.items()}
        for place, said in read.items():
            self.note(self.exchange.within(place, said.partial))
        return [
            self.join(query, count, [self.of_part(place, said.results[number]) for place, said in read.items()])
            for number, query in enumerate(queries)
        ]

    def note(self, missing: Sequence[Missing]) -> None:
        self.missing.update({part.first_id: part for part in missing})

    def of_part(self, place: int, result: Any) -> OfPart:
        layout = self.exchange.layout
        return OfPart(place + 1, layout.first_ids[place], layout.parts[place].row_count, result)

    def body(self, place: int, terms: Sequence[Any], count: int) -> dict[str, Any]:
        """Return the request for a part: vectors, and all that each part can decide for itself."""
        part, selection = self.exchange.layout.parts[place], self.question.selection
        columns = self.question.columns if self.is_one_trip else ()
        return {
            "queries": terms,
            "index": part.name,
            "modality": self.question.modality,
            "limit": count,
            "threshold": selection.threshold,
            "where": selection.where,
            "surprise": None if selection.surprise is None else ALL_KEPT,
            "columns": [name for name in columns if name in part.columns or name in part.usual],
            "generation": part.generation,
        }

    def join(self, query: Query, count: int, parts: Sequence[OfPart]) -> Answer:
        """Merge the hits of a query, and compare their scores with the background of all parts."""
        selection = self.question.selection
        hits, rows = merge(parts, count)
        if self.is_one_trip:
            self.rows.update(zip(hits.ids.tolist(), rows, strict=True))
        found = Answer(query, hits, how=join_how(parts) if selection.where is not None else ())
        found = without(found, query.own_rows)
        if selection.surprise is None:
            return found
        spreads = join_spreads(parts)
        found = replace(found, spreads=spreads, expected=expected_by(spreads, found.found.scores)).told(SUMMED)
        return found.told(UNCALIBRATED) if self.missing else found

    async def complete(self, found: Answer, asked: int) -> Answer:
        """Cut and choose among the hits of a query, as `query.answer` does; search for more until they suffice."""
        selection, own_count = self.question.selection, len(found.query.own_rows)
        most = min(self.exchange.layout.row_count, MOST_COMPARED)
        while True:
            kept = found if selection.surprise is None else leave_out_chance(found, selection.surprise)
            is_all = len(kept.found.ids) < asked - own_count or asked >= most
            chosen = await self.choose(kept) if selection.is_compared else kept.pick(slice(self.wanted))
            if len(chosen.found.ids) >= self.wanted or is_all or not selection.is_compared:
                return chosen
            if asked >= self.most:
                return chosen.told(f"only the nearest {asked:,} rows were compared, as many as the parts give")
            asked = min(MORE * asked, most, self.most)
            found = (await self.find([found.query], asked))[0]

    async def choose(self, found: Answer) -> Answer:
        """Leave out near-duplicates, and take hits that differ, by the parts' embeddings."""
        found, rows = await self.with_embeddings(found)
        if not len(rows):
            return found
        work = partial(choose_among, found, rows, self.question.selection, self.wanted)
        chosen: Answer = await self.asker.others.do(work)
        return chosen

    async def leave_out_near(self, found: Answer, threshold: float) -> Answer:
        """Leave out near-duplicates of nearer hits, without searching for replacements."""
        found, rows = await self.with_embeddings(found)
        if not len(rows):
            return found
        kept: tuple[Answer, Any] = await self.asker.others.do(partial(leave_out_duplicates, found, rows, threshold))
        return kept[0]

    async def with_embeddings(self, found: Answer) -> tuple[Answer, NDArray[np.float32]]:
        """Return hits and their embeddings [n, d]; hits whose part no longer answers are left out."""
        if not len(found.found.ids):
            return found, np.empty((0, 0), np.float32)
        held = await self.fetch(Wanted(found.found.ids, with_embeddings=True, modality=self.question.modality))
        self.note(held.missing)
        assert held.embeddings is not None
        return found.pick(np.isin(found.found.ids, held.ids)), held.embeddings

    async def show(self, answers: Sequence[Answer]) -> Found:
        """Add the metadata, thumbnails and embeddings of the hits that are shown."""
        shown = self.question.shown
        if self.is_one_trip:
            rows = [[self.rows[row_id] for row_id in found.found.ids[shown].tolist()] for found in answers]
            return Found(answers, rows)
        ids = np.concatenate([found.found.ids[shown] for found in answers])
        question = self.question
        wanted = Wanted(ids, question.columns, question.with_thumbnails, question.with_embeddings, question.modality)
        held = await self.fetch(wanted) if len(ids) else FoundRows(ids, [], np.empty((0, 0), np.float32))
        self.note(held.missing)
        by_id = dict(zip(held.ids.tolist(), range(len(held.ids)), strict=True))
        answers = [found.pick(np.isin(found.found.ids, ids, invert=True) | np.isin(found.found.ids, held.ids))
                   for found in answers]  # fmt: skip
        places = [[by_id[row_id] for row_id in found.found.ids[shown].tolist() if row_id in by_id] for found in answers]
        embeddings = [] if held.embeddings is None else [held.embeddings[np.array(some, int)] for some in places]
        return Found(answers, [[held.rows[place] for place in some] for some in places], embeddings)


def tell(found: Answer, missing: Sequence[Missing]) -> Answer:
    """Add notes to an answer on the rows that are missing from it."""
    for part in missing:
        last = part.first_id + part.rows - 1
        found = found.told(f"without part {part.part}, rows {part.first_id:,} to {last:,}: {part.problem}")
    return found


def bad(message: str) -> HttpError:
    return HttpError(HTTPStatus.BAD_REQUEST, message)
