"""Long sequences outside memory: blocks of items, pickled and compressed, in a file without a name."""

from __future__ import annotations

import pickle
import tempfile
import threading
import weakref
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar, overload

from clip_retrieval.storage import writable

T = TypeVar("T")
U = TypeVar("U")

BLOCK = 256  # items; so many are in memory at once


class Packed(Sequence[T]):
    """A list that is only appended to, in memory that hardly grows with it. Several threads may read at once.

    Raises StorageError where there is no room for its file; one that fits a block has none.
    """

    def __init__(self) -> None:
        self.bounds = [0]  # of the full blocks, in bytes of the file
        self.heads: list[T] = []  # the first item of each block
        self.tail: list[T] = []  # the block that is not full
        self.recent: tuple[int, list[T]] = -1, []
        self.lock = threading.Lock()  # the file has one position

    def append(self, item: T) -> None:
        if not self.tail:
            self.heads.append(item)
        self.tail.append(item)
        if len(self.tail) == BLOCK:
            with writable("the folder for temporary files"):
                self.write(zlib.compress(pickle.dumps(self.tail), 1))
            self.tail = []

    def write(self, data: bytes) -> None:
        if len(self.bounds) == 1:
            self.file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 -- open as long as this is there
            weakref.finalize(self, self.file.close)
        end = self.bounds[-1] + len(data)
        with self.lock:
            self.file.seek(self.bounds[-1])
            while data:  # a full disk may take a part, and refuses the rest
                data = data[self.file.write(data) :]
        self.bounds.append(end)

    def block(self, number: int) -> list[T]:
        if number == len(self.bounds) - 1:
            return self.tail
        recent = self.recent
        if recent[0] != number:
            start, stop = self.bounds[number : number + 2]
            with self.lock:
                self.file.seek(start)
                data = self.file.read(stop - start)
            recent = self.recent = number, pickle.loads(zlib.decompress(data))
        return recent[1]

    def find(self, key: str, key_of: Callable[[T], str]) -> int | None:
        """Return the place of the item with a key, where the items are in the order of their keys; else None."""
        number = bisect_right(self.heads, key, key=key_of) - 1
        if number < 0:
            return None
        block = self.block(number)
        rest = bisect_left(block, key, key=key_of)
        return number * BLOCK + rest if rest < len(block) and key_of(block[rest]) == key else None

    def __len__(self) -> int:
        return (len(self.bounds) - 1) * BLOCK + len(self.tail)

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> list[T]: ...
    def __getitem__(self, place: int | slice) -> T | list[T]:
        if isinstance(place, slice):
            return [self[i] for i in range(len(self))[place]]
        number, rest = divmod(range(len(self))[place], BLOCK)
        return self.block(number)[rest]

    def __iter__(self) -> Iterator[T]:
        return self.between(0, len(self))

    def between(self, start: int, stop: int) -> Iterator[T]:
        """Yield items start..stop, a block of them in memory at once."""
        stop = min(stop, len(self))
        while start < stop:
            number, rest = divmod(start, BLOCK)
            some = self.block(number)[rest : rest + stop - start]
            yield from some
            start += len(some)


class Mapped(Sequence[U], Generic[T, U]):
    """What a function makes of the items of a sequence, when it is asked for."""

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
