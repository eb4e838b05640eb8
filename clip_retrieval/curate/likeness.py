"""What makes rows duplicates: the relations that `dedup` covers, and the reasons why two rows are alike."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.curate.bits import count_differing, near_pairs
from clip_retrieval.curate.blocks import Blocks, count_blocks, find_blocks, margin_of, visit_share
from clip_retrieval.curate.config import DedupConfig
from clip_retrieval.curate.cover import More, Relation
from clip_retrieval.curate.embedded import Embedded, Floats, Ids, Pool, exact_cosines, rounding, unit
from clip_retrieval.curate.pairs import Pairs, find_pairs
from clip_retrieval.curate.pictures import find_digests, hash_pictures
from clip_retrieval.curate.placed import Placed, Rows, place_rows
from clip_retrieval.curate.projection import Projected, find_projection, project_rows
from clip_retrieval.curate.scan import Scan, same_rows
from clip_retrieval.curate.threads import threads_alone
from clip_retrieval.curate.tiles import NO_ENDS, Compare, Ends, Side, Tile, Tiles, distinct_ends
from clip_retrieval.curate.workspace import Workspace
from clip_retrieval.embeddings.half_precision import widen
from clip_retrieval.errors import SourceError

ALL_PAIRS_UP_TO = 50_000  # rows, which are compared in seconds
WORTH_BLOCKS = 0.2  # if rows visit a larger share of the blocks, all are compared with all
SAMPLE = 1000
BYTES, EMBEDDING, PERCEPTUAL, SEMANTIC = "bytes", "embedding", "perceptual", "semantic"
ROWS_AT_ONCE = 8192
RECALL_COLUMNS = 1024


@dataclass(frozen=True, eq=False)
class Recall:
    """Pairs of some rows by comparison with all others, and how many of them the blocks found."""

    rows: int
    pairs: int
    found: int


@dataclass(frozen=True, eq=False)
class Likeness:
    """Everything that is known of which rows are alike."""

    scan: Scan
    digests: Ids | None  # [rows]: class of the same bytes, -1 if unknown
    hashes: NDArray[np.uint64] | None  # [rows]: pHashes, 0 if there is none
    relations: list[Relation]
    more: More | None  # finds what is not among the pairs in memory
    blocks: int
    is_exact: bool  # every pair is known
    recall: Recall | None

    def why(self, rows: Ids, leaders: Ids, pool: Pool) -> list[str]:
        """Return for each row and the row that covers it the strongest of the reasons that were asked for."""
        found = np.full(len(rows), SEMANTIC, dtype=object)
        if self.hashes is not None:
            is_like = (self.hashes[rows] > 0) & (self.hashes[leaders] > 0)
            differing = count_differing(self.hashes[rows], self.hashes[leaders])
            found[is_like & (differing <= self.most_bits)] = PERCEPTUAL
        if self.digests is not None:
            own = self.scan.hashes  # classes end at the boundary of two folders, hashes do not
            places = np.flatnonzero((own[rows] > 0) & (own[rows] == own[leaders]))
            for start in range(0, len(places), ROWS_AT_ONCE):
                some = places[start : start + ROWS_AT_ONCE]
                found[some[same_rows(pool.rows(rows[some]), pool.rows(leaders[some]))]] = EMBEDDING
            found[(self.digests[rows] >= 0) & (self.digests[rows] == self.digests[leaders])] = BYTES
        return list(found)

    most_bits: int = 0

    def count_unread(self, row_count: int) -> int:
        """Return how many of the first rows have no readable picture; 0 if pictures were not compared."""
        return 0 if self.hashes is None else int((self.hashes[:row_count] == 0).sum())


def find_likeness(
    members: list[Embedded], config: DedupConfig, scan: Scan, compare: Compare, work: Workspace
) -> Likeness:
    """Compare the rows in every way that was asked for."""
    relations, digests, hashes, more, recall = [], None, None, None, None
    pool = Pool([member.vectors for member in members])
    blocks, is_exact = 0, True
    if "exact" in config.by:
        digests = np.asarray(work.keep("digests", partial(join_digests, members, scan)))
        across = equal_across(pool, scan, compare)
        relations += [Relation.of(digests, NO_ENDS), Relation.of(scan.classes, across)]
    if "perceptual" in config.by:
        hashes = np.asarray(work.keep("hashes_of_pictures", partial(join_hashes, members)))
        if not hashes.any() and config.by == ("perceptual",):
            raise SourceError(f"no picture of {config.embeddings_folder} could be read, so none can be compared")
        relations.append(relate_hashes(hashes, config.max_bits))
    if "semantic" in config.by:
        placed, chosen, is_exact = place(pool, config, scan, work)
        pairs = find_pairs(placed, compare, work)
        relations.append(Relation.of(scan.classes, scan.classes[pairs.ends]))
        blocks = chosen.count
        more = None if not pairs.cut else look_for_more(pool, scan, compare, pairs)
        if not is_exact and not pairs.cut and config.check_rows:
            recall = measure_recall(placed, compare, pairs, config.check_rows)
    return Likeness(scan, digests, hashes, relations, more, blocks, is_exact, recall, config.max_bits)


def equal_across(pool: Pool, scan: Scan, compare: Compare) -> Ends:
    """Return the pairs of classes of equal embeddings on both sides of the boundary."""
    if compare.boundary is None:
        return NO_ENDS
    hashes = scan.hashes[scan.representatives]
    order = np.argsort(hashes, kind="stable")
    same = np.flatnonzero(np.diff(hashes[order]) == 0)
    pairs = np.stack([order[same], order[same + 1]], axis=1)
    found = [NO_ENDS]
    for start in range(0, len(pairs), ROWS_AT_ONCE):
        left, right = scan.representatives[pairs[start : start + ROWS_AT_ONCE]].T
        found.append(pairs[start : start + ROWS_AT_ONCE][same_rows(pool.rows(left), pool.rows(right))])
    return np.concatenate(found)


def join_digests(members: list[Embedded], scan: Scan) -> Ids:
    """Return classes of the same bytes over all folders, -1 if unknown; only pictures of equal embeddings are read."""
    _, numbers, counts = np.unique(scan.hashes, return_inverse=True, return_counts=True)
    is_equal = (scan.hashes > 0) & (counts[numbers] > 1)  # over all folders
    found, first = [], 0
    for member in members:
        own = slice(first, first + member.row_count)
        found.append(find_digests(member, np.flatnonzero(is_equal[own])))
        first += member.row_count
    return number_values(np.concatenate(found))[1]


def number_values(values: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], Ids]:
    """Return the distinct values except 0, and the number of each row's value, -1 for 0."""
    known = np.flatnonzero(values)
    distinct, numbers = np.unique(values[known], return_inverse=True)
    classes = np.full(len(values), -1, np.int64)
    classes[known] = numbers
    return distinct, classes


def join_hashes(members: list[Embedded]) -> NDArray[np.uint64]:
    return np.concatenate([hash_pictures(member, np.arange(member.row_count)) for member in members])


def relate_hashes(hashes: NDArray[np.uint64], most: int) -> Relation:
    distinct, classes = number_values(hashes)
    return Relation.of(classes, near_pairs(distinct, most) if most else NO_ENDS)


def place(pool: Pool, config: DedupConfig, scan: Scan, work: Workspace) -> tuple[Placed, Blocks, bool]:
    """Return the rows by block, the blocks, and whether these find every pair."""
    ids = scan.representatives
    is_exact = len(ids) <= ALL_PAIRS_UP_TO if config.exact is None else config.exact
    count = min(config.blocks or count_blocks(len(ids)), max(1, len(ids)))
    projection = find_projection(pool, ids, config.threshold, count, work)
    projected = project_rows(pool, ids, projection, work)
    margin = margin_of(projection, config.threshold, is_exact=is_exact)
    centroids = work.keep(
        "centroids", lambda: find(projected, count, margin, may_join=is_exact and config.blocks is None)
    )
    blocks = Blocks(np.asarray(centroids), margin)
    placed = place_rows(Rows(pool, ids, projected, projection.loss), blocks, work)
    return placed, blocks, is_exact or blocks.count == 1


def find(projected: Projected, count: int, margin: float, *, may_join: bool) -> Floats:
    """Return centroids; only one if rows would visit most blocks anyway and the number of blocks is ours to choose."""
    blocks = find_blocks(projected, count, margin)
    if may_join and blocks.count > 1:
        sample = widen(projected[:: max(1, len(projected) // SAMPLE)])
        if visit_share(blocks, sample) > WORTH_BLOCKS:
            return find_blocks(projected, 1, margin).centroids
    return blocks.centroids


def look_for_more(pool: Pool, scan: Scan, compare: Compare, pairs: Pairs) -> More:
    """Return a function that compares a row with all kept rows, if it has more pairs than memory holds."""

    def more(row: int, kept: list[int]) -> int | None:
        number = scan.classes[row]
        if number < 0 or int(scan.representatives[number]) not in pairs.cut:
            return None
        own = pool.rows(np.array([row]))
        for start in range(0, len(kept), ROWS_AT_ONCE):
            some = np.array(kept[start : start + ROWS_AT_ONCE])
            some = some[scan.classes[some] >= 0]
            near = np.flatnonzero(unit(pool.rows(some)) @ unit(own)[0] >= compare.threshold - rounding(pool.dim))
            there = pool.rows(some[near])
            is_pair = exact_cosines(there, np.repeat(own, len(there), axis=0)) >= compare.threshold
            if is_pair.any():
                return int(some[near][is_pair][0])
        return None

    return more


def measure_recall(placed: Placed, compare: Compare, pairs: Pairs, count: int) -> Recall:
    """Compare some rows, evenly spread, with all others, and count how many of their pairs are known."""
    rows = placed.rows
    positions = np.unique(np.linspace(0, len(rows.ids) - 1, min(count, len(rows.ids))).astype(np.int64))
    own = Side(rows, positions)

    def find_true(start: int) -> Ends:
        tiles = Tiles(rows, compare)
        there = Side(rows.mapped_again(), np.arange(start, min(start + RECALL_COLUMNS, len(rows.ids))))
        return np.concatenate([*tiles.compare([Tile(own, there)]), tiles.decide()])

    with threads_alone() as threads:
        true = [*threads.map(find_true, range(0, len(rows.ids), RECALL_COLUMNS))]
    wanted = distinct_ends(np.concatenate([NO_ENDS, *true]))
    width = np.int64(len(compare.rank))
    is_known = np.isin(wanted[:, 0] * width + wanted[:, 1], pairs.ends[:, 0] * width + pairs.ends[:, 1])
    return Recall(len(positions), len(wanted), int(is_known.sum()))
