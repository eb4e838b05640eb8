"""Finished indices get their names in the index folder, and a manifest that describes them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.checksums import FileSums, sum_files
from clip_retrieval.embeddings.vectors import Contents, Vectors
from clip_retrieval.index.config import IndexConfig
from clip_retrieval.index.folder.build_options import OPTIONS, kept_options
from clip_retrieval.layout import (
    EMBEDDINGS_PLACE,
    FORMAT_VERSION,
    MODALITIES,
    PICTURES_BELOW,
    EmbeddingsFolder,
    IndexFolder,
    Modality,
    read_manifest,
)
from clip_retrieval.revision import Revision
from clip_retrieval.sources.roots import list_roots
from clip_retrieval.storage import Folder
from clip_retrieval.version import __version__

Infos = Mapping[Modality, Mapping[str, Any]]  # contents of image.json and text.json


class IndexRevision(Revision, IndexFolder):
    """An index folder in which published files are staged until `commit`."""


def publish(
    target: IndexFolder,
    scratch: Path,
    infos: Infos,
    contents: Mapping[Modality, Contents],
) -> dict[Modality, FileSums]:
    """Move finished indices to their names, and remove indices of other modalities from an earlier build.

    Returns the checksums of the lists of zero rows.
    """
    sums: dict[Modality, FileSums] = {modality: {} for modality in infos}
    for modality in MODALITIES:
        index, checksums = target.index_name(modality), target.checksums_name(modality)
        target.remove(target.empty_rows_name(modality))
        if modality not in infos:
            for name in (index, target.info_name(modality), checksums):
                target.remove(name)
            continue
        arrays: dict[str, NDArray[Any]] = {checksums: contents[modality].checksums}
        if len(contents[modality].empty):
            arrays[target.empty_rows_name(modality)] = contents[modality].empty
        for name, array in arrays.items():
            np.save(scratch / name, array)
            if name != checksums:
                sums[modality] = sum_files(Folder(str(scratch)), name)
            target.publish(scratch / name, name)
        if (scratch / index).exists():  # absent if an update kept the index
            target.publish(scratch / index, index)
        target.write_json(target.info_name(modality), infos[modality])
    return sums


def describe_indices(
    infos: Infos,
    filled: Mapping[Modality, Vectors],
    trained_rows: Mapping[Modality, int],
    sums: Mapping[Modality, FileSums],
) -> dict[Modality, dict[str, Any]]:
    """Return the manifest's entry of each index: what was built, and from which files."""
    return {
        modality: {
            "rows": vectors.row_count,
            "dimension": vectors.dim,
            "key": infos[modality].get("index_key"),
            "trained_rows": trained_rows[modality],
            "files": [{"name": file.name, "rows": file.row_count} for file in vectors.files],
            **({"sums": sums[modality]} if sums[modality] else {}),
        }
        for modality, vectors in filled.items()
    }


def place_of(source: EmbeddingsFolder, target: IndexFolder) -> str:
    """Return the place of the embeddings: relative to the index folder, so both may move together, else as a url."""
    if not (source.is_local and target.is_local):
        return source.place if source.is_local else source.url
    try:
        return os.path.relpath(source.place, target.place)
    except ValueError:  # on another drive of Windows
        return source.place


def make_manifest(
    source: EmbeddingsFolder, indices: Mapping[Modality, Mapping[str, Any]], sums: FileSums, config: IndexConfig
) -> dict[str, Any]:
    """Return the manifest: encoder and input of the embeddings, what was built, and with which options.

    `sums` are the checksums of files next to the indices.
    """
    theirs = read_manifest(source) or {}
    return {
        "format_version": FORMAT_VERSION,
        "made_by": f"clip-retrieval {__version__}",
        "encoder": theirs.get("encoder"),
        PICTURES_BELOW: list_roots((theirs.get("options") or {}).get("source") or {}),
        EMBEDDINGS_PLACE: place_of(source, IndexFolder(config.index_folder)),
        "indices": indices,
        **({"sums": sums} if sums else {}),
        OPTIONS: kept_options(config),
    }
