"""Rows of an embeddings folder, by their numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError
from threading import Event
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.embeddings.half_precision import widen
from clip_retrieval.embeddings.vectors import ROWS_TO_LOOK_AT, Vectors

Block = TypeVar("Block")


def read_rows(vectors: Vectors, ids: NDArray[np.int64], stop: Event | None = None) -> NDArray[np.float32]:
    """Return rows [len(ids), d] by id, in fp32; of local files only these rows are read."""
    rows = np.empty((len(ids), vectors.dim), np.float32)
    for places, some in until(stop, pick(vectors, ids)):
        rows[places] = some
    return rows


def until(stop: Event | None, parts: Iterable[Block]) -> Iterator[Block]:
    """Yield blocks as they come; raises CancelledError once `stop` is set."""
    for part in parts:
        if stop is not None and stop.is_set():
            raise CancelledError
        yield part


def pick(vectors: Vectors, ids: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Yield rows by id in file order, a few thousand at a time, and their positions among the ids."""
    order = np.argsort(ids, kind="stable")
    first_id, at = 0, 0
    for file in vectors.files:
        end = int(np.searchsorted(ids, first_id + file.row_count, sorter=order))
        if end > at:
            stored = vectors.open(file)
            for start in range(at, end, ROWS_TO_LOOK_AT):
                places = order[start : min(start + ROWS_TO_LOOK_AT, end)]
                yield places, widen(stored[ids[places] - first_id])
        first_id, at = first_id + file.row_count, end
