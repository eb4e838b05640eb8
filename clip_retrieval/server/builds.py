"""An index as requests see it: a folder that is opened here, or parts on other servers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.layout import Modality
from clip_retrieval.query.answer import Answer
from clip_retrieval.query.config import SelectionConfig
from clip_retrieval.query.embed import Query
from clip_retrieval.server.files import HeldFile
from clip_retrieval.server.messages import Header, HttpError

Row = dict[str, Any]  # metadata as JSON

METRIC = "inner_product"  # of every answer, whatever faiss calls the metric of the index
SHOWN_COLUMNS = 30  # in the message about an unknown column


@dataclass(frozen=True, kw_only=True)
class Question:
    """Queries over one index, which rows become hits, and what is returned of the hits from `start` to `stop`."""

    modality: Modality
    queries: tuple[Query, ...]
    selection: SelectionConfig
    columns: tuple[str, ...] = ()
    start: int = 0
    stop: int = 0
    with_thumbnails: bool = False
    with_embeddings: bool = False
    near_duplicate: float | None = None  # leave out hits this similar to a better one, without searching for more

    @property
    def shown(self) -> slice:
        return slice(self.start, self.stop)


@dataclass(frozen=True)
class Missing:
    """A part of an index that did not answer, and which rows it has; only an index in parts can have missing ones."""

    part: int  # the first is 1
    first_id: int
    rows: int
    problem: str

    def describe(self) -> dict[str, Any]:
        return {"part": self.part, "first_id": self.first_id, "rows": self.rows, "problem": self.problem}


@dataclass(frozen=True)
class Found:
    """The answer of each query, the metadata and embeddings of the shown hits, and the missing parts."""

    answers: Sequence[Answer]
    rows: Sequence[Sequence[Row]]
    embeddings: Sequence[NDArray[np.float32]] = ()
    missing: tuple[Missing, ...] = ()


@dataclass(frozen=True)
class Wanted:
    """A request for rows by their ids."""

    ids: NDArray[np.int64]
    columns: tuple[str, ...] = ()
    with_thumbnails: bool = False
    with_embeddings: bool = False
    modality: Modality | None = None  # of the embeddings; None: the first available one


@dataclass(frozen=True)
class FoundRows:
    """Rows by their ids; unavailable rows are left out."""

    ids: NDArray[np.int64]
    rows: Sequence[Row]
    embeddings: NDArray[np.float32] | None = None
    missing: tuple[Missing, ...] = field(default=())


class Build(Protocol):
    """One build of an index. It never changes; `id` differs between builds in which ids may mean other rows."""

    @property
    def name(self) -> str: ...
    @property
    def id(self) -> str: ...
    @property
    def row_count(self) -> int: ...
    @property
    def columns(self) -> tuple[str, ...]: ...  # all that may be returned
    @property
    def usual_columns(self) -> tuple[str, ...]: ...  # what clip-retrieval 2's endpoints return
    @property
    def clip_model(self) -> str | None: ...
    @property
    def has_pictures(self) -> bool: ...

    def describe(self) -> dict[str, Any]:
        """Return what requests may know about it."""

    async def look_for(self, generation: str | None) -> None:
        """Check now whether a newer build has replaced this one."""

    def check_modality(self, modality: Modality) -> None:
        """Raise HttpError if there is no index of this modality."""

    def check_dimension(self, query: Query) -> None:
        """Raise QueryError if the query's dimension differs from that of the index."""

    def embed_vector(self, values: NDArray[Any], name: str) -> Query:
        """Return the query of a vector. Raises QueryError."""

    async def embed_text(self, text: str) -> Query:
        """Embed a text. Raises QueryError, EncoderError and HttpError."""

    async def embed_picture(self, data: bytes) -> Query:
        """Embed the bytes of a picture, or its base64. Raises QueryError, EncoderError and HttpError."""

    async def like_row(self, modality: Modality, row_id: int) -> Query:
        """Return a row of the index as a query. Raises QueryError and HttpError."""

    async def ask(self, question: Question) -> Found:
        """Return the hits of each query. Raises QueryError and HttpError."""

    async def rows(self, wanted: Wanted) -> FoundRows:
        """Return rows by their ids. Raises HttpError."""

    async def picture(self, row_id: int, side: int | None) -> bytes | None:
        """Return the picture of a row: its original bytes, or a JPEG whose sides have at most `side` pixels."""

    async def file(self, row_id: int) -> HeldFile | None:
        """Return the PDF or video that the picture of a row is in; None if none is served."""

    async def probe(self) -> Mapping[str, str]:
        """Run a test search; return problems by their place. Raises HttpError if nothing answers."""


def check_columns(build: Build, asked: Sequence[str]) -> tuple[str, ...]:
    """Return the columns that a request names, each once. Raises HttpError for one that may not be returned."""
    unknown = next((name for name in asked if name not in build.columns and name not in build.usual_columns), None)
    if unknown is not None:
        there = ", ".join(build.columns[:SHOWN_COLUMNS])
        raise HttpError(HTTPStatus.BAD_REQUEST, f"there is no column {unknown[:100]!r}; there are {there}")
    return tuple(dict.fromkeys(asked))


def check_ids(build: Build, ids: Iterable[int]) -> NDArray[np.int64]:
    """Return ids of rows. Raises HttpError for an invalid id."""
    listed, count = list(ids), build.row_count
    wrong = next((row_id for row_id in listed if not 0 <= row_id < count), None)
    if wrong is not None:
        raise HttpError(HTTPStatus.BAD_REQUEST, describe_absent_row(build, wrong))
    return np.array(listed, np.int64)


def describe_absent_row(build: Build, row_id: object) -> str:
    count = build.row_count
    there = f"{count:,} rows: ids are 0 to {count - 1:,}" if count else "no rows"
    return f"there is no row {str(row_id)[:30]}; the index {build.name} has {there}"


def partial_headers(missing: Sequence[Missing]) -> tuple[Header, ...]:
    """Return the header that says which parts did not answer; none if all did."""
    if not missing:
        return ()
    numbers = dict.fromkeys(str(part.part) for part in missing)
    return ((b"index-partial", f"no answer of part {', '.join(numbers)}".encode()),)
