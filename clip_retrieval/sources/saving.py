"""The units of an input as JSON, in blocks: saved with a plan, so that a worker reads only those of its partitions.

A source has its units in a sequence of items, such as rows of a listing or parts of tables. A Codec says how these
become JSON, and a source again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from functools import lru_cache
from typing import Any, Generic, TypeVar

from clip_retrieval.sources.config import SourceConfig
from clip_retrieval.sources.packed import InBlocks, between
from clip_retrieval.sources.protocol import Source
from clip_retrieval.sources.types import Failure

T = TypeVar("T")

UNITS_PER_BLOCK = 1 << 16
KEPT_BLOCKS = 2  # in memory: a worker feeds its readers from one, and may still write rows of the one before


@dataclass(frozen=True, kw_only=True)
class Restored(Generic[T]):
    """What a plan keeps of an input."""

    config: SourceConfig  # with the parts that the input has
    items: InBlocks[T]
    ignored: Sequence[Failure]  # what belongs to no unit
    sample_count: int | None


@dataclass(frozen=True, kw_only=True)
class Codec(Generic[T]):
    """How the items of a source are saved; the source of the saved ones reads exactly what the first one reads."""

    items_of: Callable[[Any], Sequence[T]]
    pack: Callable[[Sequence[T]], Any]  # to JSON
    unpack: Callable[[Any], list[T]]
    restore: Callable[[Restored[T]], Source]
    is_sorted: bool = False  # items are searched by key: the first of each block is kept apart


class StoredBlocks(InBlocks[T]):
    """Items that are loaded block by block."""

    def __init__(self, count: int, size: int, load: Callable[[int], list[T]], heads: Sequence[T] = ()) -> None:
        self.length, self.block_size, self.heads = count, size, heads
        self.read = lru_cache(KEPT_BLOCKS)(load)

    def block(self, number: int) -> list[T]:
        return self.read(number)

    def __len__(self) -> int:
        return self.length


def blocks_of(items: Sequence[T]) -> Iterator[list[T]]:
    """Yield the items in lists of UNITS_PER_BLOCK."""
    for start in range(0, len(items), UNITS_PER_BLOCK):
        yield list(between(items, start, min(start + UNITS_PER_BLOCK, len(items))))


def as_they_are(items: Sequence[Any]) -> list[Any]:
    """Pack or unpack items that are JSON themselves."""
    return list(items)


def pack_failures(failures: Sequence[Failure]) -> list[Any]:
    return [astuple(failure) for failure in failures]


def unpack_failures(packed: Any) -> list[Failure]:
    return [Failure(*fields) for fields in packed]
