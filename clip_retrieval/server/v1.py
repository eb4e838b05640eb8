"""/v1: the queries of `filter` over HTTP: sums of texts, pictures, rows, vectors; conditions, diversity, surprise."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from clip_retrieval.errors import ConfigError, QueryError
from clip_retrieval.json_files import describe
from clip_retrieval.layout import Modality
from clip_retrieval.query.answer import Answer
from clip_retrieval.query.config import SelectionConfig
from clip_retrieval.query.embed import Query, add_up
from clip_retrieval.query.terms import parse_words
from clip_retrieval.server.asking import Asker
from clip_retrieval.server.builds import Build, Missing, Question, Wanted, check_columns
from clip_retrieval.server.config import BackConfig
from clip_retrieval.server.legacy import (
    LONGEST_TEXT,
    answer_with,
    bad,
    check_generation,
    embed_values,
    read_base64,
    read_ids,
)
from clip_retrieval.server.messages import Request, Response
from clip_retrieval.server.served import Indices

MOST_TERMS = 32  # of one query
MOST_EMBEDDINGS = 2_000  # hits with their embeddings in one answer: about 20 MB of JSON

Encoding = Literal["float", "base64"]
T = TypeVar("T")


class Term(msgspec.Struct, forbid_unknown_fields=True):
    """A part of a query: one of text, image, image_url, embedding and id, and its weight."""

    text: str | None = None
    image: str | None = None
    image_url: str | None = None
    embedding: list[float] | str | None = None  # numbers, or base64 of little-endian float32
    id: int | None = None
    weight: float = 1.0


class SearchRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of /v1/search. Each query is a text ("beach - people"), or a list of terms that are added up."""

    queries: list[str | list[Term]]
    index: str | None = None
    modality: Modality = "image"
    limit: int = 20
    offset: int = 0
    threshold: float | None = None
    where: str | None = None
    surprise: float | None = None
    deduplicate: float | None = None
    diverse: float | None = None
    columns: list[str] | None = None
    thumbnails: bool = False
    embeddings: bool = False
    encoding_format: Encoding = "float"
    generation: str | None = None


class RowsRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of /v1/rows: ids of rows, and what to return of each."""

    ids: list[int]
    index: str | None = None
    modality: Modality | None = None
    columns: list[str] | None = None
    thumbnails: bool = False
    embeddings: bool = False
    encoding_format: Encoding = "float"
    generation: str | None = None


class Picture(msgspec.Struct, forbid_unknown_fields=True):
    """A picture to embed, as base64."""

    image: str


class EmbedRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of /v1/embed, as for OpenAI's embeddings endpoint: texts, and also pictures."""

    input: str | list[str | Picture]
    model: str | None = None
    index: str | None = None
    encoding_format: Encoding = "float"
    user: str | None = None


@dataclass(frozen=True)
class Endpoints:
    """The endpoints under /v1."""

    config: BackConfig
    indices: Indices
    asker: Asker

    async def search(self, request: Request, body: Any) -> Response:
        """Search with one query or several: a list of hits for each, and how they were found."""
        said = convert(body, SearchRequest)
        build = self.indices.get(said.index)
        check_generation(request, build, said.generation)
        build.check_modality(said.modality)
        selection = self.read_selection(said)
        queries = await asyncio.gather(*[self.embed_query(query, build, said.modality) for query in said.queries])
        question = Question(
            modality=said.modality,
            queries=tuple(queries),
            selection=selection,
            columns=build.columns if said.columns is None else check_columns(build, said.columns),
            start=said.offset,
            stop=said.offset + said.limit,
            with_thumbnails=said.thumbnails,
            with_embeddings=said.embeddings,
        )
        found = await build.ask(question)
        answers = [answer.pick(slice(said.offset, None)) for answer in found.answers]
        results = [describe_answer(answer, part, said) for answer, part in zip(answers, found.rows, strict=True)]
        for result, rows in zip(results, found.embeddings, strict=False):
            add_embeddings(result["hits"], rows, said.encoding_format)
        about = {"index": build.name, "generation": build.id, "results": results}
        return answer_with(build, about | describe_missing(found.missing), found.missing)

    async def rows(self, request: Request, body: Any) -> Response:
        """Return rows by their ids: metadata, and on request thumbnails and embeddings."""
        said = convert(body, RowsRequest)
        build = self.indices.get(said.index)
        check_generation(request, build, said.generation)
        if said.modality is not None:
            build.check_modality(said.modality)
        most = self.config.limits.max_results
        ids = read_ids(said.ids, build, min(most, MOST_EMBEDDINGS) if said.embeddings else most)
        columns = build.columns if said.columns is None else check_columns(build, said.columns)
        found = await build.rows(Wanted(ids, columns, said.thumbnails, said.embeddings, said.modality))
        rows = [{"id": row_id, "metadata": row} for row_id, row in zip(found.ids.tolist(), found.rows, strict=True)]
        if found.embeddings is not None:
            add_embeddings(rows, found.embeddings, said.encoding_format)
        about = {"index": build.name, "generation": build.id, "rows": rows}
        return answer_with(build, about | describe_missing(found.missing), found.missing)

    async def embed(self, request: Request, body: Any) -> Response:  # noqa: ARG002 -- what every endpoint takes
        """Embed texts and pictures with the model of an index, in the form of OpenAI's endpoint."""
        said = convert(body, EmbedRequest)
        build = self.indices.get(said.index)
        inputs: list[str | Picture] = [said.input] if isinstance(said.input, str) else said.input
        self.check_number(len(inputs), "inputs")
        queries = await asyncio.gather(*[self.embed_input(build, item) for item in inputs])
        data = [describe_embedding(place, query, said.encoding_format) for place, query in enumerate(queries)]
        usage = {"prompt_tokens": 0, "total_tokens": 0}
        return answer_with(build, {"object": "list", "data": data, "model": build.clip_model, "usage": usage})

    def check_number(self, count: int, what: str) -> None:
        most = self.config.limits.max_queries
        if not 0 < count <= most:
            raise bad(f"there are {count} {what}; 1 to {most} may be in one request (max_queries)")

    def read_selection(self, said: SearchRequest) -> SelectionConfig:
        """Return which rows are hits. Raises HttpError if the request asks for too much or is invalid."""
        self.check_number(len(said.queries), "queries")
        most = self.config.limits.max_results
        if said.limit < 1 or said.offset < 0 or said.offset + said.limit > most:
            raise bad(f"limit must be 1 or more, offset 0 or more, and their sum at most {most:,} (max_results)")
        rows, most_rows = len(said.queries) * said.limit, MOST_EMBEDDINGS if said.embeddings else 10 * most
        if rows > most_rows:
            word = "with embeddings, " if said.embeddings else ""
            raise bad(
                f"{word}a request may have {most_rows:,} hits, not {rows:,}; lower limit, or send several requests"
            )
        try:
            return SelectionConfig(
                num_results=said.offset + said.limit,
                threshold=said.threshold,
                where=said.where,
                surprise=said.surprise,
                deduplicate=said.deduplicate,
                diverse=said.diverse,
            )
        except ConfigError as error:
            raise bad(str(error)) from error

    async def embed_query(self, query: str | list[Term], build: Build, modality: Modality) -> Query:
        """Embed a query: its terms, added up with their weights."""
        terms = read_terms(query) if isinstance(query, str) else query
        if not 0 < len(terms) <= MOST_TERMS:
            raise bad(f"a query has {len(terms)} terms; it may have 1 to {MOST_TERMS}")
        parts = await asyncio.gather(*[self.embed_term(term, build, modality) for term in terms])
        for part in parts:
            build.check_dimension(part)
        if len(parts) == 1 and terms[0].weight > 0:
            return parts[0]
        if all(term.weight <= 0 for term in terms):
            raise bad("no term of the query has a positive weight; give at least one a weight above 0")
        name = query if isinstance(query, str) else "the query"
        return add_up(name, [(term.weight, part) for term, part in zip(terms, parts, strict=True)])

    async def embed_term(self, term: Term, build: Build, modality: Modality) -> Query:
        given = [name for name in ("text", "image", "image_url", "embedding", "id") if getattr(term, name) is not None]
        if len(given) != 1:
            raise bad("a term has exactly one of text, image, image_url, embedding and id")
        if term.text is not None:
            return await self.embed_input(build, term.text)
        if term.image is not None:
            return await self.embed_input(build, Picture(term.image))
        if term.image_url is not None:
            return await build.embed_picture(await self.asker.fetch_picture(term.image_url))
        if isinstance(term.embedding, str):
            return build.embed_vector(decode(term.embedding), "embedding")
        if term.embedding is not None:
            return embed_values(build, term.embedding).query
        return await build.like_row(modality, int(term.id or 0))

    async def embed_input(self, build: Build, item: str | Picture) -> Query:
        if isinstance(item, Picture):
            return await build.embed_picture(read_base64(item.image))
        if not item.strip() or len(item) > LONGEST_TEXT:
            raise bad(f"a text may have 1 to {LONGEST_TEXT:,} characters, and this one has {len(item):,}")
        return await build.embed_text(item)


def convert(body: Any, shape: type[T]) -> T:
    """Return a body as a message. Raises HttpError that names the field."""
    try:
        return msgspec.convert(body, shape)
    except msgspec.ValidationError as error:
        raise bad(describe(error)) from error


def read_terms(query: str) -> list[Term]:
    """Return the terms of the compact form; every word is a text, even if it looks like a path."""
    try:
        return [Term(text=words.text, weight=words.weight) for words in parse_words(query)]
    except QueryError as error:
        raise bad(str(error)) from error


def describe_answer(answer: Answer, rows: Sequence[dict[str, Any]], said: SearchRequest) -> dict[str, Any]:
    """Return the hits of one query as JSON."""
    found = answer.found
    hits: list[dict[str, Any]] = [
        {"rank": said.offset + place, "id": row_id, "similarity": score, "metadata": row}
        for place, (row_id, score, row) in enumerate(
            zip(found.ids.tolist(), found.scores.tolist(), rows, strict=True), start=1
        )
    ]
    if answer.expected is not None:
        for hit, expected in zip(hits, answer.expected.tolist(), strict=True):
            if expected == expected:  # not NaN
                hit["surprise"] = expected
    about: dict[str, Any] = {
        "query": answer.query.text,
        "kind": answer.query.kind,
        "hits": hits,
        "how": list(answer.how),
    }
    if answer.spreads:
        about["background"] = [asdict(spread) for spread in answer.spreads]
    return about if answer.query.warning is None else about | {"warning": answer.query.warning}


def describe_missing(missing: Sequence[Missing]) -> dict[str, Any]:
    """Return the parts of the index that are missing from the answer; empty if there are none."""
    return {"partial": [part.describe() for part in missing]} if missing else {}


def describe_embedding(place: int, query: Query, form: Encoding) -> dict[str, Any]:
    said = {"object": "embedding", "index": place, "embedding": encode(query.embedding, form)}
    return said if query.warning is None else said | {"warning": query.warning}


def add_embeddings(hits: Sequence[dict[str, Any]], rows: NDArray[np.float32], form: Encoding) -> None:
    for hit, row in zip(hits, rows, strict=True):
        hit["embedding"] = encode(row, form)


def encode(row: NDArray[np.float32], form: Encoding) -> list[float] | str:
    """Return an embedding as a list of numbers, or as base64 of little-endian float32."""
    return row.tolist() if form == "float" else base64.b64encode(row.astype("<f4").tobytes()).decode()


def decode(text: str) -> NDArray[np.float32]:
    """Return an embedding from base64. Raises HttpError if it is invalid."""
    try:
        return np.frombuffer(base64.b64decode(text, validate=True), "<f4")
    except ValueError as error:
        raise bad("an embedding as a text is base64 of little-endian float32") from error
