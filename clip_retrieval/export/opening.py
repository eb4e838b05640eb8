"""Opens the folder to export: an index with its embeddings, an index alone, or embeddings."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clip_retrieval.embeddings.local_copy import fetched
from clip_retrieval.embeddings.rows import read_rows
from clip_retrieval.embeddings.vectors import Vectors, add_up, open_vectors
from clip_retrieval.errors import DAMAGED_NPY, ConfigError, IndexBuildError, SourceError, StorageError
from clip_retrieval.export.columns import choose_columns
from clip_retrieval.export.config import ExportConfig
from clip_retrieval.export.source import Source, on_grid, pieces
from clip_retrieval.layout import (
    EMBEDDING_FOLDERS,
    EMBEDDINGS_PLACE,
    MODALITIES,
    EmbeddingsFolder,
    IndexFolder,
    Modality,
    about_index,
    read_manifest,
)
from clip_retrieval.metadata import open_metadata
from clip_retrieval.search.held_rows import decode_rows, to_unit_length
from clip_retrieval.search.index import Index, open_index
from clip_retrieval.storage import Folder, temporary_folder
from clip_retrieval.words import counted

TRIED_ROWS = 256  # rows whose checksums show whether codes are the embeddings
CONDITION_SECONDS = 600.0  # over whole data sets


@contextmanager
def open_source(config: ExportConfig) -> Iterator[Source]:
    """Open an index folder or an embeddings folder for the block; files on a store are fetched first.

    Raises SourceError and ConfigError.
    """
    folder = Folder(config.folder)
    if not folder.exists():
        raise SourceError(f"there is no folder {folder.url}")
    modality = config.rows.modality
    index_folder = IndexFolder(config.folder)
    if index_folder.exists(index_folder.index_name(modality)):
        index = open_index(index_folder, modality, memory_map=True)
        vectors, notes = find_embeddings(config, index_folder, index)
        if vectors is None:
            yield complete(open_codes(index_folder, modality, index), config, notes)
            return
    else:
        index, notes = None, []
        vectors = open_folder(config.rows.embeddings_folder or config.folder, config.folder, modality)
    with fetched({modality: vectors}, temporary_folder) as here:
        source = open_embeddings(here[modality], modality)
        if index is not None:
            checksums = read_checksums(index_folder, modality, index)
            identity = source.identity if checksums is None else identify(checksums)
            source = replace(source, index=index, checksums=checksums, identity=identity)
        yield complete(source, config, notes)


def open_folder(place: str, folder: str, modality: Modality) -> Vectors:
    """Open the embeddings of a folder without an index. Raises SourceError."""
    vectors = open_vectors(EmbeddingsFolder(place), EMBEDDING_FOLDERS[modality])
    if vectors is not None:
        return vectors
    there = EmbeddingsFolder(place)
    others = [name for name in MODALITIES if name != modality and there.names(EMBEDDING_FOLDERS[name], ".npy")]
    index = IndexFolder(place)
    others += [name for name in MODALITIES if name != modality and index.exists(index.index_name(name))]
    hint = f"it has {others[0]} embeddings: --modality {others[0]}" if others else "name such a folder"
    raise SourceError(f"{folder} holds neither an index nor embeddings of the modality {modality}; {hint}")


def find_embeddings(config: ExportConfig, folder: IndexFolder, index: Index) -> tuple[Vectors | None, list[str]]:
    """Return the embeddings that an index was built from; None if they are gone, with a sentence about that."""
    modality, named = config.rows.modality, config.rows.embeddings_folder
    manifest = read_manifest(folder) or {}
    kept = manifest.get(EMBEDDINGS_PLACE)
    place = named or (None if not kept else join_place(folder, str(kept)))
    subfolder = (manifest.get("options") or {}).get(f"{modality}_subfolder") or EMBEDDING_FOLDERS[modality]
    vectors = None
    if place is not None and (named or Folder(place).exists()):
        vectors = open_vectors(EmbeddingsFolder(place), subfolder)
    if vectors is None:
        if named:
            raise SourceError(f"{named} holds no embeddings of the modality {modality}; name the index's folder")
        where = f"{place} no longer holds them" if place else "it does not say where they are"
        return None, [where]
    if (vectors.row_count, vectors.dim) != (index.row_count, index.dim):
        raise SourceError(
            f"{vectors.folder.url} has {vectors.row_count:,} x {vectors.dim} embeddings, the index has "
            f"{index.row_count:,} x {index.dim}; name the folder that it was built from, or update the index"
        )
    return vectors, []


def join_place(folder: Folder, place: str) -> str:
    """Return the place of a folder that an index names: relative to the index if both are on this machine."""
    return place if "://" in place or not folder.is_local else os.path.normpath(Path(folder.place) / place)


def open_embeddings(vectors: Vectors, modality: Modality) -> Source:
    about = [[file.name, file.row_count, file.byte_count, stamp(vectors, file.name)] for file in vectors.files]
    kinds = {vectors.open(file).dtype for file in vectors.files}
    return Source(
        url=vectors.folder.url,
        modality=modality,
        row_count=vectors.row_count,
        dim=vectors.dim,
        dtype=np.dtype(np.float16 if kinds == {np.dtype(np.float16)} else np.float32),
        kind="embeddings",
        stream=lambda start, size: on_grid(pieces(vectors, start, size), start, size),
        take=lambda ids: read_rows(vectors, ids),
        identity=json.dumps(about),
        metadata=open_metadata(vectors.folder),
        columns=[],
        others=open_others(vectors, modality),
    )


def open_others(vectors: Vectors, modality: Modality) -> Vectors | None:
    """Return the embeddings of the other modality if they are in the same folder and of the same dimension."""
    other = next(name for name in MODALITIES if name != modality)
    try:
        found = open_vectors(vectors.folder, EMBEDDING_FOLDERS[other])
    except IndexBuildError:
        return None  # they were not asked for
    return found if found is not None and found.dim == vectors.dim else None


def stamp(vectors: Vectors, name: str) -> int:
    """Return when a file was last changed, if its store says so cheaply."""
    if not vectors.folder.is_local:
        return 0
    return Path(vectors.folder.path(f"{vectors.subfolder}/{name}")).stat().st_mtime_ns


def open_codes(folder: IndexFolder, modality: Modality, index: Index) -> Source:
    """Open the rows that an index holds; they count as the embeddings if checksums prove it."""
    checksums = read_checksums(folder, modality, index)
    exact = find_dtype(index, checksums)

    def read(ids: NDArray[np.int64]) -> NDArray[np.float32]:
        rows = decode_rows(index, ids)
        rows[np.isin(ids, index.empty_rows)] = 0  # codes of a zero row need not be zero
        return rows if exact else to_unit_length(rows)

    def stream(start: int, size: int) -> Iterator[tuple[int, NDArray[Any]]]:
        while start < index.row_count:
            stop = min((start // size + 1) * size, index.row_count)
            yield start, read(np.arange(start, stop)).astype(exact or np.float32)
            start = stop

    about = about_index(read_manifest(folder), modality)
    return Source(
        url=folder.url,
        modality=modality,
        row_count=index.row_count,
        dim=index.dim,
        dtype=exact or np.dtype(np.float32),
        kind="embeddings" if exact else "codes",
        stream=stream,
        take=read,
        identity=identify(checksums)
        if exact and checksums is not None
        else json.dumps([about.get("sums"), about.get("files"), index.row_count]),
        metadata=None,
        columns=[],
        index=index,
        checksums=checksums if exact else None,
    )


def read_checksums(folder: IndexFolder, modality: Modality, index: Index) -> NDArray[np.uint32] | None:
    """Return the checksums of all rows that the index was built from; None if it has none."""
    name = folder.checksums_name(modality)
    if not folder.exists(name):
        return None
    try:
        found: NDArray[np.uint32] = np.load(io.BytesIO(folder.read_bytes(name)), allow_pickle=False)
    except DAMAGED_NPY as error:
        raise StorageError(f"{folder.path(name)} is not a readable npy file", advice="build the index again") from error
    return found if len(found) == index.row_count else None


def identify(checksums: NDArray[np.uint32]) -> str:
    """Return what identifies these embeddings, wherever they are stored."""
    return hashlib.sha256(checksums.tobytes()).hexdigest()


def find_dtype(index: Index, checksums: NDArray[np.uint32] | None) -> np.dtype[Any] | None:
    """Return the type with which an index's rows equal the embeddings bit by bit; None if there is no such type."""
    if checksums is None:
        return None
    filled = np.flatnonzero(checksums)
    some = filled[:: max(1, len(filled) // TRIED_ROWS)]
    rows = decode_rows(index, some)
    for dtype in (np.float16, np.float32):
        if np.array_equal(np.maximum(add_up(np.ascontiguousarray(rows.astype(dtype))), 1), checksums[some]):
            return np.dtype(dtype)
    return None


def complete(source: Source, config: ExportConfig, notes: list[str]) -> Source:
    """Join the metadata of the named folder, choose columns, and find the rows of --where. Raises ConfigError."""
    metadata = open_metadata(Folder(config.folder)) or source.metadata
    if metadata is not None and metadata.row_count != source.row_count:
        raise SourceError(
            f"{config.folder} has {counted(source.row_count, 'embedding')} and {counted(metadata.row_count, 'row')} "
            "of metadata; make it again"
        )
    schema = pa.schema([]) if metadata is None else metadata.schema
    columns = choose_columns(schema, config.rows.columns, config.to)
    met, where = None, config.rows.where
    if where is not None:
        if metadata is None:
            raise ConfigError(f"--where needs metadata, and {config.folder} has none")
        from clip_retrieval.query.predicates import rows_where  # noqa: PLC0415 -- loads DuckDB

        met = rows_where(metadata, where, seconds=CONDITION_SECONDS)
    said = [] if source.kind == "embeddings" else [tell_codes(notes)]
    renamed = [f"{column.source} is called {column.name} there" for column in columns if column.source != column.name]
    parts = [source.identity, [(column.source, column.name, str(column.kind)) for column in columns], where]
    identity = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
    return replace(source, metadata=metadata, columns=columns, met=met, notes=[*said, *renamed], identity=identity)


def tell_codes(notes: list[str]) -> str:
    return (
        f"the vectors are decoded from the codes of the index, which are not its embeddings ({'; '.join(notes)}); "
        "name them with --embeddings_folder for the full precision"
    )
