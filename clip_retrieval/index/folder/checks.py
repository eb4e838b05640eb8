"""Checks of an embeddings folder before anything is built from it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from clip_retrieval.embeddings.vectors import Contents, Vectors, open_vectors
from clip_retrieval.errors import IndexBuildError
from clip_retrieval.index.config import IndexConfig
from clip_retrieval.index.folder.obstacles import check_no_file
from clip_retrieval.layout import (
    EMBEDDING_FOLDERS,
    JOURNAL,
    METADATA_FOLDER,
    EmbeddingsFolder,
    IndexFolder,
    Modality,
    check_not_inside,
    read_manifest,
)
from clip_retrieval.metadata import count_rows
from clip_retrieval.storage import Folder

logger = logging.getLogger(__name__)

NAMES: dict[Modality, str] = {"image": "an image embedding", "text": "a text embedding"}


def check_folders(config: IndexConfig, source: EmbeddingsFolder, target: IndexFolder) -> None:
    check_no_file(target)
    if not source.exists():
        raise IndexBuildError(f"there is no folder {source.url}")
    if source.exists(JOURNAL):
        raise IndexBuildError(
            f"a change of {source.url} was stopped half-way; run its `clip-retrieval inference` again"
        )
    if source.place == target.place:
        raise IndexBuildError(f"{source.url} is the embeddings folder; give the index its own folder")
    check_not_inside(target, IndexBuildError)
    for name in (config.image_subfolder, config.text_subfolder):  # the index has npy files too
        place = Path(Folder(source.path(name)).place)
        if place in (Path(target.place), *Path(target.place).parents) and source.names(name, ".npy"):
            raise IndexBuildError(f"{target.url} is within {place}, which holds embeddings; name a folder elsewhere")
    held = [name for name in EMBEDDING_FOLDERS.values() if target.names(name, ".npy")]
    if held:  # its metadata would be replaced by the source's
        raise IndexBuildError(f"{target.url} has embeddings in {held[0]}; give the index its own folder")
    if target.fs.isfile(target.path(METADATA_FOLDER)):
        raise IndexBuildError(f"{target.path('metadata')} is a file in the place of the metadata folder; remove it")


def read_encoder(source: EmbeddingsFolder) -> dict[str, Any] | None:
    """Return the encoder in the embeddings' manifest; None for folders of clip-retrieval 2."""
    manifest = read_manifest(source)
    return manifest.get("encoder") if manifest else None


def check_finished(source: EmbeddingsFolder) -> None:
    """Refuse an unfinished run: its index would silently lack rows."""
    manifest = read_manifest(source) or {}
    wanted, there = manifest.get("partition_count"), len(source.names(METADATA_FOLDER, ".parquet"))
    if wanted is not None and there < wanted:
        raise IndexBuildError(f"{source.url} has {there} of {wanted} partitions; let inference finish (run it again)")


def find_filled(
    source: EmbeddingsFolder, found: Mapping[Modality, Vectors], contents: Mapping[Modality, Contents]
) -> dict[Modality, Vectors]:
    """Return the modalities of which any sample has an embedding; raises IndexBuildError if there is none."""
    filled = {
        modality: replace(vectors, empty_count=len(contents[modality].empty))
        for modality, vectors in found.items()
        if contents[modality].checksums.any()
    }
    for modality in filled:
        contents[modality].odd.warn(modality)
    for modality in found.keys() - filled.keys():
        logger.warning("no sample has %s: no %s index", NAMES[modality], modality)
    if not filled:
        raise IndexBuildError(f"every embedding in {source.url} is zero: no sample of that run could be embedded")
    return filled


def find_vectors(config: IndexConfig, source: EmbeddingsFolder) -> dict[Modality, Vectors]:
    """Open the existing embeddings; raises IndexBuildError if there are none."""
    opened: dict[Modality, Vectors | None] = {
        "image": open_vectors(source, config.image_subfolder),
        "text": open_vectors(source, config.text_subfolder),
    }
    found = {modality: vectors for modality, vectors in opened.items() if vectors is not None}
    named: dict[Modality, str] = {"image": config.image_subfolder, "text": config.text_subfolder}
    without_rows = {m: folder for m, folder in named.items() if m not in found and source.names(folder, ".npy")}
    for modality, subfolder in without_rows.items():
        sentence = f"the npy files in {source.path(subfolder)} have no rows"
        if not found or subfolder != EMBEDDING_FOLDERS[modality]:
            raise IndexBuildError(f"{sentence}; embed again, or name another folder")
        logger.warning("%s: no %s index", sentence, modality)
    for modality, subfolder in named.items():
        if modality not in found and subfolder != EMBEDDING_FOLDERS[modality]:
            raise IndexBuildError(f"{source.url} holds no {subfolder}/*.npy, which --{modality}_subfolder names")
    if not found:
        raise IndexBuildError(
            f"{source.url} holds no embeddings: neither {config.image_subfolder}/*.npy "
            f"nor {config.text_subfolder}/*.npy"
        )
    return found


def check_rows(source: EmbeddingsFolder, found: Mapping[Modality, Vectors]) -> int | None:
    """Raise IndexBuildError if row counts differ: hits would show another sample's metadata."""
    rows = count_rows(source)
    for modality, vectors in found.items():
        if rows is not None and vectors.row_count != rows:
            raise IndexBuildError(
                f"{source.url} has {vectors.row_count:,} {modality} embeddings but {rows:,} rows of metadata; let "
                "inference finish (run it again), or point at the folder of one run"
            )
    counts = {modality: vectors.row_count for modality, vectors in found.items()}
    if len(set(counts.values())) > 1:
        raise IndexBuildError(
            f"{source.url} has {counts['image']:,} image embeddings but {counts['text']:,} text embeddings; row r of "
            "both must be one sample"
        )
    return rows
