"""The folder that is curated: its embeddings of one modality, and the metadata of the same rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clip_retrieval.embeddings.half_precision import widen
from clip_retrieval.embeddings.local_copy import fetched
from clip_retrieval.embeddings.rows import read_rows
from clip_retrieval.embeddings.vectors import ROWS_AT_ONCE, Vectors, open_vectors
from clip_retrieval.errors import ConfigError, SourceError
from clip_retrieval.layout import EMBEDDING_FOLDERS, MODALITIES, EmbeddingsFolder, Modality
from clip_retrieval.metadata import Metadata, open_metadata
from clip_retrieval.query.value_kinds import kind_in_words
from clip_retrieval.storage import temporary_folder
from clip_retrieval.words import counted

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

SEED = 1234  # of samples


@dataclass(frozen=True, eq=False)
class Embedded:
    """An embeddings folder, opened."""

    folder: EmbeddingsFolder
    vectors: Vectors
    metadata: Metadata | None

    @property
    def row_count(self) -> int:
        return self.vectors.row_count

    @property
    def column_names(self) -> list[str]:
        return [] if self.metadata is None else list(self.metadata.schema.names)

    @cached_property
    def empty_rows(self) -> Ids:
        """Return the rows of samples that are gone, ascending: no embedding of any modality, and every column null.

        Without metadata nothing says that a row without embeddings is of a sample that is gone.
        """
        if self.metadata is None:
            return np.empty(0, np.int64)
        ids = np.arange(self.row_count)
        for name in self.column_names:
            if not len(ids):  # as a rule after the first column
                return ids
            ids = ids[self.column(name).is_null().to_numpy()[ids]]
        for modality in MODALITIES:
            vectors = open_vectors(self.folder, EMBEDDING_FOLDERS[modality]) if len(ids) else None
            if vectors is None:
                continue
            starts = range(0, len(ids), ROWS_AT_ONCE)
            parts = [ids[start : start + ROWS_AT_ONCE] for start in starts]
            ids = np.concatenate([part[~read_rows(vectors, part).any(axis=1)] for part in parts])
        return ids

    def without_empty(self, ids: Ids) -> tuple[Ids, list[str]]:
        """Return the ids of rows that are not empty, ascending, and a note if some are left out."""
        left = np.setdiff1d(ids, self.empty_rows, assume_unique=True)
        gone = len(ids) - len(left)
        return left, [f"{counted(gone, 'empty row')}, whose samples are gone: left out"] if gone else []

    def check_column(self, name: str, option: str) -> None:
        """Raise ConfigError if the metadata lacks a column."""
        if name not in self.column_names:
            shown = ", ".join(sorted(self.column_names)[:20]) or "none"
            raise ConfigError(f"--{option} {name}: {self.folder.url} has no such column; it has {shown}")

    def column(self, name: str) -> pa.ChunkedArray:
        """Return a whole column, in row order."""
        assert self.metadata is not None
        return self.metadata.columns([name])[name]

    def numbers(self, name: str, option: str) -> NDArray[np.float64]:
        """Return a column of numbers or booleans [n], NaN for null; raises ConfigError for another kind."""
        self.check_column(name, option)
        column = self.column(name)
        kind = column.type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
            raise ConfigError(f"--{option} {name}: the column holds {kind_in_words(kind)}, not numbers")
        whole = column.combine_chunks().cast(pa.float64(), safe=False)
        found: NDArray[np.float64] = whole.to_numpy(zero_copy_only=False)
        return found


def open_embedded(url: str, modality: Modality) -> Embedded:
    """Open a folder; raises SourceError if it has no such embeddings, or metadata of other rows."""
    folder = EmbeddingsFolder(url)
    if not folder.exists():
        raise SourceError(f"{url} is not there; name a folder that `clip-retrieval inference` wrote")
    vectors = open_vectors(folder, EMBEDDING_FOLDERS[modality])
    if vectors is None:
        if folder.names(EMBEDDING_FOLDERS[modality], ".npy"):
            raise SourceError(f"{url} has no rows; name an embeddings folder with rows")
        others = [name for name in MODALITIES if folder.names(EMBEDDING_FOLDERS[name], ".npy")]
        hint = f"it has {others[0]} embeddings: --modality {others[0]}" if others else "name an embeddings folder"
        raise SourceError(f"{url} holds no {modality} embeddings; {hint}")
    metadata = open_metadata(folder)
    if metadata is not None and metadata.row_count != vectors.row_count:
        raise SourceError(
            f"{url} has {counted(vectors.row_count, 'embedding')} and {counted(metadata.row_count, 'row')} of "
            "metadata; finish the run that writes it, or make the folder again"
        )
    return Embedded(folder, vectors, metadata)


@contextmanager
def opened(url: str, modality: Modality) -> Iterator[Embedded]:
    """Open a folder for the block; files on a store are fetched first, since rows are read again and again."""
    embedded = open_embedded(url, modality)
    with fetched({modality: embedded.vectors}, temporary_folder) as found:
        yield replace(embedded, vectors=found[modality])


def identity(vectors: Vectors) -> list[list[Any]]:
    """Return what changes when a file of embeddings does: name, rows, bytes and, if it is local, its time."""
    return [
        [file.name, file.row_count, file.byte_count]
        + ([Path(vectors.path(file)).stat().st_mtime_ns] if vectors.folder.is_local else [])
        for file in vectors.files
    ]


@dataclass(frozen=True, eq=False)
class Pool:
    """The rows of several folders in one numbering, one folder after the other."""

    members: Sequence[Vectors]

    @property
    def row_count(self) -> int:
        return sum(vectors.row_count for vectors in self.members)

    @property
    def dim(self) -> int:
        return self.members[0].dim

    @property
    def dtype(self) -> np.dtype[np.floating[Any]]:
        kinds = [vectors.open(file).dtype for vectors in self.members for file in vectors.files]
        return np.dtype(np.float16 if all(kind == np.float16 for kind in kinds) else np.float32)

    def parts(self) -> Iterator[tuple[int, Floats]]:
        """Yield (first row, rows in fp32) in order."""
        first = 0
        for vectors in self.members:
            for file in vectors.files:
                for start, rows in vectors.checked_parts(file, ROWS_AT_ONCE):
                    yield first + start, widen(rows)
                first += file.row_count

    @cached_property
    def stored(self) -> list[tuple[int, NDArray[Any]]]:
        """Return the first row of each file and its rows, mapped once."""
        found, first = [], 0
        for vectors in self.members:
            for file in vectors.files:
                found.append((first, vectors.open(file)))
                first += file.row_count
        return found

    def rows_again(self, ids: Ids) -> Floats:
        """Return rows by number, in their order, as `rows` does: fast if the same rows are read again and again."""
        found = np.empty((len(ids), self.dim), self.stored[0][1].dtype if len(self.stored) == 1 else np.float32)
        for first, rows in self.stored:
            here = np.flatnonzero((ids >= first) & (ids < first + len(rows)))
            found[here] = rows[ids[here] - first]
        return widen(found)

    def rows(self, ids: Ids) -> Floats:
        """Return rows by number, in their order."""
        if len(self.members) == 1:
            return read_rows(self.members[0], ids)
        found = np.empty((len(ids), self.dim), np.float32)
        first = 0
        for vectors in self.members:
            here = np.flatnonzero((ids >= first) & (ids < first + vectors.row_count))
            if len(here):
                found[here] = read_rows(vectors, ids[here] - first)
            first += vectors.row_count
        return found


def places_of(mask: NDArray[np.bool_]) -> tuple[Ids, Ids]:
    """Return rows and columns where a matrix is true, as np.nonzero does: a tenth of its time if few are true."""
    rows, columns = np.divmod(np.flatnonzero(mask), mask.shape[1])
    return rows, columns


def unit(rows: Floats) -> Floats:
    """Return rows of length 1; zero rows stay zero."""
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows))
    scaled: Floats = rows / np.maximum(lengths, np.float32(1e-12))[:, None]
    return scaled


def rounding(dim: int) -> float:
    """Return how far a product of unit rows in fp32 may be from the true one: the worst case in any order."""
    return 2 * (dim + 4) * 2.0**-24


def exact_cosines(a: Floats, b: Floats) -> NDArray[np.float64]:
    """Return the cosine of each pair of rows [n], in float64 and rounded to 9 places: the same wherever it is computed.

    Sums run in one order for any number of rows, so no decision depends on block sizes or threads.
    """
    found = np.empty(len(a), np.float64)
    for start in range(0, len(a), 4096):
        x, y = a[start : start + 4096].astype(np.float64), b[start : start + 4096].astype(np.float64)
        product = (x * y).sum(axis=1)
        found[start : start + 4096] = product / np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    rounded: NDArray[np.float64] = np.round(found, 9)
    return rounded
