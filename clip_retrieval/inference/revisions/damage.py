"""Embeddings that are no longer as they were written: a change copies rows, and a cut-off file would lend it zeros."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clip_retrieval.embeddings.npy_files import check_rows
from clip_retrieval.errors import ConfigError, IndexBuildError, StorageError, describe_os_error
from clip_retrieval.inference.manifest import REVISED
from clip_retrieval.layout import EMBEDDING_FOLDERS, MODALITIES, EmbeddingsFolder, Modality, Partition, read_manifest
from clip_retrieval.metadata import open_parquet
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

    def rows(self) -> str:
        return counted(self.row_count, "row")


def find_damage(folder: EmbeddingsFolder, partitions: Sequence[Partition]) -> list[Damage]:
    """Check the embeddings of all partitions by header and size; raises StorageError where one cannot be read."""
    found: list[Damage] = []
    dimension = find_dimension(folder)
    for partition in partitions:
        with open_parquet(folder, folder.metadata_name(partition)) as file:
            row_count = file.metadata.num_rows
        for modality in MODALITIES if row_count else ():
            damage = look_at(folder, partition, modality, (row_count, dimension))
            found += [] if damage is None else [damage]
    return found


def look_at(
    folder: EmbeddingsFolder, partition: Partition, modality: Modality, shape: tuple[int, int]
) -> Damage | None:
    name = folder.embedding_name(modality, partition)
    if folder.is_folder(name):
        raise StorageError(f"{folder.path(name)} is a folder, not an npy file; move it away, and run again")
    try:
        if folder.exists(name):
            check_rows(folder, name, *shape)
            return None
        is_made = bool(folder.names(EMBEDDING_FOLDERS[modality], ".npy"))
        if not is_made and not folder.read_json(folder.stats_name(partition)).get(COUNT_NAMES[modality]):
            return None  # the run makes none
        what = f"{folder.path(name)} is missing"
    except IndexBuildError as error:
        what = str(error)
    except OSError as error:
        raise StorageError(f"cannot read {describe_os_error(error)}") from error
    return Damage(partition=partition, modality=modality, what=what, row_count=shape[0], dimension=shape[1])


def find_dimension(folder: EmbeddingsFolder) -> int:
    """Return how many numbers an embedding has. Raises ConfigError where the manifest does not say it."""
    dimension = ((read_manifest(folder) or {}).get("encoder") or {}).get("dimension")
    if not isinstance(dimension, int):
        raise ConfigError(f"{folder.url} does not say which dimension its embeddings have; use a new folder")
    return dimension


def refuse_damage(folder: EmbeddingsFolder, damage: Sequence[Damage], *, is_folder_of_files: bool) -> None:
    """Raise StorageError for the first damaged file, with what makes its rows again."""
    if not damage:
        return
    first = damage[0]
    if is_folder_of_files:
        advice = f"--update instead of --retry_failed embeds its {first.rows()} again"
    elif (read_manifest(folder) or {}).get(REVISED):
        advice = "its rows cannot be made again alone; use a new folder"
    else:
        metadata = folder.path(folder.metadata_name(first.partition))
        advice = f"remove {metadata}, and give the same command without --retry_failed: it makes that partition again"
    more = f" (and {counted(len(damage) - 1, 'more file')} damaged)" if damage[1:] else ""
    raise StorageError(f"{first.what}{more}; {advice}")
