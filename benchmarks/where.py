"""`--where` at seven selectivities, beside searching ten times as many hits and dropping those that do not meet it.

    python benchmarks/where.py FOLDER [--rows 1000000] [--dim 512] [--memory 500MB] [--queries 100] [--index_key KEY]

Makes CLIP-like vectors in FOLDER, a column `draw` of metadata, uniform from 0 to 1, and the index that is planned for
the memory (500 bytes a row, unless --memory says otherwise). `draw < share` keeps that share of the rows. Queries are
asked one at a time, by both ways in turns; recall@10 is against brute force over the stored rows that are kept, or
over all of them where these are fewer than ten. Milliseconds are medians by the clock, CPU ms the mean of the process;
the condition itself takes its own time, once for a query or for a whole file of them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from index_vectors import MODALITIES, Rows, blocks, make_vectors
from numpy.typing import NDArray

from clip_retrieval import clip_index
from clip_retrieval.layout import IndexFolder
from clip_retrieval.query.config import SearcherConfig
from clip_retrieval.query.searcher import Searcher, open_searcher
from clip_retrieval.search.within import search_within

K, MORE = 10, 10
PERCENTAGES = (0, 0.01, 0.1, 1, 10, 50, 100)
ROWS_PER_FILE = 250_000
TRIES = 3  # of a condition
BYTES_A_ROW = 500  # of the index: half of what fp16 takes, so that it has lists and codes

Ids = NDArray[np.int64]


class Timed:
    """What some calls found, and how long each took."""

    def __init__(self, ask: Callable[[Any], Ids]) -> None:
        self.ask = ask
        self.found: list[Ids] = []
        self.seconds: list[float] = []
        self.cpu = 0.0

    def __call__(self, query: Any) -> None:
        start, cpu = time.perf_counter(), time.process_time()
        self.found.append(self.ask(query))
        self.cpu += time.process_time() - cpu
        self.seconds.append(time.perf_counter() - start)

    def columns(self, truth: Sequence[Ids]) -> str:
        """Return recall, hits, milliseconds and CPU milliseconds as cells of a table."""
        wanted = sum(map(len, truth))
        right = sum(len(np.intersect1d(found, true)) for found, true in zip(self.found, truth, strict=True))
        recall = f"{right / wanted:.3f}" if wanted else "-"
        hits = sum(map(len, self.found)) / len(self.found)
        return f"{recall} | {hits:.1f} | {self.times()}"

    def times(self) -> str:
        """Return milliseconds by the clock and of the CPU as cells of a table."""
        return f"{1e3 * np.median(self.seconds):.2f} | {1e3 * self.cpu / len(self.found):.2f}"


def prepare(args: argparse.Namespace) -> Path:
    """Make vectors, metadata and index where they are not there yet; return the index folder."""
    make_vectors(args.folder, args.rows, args.dim, ROWS_PER_FILE)
    metadata = args.folder / "metadata" / "metadata_0.parquet"
    if not metadata.exists():
        metadata.parent.mkdir()
        draws = np.random.default_rng(0).random(args.rows)
        pq.write_table(pa.table({"image_path": [f"{i:09d}" for i in range(args.rows)], "draw": draws}), metadata)
    memory = args.memory or f"{BYTES_A_ROW * args.rows}"
    index = args.folder / f"index-{args.index_key or memory}".replace(",", "-")
    if not (index / "manifest.json").exists():
        options = {"max_index_memory_usage": "16G", "index_key": args.index_key} if args.index_key else {}
        clip_index(str(args.folder), str(index), **{"max_index_memory_usage": memory} | options)
    return index


def find_truth(folder: Path, queries: Rows, kept: Ids) -> list[Ids]:
    """Return the nearest kept rows of each query, by comparing them all as they are stored."""
    heap = faiss.ResultHeap(len(queries), K, keep_max=True)
    for first, rows in blocks(sorted((folder / "img_emb").glob("*.npy"))):
        here = kept[np.searchsorted(kept, first) : np.searchsorted(kept, first + len(rows))]
        if len(here):
            some = np.ascontiguousarray(rows[here - first])
            scores, places = faiss.knn(queries, some, min(K, len(here)), metric=faiss.METRIC_INNER_PRODUCT)
            heap.add_result(scores, here[places])
    heap.finalize()
    return [ids[ids >= 0] for ids in heap.I]


def search_and_drop(searcher: Searcher, query: Rows, kept: Ids) -> Ids:
    """Return what a search without the condition finds and the condition leaves."""
    found = searcher.index.search(query[0], MORE * K).ids
    return found[np.isin(found, kept, assume_unique=True)][:K]


def measure(searcher: Searcher, folder: Path, percentage: float, queries: Rows) -> str:
    """Return a row of the table, after the queries' modality."""
    share = percentage / 100
    condition = Timed(searcher.rows_where)
    for _ in range(TRIES):
        condition(f"draw < {share}")
    kept = condition.found[0]
    within = searcher.within(kept)
    how = search_within(searcher.index, queries[:1], K, within).sentence()
    inside = Timed(lambda query: search_within(searcher.index, query, K, within).hits[0].ids)
    after = Timed(lambda query: search_and_drop(searcher, query, kept))
    for number in range(len(queries)):
        for ask in (inside, after):
            ask(queries[number : number + 1])
    truth = find_truth(folder, queries, kept)
    cells = f"{percentage:g} % | {condition.times()} | {how} | {inside.columns(truth)} | {after.columns(truth)}"
    return f"{cells} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--memory", help="bound of the index; 500 bytes a row without it")
    parser.add_argument("--index_key", help="kind of the index instead of the planned one")
    parser.add_argument("--queries", type=int, default=100)
    args = parser.parse_args()
    searcher = open_searcher(IndexFolder(str(prepare(args))), SearcherConfig())
    info = IndexFolder(searcher.name).read_info("image")
    print(
        f"\n{info['index_key']}, {info['index_param']}, {info['size in bytes']:,} bytes, {args.rows:,} x {args.dim}\n"
    )
    for_each = "recall@10 | hits | ms | CPU ms"
    ways = f"where: {for_each} | x {MORE}, then dropped: {for_each}"
    print(f"| queries | rows kept | condition: ms | CPU ms | how | {ways} |")
    print(f"|{'---|' * 13}")
    searcher.rows_where("draw < 0")  # loads DuckDB
    for modality in MODALITIES:
        queries = np.load(args.folder / f"queries_{modality}.npy")[: args.queries].astype(np.float32)
        for percentage in PERCENTAGES:
            print(f"| {modality} | {measure(searcher, args.folder, percentage, queries)}", flush=True)


if __name__ == "__main__":
    main()
