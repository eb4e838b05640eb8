"""`status --check`: reads all files of the finished partitions, and compares them with their checksums."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from clip_retrieval.embeddings.row_sums import find_checksum, how_to_make_again
from clip_retrieval.errors import ClipRetrievalError, describe_os_error
from clip_retrieval.inference.revisions.damage import find_dimension, look_at_partition
from clip_retrieval.layout import MODALITIES, EmbeddingsFolder, Partition
from clip_retrieval.metadata import read_through
from clip_retrieval.process.resources import count_cores
from clip_retrieval.progress import show_progress


@dataclass(frozen=True)
class DamagedFile:
    """What is wrong with a file, and how to make it again."""

    what: str
    again: str


@dataclass(frozen=True, kw_only=True)
class Checked:
    """The result of reading all files."""

    partitions: int
    unsummed: int  # files of embeddings without a known checksum
    damage: Sequence[DamagedFile]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def check_files(url: str) -> Checked:
    """Read the embeddings, metadata, failures and ledgers of a folder, several partitions at once."""
    folder = EmbeddingsFolder(url)
    partitions, dimension = folder.partitions(), find_dimension(folder)
    damage, unsummed = list[DamagedFile](), 0
    with show_progress("checking partitions", len(partitions)) as advance, ThreadPoolExecutor(count_cores()) as threads:
        looks = threads.map(lambda partition: [*look_at_all(folder, partition, dimension)], partitions)
        for partition, found in zip(partitions, looks, strict=True):
            damage += found
            unsummed += count_unsummed(folder, partition)
            advance(1)
    return Checked(partitions=len(partitions), unsummed=unsummed, damage=damage)


def look_at_all(folder: EmbeddingsFolder, partition: Partition, dimension: int) -> Iterator[DamagedFile]:
    """Yield what is wrong with the files of a partition."""

    def look_at_rows() -> list[str]:
        return [one.what for one in look_at_partition(folder, partition, dimension, reads_rows=True)]

    others = [folder.metadata_name(partition), folder.failures_name(partition), folder.ledger_name(partition)]
    looks = [partial(read_through, folder, name) for name in others if folder.exists(name)]
    found = [what for look in (partial(look_at_stats, folder, partition), *looks) for what in read_by(look)]
    again = how_to_make_again(folder, partition, is_of_rows=False)
    yield from (DamagedFile(what, again) for what in found)
    for what in read_by(look_at_rows):
        if not any(name in what for name in others) and what not in found:  # told already
            yield DamagedFile(what, how_to_make_again(folder, partition))


def look_at_stats(folder: EmbeddingsFolder, partition: Partition) -> None:
    """Raise StorageError if the stats of a partition, which have its checksums, are damaged."""
    for modality in MODALITIES:
        find_checksum(folder, folder.embedding_name(modality, partition))


def read_by(look: Callable[[], list[str] | None]) -> list[str]:
    """Return what a look at files finds wrong or, if it fails, why."""
    try:
        return look() or []
    except ClipRetrievalError as error:
        return [error.what]
    except OSError as error:
        return [describe_os_error(error)]


def count_unsummed(folder: EmbeddingsFolder, partition: Partition) -> int:
    names = [folder.embedding_name(modality, partition) for modality in MODALITIES]
    try:
        return sum(folder.exists(name) and find_checksum(folder, name) is None for name in names)
    except ClipRetrievalError:
        return 0  # damaged stats are told of as such
