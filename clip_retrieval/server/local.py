"""An index folder that is opened here, as requests see it; its questions go through the lanes of `asking`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.errors import ReplacedError, StorageError
from clip_retrieval.layout import Modality
from clip_retrieval.query.config import SelectionConfig
from clip_retrieval.query.embed import Query
from clip_retrieval.query.unknown_column import UnknownColumnError
from clip_retrieval.server.asking import Ask, Asker, Fetch, Shown
from clip_retrieval.server.builds import METRIC, Found, FoundRows, Question, Wanted
from clip_retrieval.server.files import HeldFile, find_held_file, media_type_of, read_piece
from clip_retrieval.server.indices import Generation, ServedIndex
from clip_retrieval.server.messages import StaleError

PROBE = "a photo of a dog"


@dataclass(frozen=True)
class LocalBuild:
    """An opened build of a folder, and the threads that answer for it."""

    generation: Generation
    asker: Asker
    served: ServedIndex

    @property
    def name(self) -> str:
        return self.generation.name

    @property
    def id(self) -> str:
        return self.generation.id

    @property
    def row_count(self) -> int:
        first = self.generation.first
        return first.index.row_count if first.metadata is None else first.metadata.row_count

    @property
    def columns(self) -> tuple[str, ...]:
        return self.generation.columns

    @property
    def usual_columns(self) -> tuple[str, ...]:
        return self.generation.usual_columns

    @property
    def clip_model(self) -> str | None:
        return self.generation.clip_model

    @property
    def has_pictures(self) -> bool:
        return bool(self.generation.roots.places)

    def describe(self) -> dict[str, Any]:
        """Return what requests, and servers that use it as a part, may know about it."""
        expected = self.generation.first.expected or {}
        return {
            **self.generation.describe(),
            "fingerprint": expected.get("fingerprint"),
            "metric": METRIC,
            "usual_columns": list(self.usual_columns),
        }

    async def look_for(self, generation: str | None) -> None:
        if self.asker.config.reload_seconds > 0:
            await self.asker.others.do(lambda: self.served.look_for(generation))

    @contextmanager
    def following(self) -> Iterator[None]:
        """If files of this build were replaced, look for a newer build at once, and try the request again.

        Raises StorageError if one was overwritten in place, before the block or meanwhile.
        """
        self.check_damage()
        try:
            yield
            self.check_damage()
        except ReplacedError as error:
            if self.asker.config.reload_seconds > 0:
                raise StaleError(partial(self.look_for, None)) from error
            raise

    def check_damage(self) -> None:
        if self.served.damage and self.served.current is self.generation:
            raise StorageError(self.served.damage)

    def check_modality(self, modality: Modality) -> None:
        self.generation.searcher(modality)

    def check_dimension(self, query: Query) -> None:
        self.generation.first.check_dimension(query)

    def embed_vector(self, values: NDArray[Any], name: str) -> Query:
        return self.generation.first.embed_vector(values, name)

    async def embed_text(self, text: str) -> Query:
        return await self.asker.embed_text(self.generation.first, text)

    async def embed_picture(self, data: bytes) -> Query:
        return await self.asker.embed_picture(self.generation.first, data)

    async def like_row(self, modality: Modality, row_id: int) -> Query:
        with self.following():
            return await self.asker.like_row(self.generation.searcher(modality), row_id)

    async def ask(self, question: Question) -> Found:
        searcher = self.generation.searcher(question.modality)
        shown = Shown(self.generation, question.columns, question.start, question.stop)
        ask = Ask(searcher, question.queries, question.selection, shown, question.near_duplicate)
        try:
            with self.following():
                answers, rows = await self.asker.ask(ask)
        except UnknownColumnError as error:
            raise error.among(self.generation.columns) from error
        if not question.with_embeddings and not (question.with_thumbnails and self.has_pictures):
            return Found(answers, rows)
        ids = [answer.found.ids[question.shown] for answer in answers]
        flat = np.concatenate(ids)
        if question.with_thumbnails:
            added = await self.asker.with_thumbnails(self.generation, flat, [row for part in rows for row in part])
            left = iter(added)
            rows = [[next(left) for _ in part] for part in rows]
        if not question.with_embeddings:
            return Found(answers, rows)
        held = await self.asker.held_rows(searcher, flat)
        return Found(answers, rows, np.split(held, np.cumsum([len(part) for part in ids])[:-1]))

    async def rows(self, wanted: Wanted) -> FoundRows:
        with self.following():
            rows = await self.asker.rows(Fetch(self.generation, wanted.ids, wanted.columns))
        if wanted.with_thumbnails:
            rows = await self.asker.with_thumbnails(self.generation, wanted.ids, rows)
        if not wanted.with_embeddings:
            return FoundRows(wanted.ids, rows)
        generation = self.generation
        searcher = generation.first if wanted.modality is None else generation.searcher(wanted.modality)
        return FoundRows(wanted.ids, rows, await self.asker.held_rows(searcher, wanted.ids))

    async def picture(self, row_id: int, side: int | None) -> bytes | None:
        with self.following():
            return await self.asker.picture(self.generation, row_id, side)

    async def file(self, row_id: int) -> HeldFile | None:
        with self.following():
            found = await self.asker.showing.do(lambda: find_held_file(self.generation, row_id))
        if found is None:
            return None
        url, size = found

        async def read(start: int, stop: int) -> bytes:
            data: bytes = await self.asker.showing.do(lambda: read_piece(url, start, stop))
            return data

        return HeldFile(size, media_type_of(url), read)

    async def probe(self) -> Mapping[str, str]:
        """Run a test search."""
        searcher = self.generation.first
        await self.asker.load(searcher)
        info = searcher.loaded[0].info
        if "text" in info.towers:
            query = await self.embed_text(min(info.vocabulary) if info.vocabulary else PROBE)
        else:
            query = self.embed_vector(np.ones(searcher.index.dim, np.float32), "a probe")
        with self.following():
            await self.asker.ask(Ask(searcher, (query,), SelectionConfig(num_results=1)))
        return {}
