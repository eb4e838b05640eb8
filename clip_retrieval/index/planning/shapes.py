"""Types of planning: the problem, the plan, the shape of codes, and faiss's names for them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

from clip_retrieval.index.planning.bounds import Bounds

Kind = Literal["exact", "graph", "refined", "listed", "coded", "given"]
Store = Literal["fp32", "fp16", "SQ8", "SQ6", "SQ4", "codes", "PCA"]  # PCA: a byte for each of some directions

FAISS_NAMES: dict[Store | None, str] = {"fp32": "Flat", "fp16": "SQfp16"}  # others have faiss's name
GRAPH_LINKS = 32
LISTS_FOR_GRAPH = 16_384  # number of lists above which a graph finds the nearest ones
MOST_LISTS = 32_768
ROWS_OF_LISTS = 256  # rows below which one list is enough
LISTS_PER_ROOT = 1.2  # lists for each square root of the rows


@dataclass(frozen=True, kw_only=True)
class Problem:
    """The vectors to index, and the bounds."""

    rows: int
    dim: int
    bounds: Bounds
    files: int = 1  # number of index files, each with its own centroids and codebooks
    empty_rows: int = 0  # zero rows, which are in no list and never neighbors
    asks_across: bool = True  # whether queries of the other modality count too: captions for pictures

    @property
    def cores(self) -> int:
        return self.bounds.cores or 1

    @property
    def filled_rows(self) -> int:
        return max(1, self.rows - self.empty_rows)

    def within(self, **bounds: Any) -> Problem:
        """Return the problem with some of its bounds changed."""
        return replace(self, bounds=replace(self.bounds, **bounds))


@dataclass(frozen=True)
class Plan:
    """An index, and what it will cost."""

    kind: Kind
    rows: int
    dim: int
    store: Store | None = None  # how rows are held to be compared with a query: all of them, or the best of the lists
    lists: int = 0
    code_bytes: int = 0  # bytes of a row's code in its list, without the id
    bits: int = 8  # bits of each code: 8, or 4, which the CPU compares 32 rows at a time
    store_bytes: int = 0  # bytes of a row's code in the store, if it holds codes or directions
    sample_rows: int = 0
    index_bytes: int = 0
    peak_bytes: int = 0
    seconds: float = 0.0
    recall: float = 0.0  # expected, in query_ms
    query_ms: float = 0.0
    promised: float | None = None  # recall to expect for CLIP embeddings, if `recall` was measured on others
    measured_on: int = 0  # rows of the sample on which recall was measured
    given_key: str = ""  # key of faiss's index_factory, if the user named one

    @property
    def is_unknown(self) -> bool:
        """Say whether its costs are unknown, as for a key of faiss that was not tried."""
        return self.kind == "given" and not self.measured_on

    @property
    def width(self) -> int:
        """Dimensions of the centroids."""
        return code_width(self.dim, 8 * self.code_bytes // self.bits) if self.code_bytes else self.dim

    @property
    def codes(self) -> Codes:
        """The shape of the codes in lists; meaningless if `code_bytes` is 0."""
        return Codes(self.dim, 8 * self.code_bytes // self.bits, self.bits)

    @property
    def stored_codes(self) -> Codes:
        """The shape of the codes in the store."""
        return Codes(self.dim, self.store_bytes, 8)

    @property
    def stored_key(self) -> str | None:
        if self.store == "PCA":
            return f"PCA{self.store_bytes},SQ8"
        return self.stored_codes.key if self.store == "codes" else FAISS_NAMES.get(self.store, self.store)

    @property
    def key(self) -> str:
        """Return what faiss's index_factory calls this shape; its rotation and codebooks are ours."""
        if self.kind == "given":
            return self.given_key
        store = self.stored_key
        if self.kind == "exact":
            return str(store)
        if self.kind == "graph":
            return f"HNSW{GRAPH_LINKS},{store}"
        graph = f"_HNSW{GRAPH_LINKS}" if self.lists >= LISTS_FOR_GRAPH else ""
        if self.kind == "listed":
            return f"IVF{self.lists}{graph},{store}"
        rotation, quantizer = self.codes.key.split(",")
        lists = f"{rotation},IVF{self.lists}{graph},{quantizer}{'fs' if self.bits == 4 else ''}"
        return f"{lists},Refine({store})" if store else lists

    def to_json(self) -> dict[str, Any]:
        return {
            "index_key": self.key,
            "rows": self.rows,
            "dimension": self.dim,
            "index_bytes": self.index_bytes,
            "peak_bytes": self.peak_bytes,
            "seconds": round(self.seconds, 1),
            "expected_recall@10": None if self.is_unknown else round(self.recall, 3),
            "expected_query_ms": None if self.is_unknown else round(self.query_ms, 2),
            "of_clip_embeddings@10": None if self.promised is None else round(self.promised, 3),
            "measured_on_rows": self.measured_on,
        }


@lru_cache(maxsize=64)
def count_lists(rows: int) -> int:
    """Return the number of lists for `rows` rows: a power of two; one for a handful, which is always probed."""
    return 1 if rows < ROWS_OF_LISTS else min(MOST_LISTS, 1 << round(math.log2(LISTS_PER_ROOT * math.sqrt(rows))))


@lru_cache(maxsize=4096)
def code_width(dim: int, groups: int) -> int:
    """Return the dimensions after the transform of a product quantizer, for thousands of candidates a plan."""
    return groups * code_slots(dim, groups)


def code_slots(dim: int, groups: int) -> int:
    return 1 << max(0, math.ceil(math.log2(dim / groups)))


@dataclass(frozen=True)
class Codes:
    """The shape of a product quantizer, and of the rotation before it."""

    dim: int
    groups: int
    bits: int

    @property
    def slots(self) -> int:
        """Most dimensions that share a code: a power of two, for which faiss has fast code."""
        return code_slots(self.dim, self.groups)

    @property
    def width(self) -> int:
        """Most dimensions after the transform; those that no code needs are padding."""
        return code_width(self.dim, self.groups)

    @property
    def key(self) -> str:
        return f"OPQ{self.groups}_{self.width},PQ{self.groups}x{self.bits}"
