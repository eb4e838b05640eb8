"""The command `index score`: measures an existing index and, with --tune, chooses better search settings."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_retrieval.checksums import FileSums, list_files, sum_files
from clip_retrieval.embeddings.local_copy import fetched
from clip_retrieval.embeddings.vectors import Vectors, open_vectors
from clip_retrieval.errors import ConfigError, IndexBuildError, StorageError
from clip_retrieval.index.config import ScoreConfig
from clip_retrieval.index.folder.build_options import TARGET, kept_options, read_score_config, with_options
from clip_retrieval.index.folder.publish import IndexRevision
from clip_retrieval.index.measuring.evaluate import evaluate_index, find_truths
from clip_retrieval.index.measuring.quality import Quality
from clip_retrieval.index.measuring.tuning import Target
from clip_retrieval.layout import MANIFEST, EmbeddingsFolder, IndexFolder, Modality, read_manifest
from clip_retrieval.revision import finish_revision, only_one
from clip_retrieval.search.cores import using_cores
from clip_retrieval.search.files import LISTS, list_indices
from clip_retrieval.search.index import Index, open_index
from clip_retrieval.search.settings import Settings, parse_settings
from clip_retrieval.search.stored_settings import store_settings
from clip_retrieval.storage import Folder, check_writable, temporary_folder
from clip_retrieval.words import in_bytes


@dataclass(frozen=True)
class IndexScores:
    """Quality of each index of a folder, and whether its settings were written into its json file."""

    index_folder: str
    qualities: Mapping[Modality, Quality]
    is_tuned: bool
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {
            "index_folder": self.index_folder,
            "indices": {modality: quality.info() for modality, quality in self.qualities.items()},
            "tuned": self.is_tuned,
            "seconds": round(self.seconds, 2),
        }


def score_index(*arguments: object, **options: object) -> IndexScores:
    """Measure an index folder; takes the flags of `clip-retrieval index score`. Raises ClipRetrievalError."""
    return run_score(read_score_config(options, arguments))


def run_score(config: ScoreConfig) -> IndexScores:
    """Measure each index that the folder has; nothing is written unless all of them could be measured."""
    start = time.perf_counter()
    folder = IndexFolder(config.index_folder)
    found = find_embeddings(config)
    modalities = list_indices(folder)
    if config.tune:
        check_writable(folder)
    output, output_name = split_path(config.output)
    if output is not None:
        check_writable(output)
    with using_cores(config.nb_cores), fetched(found, temporary_folder) as here:
        qualities = (
            tune_all(config, folder, modalities, here)
            if config.tune
            else {modality: score_one(config, folder, modality, here) for modality in modalities}
        )
    result = IndexScores(folder.url, qualities, config.tune, time.perf_counter() - start)
    if output is not None:
        output.write_json(output_name, result.to_json())
    return result


def tune_all(
    config: ScoreConfig, folder: IndexFolder, modalities: Sequence[Modality], found: Mapping[Modality, Vectors]
) -> dict[Modality, Quality]:
    """Measure with new settings and store them, under a lock, so no build replaces the index meanwhile."""
    with only_one(folder):
        finish_revision(folder)
        check_room(folder, modalities)
        qualities = {modality: score_one(config, folder, modality, found) for modality in modalities}
        revision, sums = IndexRevision(folder.url), dict[Modality, FileSums]()
        for modality, quality in qualities.items():
            name = folder.info_name(modality)
            revision.write_json(name, {**folder.read_info(modality), **quality.info()})
            sums[modality] = write_settings(folder, modality, quality, revision)
        manifest = read_manifest(folder)
        if manifest is not None:
            revision.write_json(MANIFEST, with_sums(with_options(manifest, kept_options(config, TARGET)), sums))
        revision.commit()
    return qualities


def check_room(folder: IndexFolder, modalities: Sequence[Modality]) -> None:
    """Raise StorageError if the copies of the faiss files that `write_settings` makes do not fit on the disk."""
    sizes = [
        sum(
            int(folder.fs.size(folder.path(file)))
            for file in list_files(folder, folder.index_name(modality))
            if not file.endswith(LISTS)
        )
        for modality in modalities
    ]
    place, wanted = (folder.root, sum(sizes)) if folder.is_local else (tempfile.gettempdir(), max(sizes))
    free = shutil.disk_usage(place).free
    if wanted > free:
        raise StorageError(
            f"tuned settings are written into copies of the index files: {in_bytes(wanted)}, but {in_bytes(free)} are "
            f"free in {place}; make room there"
        )


def split_path(path: str | None) -> tuple[Folder | None, str]:
    """Split a path into its folder and the file's name."""
    if path is None:
        return None, ""
    head, slash, name = path.rpartition("/")
    if not name:
        raise ConfigError(f"output names a json file, not the folder {path}")
    return Folder(head or slash or "."), name


def find_embeddings(config: ScoreConfig) -> dict[Modality, Vectors]:
    source = EmbeddingsFolder(config.embeddings_folder)
    for folder in (EmbeddingsFolder(config.index_folder), source):
        if not folder.exists():
            raise IndexBuildError(f"there is no folder {folder.url}")
    opened: dict[Modality, Vectors | None] = {
        "image": open_vectors(source, config.image_subfolder),
        "text": open_vectors(source, config.text_subfolder),
    }
    return {modality: vectors for modality, vectors in opened.items() if vectors is not None}


def score_one(
    config: ScoreConfig, folder: IndexFolder, modality: Modality, found: Mapping[Modality, Vectors]
) -> Quality:
    index = open_index(folder, modality)
    check_match(index, folder.path(folder.index_name(modality)), modality, found)
    wanted: Target | Settings
    if config.tune:
        wanted = config.tuning.target()
    elif config.index_param is not None:
        wanted = index.checked(parse_settings(config.index_param))
    else:
        wanted = Settings()  # empty: the index's own settings
    return evaluate_index(index, modality, find_truths(modality, found), wanted)


def check_match(index: Index, path: str, modality: Modality, found: Mapping[Modality, Vectors]) -> None:
    """Refuse embeddings whose shape does not match the index."""
    vectors = found.get(modality)
    if vectors is None:
        raise IndexBuildError(f"the embeddings folder has no {modality} embeddings, which {path} was built from")
    if vectors.dim != index.dim:
        raise IndexBuildError(
            f"{path} has {index.dim} dimensions, {vectors.folder.path(vectors.subfolder)} has {vectors.dim}: "
            "they are of different models"
        )
    # Rows without an embedding may be left out of an index.
    if index.row_count != vectors.row_count and (
        index.row_count > vectors.row_count or index.row_count + len(vectors.empty_rows()) < vectors.row_count
    ):
        raise IndexBuildError(
            f"{path} holds {index.row_count:,} vectors, {vectors.folder.path(vectors.subfolder)} "
            f"{vectors.row_count:,} rows; name the embeddings that it was built from"
        )


def write_settings(folder: IndexFolder, modality: Modality, quality: Quality, revision: IndexRevision) -> FileSums:
    """Publish copies of the faiss files with their new settings, and return the checksums of all files.

    Copies, since another process may have mapped the files. Lists on disk hold no settings: they stay.
    """
    name, sums = folder.index_name(modality), FileSums()
    with revision.staging() as scratch:
        for file in list_files(folder, name):
            if file.endswith(LISTS):
                sums |= sum_files(folder, file)
                (scratch / LISTS).symlink_to(folder.path(file))  # faiss opens an index only with its lists next to it
                continue
            staged = scratch / Path(file).name
            with folder.answering():
                folder.fs.get_file(folder.path(file), str(staged))
            store_settings(staged, Settings(quality.settings))
            sums[file] = sum_files(Folder(str(scratch)), staged.name)[staged.name]
            revision.publish(staged, file)
    return sums


def with_sums(manifest: Mapping[str, Any], sums: Mapping[Modality, FileSums]) -> dict[str, Any]:
    """Return the manifest with new checksums of its indices."""
    indices: Mapping[Modality, Any] = manifest.get("indices") or {}
    changed = {
        modality: {**about, "sums": {**(about.get("sums") or {}), **sums[modality]}} if modality in sums else about
        for modality, about in indices.items()
    }
    return {**manifest, "indices": changed}
