"""The two folder contracts: names of files, zero padding, what is there. Described in docs/formats.md."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict

from clip_retrieval.errors import ClipRetrievalError, StorageError
from clip_retrieval.json_files import check_shape
from clip_retrieval.storage import Folder

Modality = Literal["image", "text"]
MODALITIES: tuple[Modality, ...] = ("image", "text")
EMBEDDING_FOLDERS: dict[Modality, str] = {"image": "img_emb", "text": "text_emb"}

METADATA_FOLDER, FAILURES_FOLDER, LEDGER_FOLDER, STATS_FOLDER = "metadata", "failures", "ledger", "stats"
ATTEMPTS_FOLDER = "attempts"  # a sub-folder for each partition that is being made, or failed
TABLE_FOLDERS = (METADATA_FOLDER, FAILURES_FOLDER, LEDGER_FOLDER)  # sub-folders of parquet files
COLUMNS_FOLDER = "columns"  # a sub-folder of parquet files for each set of columns that `label` adds
STALE = "stale.json"  # in the folder of a set: embeddings have changed in place since
METADATA_ARROW = "metadata.arrow"
INDEX_SUFFIX = ".index"

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
PICTURES_BELOW = "pictures_below"  # key of an index's manifest: the folder of its input's pictures
EMBEDDINGS_PLACE = "embeddings_folder"  # key of an index's manifest: relative to the index, or a url
REVISED = "revised"  # key of the manifest: update or retry_failed changed the folder, so its partitions follow no plan
FOLDER_FORMATS = ("files", "video")  # input formats whose samples are files of a folder, or places in them
PLAN_FOLDER = "_plan"  # the plan of a run that goes to other machines
PLAN = f"{PLAN_FOLDER}/plan.json"
REVISION_FOLDER = "_revision"  # staged files that will replace others, all together
JOURNAL = f"{REVISION_FOLDER}/journal.json"
PARTITION_NAME = re.compile(r"metadata_(\d+(?:_\d{4})*)\.parquet")
FEW = 50  # partitions that are looked for one by one; for more, the folder is listed
LARGEST_SUFFIX = 9999  # four digits: sorting the names of appended partitions sorts them by age

# Columns of metadata/*.parquet that are ours, in this order; json metadata never replaces them.
IMAGE_PATH, CAPTION = "image_path", "caption"
PAGE = "page"  # of a document, from 1
VIDEO, TIME, FRAME = (
    "video",
    "time_seconds",
    "frame",
)  # of a frame: its file, when it is on the screen, its number from 0
SHARD, SHARD_OFFSET, SHARD_SIZE = "shard", "shard_offset", "shard_size"
SHARD_COLUMNS = (SHARD, SHARD_OFFSET, SHARD_SIZE)


@dataclass(frozen=True, slots=True)
class Partition:
    """A contiguous part of the input, and of the output: units start..stop of the source."""

    id: int
    count: int
    start: int
    stop: int
    suffix: str = ""  # such as _0001 for a partition that was appended later

    @property
    def name(self) -> str:
        return str(self.id).zfill(len(str(self.count))) + self.suffix  # sorting file names must sort partitions

    @property
    def is_appended(self) -> bool:
        return bool(self.suffix)


def partition_named(name: str) -> Partition:
    """Return the partition of a name such as 07 or 07_0001, without its units, which the name does not say."""
    digits, mark, rest = name.partition("_")
    return Partition(int(digits), 10 ** (len(digits) - 1), 0, 0, mark + rest)


def next_partition(last: Partition, unit_count: int) -> Partition:
    """Return a partition whose name sorts directly after `last`."""
    before, _, number = last.suffix.rpartition("_")
    if not last.is_appended or int(number) == LARGEST_SUFFIX:
        return replace(last, start=0, stop=unit_count, suffix=f"{last.suffix}_{1:04d}")
    return replace(last, start=0, stop=unit_count, suffix=f"{before}_{int(number) + 1:04d}")


class EmbeddingsFolder(Folder):
    """What inference writes and index reads."""

    @staticmethod
    def embedding_name(modality: Modality, partition: Partition) -> str:
        folder = EMBEDDING_FOLDERS[modality]
        return f"{folder}/{folder}_{partition.name}.npy"

    @staticmethod
    def metadata_name(partition: Partition) -> str:
        return f"{METADATA_FOLDER}/metadata_{partition.name}.parquet"

    @staticmethod
    def failures_name(partition: Partition) -> str:
        return f"{FAILURES_FOLDER}/failures_{partition.name}.parquet"

    @staticmethod
    def stats_name(partition: Partition) -> str:
        return f"{STATS_FOLDER}/{partition.id}{partition.suffix}.json"

    @staticmethod
    def ledger_name(partition: Partition) -> str:
        return f"{LEDGER_FOLDER}/ledger_{partition.name}.parquet"

    @staticmethod
    def wip_stats_name(partition: Partition) -> str:
        return f"{STATS_FOLDER}/wip_{partition.id}{partition.suffix}.json"

    @staticmethod
    def attempts_name(partition: Partition) -> str:
        """Return the folder of the attempts at a partition."""
        return f"{ATTEMPTS_FOLDER}/{partition.name}"

    def is_done(self, partition: Partition) -> bool:
        """Say whether the partition is whole: its metadata is written last."""
        return self.exists(self.metadata_name(partition))

    def done_among(self, partitions: Sequence[Partition]) -> set[str]:
        """Return the names of the partitions that are whole, by one listing or, of a few, one by one."""
        if len(partitions) <= FEW:
            return {partition.name for partition in partitions if self.is_done(partition)}
        start, end = len("metadata_"), len(".parquet")
        return {name[start:-end] for name in self.names(METADATA_FOLDER, ".parquet")}

    def has_partitions(self) -> bool:
        """Say whether any partition is whole, including files that other programs named."""
        return bool(self.names(METADATA_FOLDER, ".parquet"))

    def partitions(self) -> list[Partition]:
        """Return the partitions that are whole, in row order."""
        found = (PARTITION_NAME.fullmatch(name) for name in self.names(METADATA_FOLDER, ".parquet"))
        return [partition_named(match[1]) for match in found if match]


class FileAbout(TypedDict):
    """An npy file that an index was built of."""

    name: str
    rows: int


class FileSum(TypedDict):
    """Size and checksum of a file of an index folder."""

    bytes: int
    xxh3_64: str


class IndexAbout(TypedDict, total=False):
    """An index's entry in the manifest; other programs may leave out any field."""

    rows: int | None
    dimension: int
    key: str | None
    trained_rows: int
    files: list[FileAbout]
    sums: dict[str, FileSum]  # key: path relative to the index folder


class Manifest(TypedDict, total=False):
    """The manifest of an embeddings folder or an index folder, as far as code relies on its shape."""

    format_version: int
    encoder: dict[str, Any] | None
    partition_count: int | None
    pictures_below: list[str]
    embeddings_folder: str
    indices: dict[Modality, IndexAbout]
    sums: dict[str, FileSum]  # of files next to the indices
    options: dict[str, Any] | None


class PartAbout(TypedDict):
    """One file of an index that consists of several."""

    file: str
    first_row: int


# What image.json and text.json say about an index, as far as code relies on its shape.
IndexInfo = TypedDict(
    "IndexInfo",
    {
        "index_key": str | None,
        "index_param": str | None,
        "size in bytes": int | None,
        "parts": list[PartAbout],
        "plan": dict[str, Any] | None,
        "quality": dict[str, Any] | None,
    },
    total=False,
)


class IndexFolder(Folder):
    """What index writes and filter reads."""

    @staticmethod
    def index_name(modality: Modality) -> str:
        return f"{modality}{INDEX_SUFFIX}"

    @staticmethod
    def info_name(modality: Modality) -> str:
        return f"{modality}.json"

    def read_info(self, modality: Modality) -> dict[str, Any]:
        """Return the content of an index's json file; empty if there is none."""
        name = self.info_name(modality)
        if not self.exists(name):
            return {}
        info = self.read_json(name)
        check_shape(info, IndexInfo, self.path(name))
        return info

    @staticmethod
    def empty_rows_name(modality: Modality) -> str:
        """Ids (int64 npy) of the rows that have no embedding of this modality; absent when there is none."""
        return f"{modality}.empty.npy"

    @staticmethod
    def checksums_name(modality: Modality) -> str:
        """Checksums of all rows of the embeddings (uint32 npy), 0 for zero rows; other programs write none."""
        return f"{modality}.checksums.npy"


def check_not_inside(folder: Folder, error: type[ClipRetrievalError]) -> None:
    """Raise `error` if a folder to write to is one of embeddings or metadata, or is in one: output would spoil it."""
    place = folder.place.replace(os.sep, "/") if folder.is_local else folder.place
    while "/" in place:
        above, _, name = place.rpartition("/")
        if name in (*EMBEDDING_FOLDERS.values(), METADATA_FOLDER) and holds_data(Folder(place), name):
            what = "metadata" if name == METADATA_FOLDER else "embeddings"
            raise error(f"{folder.url} is within {place}, which holds {what}; name a folder elsewhere")
        place = above


def holds_data(folder: Folder, name: str) -> bool:
    if name == METADATA_FOLDER:
        return any(PARTITION_NAME.fullmatch(file) for file in folder.names("", ".parquet"))
    return bool(folder.names("", ".npy"))


def read_manifest(folder: Folder) -> dict[str, Any] | None:
    """Return the folder's manifest; None if there is none, as in folders of clip-retrieval 2."""
    if not folder.exists(MANIFEST):
        return None
    manifest = folder.read_json(MANIFEST)
    check_shape(manifest, Manifest, folder.path(MANIFEST))
    if manifest.get("format_version", 0) > FORMAT_VERSION:
        raise StorageError(
            f"{folder.path(MANIFEST)} was written by a newer clip-retrieval (format "
            f"{manifest['format_version']}, this one reads up to {FORMAT_VERSION}); update clip-retrieval"
        )
    return manifest


def about_index(manifest: Mapping[str, Any] | None, modality: Modality) -> dict[str, Any]:
    """Return a manifest's entry for an index; empty if there is none."""
    about: dict[str, Any] = ((manifest or {}).get("indices") or {}).get(modality) or {}
    return about
