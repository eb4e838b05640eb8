"""Embeddings that are no longer as they were written: a change copies rows, and would copy damaged ones."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from clip_retrieval.embeddings import row_sums
from clip_retrieval.embeddings.npy_files import check_rows
from clip_retrieval.embeddings.row_sums import how_to_make_again
from clip_retrieval.errors import ConfigError, IndexBuildError, StorageError, describe_os_error
from clip_retrieval.layout import EMBEDDING_FOLDERS, MODALITIES, EmbeddingsFolder, Modality, Partition, read_manifest
from clip_retrieval.metadata import open_parquet
from clip_retrieval.process.resources import count_cores
from clip_retrieval.progress import show_progress
from clip_retrieval.words import counted

COUNT_NAMES: dict[Modality, str] = {"image": "image_count", "text": "text_count"}  # in stats


@dataclass(frozen=True, kw_only=True)
class Damage:
    """A damaged file of embeddings, and how many rows and numbers a row it should have."""

    partition: Partition
    modality: Modality
    what: str  # the file and what is wrong with it
    row_count: int
    dimension: int


def find_damage(
    folder: EmbeddingsFolder, partitions: Sequence[Partition], changed: Collection[Partition] | None = None
) -> list[Damage]:
    """Check the embeddings of all partitions by header and size, and on this machine the content too.

    `changed` limits reading the content to these partitions. Comparing on a store would fetch everything, so rows there
    are compared when they are copied. Raises StorageError if a file cannot be read.
    """
    dimension = find_dimension(folder)

    def look(partition: Partition) -> list[Damage]:
        reads_rows = folder.is_local and (changed is None or partition in changed)
        return [*look_at_partition(folder, partition, dimension, reads_rows=reads_rows)]

    damage = list[Damage]()
    with show_progress("checking partitions", len(partitions)) as advance, ThreadPoolExecutor(count_cores()) as threads:
        for found in threads.map(look, partitions):
            damage += found
            advance(1)
    return damage


def look_at_partition(
    folder: EmbeddingsFolder, partition: Partition, dimension: int, *, reads_rows: bool
) -> Iterator[Damage]:
    with open_parquet(folder, folder.metadata_name(partition)) as file:
        row_count = file.metadata.num_rows
    for modality in MODALITIES:
        what = look_at(folder, partition, modality, (row_count, dimension), reads_rows=reads_rows)
        if what is not None:
            yield Damage(partition=partition, modality=modality, what=what, row_count=row_count, dimension=dimension)


def look_at(
    folder: EmbeddingsFolder, partition: Partition, modality: Modality, shape: tuple[int, int], *, reads_rows: bool
) -> str | None:
    """Return what is wrong with a file."""
    name = folder.embedding_name(modality, partition)
    if folder.is_folder(name):
        raise StorageError(f"{folder.path(name)} is a folder, not an npy file; move it away, and run again")
    try:
        if folder.exists(name):
            check_rows(folder, name, *shape)
            return row_sums.find_damage(folder, name) if reads_rows else None
        if not shape[0]:
            return None  # a partition without rows needs no file
        is_made = bool(folder.names(EMBEDDING_FOLDERS[modality], ".npy"))
        if not is_made and not folder.read_json(folder.stats_name(partition)).get(COUNT_NAMES[modality]):
            return None  # the run writes none
    except IndexBuildError as error:
        return str(error)
    except OSError as error:
        raise StorageError(f"cannot read {describe_os_error(error)}") from error
    return f"{folder.path(name)} is missing"


def find_dimension(folder: EmbeddingsFolder) -> int:
    """Return how many numbers an embedding has. Raises ConfigError if the manifest does not say it."""
    dimension = ((read_manifest(folder) or {}).get("encoder") or {}).get("dimension")
    if not isinstance(dimension, int):
        raise ConfigError(f"{folder.url} does not say which dimension its embeddings have; use a new folder")
    return dimension


def refuse_damage(folder: EmbeddingsFolder, damage: Sequence[Damage]) -> None:
    """Raise StorageError for the first damaged file, with advice on making its rows again."""
    if not damage:
        return
    first = damage[0]
    again = how_to_make_again(
        folder, first.partition, instead=" instead of --retry_failed", without=" without --retry_failed"
    )
    more = f" (and {counted(len(damage) - 1, 'more file')} damaged)" if damage[1:] else ""
    raise StorageError(f"{first.what}{more}; {again}")
