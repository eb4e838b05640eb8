"""CPU time of merging parts of an index whose lists are packed for fast scan: microseconds for a list and a part.

    python benchmarks/merge_lists.py [--lists 4096] [--rows 61] [--codes 32] [--parts 8]

Lists have a random number of rows of random codes, `--rows` of them in the mean. The digest of the merged lists is
printed too: it must be the same before and after a change.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import time
from typing import Any

import faiss
import numpy as np

from clip_retrieval.index.building import block_lists


def make_lists(seed: int, packer: Any, arguments: argparse.Namespace) -> Any:
    lists = faiss.BlockInvertedLists(arguments.lists, packer)
    packing = block_lists.Packing(packer)
    rng = np.random.default_rng(seed)
    for number in range(arguments.lists):
        if count := int(rng.poisson(arguments.rows)):
            lists.resize(number, count)
            codes = rng.integers(0, 256, (count, arguments.codes // 2), np.uint8)
            block_lists.blocks_of(lists, number)[:] = packing.pack(codes)
            block_lists.ids_of(lists, number)[:] = np.arange(count)
    return lists


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lists", type=int, default=4096)
    parser.add_argument("--rows", type=float, default=61, help="of a list and a part")
    parser.add_argument("--codes", type=int, default=32, help="of four bits each, for a row")
    parser.add_argument("--parts", type=int, default=8)
    arguments = parser.parse_args()
    faiss.omp_set_num_threads(1)
    index = faiss.index_factory(2 * arguments.codes, f"IVF1,PQ{arguments.codes}x4fs")
    packer = faiss.downcast_InvertedLists(index.invlists).packer
    whole, *parts = (make_lists(seed, packer, arguments) for seed in range(arguments.parts))
    start = time.process_time()
    for number, part in enumerate(parts, 1):
        block_lists.merge_lists(whole, part, 1000 * number)
    seconds = time.process_time() - start
    digest = hashlib.sha256()
    for number in range(arguments.lists):
        digest.update(block_lists.blocks_of(whole, number).tobytes())
        digest.update(block_lists.ids_of(whole, number).tobytes())
    each = 1e6 * seconds / arguments.lists / len(parts)
    print(f"{arguments.lists:,} lists of {arguments.rows:g} rows: {each:.1f} us a list and part")
    print(f"digest of the merged lists: {digest.hexdigest()[:12]}", flush=True)
    os._exit(0)  # each of the lists would free the packer


if __name__ == "__main__":
    main()
