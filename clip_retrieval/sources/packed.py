"""Sequences too long for memory: items are pickled and compressed in blocks, in an unnamed temporary file."""

from __future__ import annotations

import pickle
import tempfile
import threading
import weakref
import zlib
from abc import abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Generic, TypeVar, overload

from clip_retrieval.storage import writable

T = TypeVar("T")
U = TypeVar("U")

BLOCK = 256  # items per block
KEPT_BLOCKS = 4  # in memory: one for each thread that reads elsewhere, such as those that feed and write


class InBlocks(Sequence[T]):
    """A sequence that is stored elsewhere, with a few blocks of it in memory at a time."""

    block_size: int
    heads: Sequence[T]  # the first item of each block

    @abstractmethod
    def block(self, number: int) -> list[T]:
        """Return the items of a block."""

    def find(self, key: Any, key_of: Callable[[T], Any]) -> int | None:
        """Return the index of the item with this key, or None; the items must be sorted by key."""
        place = self.count_until(key, key_of) - 1
        return place if place >= 0 and key_of(self[place]) == key else None

    def count_until(self, key: Any, key_of: Callable[[T], Any]) -> int:
        """Return how many items have at most this key; the items must be sorted by key."""
        number = count_until(self.heads, key, key_of) - 1
        return 0 if number < 0 else number * self.block_size + count_until(self.block(number), key, key_of)

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> list[T]: ...
    def __getitem__(self, place: int | slice) -> T | list[T]:
        if isinstance(place, slice):
            return [self[i] for i in range(len(self))[place]]
        number, rest = divmod(range(len(self))[place], self.block_size)
        return self.block(number)[rest]

    def __iter__(self) -> Iterator[T]:
        return self.between(0, len(self))

    def between(self, start: int, stop: int) -> Iterator[T]:
        """Yield items [start, stop), holding one block in memory."""
        stop = min(stop, len(self))
        while start < stop:
            number, rest = divmod(start, self.block_size)
            some = self.block(number)[rest : rest + stop - start]
            yield from some
            start += len(some)


def between(items: Sequence[T], start: int, stop: int) -> Iterator[T]:
    """Yield items [start, stop), without copying them all."""
    return items.between(start, stop) if isinstance(items, InBlocks) else map(items.__getitem__, range(start, stop))


def count_until(items: Sequence[T], key: Any, key_of: Callable[[T], Any]) -> int:
    """Return how many items have at most this key; a block is read at each level of a packed list."""
    if isinstance(items, InBlocks):
        return items.count_until(key, key_of)
    return bisect_right(items, key, key=key_of)


class BlockFile(Generic[T]):
    """Blocks of items in an unnamed temporary file, which is closed with this object. Several threads may read at once.

    The first block makes the file. Raises StorageError if there is no room for it.
    """

    def __init__(self) -> None:
        self.bounds = array("q", [0])  # file offsets of the blocks
        self.lock = threading.Lock()  # seeking and reading must not interleave

    def append(self, items: list[T]) -> None:
        with writable("the folder for temporary files"):
            self.write(zlib.compress(pickle.dumps(items), 1))

    def write(self, data: bytes) -> None:
        if len(self.bounds) == 1:
            self.file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 -- closed with this object
            weakref.finalize(self, self.file.close)
        end = self.bounds[-1] + len(data)
        with self.lock:
            self.file.seek(self.bounds[-1])
            while data:  # write may be partial, as on a full disk
                data = data[self.file.write(data) :]
        self.bounds.append(end)

    def read(self, number: int) -> list[T]:
        start, stop = self.bounds[number : number + 2]
        with self.lock:
            self.file.seek(start)
            data = self.file.read(stop - start)
        return pickle.loads(zlib.decompress(data))  # type: ignore[no-any-return]

    def __len__(self) -> int:
        return len(self.bounds) - 1


class Packed(InBlocks[T]):
    """A list that is only appended to, in memory that hardly grows with it. Several threads may read at once."""

    block_size = BLOCK

    def __init__(self) -> None:
        self.full = BlockFile[T]()
        self.tail: list[T] = []  # the last block, not full yet
        self.heads: list[T] | Packed[T] = []  # packed, too, once they fill a block
        self.read = lru_cache(KEPT_BLOCKS)(self.full.read)

    def append(self, item: T) -> None:
        if not self.tail:
            self.add_head(item)
        self.tail.append(item)
        if len(self.tail) == BLOCK:
            self.full.append(self.tail)
            self.tail = []

    def add_head(self, item: T) -> None:
        if isinstance(self.heads, list) and len(self.heads) == BLOCK:
            heads = Packed[T]()
            for head in self.heads:
                heads.append(head)
            self.heads = heads
        self.heads.append(item)

    def block(self, number: int) -> list[T]:
        return self.tail if number == len(self.full) else self.read(number)

    def __len__(self) -> int:
        return len(self.full) * BLOCK + len(self.tail)


class Mapped(Sequence[U], Generic[T, U]):
    """A sequence of function(item), computed on access."""

    def __init__(self, items: Sequence[T], function: Callable[[T], U]) -> None:
        self.items, self.function = items, function

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, place: int) -> U: ...
    @overload
    def __getitem__(self, place: slice) -> list[U]: ...
    def __getitem__(self, place: int | slice) -> U | list[U]:
        if isinstance(place, slice):
            return [self.function(item) for item in self.items[place]]
        return self.function(self.items[place])

    def __iter__(self) -> Iterator[U]:
        return map(self.function, self.items)
