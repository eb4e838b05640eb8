"""The embeddings of one modality: npy files in name order, looked at before anything is built from them."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.errors import IndexBuildError
from clip_retrieval.storage import Folder

ROWS_AT_ONCE = 65_536


@dataclass(frozen=True)
class VectorFile:
    """One npy file and its shape."""

    name: str
    row_count: int
    dim: int


@dataclass(frozen=True)
class Vectors:
    """Rows [n, d] over several files; row r is index id r."""

    folder: Folder
    subfolder: str
    files: Sequence[VectorFile]

    @property
    def row_count(self) -> int:
        return sum(file.row_count for file in self.files)

    @property
    def dim(self) -> int:
        return self.files[0].dim

    def path(self, file: VectorFile) -> str:
        return self.folder.path(f"{self.subfolder}/{file.name}")

    def parts(self) -> Iterator[NDArray[np.float32]]:
        """Yield the rows in order, some thousand at once, in fp32."""
        for file in self.files:
            for _, part in self.parts_of(file):
                yield part

    def parts_of(self, file: VectorFile) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield the rows of one file, and the row of it that each part begins with."""
        rows = open_npy(self.folder, f"{self.subfolder}/{file.name}")
        for start in range(0, len(rows), ROWS_AT_ONCE):
            yield start, np.asarray(rows[start : start + ROWS_AT_ONCE], dtype=np.float32)

    def empty_rows(self) -> NDArray[np.int64]:
        """Return the ids of rows that are zero: samples without this modality. Raises on NaN and infinity."""
        found: list[NDArray[np.int64]] = []
        first_id = 0
        for file in self.files:
            for start, part in self.parts_of(file):
                largest = np.abs(part).max(axis=1)
                if not np.isfinite(largest).all():
                    bad = start + int(np.flatnonzero(~np.isfinite(largest))[0])
                    raise IndexBuildError(f"row {bad} of {self.path(file)} is not finite; embed it anew")
                found.append(np.flatnonzero(largest == 0) + first_id + start)
            first_id += file.row_count
        return np.concatenate(found)


def open_vectors(folder: Folder, subfolder: str) -> Vectors | None:
    """Look at every file's header; None where there is no file. Raises IndexBuildError that names a wrong file."""
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
    rows = open_npy(folder, name)
    path = folder.path(name)
    if rows.ndim != 2:
        raise IndexBuildError(f"{path} has {rows.ndim} axes; embeddings have two: rows and dimensions")
    if rows.shape[1] == 0:
        raise IndexBuildError(f"{path} has rows of no dimension; embed them anew")
    if rows.dtype.kind != "f":
        raise IndexBuildError(f"{path} holds {rows.dtype}, not floating-point numbers")
    if len(rows) > 1 and not rows.flags.c_contiguous:
        raise IndexBuildError(f"{path} is in Fortran order; save it with numpy.ascontiguousarray first")
    return VectorFile(name.rpartition("/")[2], rows.shape[0], rows.shape[1])


def open_npy(folder: Folder, name: str) -> NDArray[Any]:
    """Return the rows: memory-mapped where the folder is on this machine."""
    try:
        if folder.is_local:
            rows = np.load(folder.path(name), mmap_mode="r", allow_pickle=False)
        else:
            rows = np.load(io.BytesIO(folder.read_bytes(name)), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise IndexBuildError(f"{folder.path(name)} is no readable npy file: {error}") from error
    if not isinstance(rows, np.ndarray):
        rows.close()
        raise IndexBuildError(f"{folder.path(name)} is no readable npy file: it is an archive of several arrays")
    return rows
