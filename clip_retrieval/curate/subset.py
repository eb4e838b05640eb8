"""Rows that are kept, as files: ids, metadata, datacomp's uids, tars with their samples, an embeddings folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clip_retrieval.curate.config import Form
from clip_retrieval.curate.embedded import Embedded, Ids
from clip_retrieval.curate.output import EMBEDDINGS, FAILURES, FILES, IDS, KEPT, UIDS
from clip_retrieval.embeddings.local_copy import fetched
from clip_retrieval.embeddings.npy_writer import NpyWriter
from clip_retrieval.embeddings.row_sums import CHECKSUMS
from clip_retrieval.embeddings.rows import read_rows
from clip_retrieval.embeddings.vectors import Vectors, open_vectors
from clip_retrieval.errors import ConfigError
from clip_retrieval.filter.config import UID
from clip_retrieval.filter.output import TARS_FOLDER
from clip_retrieval.filter.tables import UID_TYPE, parse_uid
from clip_retrieval.filter.tars import SAMPLES_PER_TAR, Problems, make_samples, unique_keys, write_tar
from clip_retrieval.layout import (
    EMBEDDING_FOLDERS,
    FORMAT_VERSION,
    IMAGE_PATH,
    MANIFEST,
    MODALITIES,
    PICTURES_BELOW,
    SHARD,
    EmbeddingsFolder,
    Partition,
    read_manifest,
)
from clip_retrieval.metadata import number_array, open_writer
from clip_retrieval.process.resources import count_cores
from clip_retrieval.progress import show_progress
from clip_retrieval.query.hits import rows_of
from clip_retrieval.query.unknown_column import name_apart
from clip_retrieval.storage import Folder, temporary_folder
from clip_retrieval.words import counted

BLOCK_ROWS = 1 << 14
PARTITION_ROWS = 1_000_000


@dataclass(frozen=True)
class Written:
    """The files that were written, and notes on what is missing in them."""

    files: list[str]
    notes: list[str]


def check_forms(embedded: Embedded, forms: Sequence[Form]) -> None:
    """Raise ConfigError if the folder lacks what a form needs."""
    if "datacomp" in forms:
        embedded.check_column(UID, "write datacomp needs the column")
    for form in ("parquet", "webdataset"):
        if form in forms and embedded.metadata is None:
            raise ConfigError(f"--write {form} needs metadata, and {embedded.folder.url} has none")
    if "webdataset" in forms and IMAGE_PATH not in embedded.column_names:
        raise ConfigError(f"--write webdataset needs pictures, and {embedded.folder.url} has no column {IMAGE_PATH}")


def write_subset(embedded: Embedded, ids: Ids, forms: Sequence[Form], folder: Folder) -> Written:
    """Write the rows with these ids, ascending; memory holds a block of them."""
    notes: list[str] = []
    failed: dict[int, str] = {}
    if "ids" in forms:
        with folder.staged(IDS) as staged:
            staged.write_text("".join(f"{row}\n" for row in ids.tolist()), encoding="utf-8")
    if "parquet" in forms:
        write_parquet(folder, KEPT, blocks_of(embedded, ids), embedded)
    if "datacomp" in forms:
        notes += write_uids(embedded, ids, folder)
    if "webdataset" in forms:
        failed = write_webdataset(embedded, ids, folder)
    if "embeddings" in forms:
        write_embeddings(embedded, ids, EmbeddingsFolder(f"{folder.url}/{EMBEDDINGS}"))
    files = [FILES[form] for form in FILES if form in forms and folder.exists(FILES[form].rstrip("/"))]
    if failed:
        write_failures(embedded, failed, folder)
        files.append(FAILURES)
        notes.append(f"{counted(len(failed), 'row')} without a sample in {TARS_FOLDER}/; {FAILURES} names them")
    return Written(files, notes)


def blocks_of(embedded: Embedded, ids: Ids) -> Iterator[pa.Table]:
    """Yield the rows' metadata, a block at a time, with the column id first."""
    assert embedded.metadata is not None
    for start in range(0, len(ids), BLOCK_ROWS):
        some = ids[start : start + BLOCK_ROWS]
        table = embedded.metadata.rows(some)
        theirs = frozenset(table.column_names)
        names = [name_apart(name, theirs) if name == "id" else name for name in table.column_names]
        yield table.rename_columns(names).add_column(0, "id", number_array(some))


def write_parquet(folder: Folder, name: str, tables: Iterator[pa.Table], embedded: Embedded) -> None:
    first = next(tables, None)
    if first is None:
        assert embedded.metadata is not None
        first = pa.schema([("id", pa.int64()), *embedded.metadata.schema]).empty_table()
    with folder.staged(name) as staged, pq.ParquetWriter(staged, first.schema) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)


def write_uids(embedded: Embedded, ids: Ids, folder: Folder) -> list[str]:
    """Write uids.npy as datacomp does, sorted; return a note on what is left out."""
    assert embedded.metadata is not None
    found: set[tuple[int, int]] = set()
    bad = 0
    for start in range(0, len(ids), BLOCK_ROWS):
        for uid in embedded.metadata.rows(ids[start : start + BLOCK_ROWS], [UID])[UID].to_pylist():
            halves = parse_uid(uid)
            if halves is None:
                bad += 1
            else:
                found.add(halves)
    with folder.staged(UIDS) as staged, staged.open("wb") as file:
        np.save(file, np.array(sorted(found), UID_TYPE))
    return [f"{counted(bad, 'row')} without a uid of 32 hexadecimal digits: not in {UIDS}"] if bad else []


def write_webdataset(embedded: Embedded, ids: Ids, folder: Folder) -> dict[int, str]:
    """Write tars of the samples, several at once; each shard is read once, from its beginning to its end.

    Return the rows that have no sample, ascending, and why.
    """
    problems: Problems = {}
    groups = group_by_shard(embedded, ids)

    def write(number: int) -> int:
        start, stop = groups[number]
        rows = (row for table in blocks_of(embedded, ids[start:stop]) for row in rows_of(table))
        write_tar(folder, number, unique_keys(make_samples(enumerate(rows, start), problems)))
        return stop - start

    with show_progress("copying samples", len(ids)) as advance, ThreadPoolExecutor(count_cores()) as threads:
        for done in threads.map(write, range(len(groups))):
            advance(done)
    return {int(ids[place]): problems[place] for place in sorted(problems)}


def write_failures(embedded: Embedded, failed: dict[int, str], folder: Folder) -> None:
    """Write failures.parquet: id, where the picture should be, and the reason."""
    assert embedded.metadata is not None
    rows = np.array([*failed], np.int64)
    places = embedded.metadata.rows(rows, [name for name in (IMAGE_PATH, SHARD) if name in embedded.column_names])
    table = places.add_column(0, "id", number_array(rows)).append_column("reason", pa.array([*failed.values()]))
    with folder.staged(FAILURES) as staged:
        pq.write_table(table, staged)


def group_by_shard(embedded: Embedded, ids: Ids) -> list[tuple[int, int]]:
    """Return ranges of places, one for each tar: about SAMPLES_PER_TAR, with all samples of a shard in one range."""
    assert embedded.metadata is not None
    edges = [0]
    last: Any = None
    at = 0
    for start in range(0, len(ids), BLOCK_ROWS):
        some = ids[start : start + BLOCK_ROWS]
        has_shards = SHARD in embedded.column_names
        shards = embedded.metadata.rows(some, [SHARD])[SHARD].to_pylist() if has_shards else [None] * len(some)
        for shard in shards:
            if at - edges[-1] >= SAMPLES_PER_TAR and (shard is None or shard != last):
                edges.append(at)
            last, at = shard, at + 1
    return [*zip(edges, [*edges[1:], len(ids)], strict=True)] if len(ids) else []


def write_embeddings(embedded: Embedded, ids: Ids, target: EmbeddingsFolder) -> None:
    """Write an embeddings folder with only these rows, of every modality; each part's metadata comes last."""
    manifest = read_manifest(embedded.folder) or {}
    about = {name: manifest[name] for name in ("encoder", PICTURES_BELOW) if manifest.get(name) is not None}
    starts = range(0, max(1, len(ids)), PARTITION_ROWS)
    target.write_json(MANIFEST, {"format_version": FORMAT_VERSION, **about, "partition_count": len(starts)})
    there = {name: open_vectors(embedded.folder, EMBEDDING_FOLDERS[name]) for name in MODALITIES}
    found = {name: vectors for name, vectors in there.items() if vectors is not None}
    with fetched(found, temporary_folder) as modalities, show_progress("copying embeddings", len(ids)) as advance:
        for vectors in modalities.values():
            check_files(vectors, ids)
        for number, start in enumerate(starts):
            some = ids[start : start + PARTITION_ROWS]
            partition = Partition(number, len(starts), start, start + len(some))
            checksums = {
                modality: copy_rows(vectors, some, target, target.embedding_name(modality, partition))
                for modality, vectors in modalities.items()
            }
            target.write_json(target.stats_name(partition), {"sample_count": len(some), CHECKSUMS: checksums})
            if embedded.metadata is not None:
                write_metadata(embedded, some, target, target.metadata_name(partition))
            advance(len(some))


def check_files(vectors: Vectors, ids: Ids) -> None:
    """Raise IndexBuildError where a file that has some of these rows is damaged: their copies would seem to be fine."""
    first = 0
    for file in vectors.files:
        begin, end = np.searchsorted(ids, [first, first + file.row_count])
        for _ in vectors.checked_parts(file, BLOCK_ROWS) if end > begin else ():
            continue
        first += file.row_count


def copy_rows(vectors: Vectors, ids: Ids, target: Folder, name: str) -> str:
    """Write the rows with these ids into a file; return their checksum."""
    dtype = vectors.open(vectors.files[0]).dtype
    with target.staged(name) as staged, NpyWriter(staged, vectors.dim, dtype) as writer:
        for start in range(0, len(ids), BLOCK_ROWS):
            writer.append(read_rows(vectors, ids[start : start + BLOCK_ROWS]))
    return writer.checksum


def write_metadata(embedded: Embedded, ids: Ids, target: Folder, name: str) -> None:
    assert embedded.metadata is not None
    schema = embedded.metadata.schema
    with target.staged(name) as staged, open_writer(staged, schema) as writer:
        for start in range(0, len(ids), BLOCK_ROWS):
            writer.write_table(embedded.metadata.rows(ids[start : start + BLOCK_ROWS]).cast(schema))
