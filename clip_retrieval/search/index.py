"""An index opened for search: ids and scores, without padding and without rows that have no embedding."""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from clip_retrieval.checksums import checked_at_opening, find_damage
from clip_retrieval.errors import DAMAGED_NPY, ConfigError, QueryError, StorageError
from clip_retrieval.layout import IndexFolder, Modality, about_index, read_manifest
from clip_retrieval.revision import settle
from clip_retrieval.search.allowed_rows import make_selector, search_part_allowed
from clip_retrieval.search.cores import of_one_thread
from clip_retrieval.search.every_row import compare_every_row, count_kept
from clip_retrieval.search.files import OpenPart, open_parts
from clip_retrieval.search.graph_entries import Entries
from clip_retrieval.search.results import SearchResult, clean_all, merge
from clip_retrieval.search.row_ids import check_ids
from clip_retrieval.search.settings import (
    Settings,
    parse_settings,
    search_parameters,
    set_up,
    settings_of,
    widest,
)
from clip_retrieval.search.tree import has_graph, list_nodes

TUNED_HITS, FEW_HITS = 10, 16  # settings are tuned for 10 hits, and serve up to 16 without more refined candidates
ROWS_PER_HIT = 4  # least rows that are scanned for each hit
REFINED_PER_HIT = 16  # least rows that are refined for each hit, if there are more than FEW_HITS
MOST_REFINED = 32_768  # most rows that are refined, unless more hits are wanted
LEAST_FACTOR = 1.25
OPENING_TRIES = 10
MOST_KEPT = 64  # settings whose parameters are kept
HITS_AT_ONCE = 8_000_000  # hits of all queries of one faiss call: 96 MB
NO_ROWS = np.empty(0, np.int64)


class Index:
    """One opened index; searches share no state, so they may run at once, each with its own settings."""

    def __init__(
        self,
        index: Any | Sequence[OpenPart],
        empty_rows: NDArray[np.int64],
        settings: Settings | None = None,
        row_count: int | None = None,  # rows of the embeddings; zero rows may be absent from the index
    ) -> None:
        self.parts: Sequence[OpenPart] = index if isinstance(index, Sequence) else [OpenPart(index)]
        self.index = self.parts[0].index
        self.dim = int(self.index.d)
        self.row_count = row_count or count_rows(self.parts)
        held = sum(int(part.index.ntotal) for part in self.parts)
        self.empty_rows = empty_rows  # zero rows, which are never hits
        is_without = row_count is not None and held + len(empty_rows) <= row_count  # lists do not hold zero rows
        self.excluded = empty_rows[:0] if is_without else empty_rows  # zero rows that searches have to leave out
        self.selectors = [make_selector(part, self.excluded) for part in self.parts]
        self.kept: dict[tuple[int, Settings], Any] = {}  # cached faiss parameters; must never be modified
        self.chosen: dict[tuple[int, Settings], Settings] = {}  # by number of hits and given settings
        self.settings = settings or Settings()
        for part in self.parts:
            set_up(part.index, self.settings)
        # files of a folder may be of different kinds: each uses the settings that it knows
        self.own_settings = widest([settings_of(part.index) for part in self.parts])
        for part in self.parts if len(self.parts) > 1 else ():
            set_up(part.index, self.own_settings)
        self.known_settings = set(self.own_settings)
        self.list_count = max(count_lists(part.index) for part in self.parts)
        self.entries = [Entries(part, self.excluded) for part in self.parts]  # of graphs
        self.graph_rows = [count_kept(part, self.excluded) if has_graph(part.index) else 0 for part in self.parts]

    @property
    def has_graph(self) -> bool:
        """Say whether any part finds its rows along the links of a graph."""
        return any(self.graph_rows)

    def search(
        self, query: NDArray[np.float32], k: int, settings: Settings | None = None, *, every_row: bool = False
    ) -> SearchResult:
        """Return up to k hits for one query [dim]; fewer if the index has fewer rows, or if few lists are scanned."""
        return self.search_many(query[None], k, settings, every_row=every_row)[0]

    def search_many(
        self, queries: NDArray[np.float32], k: int, settings: Settings | None = None, *, every_row: bool = False
    ) -> list[SearchResult]:
        """Return up to k hits for each query [q, dim]; settings that are not given are taken from the index.

        A graph gives k hits if it has as many rows, even if its links lead to fewer (`Entries`). `every_row`
        always compares all rows, and scans all lists unless nprobe is given, so hits are the best of all.

        Raises QueryError for another dimension, and for settings that the index does not have.
        """
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise QueryError(
                f"the query has {queries.shape[-1]} dimensions, the index has {self.dim}: they are of different models"
            )
        chosen = self.choose(k, settings or Settings())
        if every_row:
            chosen = self.with_all_lists(chosen, settings or Settings())
        found: list[SearchResult] = []
        for some in self.split(queries, k):
            with of_one_thread() if len(some) == 1 else nullcontext():
                of_parts = [
                    self.search_graph(i, some, k, chosen, every_row=every_row)
                    if self.graph_rows[i]
                    else self.search_part(i, some, k, chosen)
                    for i in range(len(self.parts))
                ]
            found += of_parts[0] if len(of_parts) == 1 else [merge(hits, k) for hits in zip(*of_parts, strict=True)]
        return found

    def split(self, queries: NDArray[np.float32], k: int) -> Iterator[NDArray[np.float32]]:
        """Yield the queries in blocks whose hits fit into memory."""
        rows = np.ascontiguousarray(queries, dtype=np.float32)
        step = max(1, HITS_AT_ONCE // max(1, min(k, self.row_count)))
        yield from (rows[start : start + step] for start in range(0, len(rows), step))

    def settings_for(self, k: int, settings: Settings | None = None) -> Settings:
        """Return the settings of the index, or other settings, widened for k hits, since they are tuned for ten.

        Probe one more tuned nprobe per tenfold k, and enough lists to scan 4k rows. Refine as many candidates as for
        ten hits. Beyond 16 hits, refine more by the root of k, which keeps the recall of ten hits even with short
        codes, and 16 per hit; but at most 32,768 candidates or 1.25 per hit. A graph's queue is as long as the hits,
        since faiss returns fewer with a shorter one.
        """
        tuned = self.settings | (settings or {})
        usual = self.own_settings | tuned
        changed: dict[str, float] = {}
        if self.list_count and "nprobe" in self.known_settings:
            share = min(1.0, ROWS_PER_HIT * k / max(1, self.row_count))
            wider = usual["nprobe"] * (1 + math.log10(k / TUNED_HITS) if k > FEW_HITS else 1)
            changed["nprobe"] = max(
                usual["nprobe"], min(self.list_count, math.ceil(max(wider, share * self.list_count)))
            )
        if self.has_graph:
            changed["efSearch"] = max(usual["efSearch"], min(k, self.row_count))
        factor = usual.get("k_factor_rf", 1)
        if factor > 1:
            tenth = TUNED_HITS / max(1, k)
            wanted = max(factor, factor * tenth) if k <= FEW_HITS else max(factor * tenth**0.5, REFINED_PER_HIT)
            changed["k_factor_rf"] = max(LEAST_FACTOR, min(wanted, MOST_REFINED / max(1, k)))
        return tuned | changed

    def with_all_lists(self, chosen: Settings, given: Settings) -> Settings:
        """Return settings that scan all lists, unless their number is given."""
        has_lists = self.list_count and "nprobe" in self.known_settings
        return chosen | {"nprobe": self.list_count} if has_lists and "nprobe" not in given else chosen

    def choose(self, k: int, given: Settings) -> Settings:
        """Return the settings for k hits, replaced by given ones; kept for the next search."""
        found = self.chosen.get((k, given))
        if found is None:
            if len(self.chosen) >= MOST_KEPT:
                self.chosen.clear()
            found = self.chosen[k, given] = self.settings_for(k) | self.checked(given)
        return found

    def checked(self, settings: Settings) -> Settings:
        unknown = [name for name in settings if name not in self.known_settings and name != "efSearch"]
        if "efSearch" in settings and not {"efSearch", "quantizer_efSearch"} & self.known_settings:
            unknown.append("efSearch")
        if unknown:
            known = ", ".join(sorted(self.known_settings)) or "none"
            raise QueryError(f"this index has no search setting {unknown[0]}; it has {known}")
        return settings

    def parameters(self, i: int, settings: Settings) -> Any:
        """Return faiss's parameters for a part: kept from an earlier search with these settings, since they take time.

        They are new if rows are left out, since faiss then writes into them.
        """
        selector = self.selectors[i]
        if selector is not None:
            return search_parameters(self.parts[i].index, settings, selector)
        known = self.kept.get((i, settings))
        if known is None:
            if len(self.kept) >= MOST_KEPT:
                self.kept.clear()
            known = self.kept[i, settings] = search_parameters(self.parts[i].index, settings)
        return known

    def search_graph(
        self, i: int, queries: NDArray[np.float32], k: int, settings: Settings, *, every_row: bool
    ) -> list[SearchResult]:
        """Search a graph; for queries with too few hits, find more in other ways."""
        part, wanted = self.parts[i], min(k, self.graph_rows[i])
        if every_row:
            return compare_every_row(part, queries, k, self.entries[i].may_be_hits)
        found = self.search_part(i, queries, k, settings)
        short = [place for place, hits in enumerate(found) if len(hits.ids) < wanted]
        if short:
            more = self.entries[i].find_more(queries[short], [found[place] for place in short], k, wanted)
            for place, hits in zip(short, more, strict=True):
                found[place] = hits
        return found

    def search_part(self, i: int, rows: NDArray[np.float32], k: int, settings: Settings) -> list[SearchResult]:
        """Search one faiss index; if it cannot leave rows out by itself, ask for more until enough are left."""
        part, selector = self.parts[i], self.selectors[i]
        excluded = self.excluded if selector is None else NO_ROWS
        asked = k = min(k, part.index.ntotal)
        while k > 0:
            scores, ids = part.index.search(rows, asked, params=self.parameters(i, settings))
            found = clean_all(ids, scores, excluded, part)
            is_short = any(len(hits.ids) < k and row[-1] >= 0 for hits, row in zip(found, ids, strict=True))
            if not is_short or asked >= part.index.ntotal:
                return [SearchResult(hits.ids[:k], hits.scores[:k]) for hits in found]
            asked = min(4 * asked, part.index.ntotal)
        return [SearchResult(NO_ROWS, np.empty(0, np.float32)) for _ in rows]

    def search_allowed(
        self,
        rows: NDArray[np.float32],
        k: int,
        settings: Settings,
        allowed: NDArray[np.bool_],
        parts: Sequence[OpenPart] | None = None,
    ) -> list[SearchResult]:
        """Search among the rows whose place in `allowed` [row_count] is true; k hits if the settings find them.

        Searches all parts, or only some of them, at least one.
        """
        found: list[SearchResult] = []
        for some in self.split(rows, k):
            with of_one_thread() if len(some) == 1 else nullcontext():
                of_parts = [search_part_allowed(part, some, k, settings, allowed) for part in parts or self.parts]
            found += [merge(hits, k) for hits in zip(*of_parts, strict=True)]
        return found


def count_rows(parts: Sequence[OpenPart]) -> int:
    """Return the rows of all parts, or one past the last row of any part."""
    counts = [int(part.index.ntotal) for part in parts]
    return max(sum(counts), *(part.first_row + count for part, count in zip(parts, counts, strict=True)))


def count_lists(index: Any) -> int:
    """Return the inverted lists of an index tree; 0 if it has none."""
    return max((int(node.nlist) for node in list_nodes(index) if isinstance(node, faiss.IndexIVF)), default=0)


def open_index(folder: IndexFolder, modality: Modality, *, memory_map: bool = False) -> Index:
    """Open one index; raises QueryError if the folder has none of that modality."""
    for _ in range(OPENING_TRIES):
        settle(folder)
        manifest = read_manifest(folder) or {}
        parts = open_parts(folder, modality, memory_map=memory_map)
        settings = read_settings(folder, modality, known_settings(parts))
        empty_rows = read_empty_rows(folder, modality)
        about = about_index(manifest, modality)
        damage = find_damage(folder, about.get("sums") or {}, checked_at_opening(folder))
        if (read_manifest(folder) or {}) == manifest:  # otherwise a build changed files in between
            if damage is not None:
                raise damage
            if not about.get("sums"):
                check_ids(folder, parts, about.get("rows"))
            return Index(parts, empty_rows, settings, about.get("rows"))
    raise StorageError(f"{folder.url} keeps changing; try again when its build has finished")


def known_settings(parts: Sequence[OpenPart]) -> set[str]:
    """Return the settings that any part knows."""
    return {name for part in parts for name in settings_of(part.index)}


def read_settings(folder: IndexFolder, modality: Modality, known: Collection[str]) -> Settings:
    """Return the search settings in the index's json file that the index knows."""
    name = folder.info_name(modality)
    try:
        settings = parse_settings(folder.read_info(modality).get("index_param") or "")
    except ConfigError as error:
        raise StorageError(f"index_param in {folder.path(name)}: {error}") from error
    return Settings({name: value for name, value in settings.items() if name in known or name == "efSearch"})


def read_empty_rows(folder: IndexFolder, modality: Modality) -> NDArray[np.int64]:
    name = folder.empty_rows_name(modality)
    if not folder.exists(name):
        return np.empty(0, dtype=np.int64)
    try:
        rows: NDArray[np.int64] = np.load(io.BytesIO(folder.read_bytes(name)), allow_pickle=False)
    except DAMAGED_NPY as error:
        raise StorageError(f"{folder.path(name)} is not a readable npy file", advice="build the index again") from error
    return rows
