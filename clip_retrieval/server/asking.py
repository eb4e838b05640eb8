"""How a question becomes an answer: encoded, searched and joined with metadata, each step in its own threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.errors import QueryError
from clip_retrieval.network.fetch import fetch
from clip_retrieval.query.answer import Answer, answer_many, without_duplicates
from clip_retrieval.query.config import SelectionConfig
from clip_retrieval.query.embed import Query
from clip_retrieval.query.searcher import Searcher
from clip_retrieval.server.builds import Row
from clip_retrieval.server.config import BackConfig
from clip_retrieval.server.indices import Generation
from clip_retrieval.server.lanes import Lane, LaneSize, one_by_one
from clip_retrieval.server.messages import HttpError
from clip_retrieval.server.metrics import Metrics
from clip_retrieval.server.pictures import Thumbnails, read_original
from clip_retrieval.server.rows import read_rows

HEAVY_HITS = 1_000  # a search for this many hits is heavy
HEAVY_DUPLICATES = 200  # a search that compares the embeddings of this many hits is heavy
DECODERS, FETCHERS = 2, 8  # threads
MOST_SHOWN = 512  # pictures that a page of hits may ask for at once
MOST_THUMBNAILS = 500  # in one answer; later hits have none
AT_ONCE = 8  # thumbnails that a thread makes before it checks whether the client still waits
MOST_SEARCHED = 16  # in a batch: with 32, threads take turns with the event loop instead of running in parallel
MOST_PICTURES = 32  # in a batch: 32 x 224 x 224 x 3 are 5 MB


@dataclass(frozen=True)
class Shown:
    """The hits whose metadata is wanted, and its columns."""

    generation: Generation
    columns: tuple[str, ...]
    start: int = 0
    stop: int = 0


@dataclass(frozen=True)
class Ask:
    """Queries over one index, which rows become hits, and what is returned of the hits."""

    searcher: Searcher
    queries: tuple[Query, ...]
    selection: SelectionConfig
    shown: Shown | None = None
    near_duplicate: float | None = None  # leave out hits this similar to a better one, without searching for more

    @property
    def is_heavy(self) -> bool:
        selection = self.selection
        hits = selection.num_results * len(self.queries)
        is_compared = self.near_duplicate is not None or selection.deduplicate is not None
        return (
            selection.where is not None
            or selection.diverse is not None
            or hits > HEAVY_HITS
            or (is_compared and hits > HEAVY_DUPLICATES)
        )


@dataclass(frozen=True)
class Fetch:
    """A request for rows of metadata by their ids."""

    generation: Generation
    ids: NDArray[np.int64]
    columns: tuple[str, ...]


Found = tuple[list[Answer], list[list[Row]]]  # the answer of each query, and the metadata of its hits


class Asker:
    """The lanes of a server: pictures fetched and decoded, queries encoded and searched, rows read."""

    def __init__(self, config: BackConfig, metrics: Metrics) -> None:
        limits = config.limits
        self.config, self.metrics = config, metrics
        self.thumbnails = Thumbnails(config.thumbnail_size)
        waiting = limits.max_waiting
        heavy = LaneSize(most_waiting=limits.max_heavy, most_at_once=1)
        usual = LaneSize(threads=limits.search_threads, most_waiting=waiting, most_at_once=MOST_SEARCHED)
        self.searching: Lane[Ask, Found] = Lane("search", self.search, usual)
        self.heavy: Lane[Ask, Found] = Lane("heavy", self.search, heavy)
        self.reading: Lane[Fetch, list[Row]] = Lane("metadata", self.read, usual)
        self.texts: Lane[tuple[Searcher, str], Query] = Lane(
            "text", self.encode_texts, LaneSize(most_waiting=waiting * limits.max_queries, most_at_once=64)
        )
        self.pictures: Lane[tuple[Searcher, NDArray[np.uint8]], Query] = Lane(
            "picture", self.encode_pictures, LaneSize(most_waiting=4 * waiting, most_at_once=MOST_PICTURES)
        )
        self.decoding: Lane[tuple[Searcher, bytes], NDArray[np.uint8]] = Lane(
            "decode", one_by_one(self.decode), LaneSize(threads=DECODERS, most_waiting=4 * waiting, most_at_once=1)
        )
        self.fetching: Lane[str, bytes] = Lane(
            "fetch", one_by_one(self.fetch), LaneSize(threads=FETCHERS, most_waiting=waiting, most_at_once=1)
        )
        self.others: Lane[Callable[[], Any], Any] = Lane(
            "other", one_by_one(call), LaneSize(threads=2, most_waiting=waiting, most_at_once=1)
        )
        self.showing: Lane[Callable[[], Any], Any] = Lane(
            "thumbnail", one_by_one(call), LaneSize(threads=DECODERS, most_waiting=MOST_SHOWN, most_at_once=1)
        )

    @property
    def lanes(self) -> tuple[Lane[Any, Any], ...]:
        return (
            self.searching, self.heavy, self.reading, self.texts, self.pictures, self.decoding, self.fetching,
            self.others, self.showing,
        )  # fmt: skip

    def close(self) -> None:
        for lane in self.lanes:
            lane.close()

    def figures(self) -> list[tuple[str, int, float]]:
        """Return for each lane how many items wait, and how long its oldest work has been there."""
        return [(lane.name, len(lane.waiting), lane.seconds_behind()) for lane in self.lanes]

    async def embed_text(self, searcher: Searcher, text: str) -> Query:
        return await self.texts.do((searcher, text))

    async def embed_picture(self, searcher: Searcher, data: bytes) -> Query:
        """Embed the bytes of a picture, or its base64. Raises QueryError if they are not a picture."""
        pixels = await self.decoding.do((searcher, data))
        return await self.pictures.do((searcher, pixels))

    async def fetch_picture(self, url: str) -> bytes:
        """Return the bytes at a url. Raises HttpError if this server fetches no pictures, and FetchError."""
        if not self.config.allow_image_urls:
            raise HttpError(
                HTTPStatus.FORBIDDEN,
                "this server fetches no pictures (it was started without --allow_image_urls); send the picture itself "
                "as image",
            )
        return await self.fetching.do(url)

    async def ask(self, ask: Ask) -> Found:
        """Return the answer of each query, and the metadata of the hits to show. Raises QueryError and HttpError."""
        for query in ask.queries:
            ask.searcher.check_dimension(query)
        return await (self.heavy if ask.is_heavy else self.searching).do(ask)

    async def rows(self, fetch: Fetch) -> list[Row]:
        """Return the metadata of rows by their ids."""
        return await self.reading.do(fetch)

    async def with_thumbnails(self, generation: Generation, ids: NDArray[np.int64], rows: list[Row]) -> list[Row]:
        """Return rows with their pictures, if available."""
        if not rows or not self.thumbnails.side or not generation.roots.places:
            return rows
        shown = min(len(rows), MOST_THUMBNAILS)
        cuts = pairwise([*range(0, shown, AT_ONCE), shown])
        add = self.thumbnails.add
        work = [partial(add, generation, ids[start:stop], rows[start:stop]) for start, stop in cuts]
        parts = await asyncio.gather(*[self.showing.do(part) for part in work])
        return [row for part in parts for row in part] + rows[MOST_THUMBNAILS:]

    async def like_row(self, searcher: Searcher, row_id: int) -> Query:
        """Return a row of the index as a query. Raises QueryError."""
        query: Query = await self.others.do(lambda: searcher.like_row(row_id))
        return query

    async def load(self, searcher: Searcher) -> None:
        """Open the model of a searcher, if it is not open yet. Raises EncoderError and QueryError."""

        def load() -> None:
            with searcher.encoding:
                searcher.load()

        await self.others.do(load)

    async def held_rows(self, searcher: Searcher, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the embeddings [n, d] of rows, as the index holds them."""
        rows: NDArray[np.float32] = await self.others.do(lambda: searcher.rows(ids))
        return rows

    async def picture(self, generation: Generation, row_id: int, side: int | None) -> bytes | None:
        """Return the picture of a row: its original bytes, or a JPEG whose sides have at most `side` pixels."""
        get = self.thumbnails.get
        work = (lambda: read_original(generation, row_id)) if side is None else (lambda: get(generation, row_id, side))
        data: bytes | None = await self.showing.do(work)
        return data

    # The methods below run in the lanes' threads.

    def encode_texts(self, items: Sequence[tuple[Searcher, str]]) -> Sequence[Query | Exception]:
        results: list[Query | Exception] = [QueryError("it was not encoded")] * len(items)
        for places in by_model([searcher for searcher, _ in items]):
            with self.metrics.timing("text_clip_inference_time"):
                found = items[places[0]][0].embed_texts([items[place][1] for place in places])
            for place, query in zip(places, found, strict=True):
                results[place] = query
        return results

    def encode_pictures(self, items: Sequence[tuple[Searcher, NDArray[np.uint8]]]) -> Sequence[Query | Exception]:
        results: list[Query | Exception] = [QueryError("it was not encoded")] * len(items)
        for places in by_model([searcher for searcher, _ in items]):
            pixels = np.stack([items[place][1] for place in places])
            with self.metrics.timing("image_clip_inference_time"):
                found = items[places[0]][0].embed_pixels(pixels, ["the picture"] * len(places))
            for place, query in zip(places, found, strict=True):
                results[place] = query
        return results

    def decode(self, item: tuple[Searcher, bytes]) -> NDArray[np.uint8]:
        searcher, data = item
        with self.metrics.timing("image_prepro_time"):
            return searcher.read_picture(data, "the picture", self.config.limits.max_pixels)

    def fetch(self, url: str) -> bytes:
        with self.metrics.timing("download_time"):
            return fetch(url, self.config.fetch)

    def search(self, items: Sequence[Ask]) -> Sequence[Found | Exception]:
        """Search for several requests at once if they have the same index and the same selection."""
        answers: list[list[Answer]] = [[] for _ in items]
        for places in alike([(id(item.searcher.index), item.selection) for item in items]):
            group = [items[place] for place in places]
            with self.metrics.timing("knn_index_time"):
                queries = [query for item in group for query in item.queries]
                found = iter(answer_many(group[0].searcher, queries, group[0].selection))
            for place, item in zip(places, group, strict=True):
                answers[place] = self.without_duplicates(item, [next(found) for _ in item.queries])
        return list(zip(answers, self.show(items, answers), strict=True))

    def show(self, items: Sequence[Ask], answers: Sequence[list[Answer]]) -> list[list[list[Row]]]:
        """Return the metadata of the shown hits, read at once for all requests with the same columns."""
        ids = [
            [answer.found.ids[item.shown.start : item.shown.stop] for answer in own] if item.shown else []
            for item, own in zip(items, answers, strict=True)
        ]
        fetches = [
            Fetch(item.shown.generation, parts[0] if len(parts) == 1 else np.concatenate(parts), item.shown.columns)
            for item, parts in zip(items, ids, strict=True)
            if item.shown
        ]
        found = iter(self.read(fetches))
        return [split(next(found), parts) if parts else [] for parts in ids]

    def without_duplicates(self, ask: Ask, answers: list[Answer]) -> list[Answer]:
        if ask.near_duplicate is None:
            return answers
        with self.metrics.timing("dedup_time"):
            return [without_duplicates(answer, ask.searcher, ask.near_duplicate) for answer in answers]

    def read(self, items: Sequence[Fetch]) -> list[list[Row]]:
        """Read the rows of several requests at once."""
        results: list[list[Row]] = [[] for _ in items]
        for places in alike([(id(item.generation), item.columns) for item in items]):
            group = [items[place] for place in places]
            with self.metrics.timing("metadata_get_time"):
                ids = np.concatenate([item.ids for item in group])
                rows = read_rows(group[0].generation, ids, group[0].columns)
            for place, own in zip(places, split(rows, [item.ids for item in group]), strict=True):
                results[place] = own
        return results


def split(rows: Sequence[Row], parts: Sequence[NDArray[np.int64]]) -> list[list[Row]]:
    """Return rows as one list per part."""
    stops = accumulate(map(len, parts))
    return [list(rows[stop - len(part) : stop]) for part, stop in zip(parts, stops, strict=True)]


def call(work: Callable[[], Any]) -> Any:
    return work()


def by_model(searchers: Sequence[Searcher]) -> Iterable[list[int]]:
    """Yield the places of searchers that share a model."""
    return alike([id(searcher.loaded) for searcher in searchers])


def alike(keys: Sequence[Any]) -> Iterable[list[int]]:
    """Yield the places of equal keys."""
    found: dict[Any, list[int]] = {}
    for place, key in enumerate(keys):
        found.setdefault(key, []).append(place)
    return found.values()
