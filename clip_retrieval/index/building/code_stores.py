"""Streams an index's final array of codes from the embeddings into its file, never holding it in memory.

Such an array holds every row by place: it is all of an index that compares with every row, or the second index of a
refinement, of which only the first one, with its lists, is in memory while rows are added. faiss writes an array as its
length and its bytes; here it writes those of a mark, which are replaced during writing.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import faiss
import numpy as np
from numpy.typing import NDArray

from clip_retrieval.embeddings.half_precision import widen
from clip_retrieval.errors import IndexBuildError
from clip_retrieval.search.files import BYTES_AT_ONCE, write_file

STREAMED = (faiss.IndexFlat, faiss.IndexScalarQuantizer, faiss.IndexPQ)
MARK_BYTES = 64  # least length of the mark, so no other part of a file equals it by chance


@dataclass(frozen=True)
class CodesInFile:
    """Codes of some rows that are already in a local file."""

    path: str
    start: int
    size: int
    row_count: int

    def __len__(self) -> int:
        return self.row_count

    def copy_to(self, target: IO[bytes]) -> None:
        """Append the codes to a file. Raises OSError if writing fails, IndexBuildError if some are missing."""
        target.flush()
        with Path(self.path).open("rb") as source:
            copied = copy_in_kernel(source, self.start, self.size, target)
            target.seek(0, os.SEEK_END)
            source.seek(self.start + copied)
            while copied < self.size and (piece := source.read(min(self.size - copied, BYTES_AT_ONCE))):
                copied += target.write(piece)
        if copied < self.size:
            raise IndexBuildError(f"{self.path} changed while the index was built; build it again")


def copy_in_kernel(source: IO[bytes], start: int, size: int, target: IO[bytes]) -> int:
    """Append bytes of one file to another; return their number: fewer if the file ends or the kernel cannot do it.

    It takes half the time of writing a mapping, since no page has to be brought into this process. Kernels, file
    systems and containers refuse it with different errors, which are ignored: the code that copies the rest gets the
    real error.
    """
    copied = 0
    with suppress(AttributeError, OSError):  # only Linux has it
        while copied < size:
            some = os.copy_file_range(source.fileno(), target.fileno(), size - copied, start + copied)
            if not some:
                break
            copied += some
    return copied


Codes = NDArray[np.uint8] | CodesInFile


def find_store(index: Any) -> Any | None:
    """Return the node that stores every row by position and is written last; None if there is none."""
    tree = faiss.downcast_index(index)
    store = faiss.downcast_index(tree.refine_index) if isinstance(tree, faiss.IndexRefine) else tree
    return store if isinstance(innermost(store), STREAMED) else None


def find_lists(index: Any) -> Any | None:
    """Return the node that is in memory while rows are added; None if the store is the whole index."""
    if find_store(index) is None:
        return index
    tree = faiss.downcast_index(index)
    return faiss.downcast_index(tree.base_index) if isinstance(tree, faiss.IndexRefine) else None


def innermost(store: Any) -> Any:
    tree = faiss.downcast_index(store)
    return innermost(tree.index) if isinstance(tree, faiss.IndexPreTransform) else tree


def code_bytes(store: Any) -> int:
    """Return the size of a row's code."""
    return int(innermost(store).code_size)


def holds_halves(store: Any) -> bool:
    """Say whether codes are rows in half precision, as in the embeddings."""
    return isinstance(store, faiss.IndexScalarQuantizer) and store.sq.qtype == faiss.ScalarQuantizer.QT_fp16


def encode(store: Any, batches: Iterable[NDArray[Any]]) -> Iterator[NDArray[np.uint8]]:
    """Yield the codes [n, bytes] of rows [n, d] as they are stored."""
    for rows in batches:
        yield store.sa_encode(widen(rows))


def write_codes(codes: Iterable[Codes], file: IO[bytes]) -> None:
    for piece in codes:
        if isinstance(piece, CodesInFile):
            piece.copy_to(file)
        else:
            file.write(piece.data)


def write_with_store(index: Any, codes: Iterable[Codes], row_count: int, path: Path) -> None:
    """Write an index with an empty store as if the store held these codes; the index is unusable afterwards.

    Raises OSError if writing fails.
    """
    store = find_store(index)
    if store is None:
        write_file(index, path)
        return
    inner = innermost(store)
    mark = put_mark(inner)
    for part in holders(index):
        part.ntotal = row_count
    with path.open("wb") as file:
        swap = Swap(file, mark, len(mark) // inner.code_size, codes, row_count)
        faiss.write_index(index, faiss.PyCallbackIOWriter(swap.write, max(BYTES_AT_ONCE, len(mark))))
        swap.finish()


def put_mark(store: Any) -> bytes:
    """Put a mark in place of the codes of an empty store, and return it."""
    mark = secrets.token_bytes(-(-MARK_BYTES // store.code_size) * store.code_size)
    store.codes.resize(len(mark))
    faiss.rev_swig_ptr(store.codes.data(), len(mark))[:] = np.frombuffer(mark, np.uint8)
    return mark


def holders(index: Any) -> Iterator[Any]:
    """Yield the nodes whose ntotal counts the store's rows: the store, its parents and its children."""
    tree = faiss.downcast_index(index)
    yield tree
    if isinstance(tree, faiss.IndexRefine):
        yield from holders(tree.refine_index)
    elif isinstance(tree, faiss.IndexPreTransform):
        yield from holders(tree.index)


class Swap:
    """Forwards what faiss writes, with the mark replaced by the codes and the length before it by theirs."""

    def __init__(self, file: IO[bytes], mark: bytes, rows_of_mark: int, codes: Iterable[Codes], row_count: int) -> None:
        self.file, self.mark, self.codes = file, mark, codes
        self.rows_of_mark, self.row_count = rows_of_mark, row_count
        self.held = b""  # the last piece, held back since it may be the mark's length
        self.is_done = False

    def write(self, piece: bytes) -> int:
        if piece == self.mark:
            # Units of a row: bytes, or words of four bytes.
            units = int.from_bytes(self.held, "little") // self.rows_of_mark
            self.file.write((units * self.row_count).to_bytes(8, "little"))
            write_codes(self.codes, self.file)
            self.held, self.is_done = b"", True
        else:
            self.file.write(self.held)
            self.held = bytes(piece)
        return len(piece)

    def finish(self) -> None:
        self.file.write(self.held)
        if not self.is_done:
            raise RuntimeError(f"faiss {faiss.__version__} does not write arrays in one piece")
