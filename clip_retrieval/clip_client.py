"""Clients of `clip-retrieval back`, and of clip-retrieval 2's servers; they load neither numpy nor torch."""

from __future__ import annotations

import asyncio
import itertools
import time
import weakref
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self, Unpack

from clip_retrieval.client.answers import find_pause, load_httpx, read_answer
from clip_retrieval.client.calls import Call, Input, Json, Modality, Query, SearchOptions, Settings, Vector

__all__ = ["AsyncClipClient", "ClipClient", "Modality"]


class ClipClient(Settings):
    """Asks a server: `query` works as in clip-retrieval 2, docs/clients.md describes the other methods.

    Threads may share one. Raises ClientError with the server's own sentence if the server refuses, ValueError and
    FileNotFoundError for invalid arguments.
    """

    @cached_property
    def http(self) -> Any:
        client = load_httpx().Client(**self.http_options)
        weakref.finalize(self, client.close)  # scripts of clip-retrieval 2 close nothing
        return client

    def ask(self, call: Call) -> Any:
        """Send a request, again if the server is busy; return its answer."""
        for tries in itertools.count():
            try:
                answer = self.http.request(call.method, call.url, content=call.content)
            except load_httpx().RequestError as error:
                answer = error
            pause = find_pause(self, answer, tries)
            if pause is None:
                return read_answer(self, call, answer)
            time.sleep(pause)
        raise AssertionError

    def query(
        self, text: str | None = None, image: str | Path | None = None, embedding_input: Vector | None = None
    ) -> list[Json]:
        """Return hits of a text, a picture (a file or a url) or a vector, best first: id, similarity, url, caption."""
        return list(self.ask(self.query_call(text, image, embedding_input)))

    def metadata(self, ids: Iterable[int]) -> list[Json]:
        """Return `{id, metadata}` of rows."""
        return list(self.ask(self.metadata_call(ids)))

    def names(self) -> list[str]:
        """Return the names of the server's indices."""
        return list(self.ask(Call(f"{self.server}/indices-list")))

    def indices(self) -> list[Json]:
        """Return name, generation, model, dimension, rows and columns of each index."""
        return list(self.ask(Call(f"{self.server}/v1/indices", part="indices")))

    def search(self, query: Query, **options: Unpack[SearchOptions]) -> list[Json]:
        """Return the hits of one query: rank, id, similarity and metadata."""
        return list(self.search_many([query], **options)[0]["hits"])

    def search_many(self, queries: Sequence[Query], **options: Unpack[SearchOptions]) -> list[Json]:
        """Return the hits of each query, how they were found, and a warning if there is one."""
        return list(self.ask(self.search_call(queries, options)))

    def embed(self, inputs: Sequence[Input]) -> list[list[float]]:
        """Return the embeddings of texts (str) and pictures (Path, or their bytes), of length 1."""
        return [item["embedding"] for item in self.ask(self.embed_call(inputs))]

    def picture(self, row_id: int, size: int | None = 256) -> bytes:
        """Return a row's picture as a JPEG whose longest side is `size`; None: the stored bytes."""
        return bytes(self.ask(self.picture_call(self.indice_name or self.names()[0], row_id, size)))

    def close(self) -> None:
        if "http" in vars(self):
            self.http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClipClient(Settings):
    """ClipClient for one event loop: the same methods, awaited."""

    @cached_property
    def http(self) -> Any:
        return load_httpx().AsyncClient(**self.http_options)

    async def ask(self, call: Call) -> Any:
        for tries in itertools.count():
            try:
                answer = await self.http.request(call.method, call.url, content=call.content)
            except load_httpx().RequestError as error:
                answer = error
            pause = find_pause(self, answer, tries)
            if pause is None:
                return read_answer(self, call, answer)
            await asyncio.sleep(pause)
        raise AssertionError

    async def query(
        self, text: str | None = None, image: str | Path | None = None, embedding_input: Vector | None = None
    ) -> list[Json]:
        return list(await self.ask(self.query_call(text, image, embedding_input)))

    async def metadata(self, ids: Iterable[int]) -> list[Json]:
        return list(await self.ask(self.metadata_call(ids)))

    async def names(self) -> list[str]:
        return list(await self.ask(Call(f"{self.server}/indices-list")))

    async def indices(self) -> list[Json]:
        return list(await self.ask(Call(f"{self.server}/v1/indices", part="indices")))

    async def search(self, query: Query, **options: Unpack[SearchOptions]) -> list[Json]:
        return list((await self.search_many([query], **options))[0]["hits"])

    async def search_many(self, queries: Sequence[Query], **options: Unpack[SearchOptions]) -> list[Json]:
        return list(await self.ask(self.search_call(queries, options)))

    async def embed(self, inputs: Sequence[Input]) -> list[list[float]]:
        return [item["embedding"] for item in await self.ask(self.embed_call(inputs))]

    async def picture(self, row_id: int, size: int | None = 256) -> bytes:
        index = self.indice_name or (await self.names())[0]
        return bytes(await self.ask(self.picture_call(index, row_id, size)))

    async def close(self) -> None:
        if "http" in vars(self):
            await self.http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
