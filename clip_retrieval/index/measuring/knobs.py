"""Tunable settings of a faiss index and its reconstruction error; neither changes the index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from clip_retrieval.index.measuring.tuning import Knob
from clip_retrieval.search.tree import list_nodes, reconstruct

FIRST_NPROBE, FIRST_EF = 8, 32
MOST_EF, MOST_FACTOR = 4096, 256


def find_knobs(indices: Sequence[Any]) -> list[Knob]:
    """Return the tunable settings of an index's parts, under the names used in image.json.

    If several parts have a setting, its values cover the range of all of them.
    """
    found: dict[str, Knob] = {}
    for index in indices:
        for knob in (knob for node in list_nodes(index) for knob in knobs_of(node)):
            known = found.get(knob.name)
            if known is None or knob.values[-1] > known.values[-1]:
                found[knob.name] = knob
    return list(found.values())


def knobs_of(node: Any) -> list[Knob]:
    if isinstance(node, faiss.IndexRefine):
        return [Knob("k_factor_rf", steps(1, MOST_FACTOR), 0)]
    if isinstance(node, faiss.IndexHNSW):
        return [ladder("efSearch", 16, MOST_EF, FIRST_EF)]
    if isinstance(node, faiss.IndexIVF):
        own = ladder("nprobe", 1, node.nlist, FIRST_NPROBE)
        is_graph = isinstance(faiss.downcast_index(node.quantizer), faiss.IndexHNSW)
        return [own, ladder("quantizer_efSearch", 16, min(MOST_EF, node.nlist), FIRST_EF)] if is_graph else [own]
    return []


def ladder(name: str, lowest: int, highest: int, start: int) -> Knob:
    values = steps(lowest, max(lowest, highest))
    return Knob(name, values, max(i for i, value in enumerate(values) if value <= max(start, lowest)))


def steps(lowest: int, highest: int) -> list[int]:
    """Return whole numbers from the lowest to the highest, two for each doubling: 1, 2, 3, 4, 6, 8, 12 and so on."""
    powers = [2**i for i in range(highest.bit_length() + 1)]
    values = sorted({*powers, *(3 * power for power in powers), highest})
    return [value for value in values if lowest <= value <= highest]


def reconstruction_error(index: Any, ids: Sequence[int], rows: NDArray[np.float32]) -> float | None:
    """Return the reconstruction error of rows [n, d] in percent of their mean length, as autofaiss defines it.

    None if this kind of index cannot reconstruct rows.
    """
    remembered = reconstruct(index, ids, rows) if len(rows) else None
    if remembered is None:
        return None
    distance = np.linalg.norm(remembered - rows, axis=1).mean()
    return float(100 * distance / np.linalg.norm(rows, axis=1).mean())
