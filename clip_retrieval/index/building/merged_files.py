"""Merges index files of one kind: lists and codes of stores from file to file, lists next to stores in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
from rich.console import Console

from clip_retrieval.errors import IndexBuildError
from clip_retrieval.index.building.code_stores import find_lists, write_with_store
from clip_retrieval.index.building.listed_files import ListedFile, open_listed, write_listed
from clip_retrieval.index.building.parts import UNMERGED, can_be_merged, merge_into
from clip_retrieval.index.building.stored_files import StoredFile, open_stored
from clip_retrieval.layout import INDEX_SUFFIX
from clip_retrieval.progress import show_progress
from clip_retrieval.search.files import LISTS, POPULATED, write_file
from clip_retrieval.search.native_output import printing_nothing
from clip_retrieval.search.tree import list_nodes
from clip_retrieval.storage import Folder
from clip_retrieval.words import with_article

EMPTIED = (faiss.IndexPreTransform, faiss.IndexRefine, faiss.IndexIVF, faiss.IndexFlatCodes, faiss.IndexPQFastScan)


def merge_to_file(source: Folder, names: Sequence[str], starts: Sequence[int], path: Path) -> int:
    """Merge parts into one file, and return its rows: from file to file, if they consist only of lists."""
    listed = open_all([source.path(name) for name in names], starts)
    return merge_in_memory(source, names, starts, path) if listed is None else write_listed(listed, path)


def open_all(paths: Sequence[str], starts: Sequence[int]) -> list[ListedFile] | None:
    """Open parts that consist only of lists; None if one of them is something else."""
    found = []
    for path, start in zip(paths, starts, strict=True):
        part = open_listed(path)
        if part is None:
            return None
        found.append(replace(part, first_id=start))
    return found


def merge_in_memory(source: Folder, names: Sequence[str], starts: Sequence[int], path: Path) -> int:
    """Merge the lists in memory, one part at a time; codes of stores go from file to file."""
    stored = open_stored(source.path(names[0]))
    whole = faiss.read_index(source.path(names[0])) if stored is None else stored.index
    if not can_be_merged(whole):
        kind = with_article(type(faiss.downcast_index(whole)).__name__)
        raise IndexBuildError(
            f"{source.path(names[0])} is {kind}, which cannot be merged; put the parts into a folder image.index, "
            "where they are searched together"
        )
    codes = [] if stored is None else [stored.codes]
    parts = list(zip(names[1:], starts[1:], strict=True))
    with show_progress("merging", len(parts)) as advance:
        for name, start in parts:
            part = open_like(stored, source.path(name))  # kept by this name: what faiss casts owns nothing
            if isinstance(part, StoredFile):
                codes.append(part.codes)
                if (lists := find_lists(whole)) is not None:
                    merge_into(lists, find_lists(part.index), start)
            else:
                merge_into(whole, part, start)
            advance(1)
    rows = sum(len(piece) for piece in codes) or int(whole.ntotal)
    if stored is None:
        write_file(whole, path)
    else:
        write_with_store(whole, codes, rows, path)
    return rows


def open_like(first: StoredFile | None, path: str) -> Any:
    """Open a part in the same way as the first one: without its store, or whole."""
    if first is None:
        return faiss.read_index(path)
    part = open_stored(path)
    if part is None:
        raise IndexBuildError(f"{path} was written by another version of faiss than {first.codes.path}; build it again")
    return part


def merge_on_disk(source: Folder, names: Sequence[str], starts: Sequence[int], folder: Path) -> int:
    """Merge inverted lists into a file, from mapped ones: memory for at most one part."""
    whole = make_shell(source.path(names[0]))
    ivf = inverted(whole, source.path(names[0]))
    with tempfile.TemporaryDirectory(prefix="shifted-", dir=folder.parent) as scratch:
        paths = [source.path(name) for name in names]
        paths = [shift(path, start, Path(scratch)) for path, start in zip(paths, starts, strict=True)]
        mapped = [faiss.read_index(path, faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY) for path in paths]
        vector = faiss.InvertedListsPtrVector()
        for index in mapped:
            vector.push_back(inverted(index, source.url).invlists)
        rows = sum(int(index.ntotal) for index in mapped)
        lists = faiss.OnDiskInvertedLists(ivf.nlist, ivf.code_size, str(folder / LISTS))
        with printing_nothing(), Console(stderr=True).status(f"merging {rows:,} rows of {len(names)} files"):
            lists.merge_from_multiple(vector.data(), vector.size())
    ivf.replace_invlists(lists, False)  # noqa: FBT003 -- faiss takes no keyword
    ivf.ntotal = whole.ntotal = rows
    lists.filename = LISTS  # next to the index, wherever that will be
    write_file(whole, folder / POPULATED)
    return rows


def shift(path: str, start: int, folder: Path) -> str:
    """Write a copy with shifted ids; return its path. faiss's own shift is wrong for parts of unequal size."""
    if not start:
        return path
    index = faiss.read_index(path)
    ivf = inverted(index, path)
    for i in range(ivf.nlist):
        size = ivf.invlists.list_size(i)
        if size:
            ids = faiss.rev_swig_ptr(ivf.invlists.get_ids(i), size)
            ids += start
    shifted = folder / f"{start}{INDEX_SUFFIX}"
    write_file(index, shifted)
    return str(shifted)


def inverted(index: Any, path: str) -> Any:
    """Return the IVF node, whose lists can be moved to disk; raises IndexBuildError if there is none."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        return inverted(index.index, path)
    if not isinstance(index, faiss.IndexIVF) or isinstance(index, faiss.IndexIVFFastScan):
        kind = with_article(type(index).__name__)
        raise IndexBuildError(f"{path} is {kind}, {why_not_on_disk(index)}; use --on_disk False")
    return index


def why_not_on_disk(index: Any) -> str:
    if isinstance(index, faiss.IndexIVFFastScan):
        return "whose lists of 4-bit codes faiss keeps in memory"
    if any(isinstance(node, faiss.IndexIVF) for node in list_nodes(index)):
        return "whose lists are in memory together with the codes of the refinement"
    return "which has no lists"


def make_shell(path: str) -> Any:
    """Return the index without its rows."""
    index = faiss.read_index(path, faiss.IO_FLAG_MMAP)
    empty_out(index)
    return index


def empty_out(index: Any) -> None:
    """Take the rows out of an index. Raises IndexBuildError if indices of this kind cannot be merged."""
    index = faiss.downcast_index(index)
    if not isinstance(index, EMPTIED) or isinstance(index, UNMERGED):
        raise IndexBuildError(
            f"{with_article(type(index).__name__)} cannot be merged; put the files into a folder image.index, where "
            "they are searched together"
        )
    for name in ("index", "base_index", "refine_index"):
        if hasattr(index, name):
            empty_out(getattr(index, name))
    if isinstance(index, faiss.IndexIVF):
        lists = faiss.ArrayInvertedLists(index.nlist, index.code_size)
        index.replace_invlists(lists, True)  # noqa: FBT003 -- faiss takes no keyword
        lists.this.disown()
    if isinstance(index, faiss.IndexPQFastScan):
        index.codes.resize(0)
        index.ntotal2 = 0
    if isinstance(index, faiss.IndexFlatCodes):
        index.codes = faiss.IndexFlatIP(1).codes  # may be mapped, and is not to be cleared then
    index.ntotal = 0
