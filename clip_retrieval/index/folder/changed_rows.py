"""Finds the rows of an embeddings folder that were added, emptied or filled since its index was built."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.embeddings.vectors import Contents, VectorFile, Vectors
from clip_retrieval.errors import DAMAGED_NPY, IndexBuildError
from clip_retrieval.layout import IndexFolder, Modality

AGAIN = "build the index again, without --update"


@dataclass(frozen=True)
class Change:
    """Rows that differ from those of the index; ids in increasing order."""

    known: int  # rows from which the index was built or updated
    added: int  # rows after those
    emptied: NDArray[np.int64]
    filled: NDArray[np.int64]

    @property
    def is_none(self) -> bool:
        return not (self.added or len(self.emptied) or len(self.filled))

    def to_json(self) -> dict[str, int]:
        return {"added": self.added, "emptied": len(self.emptied), "filled": len(self.filled)}


def find_change(
    folder: IndexFolder, modality: Modality, about: Mapping[str, Any], vectors: Vectors, contents: Contents
) -> Change:
    """Compare an index with the current embeddings; `about` is its entry in the manifest.

    Rows are compared by checksums, not by the times of their files. Raises IndexBuildError if the folder is another
    one: if a file is gone or has other rows, or if a row has another vector.
    """
    if "files" not in about:
        raise IndexBuildError(f"{folder.url} does not say from which files it was built", advice=AGAIN)
    check_files(folder, about["files"], vectors)
    old = read_checksums(folder, modality, about["rows"])
    new = contents.checksums[: len(old)]
    replaced = np.flatnonzero((old != new) & (old != 0) & (new != 0))
    if len(replaced):
        row, file = vectors.locate(int(replaced[0]))
        others = f", as have {len(replaced) - 1:,} more" if len(replaced) > 1 else ""
        raise IndexBuildError(
            f"{folder.url} was not built from these embeddings: row {row} of {vectors.path(file)} has another vector "
            f"now{others}",
            advice=AGAIN,
        )
    return Change(
        known=len(old),
        added=vectors.row_count - len(old),
        emptied=np.flatnonzero((old != 0) & (new == 0)),
        filled=np.flatnonzero((old == 0) & (new != 0)),
    )


def check_files(folder: IndexFolder, old: Sequence[Mapping[str, Any]], vectors: Vectors) -> None:
    """Raise IndexBuildError unless the files of the index are the first ones of the embeddings, in the same order."""
    now: Sequence[VectorFile] = vectors.files
    names = {file.name for file in now}
    for i, was in enumerate(old):
        name, rows = was["name"], was["rows"]
        if i >= len(now) or name not in names:
            raise IndexBuildError(
                f"{folder.url} was built from {vectors.folder.path(vectors.subfolder)}/{name} ({rows:,} rows), "
                "which is gone",
                advice=AGAIN,
            )
        if now[i].name != name:
            raise IndexBuildError(
                f"{vectors.path(now[i])} was inserted before {name} after {folder.url} was built, so ids have changed",
                advice=AGAIN,
            )
        if now[i].row_count != rows:
            raise IndexBuildError(
                f"{vectors.path(now[i])} has {now[i].row_count:,} rows, and had {rows:,} when {folder.url} was built",
                advice=AGAIN,
            )


def check_encoder(folder: IndexFolder, old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> None:
    """Raise IndexBuildError if the embeddings are of another model than the index."""
    was, now = (None if encoder is None else encoder.get("fingerprint") for encoder in (old, new))
    if was != now:
        raise IndexBuildError(
            f"{folder.url} holds embeddings of {name_of(old)}, the folder's are of {name_of(new)}",
            advice=AGAIN,
        )


def name_of(encoder: Mapping[str, Any] | None) -> str:
    if encoder is None:
        return "a model that is not known"
    return f"{encoder.get('clip_model')} ({encoder.get('fingerprint')})"


def read_checksums(folder: IndexFolder, modality: Modality, row_count: int) -> NDArray[np.uint32]:
    name = folder.checksums_name(modality)
    try:
        read = np.load(io.BytesIO(folder.read_bytes(name)), allow_pickle=False)
    except (FileNotFoundError, IsADirectoryError, *DAMAGED_NPY) as error:
        raise IndexBuildError(f"{folder.path(name)} is missing or damaged", advice=AGAIN) from error
    checksums: NDArray[np.uint32] = read
    if checksums.shape != (row_count,):
        raise IndexBuildError(f"{folder.path(name)} is of another index", advice=AGAIN)
    return checksums
