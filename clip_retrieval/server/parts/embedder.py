"""Texts and pictures become vectors at one part; items that wait at the same moment are sent in one request."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from http import HTTPStatus
from itertools import count
from typing import Any

import msgspec
import numpy as np

from clip_retrieval.errors import QueryError
from clip_retrieval.query.embed import Query
from clip_retrieval.server.messages import HttpError
from clip_retrieval.server.parts.link import Call, Link, UnansweredError

Waiting = tuple[str, "asyncio.Future[Query]"]


class Item(msgspec.Struct):
    embedding: str
    warning: str | None = None


class Embeddings(msgspec.Struct):
    """The answer of a part's /v1/embed."""

    data: list[Item]


class Embedder:
    """Lets parts encode, in turn; a part that does not answer or is too busy is skipped."""

    def __init__(self, name: str, links: Sequence[Link]) -> None:
        self.name, self.links = name, links
        self.turns = count()
        self.waiting: list[Waiting] = []

    async def embed_text(self, text: str, at_once: int) -> Query:
        """Embed a text, together with up to `at_once` others. Raises HttpError."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Query] = loop.create_future()
        self.waiting.append((text, future))
        if len(self.waiting) == 1:
            loop.call_soon(self.send_waiting, at_once)
        return await future

    def send_waiting(self, at_once: int) -> None:
        waiting, self.waiting = self.waiting, []
        for start in range(0, len(waiting), at_once):
            self.links[0].connections.spawn(self.settle(waiting[start : start + at_once]))

    async def settle(self, waiting: Sequence[Waiting]) -> None:
        """Embed texts; if one of several fails, embed each alone, so only the bad one fails."""
        try:
            items = await self.embed([text for text, _ in waiting])
            found = [read_query(item, text, "text") for item, (text, _) in zip(items, waiting, strict=True)]
        except BaseException as error:  # also when the server ends: waiting requests must know  # noqa: BLE001
            if isinstance(error, HttpError) and error.status == HTTPStatus.BAD_REQUEST and len(waiting) > 1:
                for one in waiting:
                    await self.settle([one])
                return
            for _, future in waiting:
                if not future.done():
                    future.set_exception(error if isinstance(error, Exception) else closing())
            return
        for (_, future), query in zip(waiting, found, strict=True):
            if not future.done():
                future.set_result(query)

    async def embed_picture(self, data: bytes) -> Query:
        """Embed the bytes of a picture. Raises HttpError."""
        (item,) = await self.embed([{"image": base64.b64encode(data).decode()}])
        return read_query(item, "the picture", "image")

    async def embed(self, inputs: Sequence[str | dict[str, str]]) -> list[Item]:
        """Return the embeddings of the first part that answers. Raises HttpError."""
        first, problem = next(self.turns), ""
        refused: HttpError | None = None
        for place in range(len(self.links)):
            link = self.links[(first + place) % len(self.links)]
            body = {"input": inputs, "index": link.place.index, "encoding_format": "base64"}
            try:
                reply = await link.ask(Call("POST", "/v1/embed", msgspec.json.encode(body)))
                return msgspec.json.decode(reply.body, type=Embeddings).data
            except UnansweredError as error:
                problem = str(error)
            except HttpError as error:
                if error.status != HTTPStatus.TOO_MANY_REQUESTS:
                    raise
                refused = error
        if refused is not None:
            raise refused
        raise HttpError(HTTPStatus.SERVICE_UNAVAILABLE, f"no part of {self.name} can encode the query: {problem}")


def read_query(item: Item, name: str, kind: Any) -> Query:
    embedding = np.frombuffer(base64.b64decode(item.embedding), "<f4")
    if not np.isfinite(embedding).all():
        raise QueryError(f"the model has no embedding of {name}")
    return Query(name, kind, embedding, item.warning)


def closing() -> HttpError:
    return HttpError(HTTPStatus.SERVICE_UNAVAILABLE, "the server is being stopped")
