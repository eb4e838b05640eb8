"""The endpoints of clip-retrieval 2, as its client and front expect them: /knn-service and /metadata."""

from __future__ import annotations

import binascii
import math
from array import array
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from http import HTTPStatus
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from clip_retrieval.layout import Modality
from clip_retrieval.query.config import SelectionConfig
from clip_retrieval.query.embed import Query
from clip_retrieval.query.selection import NEAR_DUPLICATE
from clip_retrieval.server.asking import Asker
from clip_retrieval.server.builds import Build, Missing, Question, Wanted, check_columns, check_ids, partial_headers
from clip_retrieval.server.config import BackConfig
from clip_retrieval.server.messages import HttpError, Request, Response, StaleError, json_response
from clip_retrieval.server.served import Indices
from clip_retrieval.words import with_article

IMAGE = "image"  # among columns: thumbnails
GENERATION = b"index-generation"  # header of answers, and of requests that require this build
LONGEST_TEXT = 10_000  # characters; models see about 300 of them
LONGEST_NUMBER = 20  # digits
INPUTS = dict.fromkeys(("text", "image", "image_url"), "a text") | {"embedding_input": "a list of numbers"}
JSON_KINDS: dict[type, str] = {
    str: "text", int: "number", float: "number", bool: "boolean", list: "list", dict: "object", type(None): "null",
}  # fmt: skip


@dataclass(frozen=True)
class Embedded:
    """A query, and the length of its vector: clip-retrieval 2 does not normalize received vectors."""

    query: Query
    length: float = 1.0


@dataclass(frozen=True)
class Endpoints:
    """The endpoints for clients of clip-retrieval 2."""

    config: BackConfig
    indices: Indices
    asker: Asker

    async def knn_service(self, request: Request, body: Any) -> Response:
        """Search by a text, a picture, a url or a vector: a list of hits, best first."""
        with self.asker.metrics.timing("full_knn_request_time"):
            return await self.find(request, as_object(body))

    async def find(self, request: Request, said: dict[str, Any]) -> Response:
        build = self.indices.get(said.get("indice_name"))
        check_generation(request, build)
        modality: Modality = "image" if said.get("modality", "image") == "image" else "text"
        build.check_modality(modality)
        check_search(said)
        shown = self.read_count(said, "num_images")
        count = max(shown, self.read_count(said, "num_result_ids", shown))
        embedded = await self.embed(said, build)
        question = Question(
            modality=modality,
            queries=(embedded.query,),
            selection=plain_selection(max(1, count)),
            columns=build.usual_columns,
            stop=shown,
            with_thumbnails=True,
            near_duplicate=NEAR_DUPLICATE if read_flag(said, "deduplicate") else None,
        )
        answer = await build.ask(question)
        (best,), (rows,) = answer.answers, answer.rows
        found = best.found if count else best.pick(slice(0)).found
        scores = (found.scores * embedded.length).tolist()
        listed = [*rows, *({} for _ in scores[len(rows) :])]
        for row, row_id, score in zip(listed, found.ids.tolist(), scores, strict=True):
            row["id"], row["similarity"] = row_id, score  # rows are this request's own
        return answer_with(build, listed, answer.missing)

    async def metadata(self, request: Request, body: Any) -> Response:
        """Return the metadata of rows by their ids: the usual columns and `image`, or `columns`."""
        said = as_object(body)
        build = self.indices.get(said.get("indice_name"))
        check_generation(request, build, said.get("generation"))
        ids = self.read_ids(said.get("ids"), build)
        columns, with_thumbnails = read_columns(said, build)
        found = await build.rows(Wanted(ids, columns, with_thumbnails=with_thumbnails))
        listed = [{"id": row_id, "metadata": row} for row_id, row in zip(found.ids.tolist(), found.rows, strict=True)]
        return answer_with(build, listed, found.missing)

    async def embed(self, said: dict[str, Any], build: Build) -> Embedded:
        """Embed the query: the first given one of text, image, image_url and embedding_input."""
        if said.get("text"):
            return Embedded(await build.embed_text(said["text"][:LONGEST_TEXT]))  # models see less
        if said.get("image"):
            return Embedded(await build.embed_picture(read_base64(said["image"])))
        if said.get("image_url"):
            return Embedded(await build.embed_picture(await self.asker.fetch_picture(said["image_url"])))
        return embed_values(build, said["embedding_input"])

    def read_count(self, said: dict[str, Any], name: str, usual: int = 0) -> int:
        """Return a number of hits, at most max_results; `check_search` has checked that it is a number."""
        value = said.get(name)
        return min(usual if value is None else int(value), self.config.limits.max_results)

    def read_ids(self, ids: Any, build: Build) -> NDArray[np.int64]:
        if not isinstance(ids, list) or not all(type(row_id) is int for row_id in ids):
            raise bad("ids is a list of whole numbers")
        return read_ids(ids, build, self.config.limits.max_results)


def check_search(said: dict[str, Any]) -> None:
    """Raise HttpError that names all missing or wrong fields of a search, in their order."""
    wrong = [
        f"{name} is {wanted}, not {with_article(JSON_KINDS[type(said[name])])}"
        for name, wanted in INPUTS.items()
        if said.get(name) is not None and type(said[name]) is not (list if name == "embedding_input" else str)
    ]
    if not any(said.get(name) for name in INPUTS):
        wrong.append("give one of text, image (base64), image_url and embedding_input")
    if said.get("num_images") is None:
        wrong.append("num_images is missing: give the number of hits")
    wrong += [
        f"{name} must be a number of hits, not {msgspec.json.encode(said[name]).decode()[:50]}"
        for name in ("num_images", "num_result_ids")
        if said.get(name) is not None and not is_count(said[name])
    ]
    if wrong:
        raise bad("; ".join(wrong))


def is_count(value: object) -> bool:
    """Say whether a value is a whole number, 0 or more, as a number or as digits."""
    if isinstance(value, str):
        return value.isdecimal() and len(value) < LONGEST_NUMBER
    return type(value) is int and value >= 0


def read_ids(ids: list[int], build: Build, most: int) -> NDArray[np.int64]:
    """Return ids of rows. Raises HttpError if there are too many, or if one is invalid."""
    if len(ids) > most:
        raise bad(f"a request may have at most {most:,} ids, not {len(ids):,}")
    return check_ids(build, ids)


def read_columns(said: dict[str, Any], build: Build) -> tuple[tuple[str, ...], bool]:
    """Return the columns of /metadata, and whether thumbnails (`image`) are among them.

    A request without columns gets those that clip-retrieval 2 returns.
    """
    asked = said.get("columns")
    if asked is None:
        return build.usual_columns, True
    if not isinstance(asked, list) or not all(isinstance(name, str) for name in asked):
        raise bad("columns is a list of names of columns")
    return check_columns(build, [name for name in asked if name != IMAGE]), IMAGE in asked


@lru_cache(256)
def plain_selection(count: int) -> SelectionConfig:
    """Return the selection of the best hits; cached, since its checks take longer than a request may."""
    return SelectionConfig(num_results=count)


def as_object(body: Any) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise bad(f"the body is {with_article(JSON_KINDS[type(body)])}, not an object")
    return body


def embed_values(build: Build, values: list[Any]) -> Embedded:
    """Return a vector of a request as a query. Raises HttpError if it is not a list of numbers, or of another size."""
    try:
        is_usual = bool(values) and type(values[0]) is float
        vector = np.frombuffer(array("d", values)) if is_usual else np.asarray(values)  # the first is a third faster
    except (TypeError, ValueError, OverflowError) as error:
        raise bad("embedding_input must be a list of numbers") from error
    if vector.ndim != 1 or vector.dtype.kind not in "fiu":
        raise bad("embedding_input must be a list of numbers")
    query = build.embed_vector(vector, "embedding_input")
    row = np.asarray(vector, np.float64)
    return Embedded(query, math.sqrt(row @ row))


def read_base64(text: str) -> bytes:
    """Return the bytes of base64, with or without the beginning of a data url."""
    try:
        data = text.partition(",")[2] if text.startswith("data:") else text
        return b64decode("".join(data.split()), validate=True)  # without it, invalid characters are ignored
    except (binascii.Error, ValueError) as error:
        raise bad("the picture is not valid base64") from error


def read_flag(said: dict[str, Any], name: str) -> bool:
    value = said.get(name)
    return value if isinstance(value, bool) else str(value).lower() in ("true", "1")


def check_generation(request: Request, build: Build, asked: Any = None) -> None:
    """Refuse ids of an older build: they may be other rows now. Raises HttpError 409.

    Another process may already serve the requested build: raises StaleError, to look for it first.
    """
    header = request.header(GENERATION)
    asked = header.decode("latin-1") if header is not None and asked is None else asked
    if asked is not None and asked != build.id:
        if not request.is_retried:
            raise StaleError(partial(build.look_for, str(asked)))
        raise HttpError(
            HTTPStatus.CONFLICT,
            f"the index {build.name} was rebuilt, so ids may mean other rows: its generation is {build.id}, not "
            f"{str(asked)[:50]}",
            ((GENERATION, build.id.encode()),),
        )


def answer_with(build: Build, value: object, missing: Sequence[Missing] = ()) -> Response:
    """Return JSON about an index, with its generation, and its parts that are missing from the answer."""
    return json_response(value, headers=((GENERATION, build.id.encode()), *partial_headers(missing)))


def bad(message: str) -> HttpError:
    return HttpError(HTTPStatus.BAD_REQUEST, message)
