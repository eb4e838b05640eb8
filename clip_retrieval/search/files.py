"""The faiss files of one index: a single file, or a folder with parts that are searched together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import msgspec
import numpy as np

from clip_retrieval.errors import QueryError, StorageError, describe_os_error
from clip_retrieval.layout import INDEX_SUFFIX, MODALITIES, IndexFolder, Modality
from clip_retrieval.search.native_output import printing_nothing
from clip_retrieval.search.part_ids import Named, find_first_rows, tell_order
from clip_retrieval.search.row_places import RowPlaces
from clip_retrieval.search.tree import list_nodes
from clip_retrieval.storage import Folder

POPULATED, LISTS = "populated.index", "merged_index.ivfdata"  # file names of an index with lists on disk
LISTS_FIRST = (b"Iw", b"Iv", b"IxPT")  # first bytes of IVF files, and of transforms, which mostly hold an IVF
BYTES_AT_ONCE = 1 << 17
METRICS = (faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2)


class OpenPart(msgspec.Struct, frozen=True):
    """One opened faiss index, the offset of its ids, the places of its rows once looked up, and its file's name."""

    index: Any
    first_row: int = 0
    places: RowPlaces = msgspec.field(default_factory=RowPlaces)
    name: str = ""  # below the index folder


def open_parts(folder: IndexFolder, modality: Modality, *, memory_map: bool = False) -> list[OpenPart]:
    """Open all parts of an index; raises QueryError if there is none, StorageError if a file is damaged."""
    name = folder.index_name(modality)
    if not folder.exists(name):
        raise no_index(folder, f"no {name}")
    if not folder.fs.isdir(folder.path(name)):
        return [OpenPart(open_file(folder, name, memory_map=memory_map), name=name)]
    names = folder.names(name, INDEX_SUFFIX)
    if POPULATED in names:
        names = [POPULATED]
    if not names:
        raise StorageError(f"{folder.path(name)} is a folder without an *.index file", advice="build the index again")
    described = read_places(folder, modality)
    indices = [open_file(folder, f"{name}/{part}", memory_map=memory_map) for part in names]
    check_alike(folder.path(name), names, indices)
    named = Named(folder.path(name), names, folder.path(folder.info_name(modality)))
    firsts = find_first_rows(named, indices, described)
    if any(firsts) and not described:
        tell_order(named.path, names, named.info)
    return [
        OpenPart(index, first, name=f"{name}/{part}") for part, index, first in zip(names, indices, firsts, strict=True)
    ]


def read_places(folder: IndexFolder, modality: Modality) -> dict[str, int]:
    """Return where the rows of each part begin, from the index's json file."""
    places = {part["file"]: part["first_row"] for part in folder.read_info(modality).get("parts", [])}
    for file, first in places.items():
        if first < 0:
            info = folder.path(folder.info_name(modality))
            raise StorageError(f"{info} says that the rows of {file} begin at {first:,}; correct the parts there")
    return places


def check_alike(path: str, names: list[str], indices: list[Any]) -> None:
    for name, index in zip(names, indices, strict=True):
        if (index.d, index.metric_type) != (indices[0].d, indices[0].metric_type):
            raise StorageError(
                f"{path}/{name} has another dimension or metric than {names[0]}", advice="build the index again"
            )


def open_file(folder: Folder, name: str, *, memory_map: bool = False) -> Any:
    """Open one faiss file; raises StorageError if it is damaged, QueryError if its metric is neither IP nor L2."""
    path = folder.path(name)
    try:
        with folder.answering(), folder.open(name) as file:
            begin = file.read(4)
    except OSError as error:  # faiss does not say why it cannot open a file
        raise StorageError(f"cannot read {describe_os_error(error)}") from error
    try:
        if folder.is_local:
            index = map_file(path, begin) if memory_map else read_file(path)
        else:
            index = read_remote(folder, name)
    except (RuntimeError, MemoryError) as error:
        raise StorageError(
            f"{path} cannot be read as a faiss index{explain_lists(error)}", advice="build it again"
        ) from error
    if index.metric_type not in METRICS:
        raise QueryError(f"{path} compares by another measure than inner product or L2; build it with one of those")
    return index


def read_file(path: str, mapping: int = 0) -> Any:
    """Read a file with one of faiss's mapping flags; lists on disk are looked for next to it."""
    with printing_nothing():  # faiss names each file of lists; errors are raised
        index = faiss.read_index(path, faiss.IO_FLAG_ONDISK_SAME_DIR | faiss.IO_FLAG_READ_ONLY | mapping)
    for lists in mapped_lists(index):
        lists.prefetch_nthread = 0  # 32 threads for each query took three times as long as the query
    return index


def map_file(path: str, begin: bytes) -> Any:
    """Memory-map a file, to read rows on demand; fast-scan lists are read into memory anyway.

    faiss has two ways. IO_FLAG_MMAP maps only inverted lists; it leaves out lists in a separate file, and then a search
    ends the process. IO_FLAG_MMAP_IFC maps arrays (Flat, SQ, PQ, HNSW, the second index of a refinement), but copies
    inverted lists into memory, and refuses lists in a separate file.
    """
    if begin.startswith(LISTS_FIRST):
        index = read_file(path, faiss.IO_FLAG_MMAP)
        if any(lists.ptr is None for lists in mapped_lists(index)):
            return read_file(path)  # maps the file of the lists
        if faiss.try_extract_index_ivf(index) is not None:
            return index
    try:
        return read_file(path, faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError:
        return read_file(path)  # lists in a separate file below a refinement or an id map


def mapped_lists(index: Any) -> Iterator[Any]:
    """Yield the inverted lists of an index that are in a file, not in memory."""
    for node in list_nodes(index):
        if isinstance(node, faiss.IndexIVF):
            lists = faiss.downcast_InvertedLists(node.invlists)
            if isinstance(lists, faiss.OnDiskInvertedLists):
                yield lists


def write_file(index: Any, path: Path) -> None:
    """Write a faiss file to this machine; raises OSError if that fails, such as on a full disk.

    It uses Python's file, since faiss's own rewords the system's errors, and only prints one of the last bytes.
    """
    with path.open("wb") as file:
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write, BYTES_AT_ONCE))


def read_remote(folder: Folder, name: str) -> Any:
    if folder.exists(str(name).replace(POPULATED, LISTS)) and name.endswith(POPULATED):
        raise StorageError(f"{folder.path(name)} has its lists on disk, which need a folder on this machine; copy it")
    return faiss.deserialize_index(np.frombuffer(folder.read_bytes(name), dtype=np.uint8))


def explain_lists(error: BaseException) -> str:
    return f" (its {LISTS} is missing or damaged)" if ".ivfdata" in str(error) else ""


def list_indices(folder: IndexFolder) -> list[Modality]:
    """Return which indices a folder has; raises QueryError if it has none."""
    found = [modality for modality in MODALITIES if folder.exists(folder.index_name(modality))]
    if not found:
        raise no_index(folder, "neither image.index nor text.index")
    return found


def no_index(folder: IndexFolder, lacking: str) -> QueryError:
    """Return the error for a folder that lacks an index: how to make one, or which it has."""
    names, what = folder.names("", INDEX_SUFFIX), f"{folder.url} has {lacking}"
    if not names:
        return QueryError(what, advice="`clip-retrieval index` makes one")
    if POPULATED in names:
        return QueryError(
            f"{what}; its {POPULATED} and {LISTS} are one index: move both into a folder image.index (or text.index), "
            "and name the folder above it"
        )
    return QueryError(f"{what}; it has {' and '.join(names)} (choose with --modality)")
