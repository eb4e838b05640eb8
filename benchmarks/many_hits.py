"""A search for very many hits, and their rows of metadata.

    python benchmarks/many_hits.py INDEX METADATA [--hits 100000]

INDEX and METADATA are folders of as many rows: image.index is in the one, metadata in the other (it may be the same).
Random unit queries, one at a time; medians.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from clip_retrieval.layout import IndexFolder
from clip_retrieval.metadata import open_metadata
from clip_retrieval.search.index import open_index

QUERIES = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index")
    parser.add_argument("metadata")
    parser.add_argument("--hits", type=int, default=100_000)
    args = parser.parse_args()
    index, metadata = open_index(IndexFolder(args.index), "image"), open_metadata(IndexFolder(args.metadata))
    if metadata is None or metadata.row_count < index.row_count:
        raise SystemExit(f"{args.metadata} has not the metadata of {index.row_count:,} rows")
    queries = np.random.default_rng(0).standard_normal((QUERIES, index.dim)).astype(np.float32)
    searching, fetching, found = [], [], []
    for query in queries / np.linalg.norm(queries, axis=1, keepdims=True):
        start = time.perf_counter()
        hits = index.search(query, args.hits)
        middle = time.perf_counter()
        metadata.rows(hits.ids)
        fetching.append(time.perf_counter() - middle)
        searching.append(middle - start)
        found.append(len(hits.ids))
    print("| rows | hits asked / found | search, ms | their rows, ms | the first rows, ms |\n|---|---|---|---|---|")
    search, rows, first = (1000 * seconds for seconds in (np.median(searching), np.median(fetching), fetching[0]))
    counts = f"| {index.row_count:,} | {args.hits:,} / {int(np.median(found)):,} "
    print(f"{counts}| {search:.1f} | {rows:.1f} | {first:.1f} |")


if __name__ == "__main__":
    main()
