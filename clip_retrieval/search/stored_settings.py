"""Search settings inside faiss files, so plain faiss searches a file as well as we do.

A file is finished before its settings are chosen. These few bytes are changed in place, since writing the whole file
again would take the memory of the index. Source of the layout: faiss/impl/index_write.cpp.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss

from clip_retrieval.search.files import POPULATED
from clip_retrieval.search.outlines import open_to_describe
from clip_retrieval.search.settings import QUANTIZER, Settings, settings_of, with_quantizer
from clip_retrieval.search.tree import list_nodes

logger = logging.getLogger(__name__)

HEADER_BYTES = 37  # name 4, dimensions 4, rows 8, unused 16, trained or not 1, metric 4
COUNT_BYTES = 8  # before every array: its length
UNSIGNED, SIGNED, FLOAT = "<Q", "<i", "<f"


@dataclass(frozen=True)
class Place:
    """The place of a setting in a file."""

    name: str
    offset: int
    layout: str  # format of Python's struct


def set_settings(index: Any, settings: Mapping[str, float]) -> None:
    """Set an opened index to the settings that faiss writes into files; others are skipped."""
    wanted = with_quantizer(index, {**settings_of(index), **settings}, settings)
    for node in list_nodes(index):
        if isinstance(node, faiss.IndexRefine):
            node.k_factor = wanted["k_factor_rf"]
        elif isinstance(node, faiss.IndexHNSW):
            node.hnsw.efSearch = int(wanted["efSearch"])
        elif isinstance(node, faiss.IndexIVF):
            node.nprobe = min(int(wanted["nprobe"]), node.nlist)
            graph = faiss.downcast_index(node.quantizer)
            if isinstance(graph, faiss.IndexHNSW):
                graph.hnsw.efSearch = int(wanted[f"{QUANTIZER}efSearch"])


def store_settings(path: Path, settings: Settings) -> None:
    """Write settings into a faiss file, or into all files of a folder; settings that files do not hold are skipped."""
    if path.is_dir():
        names = [path / POPULATED] if (path / POPULATED).exists() else sorted(path.glob("*.index"))
        for name in names:
            store_settings(name, settings)
        return
    with path.open("r+b") as file:
        index = open_to_describe(str(path))
        places, now = list(find_places(index, 0, path.stat().st_size)), settings_of(index)
        for place in places:
            file.seek(place.offset)
            held = struct.unpack(place.layout, file.read(struct.calcsize(place.layout)))[0]
            if max(1, held) != now[place.name]:
                logger.warning("%s: faiss %s holds settings elsewhere; they are only in its json file",
                               path, faiss.__version__)  # fmt: skip
                return
        set_settings(index, settings)
        wanted = settings_of(index)
        for place in places:
            value = wanted[place.name]
            file.seek(place.offset)
            file.write(struct.pack(place.layout, value if place.layout == FLOAT else int(value)))


def find_places(index: Any, start: int, end: int) -> Iterator[Place]:
    """Yield the places of a node's settings; the node begins at `start`, the file ends at `end`."""
    node = faiss.downcast_index(index)
    inside = start + HEADER_BYTES
    if isinstance(node, faiss.IndexIDMap):
        yield from find_places(node.index, inside, end)
    elif isinstance(node, faiss.IndexPreTransform):
        transforms = [faiss.downcast_VectorTransform(node.chain.at(i)) for i in range(node.chain.size())]
        yield from find_places(node.index, inside + 4 + sum(map(count_bytes, transforms)), end)
    elif isinstance(node, faiss.IndexRefine):
        yield Place("k_factor_rf", end - 4, FLOAT)
        yield from find_places(node.base_index, inside, end)
    elif isinstance(node, faiss.IndexHNSW):
        yield Place("efSearch", inside + bytes_before_depth(node.hnsw), SIGNED)
    elif isinstance(node, faiss.IndexIVF):
        yield Place("nprobe", inside + 8, UNSIGNED)
        quantizer = find_places(node.quantizer, inside + 16, end)
        yield from (Place(QUANTIZER + place.name, place.offset, place.layout) for place in quantizer)


def count_bytes(transform: Any) -> int:
    """Return how many bytes faiss writes for a transform."""
    writer = faiss.VectorIOWriter()
    faiss.write_VectorTransform(transform, writer)
    return int(writer.data.size())


def bytes_before_depth(graph: Any) -> int:
    """Return the bytes of a graph before efSearch in a file."""
    arrays = (
        (graph.assign_probas, 8),
        (graph.cum_nneighbor_per_level, 4),
        (graph.levels, 4),
        (graph.offsets, 8),
        (graph.neighbors, 4),
    )
    before = 12  # entry point, highest level, efConstruction: 4 each
    return before + int(sum(COUNT_BYTES + array.size() * item for array, item in arrays))
