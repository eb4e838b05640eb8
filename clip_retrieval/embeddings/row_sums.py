"""Checksums of the rows in npy files, kept in the stats of their partition: damage gives wrong rows without an error.

They cover only the rows: the header is written last, after the rows were summed, and is checked separately.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

from clip_retrieval.blobs import with_retries
from clip_retrieval.checksums import sum_stream
from clip_retrieval.embeddings.npy_files import in_fortran_order, read_header, unreadable
from clip_retrieval.errors import DAMAGED_NPY, IndexBuildError, StorageError, one_line
from clip_retrieval.layout import (
    EMBEDDING_FOLDERS,
    FOLDER_FORMATS,
    REVISED,
    EmbeddingsFolder,
    Modality,
    Partition,
    partition_named,
    read_manifest,
)
from clip_retrieval.local_files import check_regular
from clip_retrieval.storage import Folder

CHECKSUMS = "checksums"  # key of a partition's stats: xxh3_64 of the rows by modality, in hexadecimal digits
ROWS_AT_ONCE = 4096
NPY_NAME = re.compile(r"(\w+)/\1_(\d+(?:_\d{4})*)\.npy")
MODALITY_OF: dict[str, Modality] = {folder: modality for modality, folder in EMBEDDING_FOLDERS.items()}


class Said(msgspec.Struct):
    """What the stats of a partition say about its embeddings."""

    checksums: dict[Modality, str] = {}


def find_checksum(folder: Folder, name: str) -> str | None:
    """Return the checksum of a file's rows when they were written; None if no stats of ours have it.

    Raises StorageError for stats that are damaged: without them damage of the rows would not be noticed.
    """
    found = NPY_NAME.fullmatch(name)
    if found is None or found[1] not in MODALITY_OF:
        return None
    partition = partition_named(found[2])
    stats = EmbeddingsFolder.stats_name(partition)
    try:
        return msgspec.json.decode(folder.read_bytes(stats), type=Said).checksums.get(MODALITY_OF[found[1]])
    except msgspec.ValidationError:  # JSON of another program
        return None
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StorageError(
            f"{folder.path(stats)} is damaged: {one_line(error)}; it has the checksums of {name}",
            advice=how_to_make_again(folder, partition, is_of_rows=False),
        ) from error


def find_damage(folder: Folder, name: str) -> str | None:
    """Return what is wrong with the rows of a file whose header is fine, by their checksum; reads all of it."""
    passed = RowSum(folder, name)
    if passed.said is None:
        return None
    with folder.answering(), folder.open(name) as file:
        read_header(file)
        if sum_stream(file) == passed.said:
            return None
    return find_damage(folder, name) if passed.is_replaced() else describe_damage(folder, name)


def find_stamp(folder: Folder, name: str) -> object:
    """Return what changes whenever another file takes this name; None if there is no file."""
    path = folder.path(name)
    try:
        if folder.is_local:
            about = Path(path).stat()
            return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns
        with folder.answering():
            folder.fs.invalidate_cache(path.rpartition("/")[0])  # a listing may be older than the file
            return with_retries(folder.fs, lambda: folder.fs.info(path))
    except FileNotFoundError:
        return None


def describe_damage(folder: Folder, name: str) -> str:
    return f"{folder.path(name)} is damaged: its rows differ from what was written"


class RowSum:
    """Sums up the rows of a file as they are read, to compare them with what was written.

    Checksum and stamp are those from before the first row: an update may replace the file while it is read.
    """

    def __init__(self, folder: Folder, name: str) -> None:
        self.folder, self.name = folder, name
        self.said = find_checksum(folder, name)
        self.stamp = None if self.said is None else find_stamp(folder, name)
        self.digest = xxhash.xxh3_64()

    def add(self, rows: NDArray[Any]) -> None:
        """Add the next rows, as they are stored."""
        self.digest.update(np.ascontiguousarray(rows).data)

    def check(self) -> None:
        """Raise IndexBuildError, with advice on making the rows again, if they differ from what was written."""
        if self.said is None or self.digest.hexdigest() == self.said:
            return
        if self.is_replaced():
            raise IndexBuildError(f"{self.folder.path(self.name)} changed while it was read; run it again")
        raise IndexBuildError(describe_damage(self.folder, self.name), advice=advise(self.folder, self.name))

    def is_replaced(self) -> bool:
        """Say whether the file or its checksum changed since the first row: then other rows are no damage."""
        now = find_checksum(self.folder, self.name), find_stamp(self.folder, self.name)
        return now != (self.said, self.stamp)


def read_blocks(folder: Folder, name: str) -> Iterator[NDArray[Any]]:
    """Yield all rows of a file in order, to keep or change, some thousand at a time; checks them at the end.

    Raises IndexBuildError if they differ from what was written, or are stored by columns.
    """
    if folder.is_local:
        check_regular(folder.path(name))
    passed = RowSum(folder, name)
    with folder.answering(), folder.open(name) as file:
        try:
            (count, dim), dtype, in_rows = read_header(file)
            if min(count, dim) > 1 and not in_rows:
                raise in_fortran_order(folder.path(name))
            for start in range(0, count, ROWS_AT_ONCE):
                size = min(ROWS_AT_ONCE, count - start) * dim * dtype.itemsize
                rows = np.frombuffer(bytearray(file.read(size)), dtype).reshape(-1, dim)
                passed.add(rows)
                yield rows
        except DAMAGED_NPY as error:
            raise unreadable(folder, name, error) from error
    passed.check()


def advise(folder: Folder, name: str) -> str:
    """Return how to make the rows of a damaged file again, also for a user who changed it on purpose."""
    found = NPY_NAME.fullmatch(name)
    assert found is not None
    partition = partition_named(found[2])
    again = how_to_make_again(folder, partition)
    stats = folder.path(EmbeddingsFolder.stats_name(partition))
    return f'{again}; if it was changed on purpose, take "{CHECKSUMS}" out of {stats}'


def how_to_make_again(
    folder: Folder, partition: Partition, *, is_of_rows: bool = True, instead: str = "", without: str = ""
) -> str:
    """Return how to make damaged files of a partition again: npy files or others.

    `instead` and `without` name the option that was given.
    """
    manifest = read_manifest(folder) or {}
    source = (manifest.get("options") or {}).get("source") or {}
    if is_of_rows and source.get("input_format") in FOLDER_FORMATS:
        remove = "" if folder.is_local else "remove it: "  # an update does not read all files of a store
        return f"{remove}inference --update{instead} embeds its rows again"
    if manifest.get(REVISED):
        return "its rows cannot be made again alone; use a new folder"
    if not source:
        return "make the folder again"
    metadata = folder.path(EmbeddingsFolder.metadata_name(partition))
    return f"remove {metadata}, and give the command of inference again{without}: it makes that partition again"
