"""A collection of Qdrant: metadata are payload, ids are the numbers of points."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ApiException, ResponseHandlingException, UnexpectedResponse

from clip_retrieval.errors import ExportError, describe_os_error, one_line
from clip_retrieval.export.columns import python_values
from clip_retrieval.export.source import Block, Ids, to_precision
from clip_retrieval.export.target import MARK, Fetched, Setup, without_password
from clip_retrieval.query.hits import plain

T = TypeVar("T")

API_KEY = "QDRANT_API_KEY"
SECONDS = 120  # of one request
POINTS = 256  # of one request: 1 to 2 MB
TRIES, FIRST_PAUSE = 5, 0.5  # 7.5 seconds in all
EF_SEARCH = 128
INDEXED_FROM = 1  # kB; larger segments get a graph; 0 while rows are loaded: no graph
SECONDS_OF_INDEXING = 24 * 3600


class QdrantTarget:
    """A collection whose metadata say how far the export went; points are written by id, so repeats do no harm."""

    answers_at_once = False

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        place = setup.config.place
        self.is_local = "://" not in place
        self.dtype = np.dtype(np.float16 if setup.wants_half else np.float32)
        self.collection = setup.config.table
        self.name = f'collection "{self.collection}" of {without_password(place)}'
        with translating(self.name), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as of a key over http
            if place == ":memory:":
                self.client = QdrantClient(place)
            elif self.is_local:
                self.client = QdrantClient(path=place)
            else:
                self.client = QdrantClient(
                    url=place, api_key=os.environ.get(API_KEY), timeout=SECONDS, check_compatibility=False
                )

    def ask(self, question: Callable[[], T]) -> T:
        """Ask the server; if it does not answer, is busy or fails, ask again after growing pauses."""
        pause = FIRST_PAUSE
        for _ in range(TRIES - 1):
            try:
                return question()
            except ResponseHandlingException:
                time.sleep(pause)
            except UnexpectedResponse as error:
                if error.status_code is not None and error.status_code < 500 and error.status_code != 429:
                    raise
                time.sleep(pause)
            pause *= 2
        return question()

    def begin(self) -> int:
        """Find or make the collection; see Target."""
        with translating(self.name):
            is_there = self.ask(lambda: self.client.collection_exists(self.collection))
            if is_there and self.setup.config.overwrite:
                self.ask(lambda: self.client.delete_collection(self.collection))
                is_there = False
            if is_there:
                found = self.ask(lambda: self.client.get_collection(self.collection)).config.metadata or {}
                return self.setup.read_mark(found.get(MARK), self.dtype, self.name)
            self.create()
        return 0

    def create(self) -> None:
        kind = models.Datatype.FLOAT16 if self.dtype == np.float16 else models.Datatype.FLOAT32
        vectors = models.VectorParams(size=self.setup.dim, distance=models.Distance.DOT, datatype=kind)
        self.ask(
            lambda: self.client.create_collection(
                self.collection,
                vectors_config=vectors,
                optimizers_config=models.OptimizersConfigDiff(indexing_threshold=0),
                metadata={MARK: self.setup.mark(self.dtype)},
            )
        )
        if MARK not in (self.ask(lambda: self.client.get_collection(self.collection)).config.metadata or {}):
            raise ExportError(f"{self.name}: this server keeps no metadata of collections; use 1.16 or later")

    def write(self, block: Block) -> None:
        """Write points, then note how far they go; see Target."""
        columns = {
            column.name: python_values(block.metadata[column.name], self.setup.odd) for column in self.setup.columns
        }
        vectors = to_precision(to_precision(block.vectors, self.dtype), np.dtype(np.float32))
        with translating(self.name):
            for start in range(0, len(block.ids), POINTS):
                some = slice(start, start + POINTS)
                batch = models.Batch(
                    ids=block.ids[some].tolist(),
                    vectors=vectors[some].tolist(),
                    payloads=[
                        {name: plain(values[place]) for name, values in columns.items()}
                        for place in range(len(block.ids))[some]
                    ],
                )
                self.ask(lambda batch=batch: self.client.upsert(self.collection, batch, wait=True))  # type: ignore[misc]
            self.note(block.stop)

    def note(self, done: int) -> None:
        mark = {MARK: self.setup.mark(self.dtype, done)}
        self.ask(lambda: self.client.update_collection(self.collection, metadata=mark))

    def finish(self) -> None:
        """See Target: points are visible once they are written."""

    def ids(self) -> Iterator[Ids]:
        place: Any = None
        with translating(self.name):
            while True:
                points, place = self.ask(
                    lambda place=place: self.client.scroll(  # type: ignore[misc]
                        self.collection, limit=10_000, offset=place, with_payload=False, with_vectors=False
                    )
                )
                yield np.array([point.id for point in points], np.int64)
                if place is None:
                    return

    def fetch(self, ids: Ids) -> Fetched:
        with translating(self.name):
            points = self.ask(
                lambda: self.client.retrieve(self.collection, ids.tolist(), with_payload=True, with_vectors=True)
            )
        vectors = np.array([point.vector for point in points], np.float32).reshape(-1, self.setup.dim)
        return Fetched(np.array([point.id for point in points], np.int64), vectors, [p.payload or {} for p in points])

    def offers_exact(self) -> bool:
        return True

    def search(self, queries: NDArray[np.float32], k: int, *, exact: bool) -> list[Ids]:
        settings = None if self.is_local else models.SearchParams(exact=exact, hnsw_ef=max(EF_SEARCH, k))
        found = []
        with translating(self.name):
            for query in queries.tolist():
                answer = self.ask(
                    lambda query=query: self.client.query_points(  # type: ignore[misc]
                        self.collection, query=query, limit=k, search_params=settings, with_payload=False
                    )
                )
                found.append(np.array([point.id for point in answer.points], np.int64))
        return found

    def build_index(self) -> str | None:
        """Have the server make its graph, and wait for it; see Target."""
        if self.setup.config.chosen_ann == "none":
            return None
        if self.is_local:
            self.setup.notes.append("Qdrant's local mode compares all rows; only its server builds an index")
            return None
        wanted = models.OptimizersConfigDiff(indexing_threshold=INDEXED_FROM)
        end = time.monotonic() + SECONDS_OF_INDEXING
        with translating(self.name):
            self.ask(lambda: self.client.update_collection(self.collection, optimizers_config=wanted))
            while not self.is_indexed():
                if time.monotonic() > end:
                    raise ExportError(f"{self.name} has not built its index within a day; see the server's log")
                time.sleep(FIRST_PAUSE)
        return f"hnsw, ef {EF_SEARCH}"

    def is_indexed(self) -> bool:
        about = self.ask(lambda: self.client.get_collection(self.collection))
        is_known = (about.indexed_vectors_count or 0) >= (about.points_count or 0)
        return about.status == models.CollectionStatus.GREEN and is_known

    def close(self) -> None:
        self.client.close()


@contextmanager
def translating(name: str) -> Iterator[None]:
    """Turn the errors of Qdrant's client into one sentence."""
    try:
        yield
    except UnexpectedResponse as error:
        raise ExportError(f"{name} refuses ({error.status_code}): {said_in(error)}") from error
    except OSError as error:
        raise ExportError(f"{name}: {describe_os_error(error)}") from error
    except ApiException as error:
        raise ExportError(
            f"{name} does not answer: {one_line(error)}; finished rows are kept, run the same command again"
        ) from error
    except (ValueError, RuntimeError) as error:
        raise ExportError(f"{name}: {one_line(error)}") from error


def said_in(error: UnexpectedResponse) -> str:
    """Return the message in the server's answer."""
    try:
        return one_line(json.loads(error.content)["status"]["error"])
    except (ValueError, KeyError, TypeError):
        return one_line(error.reason_phrase)


def open_target(setup: Setup) -> QdrantTarget:
    """Open the server or the local folder."""
    return QdrantTarget(setup)
