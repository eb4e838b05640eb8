"""An index in parts as requests see it: rows come from the part that has them, questions go to all parts at once."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urlencode

import msgspec
import numpy as np
from numpy.typing import NDArray

from clip_retrieval.errors import QueryError
from clip_retrieval.layout import Modality
from clip_retrieval.query.embed import Query, check_dimension, embed_vector
from clip_retrieval.server.asking import MOST_THUMBNAILS, Asker
from clip_retrieval.server.builds import METRIC, Found, FoundRows, Missing, Question, Row, Wanted
from clip_retrieval.server.files import HeldFile
from clip_retrieval.server.messages import HttpError
from clip_retrieval.server.parts.connections import Reply, Span
from clip_retrieval.server.parts.embedder import Embedder
from clip_retrieval.server.parts.exchange import Exchange
from clip_retrieval.server.parts.link import Call
from clip_retrieval.server.parts.search import PartedSearch

SIZE = re.compile(r"bytes 0-0/(\d+)")
ROWS_AT_ONCE = 1_000  # rows with their embeddings in one request: 3 MB


class FoundRow(msgspec.Struct):
    id: int
    metadata: Row
    embedding: str | None = None


class RowsOfPart(msgspec.Struct):
    """The answer of a part's /v1/rows."""

    rows: list[FoundRow]
    partial: list[Missing] = msgspec.field(default_factory=list)


@dataclass(frozen=True)
class PartedBuild:
    """The current parts of an index."""

    exchange: Exchange
    embedder: Embedder
    asker: Asker
    columns_to_return: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        return self.exchange.layout.name

    @property
    def id(self) -> str:
        return self.exchange.layout.id

    @property
    def row_count(self) -> int:
        return self.exchange.layout.row_count

    @property
    def columns(self) -> tuple[str, ...]:
        return self.exchange.layout.columns(self.columns_to_return)

    @property
    def usual_columns(self) -> tuple[str, ...]:
        return self.exchange.layout.usual_columns(self.columns_to_return)

    @property
    def clip_model(self) -> str | None:
        return self.exchange.layout.parts[0].clip_model

    async def look_for(self, generation: str | None) -> None:  # noqa: ARG002 -- what parts have now is all that there is
        await self.exchange.refresh()

    @property
    def has_pictures(self) -> bool:
        return any(part.pictures for part in self.exchange.layout.parts)

    def describe(self) -> dict[str, Any]:
        layout = self.exchange.layout
        parts = [
            {
                "part": link.number,
                "first_id": first_id,
                "rows": part.row_count,
                "generation": part.generation,
                "problem": link.refusal or link.problem,
            }
            for link, part, first_id in zip(self.exchange.links, layout.parts, layout.first_ids, strict=False)
        ]
        return {
            "name": self.name,
            "generation": self.id,
            "clip_model": self.clip_model,
            "dimension": layout.parts[0].dimension,
            "rows": layout.rows,
            "columns": list(self.columns),
            "pictures": self.has_pictures,
            "files": any(part.files for part in layout.parts),
            "fingerprint": layout.parts[0].fingerprint,
            "metric": METRIC,
            "usual_columns": list(self.usual_columns),
            "parts": parts,
        }

    def check_modality(self, modality: Modality) -> None:
        there = self.exchange.layout.rows
        if modality not in there:
            said = f"the index {self.name} has no {modality} index, only {' and '.join(there)}"
            raise HttpError(HTTPStatus.BAD_REQUEST, said)

    def check_dimension(self, query: Query) -> None:
        check_dimension(query, self.exchange.layout.parts[0].dimension)

    def embed_vector(self, values: NDArray[Any], name: str) -> Query:
        return embed_vector(values, name)

    async def embed_text(self, text: str) -> Query:
        return await self.embedder.embed_text(text, self.exchange.layout.max_queries)

    async def embed_picture(self, data: bytes) -> Query:
        return await self.embedder.embed_picture(data)

    async def like_row(self, modality: Modality, row_id: int) -> Query:
        if not 0 <= row_id < self.row_count:
            raise QueryError(f"the index has no row {row_id}; its ids are 0 to {self.row_count - 1:,}")
        found = await self.rows(Wanted(np.array([row_id]), with_embeddings=True, modality=modality))
        assert found.embeddings is not None
        if not found.embeddings[0].any():
            raise QueryError(f"row {row_id} has no embedding: it had no usable {modality}")
        return Query(f"row {row_id}", "row", found.embeddings[0], own_rows=(row_id,))

    async def ask(self, question: Question) -> Found:
        for query in question.queries:
            self.check_dimension(query)
        return await PartedSearch(self.exchange, self.rows, self.asker, question, self.shows_thumbnails).run()

    @property
    def shows_thumbnails(self) -> bool:
        return self.has_pictures and bool(self.asker.thumbnails.side)

    async def rows(self, wanted: Wanted) -> FoundRows:
        found: dict[int, FoundRow] = {}
        missing: dict[int, Missing] = {}  # by the first id
        for calls in self.cut(wanted):
            replies, unanswered = await self.exchange.ask(calls)
            for place, reply in replies.items():
                first_id = self.exchange.layout.first_ids[place]
                said = msgspec.json.decode(reply.body, type=RowsOfPart)
                found.update({first_id + row.id: row for row in said.rows})
                unanswered += self.exchange.within(place, said.partial)
            missing.update({part.first_id: part for part in unanswered})
        if missing and not found:
            raise self.exchange.unanswered(list(missing.values()))
        ids = [row_id for row_id in wanted.ids.tolist() if row_id in found]
        embeddings = decode_all([found[row_id] for row_id in ids]) if wanted.with_embeddings else None
        listed = [found[row_id].metadata for row_id in ids]
        return FoundRows(np.array(ids, np.int64), listed, embeddings, tuple(missing.values()))

    def cut(self, wanted: Wanted) -> Sequence[Mapping[int, Call]]:
        """Return the requests for rows: one at a time to each part, of at most as many rows as it allows."""
        layout = self.exchange.layout
        most = min(layout.max_results, ROWS_AT_ONCE if wanted.with_embeddings else layout.max_results)
        each = np.unique(wanted.ids)
        shown = (
            np.unique(wanted.ids[:MOST_THUMBNAILS]) if wanted.with_thumbnails and self.shows_thumbnails else each[:0]
        )
        rounds: list[dict[int, Call]] = []
        for with_thumbnails, ids in ((True, shown), (False, np.setdiff1d(each, shown))):
            owners = layout.owners(ids)
            for place in np.unique(owners).tolist():
                own = ids[owners == place]
                for number, start in enumerate(range(0, len(own), most)):
                    body = self.body(place, own[start : start + most], wanted, with_thumbnails=with_thumbnails)
                    free = next((calls for calls in rounds[number:] if place not in calls), None)
                    if free is None:
                        rounds.append(free := {})
                    free[place] = Call("POST", "/v1/rows", body)
        return rounds

    def body(self, place: int, ids: NDArray[np.int64], wanted: Wanted, *, with_thumbnails: bool) -> bytes:
        part = self.exchange.layout.parts[place]
        return msgspec.json.encode(
            {
                "ids": (ids - self.exchange.layout.first_ids[place]).tolist(),
                "index": part.name,
                "modality": wanted.modality,
                "columns": [name for name in wanted.columns if name in part.columns or name in part.usual],
                "thumbnails": with_thumbnails,
                "embeddings": wanted.with_embeddings,
                "encoding_format": "base64",
                "generation": part.generation,
            }
        )

    async def picture(self, row_id: int, side: int | None) -> bytes | None:
        size: dict[str, object] = {"original": 1} if side is None else {"size": side}
        reply = await self.ask_owner("/v1/pictures", row_id, size)
        return reply.body if reply is not None and reply.status == HTTPStatus.OK else None

    async def file(self, row_id: int) -> HeldFile | None:
        first = await self.ask_owner("/v1/files", row_id, {}, (0, 1))
        found = SIZE.fullmatch(first.headers.get("content-range", "")) if first is not None else None
        if first is None or found is None:  # there is no file, or it is empty
            return None

        async def read(start: int, stop: int) -> bytes:
            reply = await self.ask_owner("/v1/files", row_id, {}, (start, stop))
            if reply is None or reply.status != HTTPStatus.PARTIAL_CONTENT:
                raise FileNotFoundError(f"the file of row {row_id} of {self.name} is gone")
            return reply.body

        return HeldFile(int(found[1]), first.headers.get("content-type", "application/octet-stream"), read)

    async def ask_owner(
        self, kind: str, row_id: int, parameters: Mapping[str, object], span: Span | None = None
    ) -> Reply | None:
        """Return the answer of the part that has a row, which may be 404; None if no part has it."""
        layout = self.exchange.layout
        if row_id >= self.row_count:
            return None
        (place,) = layout.owners(np.array([row_id])).tolist()
        part = layout.parts[place]
        query = urlencode({**parameters, "generation": part.generation})
        path = f"{kind}/{quote(part.name, safe='')}/{row_id - layout.first_ids[place]}?{query}"
        replies, missing = await self.exchange.ask({place: Call("GET", path, may_be_absent=True, span=span)})
        if missing:
            raise self.exchange.unanswered(missing)
        return replies[place]

    async def probe(self) -> Mapping[str, str]:
        """Ask each part whether it is ready. Raises HttpError if no part is."""
        calls = {place: Call("GET", "/readyz") for place in range(len(self.exchange.links))}
        replies, missing = await self.exchange.ask(calls)
        if not replies:
            raise self.exchange.unanswered(missing)
        return {f"part {part.part}": part.problem for part in missing}


def decode_all(rows: Sequence[FoundRow]) -> NDArray[np.float32]:
    packed = b"".join(base64.b64decode(row.embedding or "") for row in rows)
    return np.frombuffer(packed, "<f4").reshape(len(rows), -1) if rows else np.empty((0, 0), np.float32)
