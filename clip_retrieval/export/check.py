"""Check of an export: row count, ids, sampled vectors and metadata, and the same queries answered by both sides."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.embeddings.rows import read_rows
from clip_retrieval.export.columns import python_values
from clip_retrieval.export.config import CheckConfig
from clip_retrieval.export.exact import IdSum, Nearest
from clip_retrieval.export.source import Block, Ids, Source, to_precision
from clip_retrieval.export.target import Fetched, Target
from clip_retrieval.query.hits import plain

Floats = NDArray[np.float32]

FETCHED_ROWS = 250  # rows of one request to an engine
SECONDS_OF_QUERIES = 60.0  # for one kind of search; then the remaining queries are left out
TOLERANCE = 1e-3  # of inner products of unit vectors: engines sum in other orders, some in half precision
LONG_TEXT = 60_000  # characters; longer texts are cut by some engines, as their notes say
SEED = 0


@dataclass(frozen=True)
class Finding:
    """One comparison; `is_right` is None if nothing is required."""

    what: str
    here: str
    there: str
    is_right: bool | None
    figures: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Sample:
    """Rows and queries that are compared, vectors as the engine stores them."""

    ids: Ids
    vectors: Floats
    queries: Floats


class Scan:
    """The result of one pass over all exported rows: their ids, and the true hits of the queries."""

    def __init__(self, sample: Sample, k: int, dtype: np.dtype[Any]) -> None:
        self.nearest, self.seen, self.dtype = Nearest(sample.queries, k), IdSum(), dtype

    def add(self, block: Block) -> None:
        self.seen.add(block.ids)
        self.nearest.add(block.ids, to_precision(to_precision(block.vectors, self.dtype), np.dtype(np.float32)))


def stored_form(rows: Floats, dtype: np.dtype[Any]) -> Floats:
    """Return rows rounded to the precision of an engine, in fp32."""
    return to_precision(to_precision(rows, dtype), np.dtype(np.float32))


def draw_sample(source: Source, config: CheckConfig, dtype: np.dtype[Any]) -> Sample:
    """Draw rows evenly, the same each time; half of the queries are of the other modality if available."""
    random = np.random.default_rng(SEED)
    pool = source.row_count if source.met is None else len(source.met)
    wanted = max(config.check_rows, config.check_queries)
    drawn = np.sort(random.choice(pool, min(2 * wanted, pool), replace=False)).astype(np.int64)
    ids = drawn if source.met is None else source.met[drawn]
    kept = ids[source.is_exported(ids)]
    kept = np.sort(random.permutation(kept)[:wanted])
    rows = stored_form(source.take(kept), dtype)
    queries = rows[random.permutation(len(rows))[: config.check_queries]]
    if source.others is not None and len(queries) > 1:
        count = source.others.row_count
        some = np.sort(random.choice(count, min(len(queries), count), replace=False)).astype(np.int64)
        queries = mix(queries, stored_form(read_rows(source.others, some), dtype))
    return Sample(kept[: config.check_rows], rows[: config.check_rows], queries)


def mix(queries: Floats, others: Floats) -> Floats:
    """Replace up to half of the queries by rows of the other modality, as far as available."""
    others = others[others.any(axis=1)][: len(queries) // 2]
    return np.concatenate([queries[: len(queries) - len(others)], others])


def compare_rows(source: Source, target: Target, sample: Sample, scan: Scan) -> Iterator[Finding]:
    """Compare the ids of all rows, then vectors and metadata of the sample."""
    there = IdSum()
    for ids in target.ids():
        there.add(ids)
    yield Finding("rows", f"{scan.seen.count:,}", f"{there.count:,}", scan.seen.count == there.count)
    is_same = scan.seen == there
    yield Finding("ids", "all", "the same" if is_same else "different", is_same)
    if not len(sample.ids):
        return
    fetched = fetch_all(target, sample.ids)
    places = {int(row): place for place, row in enumerate(fetched.ids)}
    found = np.array([places.get(int(row), -1) for row in sample.ids])
    count = f"{len(sample.ids):,} sampled"
    vectors = (
        np.where(found[:, None] >= 0, fetched.vectors[found], np.nan) if len(fetched.ids) else sample.vectors * np.nan
    )
    equal = (vectors == sample.vectors).all(axis=1)
    yield Finding(
        f"vectors ({target.dtype})", count, f"{int(equal.sum()):,} equal", bool(equal.all()),
        {"largest_difference": float(np.nan_to_num(np.abs(vectors - sample.vectors), nan=math.inf).max(initial=0))},
    )  # fmt: skip
    if source.columns:
        yield compare_metadata(source, sample.ids, [fetched.rows[place] if place >= 0 else {} for place in found])


def fetch_all(target: Target, ids: Ids) -> Fetched:
    parts = [target.fetch(ids[start : start + FETCHED_ROWS]) for start in range(0, len(ids), FETCHED_ROWS)]
    return Fetched(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.vectors for part in parts]),
        [row for part in parts for row in part.rows],
    )


def compare_metadata(source: Source, ids: Ids, found: list[dict[str, Any]]) -> Finding:
    """Compare every value of the sample."""
    sent = source.read_metadata(ids)
    wrong: dict[str, int] = {}
    for name in sent.column_names:
        values = python_values(sent[name], source.odd)
        unlike = sum(not is_alike(value, row.get(name)) for value, row in zip(values, found, strict=True))
        if unlike:
            wrong[name] = unlike
    there = "equal" if not wrong else ", ".join(f"{count:,} differ in {name}" for name, count in wrong.items())
    what = f"metadata ({len(sent.column_names)} column{'s' if len(sent.column_names) > 1 else ''})"
    return Finding(what, f"{len(ids):,} sampled", there, not wrong)


def is_alike(sent: Any, found: Any) -> bool:
    """Say whether an engine gave a value back: unchanged, or in its JSON form."""
    if isinstance(sent, float) and isinstance(found, float | int):
        return math.isclose(sent, found, rel_tol=1e-6) or (math.isnan(sent) and math.isnan(found))
    if isinstance(sent, datetime) and isinstance(found, datetime):
        return sent.astimezone(UTC) == found.astimezone(UTC) if sent.tzinfo else sent == found
    if isinstance(sent, str) and isinstance(found, str):
        return len(sent) > LONG_TEXT or sent.replace("\x00", "\ufffd") == found.replace("\x00", "\ufffd")
    if isinstance(sent, list | tuple) and isinstance(found, list | tuple):
        return len(sent) == len(found) and all(map(is_alike, sent, found))
    if isinstance(sent, dict) and isinstance(found, dict):
        return sent.keys() == found.keys() and all(is_alike(value, found[name]) for name, value in sent.items())
    return bool(sent == found) or plain(sent) == found or str(plain(sent)) == found


@dataclass(frozen=True, eq=False)
class Answers:
    """The hits of a kind of search, and the time it took."""

    found: list[Ids]
    seconds: float

    def figures(self, recall: float) -> dict[str, float]:
        queries = max(1, len(self.found))
        return {
            "recall": round(recall, 4),
            "queries": len(self.found),
            "ms_each": round(1e3 * self.seconds / queries, 3),
        }


def ask_all(search: Callable[[Floats], list[Ids]], queries: Floats, *, at_once: bool = False) -> Answers:
    """Ask one query after the other, for at most a minute; the first is asked twice, to open files and fill caches."""
    if not len(queries):
        return Answers([], 0.0)
    if not at_once:
        search(queries[:1])
    start, found = time.perf_counter(), list[Ids]()
    step = len(queries) if at_once else 1
    while len(found) < len(queries) and time.perf_counter() - start < SECONDS_OF_QUERIES:
        found += search(queries[len(found) : len(found) + step])
    return Answers(found, time.perf_counter() - start)


def measure_recall(source: Source, scan: Scan, sample: Sample, found: list[Ids], tolerance: float = 0.0) -> float:
    """Return the share of the true hits that were found; rows as near as the last true hit count as true."""
    nearest, right, wanted = scan.nearest, 0, 0
    for query, ids, true_ids, scores in zip(sample.queries, found, nearest.ids, nearest.scores, strict=False):
        wanted += len(true_ids)
        ids = np.unique(ids[: len(true_ids)])
        known = np.isin(ids, true_ids)
        others = ids[~known]
        others = others[(others >= 0) & (others < source.row_count)]
        near = stored_form(source.take(others), scan.dtype) @ query if len(others) else np.empty(0)
        right += int(known.sum()) + (int((near >= scores[-1] - tolerance).sum()) if len(scores) else 0)
    return right / wanted if wanted else 1.0


def compare_answers(source: Source, scan: Scan, sample: Sample, answers: Answers) -> Finding:
    """Compare the hits of a search over every row with the true hits: all of them must be found."""
    recall = measure_recall(source, scan, sample, answers.found, TOLERANCE)
    k = scan.nearest.ids.shape[1]
    there = f"recall@{k} {recall:.4f}"
    return Finding("exact search", f"{len(answers.found):,} queries", there, recall == 1.0, answers.figures(recall))
