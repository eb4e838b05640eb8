"""Folders that Hugging Face's `datasets` wrote with save_to_disk: arrow files, read with pyarrow alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypedDict

import pyarrow as pa

from clip_retrieval.blobs import check_regular, may_pass, open_raw, store_errors
from clip_retrieval.errors import SourceError, StorageError, first_line
from clip_retrieval.json_files import Shape, check_shape
from clip_retrieval.paths import local_path
from clip_retrieval.sources.arrow_rows import check_names, kinds_of, rows_of, types_of
from clip_retrieval.sources.config import SourceConfig
from clip_retrieval.sources.content import explain_refusal
from clip_retrieval.sources.parquet import reason_of
from clip_retrieval.sources.stamps import version_at
from clip_retrieval.sources.tables import Table, TablePart, TableSource, open_tables
from clip_retrieval.sources.types import Failure
from clip_retrieval.storage import Folder, check_inside

MARK = b"\xff\xff\xff\xff"  # begins each message of a stream
END_MARK = MARK + bytes(4)
STATE, INFO, SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"


class DataFile(TypedDict):
    filename: str


class State(TypedDict, total=False):
    _data_files: list[DataFile] | None
    _indices_data_files: list[DataFile] | None
    _split: str | None


class Splits(TypedDict, total=False):
    splits: list[str]


class SplitInfo(TypedDict, total=False):
    num_examples: int | None


class Info(TypedDict, total=False):
    splits: dict[str, SplitInfo | None] | None


FILE_MAGIC = b"ARROW1"  # Arrow's IPC file format; `datasets` itself writes the stream format


@dataclass(frozen=True)
class ArrowTable(Table):
    """One arrow file; its number of rows is unknown until it is read."""

    def rows(
        self, start: int, stop: int | None, columns: Sequence[str]
    ) -> Iterator[tuple[int, Mapping[str, Any]] | Failure]:
        """Yield the rows; if the file is damaged or cut, a Failure stands for the rest."""
        number = 0
        try:
            with open_arrow(self.url) as batches:
                for batch in batches:
                    for row in rows_of(batch, columns):
                        if start <= number and (stop is None or number < stop):
                            yield number, row
                        number += 1
                yield from batches.explain_end(self.url)
        except (pa.ArrowException, OSError, ValueError) as error:
            yield Failure.of_rest(self.url, number, error)


class Batches:
    """The record batches of a file, one at a time, and their schema."""

    def __init__(self, file: Any) -> None:
        start = file.read(len(FILE_MAGIC))
        file.seek(0)
        self.file, self.is_stream = file, start != FILE_MAGIC
        self.has_marks = start.startswith(MARK)  # written by Arrow 0.15 or later
        self.reader: Any = pa.ipc.open_stream(file) if self.is_stream else pa.ipc.open_file(file)
        self.schema: pa.Schema = self.reader.schema

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        if self.is_stream:
            yield from self.reader
        else:
            for number in range(self.reader.num_record_batches):
                yield self.reader.get_batch(number)

    def explain_end(self, url: str) -> Iterator[Failure]:
        """Yield a Failure for a stream that was cut between two batches, or was joined with another one."""
        if not self.is_stream:
            return
        end = self.file.tell()
        left = self.file.seek(0, 2) - end
        self.file.seek(max(0, end - len(END_MARK)))
        if left:
            detail = f"{left:,} bytes come after the end of its rows, and are left out"
            yield Failure.of_shard(url, "corrupt", detail)
        elif self.has_marks and self.file.read(len(END_MARK)) != END_MARK:
            yield Failure.of_shard(url, "truncated", "ends without an end-of-stream mark; rows may be missing")


@contextmanager
def open_arrow(url: str) -> Iterator[Batches]:
    """Open an arrow file; a local one is memory-mapped, so that unused columns cost nothing."""
    path = local_path(url)
    if path is not None:
        check_regular(path)
        with pa.memory_map(str(path.absolute())) as mapped:  # pyarrow takes ~/1.arrow for a file of the home folder
            yield Batches(mapped)
        return
    with store_errors(url), open_raw(url) as file:
        yield Batches(file)


def open_datasets(config: SourceConfig) -> TableSource:
    """List the arrow files of the folder or of its splits; raises SourceError if `datasets` did not write it."""
    folder = Folder(config.input_dataset)
    if not folder.exists():
        raise SourceError(f"there is no folder {config.input_dataset}")
    splits = read_about(folder, SPLITS, Splits).get("splits", [""])
    check_inside(folder, SPLITS, filter(None, splits), SourceError)
    parts, counts = [], []
    for split in splits:
        names = arrow_names(folder, split)
        if split and not names and not folder.exists(f"{split}/{STATE}"):
            parts.append(missing_split(folder, split))
            continue
        parts += [part_of(f"{folder.url}/{name}") for name in names]
        counts.append(count_rows(folder, split))
    if not parts:
        raise SourceError(
            f"{config.input_dataset} is not a folder of datasets' save_to_disk: it has neither {STATE} nor {SPLITS}"
        )
    row_count = None if None in counts else sum(count for count in counts if count is not None)
    return open_tables(config, parts, row_count or None)


def read_about(folder: Folder, name: str, shape: type[Shape]) -> Shape:
    """Return one of the folder's JSON files; empty if it is missing. Raises SourceError if it is of another shape."""
    try:
        about: object = folder.read_json(name) if folder.exists(name) else {}
    except StorageError as error:
        raise SourceError(str(error)) from error
    return check_shape(about, shape, f"{folder.url}/{name}", SourceError)


def arrow_names(folder: Folder, split: str) -> list[str]:
    """Return the arrow files of a split, in row order."""
    below = f"{split}/" if split else ""
    state = read_about(folder, f"{below}{STATE}", State)
    if state.get("_indices_data_files"):
        raise SourceError(f"{folder.url}/{below} has rows chosen by an index; save it again with flatten_indices()")
    files = state.get("_data_files")
    if files is None:
        return [f"{below}{name}" for name in folder.names(split, ".arrow")] if folder.exists(f"{below}{INFO}") else []
    names = [f"{below}{file['filename']}" for file in files]
    check_inside(folder, f"{below}{STATE}", names, SourceError)
    return names


def count_rows(folder: Folder, split: str) -> int | None:
    """Return the number of rows according to the split's dataset_info.json, or None."""
    about = read_about(folder, f"{split}/{INFO}" if split else INFO, Info)
    name = read_about(folder, f"{split}/{STATE}" if split else STATE, State).get("_split")
    described = (about.get("splits") or {}).get(name or "")
    return None if described is None else described.get("num_examples")


def part_of(url: str) -> TablePart:
    name, version = url.rpartition("/")[2], version_at(url)
    try:
        with open_arrow(url) as batches:
            check_names(url, batches.schema)
            table = ArrowTable(url, kinds_of(batches.schema), types_of(batches.schema), version=version)
    except FileNotFoundError:
        return TablePart(name, None, damage=Failure.of_shard(url, "missing", "the file does not exist"))
    except (pa.ArrowException, OSError) as error:
        damaged = reason_of(error), first_line(error)
        reason, detail = damaged if may_pass(error) else explain_refusal(url, *damaged, "an Arrow file", FILE_MAGIC)
        return TablePart(name, None, damage=Failure.of_shard(url, reason, detail))
    return TablePart(name, table)


def missing_split(folder: Folder, split: str) -> TablePart:
    detail = f"{SPLITS} names the split {split}, which is not in the folder, or has no arrow files"
    return TablePart(split, None, damage=Failure.of_shard(f"{folder.url}/{split}", "missing", detail))
