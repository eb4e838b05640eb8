"""The folder that a query writes into: which files are ours, and what stays of an earlier query."""

from __future__ import annotations

import hashlib
import re

from clip_retrieval.errors import QueryError
from clip_retrieval.filter.config import MARKER, Export
from clip_retrieval.filter.hits import Hits
from clip_retrieval.filter.pictures import IMAGES_FOLDER, list_own
from clip_retrieval.filter.recipe import RECIPE
from clip_retrieval.filter.sheet import SHEET
from clip_retrieval.filter.tables import TABLES
from clip_retrieval.storage import Folder

TARS_FOLDER = "webdataset"
OWN_TAR = re.compile(r"\d{5,}\.tar")
OUTPUTS = (SHEET, RECIPE, *TABLES.values())


def claim_output(folder: Folder, hits: Hits, mode: Export) -> None:
    """Mark the folder as one of ours, and remove what an earlier query wrote, finished or not.

    Pictures stay where the answer is the same: a copy that was stopped goes on. Raises QueryError where files of the
    names that we write are there, and are not ours.
    """
    digest = digest_answer(hits, mode)
    if folder.exists(MARKER):
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
        if foreign:
            raise QueryError(f"{folder.url} has {foreign[0]}, which no query wrote; name another output folder")
    with folder.staged(MARKER) as staged:
        note = "clip-retrieval filter writes here, and replaces what it wrote before"
        staged.write_text(f"{note}\nanswer: {digest}\n", encoding="utf-8")


def list_tars(folder: Folder) -> list[str]:
    return [name for name in folder.names(TARS_FOLDER, ".tar") if OWN_TAR.fullmatch(name)]


def digest_answer(hits: Hits, mode: Export) -> str:
    """Return what two answers have in common only where their pictures are the same."""
    digest = hashlib.sha256(f"{hits.searcher.fingerprint} {mode} {hits.is_batch}".encode())
    digest.update(hits.ids.tobytes())
    digest.update(hits.starts.tobytes())
    return digest.hexdigest()[:32]
