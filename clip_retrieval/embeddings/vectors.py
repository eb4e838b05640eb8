"""The embeddings of one modality: npy files in name order, looked at before anything is built from them."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.embeddings.half_precision import widen
from clip_retrieval.embeddings.npy_files import in_fortran_order, open_npy, read_shape
from clip_retrieval.embeddings.row_sums import RowSum
from clip_retrieval.errors import IndexBuildError
from clip_retrieval.storage import Folder

logger = logging.getLogger(__name__)

ROWS_AT_ONCE = 65_536
ROWS_TO_LOOK_AT = 4096  # rows whose block and results fit into the CPU cache
LENGTH_TOLERANCE = 0.01  # fp16 rounds to within 0.0005
SMALLEST = 1e-6  # length whose square fp32 still holds well


@dataclass(frozen=True)
class VectorFile:
    """One npy file and its shape."""

    name: str
    row_count: int
    dim: int
    byte_count: int


@dataclass(frozen=True)
class Vectors:
    """Rows [n, d] over several files; row r is index id r."""

    folder: Folder
    subfolder: str
    files: Sequence[VectorFile]
    empty_count: int = 0  # number of zero rows, if it is known
    copy: Folder | None = None  # local copy of the files, read in their place

    def __getstate__(self) -> dict[str, Any]:
        """Leave the local copy out: an executor that receives the vectors may run on another machine."""
        return {**self.__dict__, "copy": None}

    @property
    def row_count(self) -> int:
        return sum(file.row_count for file in self.files)

    @property
    def dim(self) -> int:
        return self.files[0].dim

    @property
    def byte_count(self) -> int:
        return sum(file.byte_count for file in self.files)

    @property
    def is_here(self) -> bool:
        """Say whether rows can be read out of mapped files."""
        return (self.copy or self.folder).is_local

    def path(self, file: VectorFile) -> str:
        """Return a file's path in the embeddings folder, for messages."""
        return self.folder.path(f"{self.subfolder}/{file.name}")

    def path_here(self, file: VectorFile) -> str:
        """Return a file's local path: the file itself or its copy."""
        return self.copy.path(file.name) if self.copy else self.path(file)

    def open(self, file: VectorFile) -> NDArray[Any]:
        """Return the rows of a file as they are stored, mapped if it is here."""
        return open_npy(self.copy, file.name) if self.copy else open_npy(self.folder, f"{self.subfolder}/{file.name}")

    def parts(self) -> Iterator[NDArray[np.float32]]:
        """Yield the rows in order, a few thousand at a time, in fp32."""
        for file in self.files:
            for _, part in self.parts_of(file):
                yield part

    def parts_of(self, file: VectorFile, count: int = ROWS_AT_ONCE) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield (first row, rows in fp32) for each part of one file."""
        for start, rows in self.stored_parts(file, count):
            yield start, widen(rows)

    def stored_parts(
        self, file: VectorFile, count: int, begin: int = 0, end: int | None = None
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield (first row, rows as stored) for each part of begin..end of one file."""
        rows = self.open(file)
        if len(rows) != file.row_count:
            raise IndexBuildError(f"{self.path(file)} changed while the index was built; build it again")
        end = file.row_count if end is None else end
        for start in range(begin, end, count):
            if self.is_here:  # mapped again for each part: the pages of a mapping count as memory until it ends
                rows = self.open(file)
            yield start, rows[start : min(start + count, end)]

    def checked_parts(self, file: VectorFile, count: int) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield (first row, rows as stored) for each part of a file.

        Raises IndexBuildError at its end if the rows differ from what was written.
        """
        passed = RowSum(self.folder, f"{self.subfolder}/{file.name}")
        for start, rows in self.stored_parts(file, count):
            passed.add(rows)
            yield start, rows
        passed.check()

    def locate(self, row: int) -> tuple[int, VectorFile]:
        """Return the place of a row in its file, and the file."""
        for file in self.files:
            if row < file.row_count:
                return row, file
            row -= file.row_count
        raise IndexError(row)

    def empty_rows(self) -> NDArray[np.int64]:
        """Return the ids of rows that are zero: samples without this modality. Raises on NaN and infinity."""
        return self.examine().empty

    def examine(self) -> Contents:
        """Read every row once. Raises IndexBuildError on damage, NaN and infinity."""
        checksums, odd = [], Odd()
        for file in self.files:
            bad: int | None = None
            for start, rows in self.checked_parts(file, ROWS_TO_LOOK_AT):
                stored = np.ascontiguousarray(rows)
                lengths = measure(stored)
                if bad is None and not np.isfinite(lengths).all():
                    bad = start + int(np.flatnonzero(~np.isfinite(lengths))[0])
                odd.note(lengths, start, self.path(file))
                checksums.append(np.where(lengths == 0, 0, np.maximum(add_up(stored), 1)).astype(np.uint32))
            if bad is not None:  # raised after the whole file was compared, because damage makes such rows
                raise IndexBuildError(f"row {bad} of {self.path(file)} is not finite; embed it again")
        return Contents(np.concatenate(checksums), odd)


@dataclass
class Odd:
    """Rows that are neither zero nor of unit length."""

    count: int = 0
    first: str = ""
    least: float = math.inf
    most: float = 0.0

    def note(self, lengths: NDArray[np.float32], start: int, path: str) -> None:
        """Take in the lengths of a file's rows from `start` on."""
        strange = np.flatnonzero((np.abs(lengths - 1) > LENGTH_TOLERANCE) & (lengths != 0))
        if len(strange):
            self.first = self.first or f"row {start + int(strange[0])} of {path}"
            self.count += len(strange)
            self.least = min(self.least, float(lengths[strange].min()))
            self.most = max(self.most, float(lengths[strange].max()))

    def warn(self, modality: str) -> None:
        if self.count:
            logger.warning(
                "%s %s embeddings are not of length 1 but of %.3g to %.3g, the first is %s: similarities are inner "
                "products, not cosines, and long ones come first; normalize them if you want cosines",
                f"{self.count:,}", modality, self.least, self.most, self.first,
            )  # fmt: skip


def measure(stored: NDArray[Any]) -> NDArray[np.float32]:
    """Return each row's length in fp32, without underflow or overflow of the squares."""
    with np.errstate(over="ignore"):
        rows = widen(stored)
        lengths: NDArray[np.float32] = np.sqrt(np.einsum("nd,nd->n", rows, rows))
    extreme = np.flatnonzero(~((lengths > SMALLEST) & np.isfinite(lengths)))
    if len(extreme):  # squares may have been too small or too large for fp32
        lengths[extreme] = np.abs(rows[extreme]).max(axis=1)
    return lengths


@dataclass(frozen=True)
class Contents:
    """Results of one pass over all rows."""

    checksums: NDArray[np.uint32]  # [n], of each row's numbers as they are stored; 0 if the row is zero
    odd: Odd

    @property
    def empty(self) -> NDArray[np.int64]:
        """The ids of rows that are zero: samples without this modality."""
        return np.flatnonzero(self.checksums == 0)


def add_up(rows: NDArray[Any]) -> NDArray[np.uint32]:
    """Return a checksum of each row [n, d]: its 32-bit (else 16-bit, 8-bit) words by random odd factors, upper half.

    Dietzfelbinger's multiply-add-shift: two rows that differ collide with a chance of 2**-32.
    """
    raw = rows.view(np.uint8).reshape(len(rows), -1)
    width = next(width for width in (4, 2, 1) if raw.shape[1] % width == 0)
    words = raw.view(f"<u{width}").astype(np.uint64)
    steps = np.arange(1, words.shape[1] + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    factors = (steps ^ (steps >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)  # splitmix64
    factors = (factors ^ (factors >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    factors = (factors ^ (factors >> np.uint64(31))) | np.uint64(1)
    return ((words @ factors) >> np.uint64(32)).astype(np.uint32)


def open_vectors(folder: Folder, subfolder: str) -> Vectors | None:
    """Look at every file's header; None if there is no file. Raises IndexBuildError that names a wrong file."""
    files = [read_header(folder, f"{subfolder}/{name}") for name in folder.names(subfolder, ".npy")]
    files = [file for file in files if file.row_count]
    if not files:
        return None
    for file in files:
        if file.dim != files[0].dim:
            raise IndexBuildError(
                f"{folder.path(subfolder)}/{file.name} has {file.dim} dimensions, {files[0].name} has {files[0].dim}; "
                "one index takes the embeddings of one model"
            )
    return Vectors(folder, subfolder, files)


def read_header(folder: Folder, name: str) -> VectorFile:
    """Return the shape of a file; raises IndexBuildError if it holds no rows of numbers."""
    shape, path = read_shape(folder, name), folder.path(name)
    if len(shape.axes) != 2:
        raise IndexBuildError(f"{path} has {len(shape.axes)} axes; embeddings have two: rows and dimensions")
    if shape.axes[1] == 0:
        raise IndexBuildError(f"{path} has rows of no dimension; embed them again")
    if shape.dtype.kind != "f":
        raise IndexBuildError(f"{path} holds {shape.dtype}, not floating-point numbers")
    if shape.axes[0] > 1 and not shape.in_rows:
        raise in_fortran_order(path)
    return VectorFile(name.rpartition("/")[2], *shape.axes, shape.byte_count)
