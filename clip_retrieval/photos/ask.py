"""A folder of pictures, opened: its embeddings and index are updated, then answer queries."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import msgspec
import pyarrow as pa

from clip_retrieval.checksums import checked_at_opening, find_damage_beside
from clip_retrieval.encoder.base import Workload
from clip_retrieval.errors import QueryError, SourceError, StorageError
from clip_retrieval.filter.opening import Opening
from clip_retrieval.filter.query import open_query
from clip_retrieval.installed import is_installed
from clip_retrieval.layout import IMAGE_PATH, IndexFolder
from clip_retrieval.metadata import open_metadata
from clip_retrieval.photos.config import SearchConfig
from clip_retrieval.photos.folders import About, Kept
from clip_retrieval.photos.listing import Look
from clip_retrieval.photos.models import DEMO
from clip_retrieval.photos.seen import Seen, see
from clip_retrieval.query.answer import Answer, answer, tabulate
from clip_retrieval.query.config import SearcherConfig, SelectionConfig
from clip_retrieval.query.hits import json_rows
from clip_retrieval.query.pictures import REPLACED, find_file
from clip_retrieval.query.searcher import Searcher, open_searcher
from clip_retrieval.query.terms import Words
from clip_retrieval.words import counted

DEMO_NOTE = "the demo model knows only emoji: for photographs name a real model, such as --reembed --clip_model {}"


class PhotoAnswer(msgspec.Struct, frozen=True):
    """The pictures that answer one query, best first."""

    answered: Answer
    about: About
    shown_folder: str  # as the user gave it; paths begin with it
    table: pa.Table  # rank, id, similarity, and every metadata column
    notes: tuple[str, ...] = ()
    sheet: str | None = None

    def paths(self) -> list[str]:
        """Return the path of each hit below the given folder, as `find` does, with the names on disk."""
        start = f"{self.about.folder.rstrip('/')}/"
        found = [find_name(str(path)) for path in self.table[IMAGE_PATH].to_pylist()]
        return [os.path.join(self.shown_folder, path.removeprefix(start)) for path in found]  # noqa: PTH118 -- keeps ./

    def to_json(self) -> dict[str, Any]:
        return {
            "query": self.answered.query.text,
            "kind": self.answered.query.kind,
            "folder": self.about.folder,
            "clip_model": self.about.clip_model,
            "pictures": self.about.pictures,
            "notes": list(self.notes),
            "how": list(self.answered.how),
            **({"sheet": self.sheet} if self.sheet else {}),
            "results": [row | {"path": path} for row, path in zip(json_rows(self.table), self.paths(), strict=True)],
        }


def find_name(path: str) -> str:
    """Return the name on disk of a path in the metadata, in which U+FFFD stands for bytes that are not UTF-8."""
    if REPLACED not in path:
        return path
    try:
        return find_file(path)
    except OSError:
        return path  # gone since, or several files have this name


class PhotoFolder(msgspec.Struct, frozen=True):
    """An updated folder and its index."""

    kept: Kept
    about: About
    searcher: Searcher
    shown_folder: str
    notes: tuple[str, ...] = ()

    def ask(self, words: Sequence[Words], selection: SelectionConfig) -> PhotoAnswer:
        """Answer one query. Raises ClipRetrievalError."""
        query = open_query(words, self.searcher)
        if self.searcher.workload == "once":
            self.searcher.free_model()
        answered = answer(self.searcher, query, selection)
        notes = (*self.notes, query.warning) if query.warning else self.notes
        return PhotoAnswer(answered, self.about, self.shown_folder, tabulate(answered, self.searcher), notes)


def open_photos(config: SearchConfig, seen: Seen | None = None, opening: Opening | None = None) -> PhotoFolder:
    """Update the embeddings and index of a folder, and open it. Raises ClipRetrievalError.

    `seen` and `opening` are the listing and the model that a command already has.
    """
    seen = seen or see(config)
    kept, about = seen.kept, seen.about
    if about is None or not seen.is_current:
        if not seen.look.files:
            raise SourceError(explain_empty(config.folder, seen.look))
        if about is not None and config.selection.where is not None:
            check_first(IndexFolder(kept.index(about.clip_model)), config.selection.where)
        from clip_retrieval.photos.refresh import refresh

        about = refresh(kept, config, seen.look)
    kept.touch()
    workload: Workload = "query" if config.output.interactive else "once"
    searcher = open_index(kept, about.clip_model, workload, opening)
    real = "ViT-B/32" if is_installed("torch") else "onnx:FOLDER"
    notes = (DEMO_NOTE.format(real),) if about.clip_model == DEMO else ()
    return PhotoFolder(kept, about, searcher, config.folder, notes)


def open_index(kept: Kept, model: str, workload: Workload, opening: Opening | None) -> Searcher:
    """Open the kept index; a damaged one is built again from the embeddings. Raises ClipRetrievalError."""
    folder = IndexFolder(kept.index(model))
    try:
        if (damage := find_damage_beside(folder, checked_at_opening(folder))) is not None:
            raise damage
        searcher = open_searcher(folder, SearcherConfig(), workload=workload, ahead=opening)
        if searcher.expected is None:
            raise StorageError(f"{folder.url} does not say of which model it is")
    except (StorageError, QueryError, OSError) as error:
        from clip_retrieval.photos.refresh import build_again

        build_again(kept, model, error)
        return open_searcher(folder, SearcherConfig(), workload=workload)
    return searcher


def check_first(folder: IndexFolder, condition: str) -> None:
    """Check a condition by the kept columns, before pictures are embedded. Raises QueryError."""
    from clip_retrieval.query.predicates import check_condition

    metadata = open_metadata(folder) if folder.exists() else None
    if metadata is not None:
        check_condition(metadata, condition)


def explain_empty(folder: str, look: Look) -> str:
    if look.example_raw is not None:
        return (
            f"{folder} holds no picture but RAW files such as {look.example_raw}, which are not read; export them as "
            "JPEG"
        )
    if look.closed:
        return (
            f"no picture found in {folder}: {counted(len(look.closed), 'folder')} cannot be listed ({look.closed[0]})"
        )
    if look.unread:
        return f"{folder} holds no picture; {'; '.join(look.passed_over())}"
    return f"{folder} holds no picture, in itself or in the folders below it (hidden ones are left out)"
