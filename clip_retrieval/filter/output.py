"""The folder that a query writes into: which files are ours, and which files of an earlier query stay."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence

from clip_retrieval.errors import ClipRetrievalError, QueryError
from clip_retrieval.filter.config import MARKER, Export
from clip_retrieval.filter.hits import Hits
from clip_retrieval.filter.pictures import IMAGES_FOLDER, list_own
from clip_retrieval.filter.recipe import RECIPE
from clip_retrieval.filter.sheet import SHEET
from clip_retrieval.filter.tables import TABLES
from clip_retrieval.layout import (
    EMBEDDING_FOLDERS,
    IMAGE_PATH,
    MANIFEST,
    MODALITIES,
    SHARD,
    IndexFolder,
    check_not_inside,
)
from clip_retrieval.storage import Folder

TARS_FOLDER = "webdataset"
OWN_TAR = re.compile(r"\d{5,}\.tar")
OUTPUTS = (SHEET, RECIPE, *TABLES.values())
DATA = (MANIFEST, *EMBEDDING_FOLDERS.values(), *map(IndexFolder.index_name, MODALITIES))  # those of version 2, too


def claim_output(folder: Folder, hits: Hits, mode: Export) -> None:
    """Mark the folder as ours, and remove the files of an earlier query, finished or not.

    Pictures stay if the answer is the same, so a copy that was stopped goes on. Raises QueryError if files with our
    names exist and are not ours, and if the hits' own pictures would be removed.
    """
    digest = digest_answer(hits, mode)
    check_no_data(folder, "the hits", QueryError)
    if folder.exists(MARKER):
        check_sources(folder, hits)
        if f"answer: {digest}" not in folder.read_bytes(MARKER).decode("utf-8", "replace").splitlines():
            for name in list_own(folder):
                folder.remove(f"{IMAGES_FOLDER}/{name}")
        for name in OUTPUTS:
            folder.remove(name)
        for name in list_tars(folder):
            folder.remove(f"{TARS_FOLDER}/{name}")
    else:
        foreign = [name for name in OUTPUTS if folder.exists(name)]
        foreign += [f"{TARS_FOLDER}/{name}" for name in list_tars(folder)]
        foreign += [f"{IMAGES_FOLDER}/{name}" for name in list_own(folder)]
        if foreign:
            raise QueryError(f"{folder.url} has {foreign[0]}, which no query wrote; name another output folder")
    with folder.staged(MARKER) as staged:
        note = "clip-retrieval filter writes here, and replaces what it wrote before"
        staged.write_text(f"{note}\nanswer: {digest}\n", encoding="utf-8")


def check_no_data(folder: Folder, what: str, error: type[ClipRetrievalError]) -> None:
    """Raise `error` if the folder holds embeddings or an index; results do not belong there."""
    if any(folder.exists(name) for name in DATA):
        raise error(f"{folder.url} holds embeddings or an index; name another output folder for {what}")
    check_not_inside(folder, error)


def check_sources(folder: Folder, hits: Hits) -> None:
    """Raise QueryError if pictures of the hits, or their tars, are in the folder, which a new answer replaces."""
    if not list_own(folder) and not list_tars(folder):
        return
    folders: set[str] = set()
    for block in hits.blocks():
        for column in (IMAGE_PATH, SHARD):
            if column in block.column_names:
                folders |= {path.rpartition("/")[0] for path in block[column].to_pylist() if path and "/" in path}
    own = [f"{folder.place}/{name}" for name in (IMAGES_FOLDER, TARS_FOLDER)]
    inside = next((path for path in sorted(folders) if is_inside(path, own)), None)
    if inside is not None:
        raise QueryError(
            f"pictures of the hits are in {inside}, which an earlier query wrote and this one would replace; name "
            "another output folder"
        )


def is_inside(path: str, own: Sequence[str]) -> bool:
    place = path if "://" in path else os.path.realpath(path)
    return any(f"{place}/".startswith(f"{name}/") for name in own)


def list_tars(folder: Folder) -> list[str]:
    return [name for name in folder.names(TARS_FOLDER, ".tar") if OWN_TAR.fullmatch(name)]


def digest_answer(hits: Hits, mode: Export) -> str:
    """Return a digest that is equal for two answers only if their pictures are the same."""
    digest = hashlib.sha256(f"{hits.searcher.fingerprint} {mode} {hits.is_batch}".encode())
    digest.update(hits.ids.tobytes())
    digest.update(hits.starts.tobytes())
    return digest.hexdigest()[:32]
