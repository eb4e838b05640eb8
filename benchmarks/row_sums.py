"""What checksums of embeddings cost: writing, the pass of `index`, the look of `--update`, metadata.

    python benchmarks/row_sums.py FOLDER [--rows 400000] [--dim 512] [--runs 9]

Each step with and without, in turns; files go into FOLDER. Processor seconds of this process, medians and the
least; files are in memory after the first round. On a machine that is busy: `chrt -f 50 python benchmarks/…`.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clip_retrieval.embeddings import row_sums, vectors
from clip_retrieval.embeddings.npy_files import check_rows
from clip_retrieval.embeddings.npy_writer import NpyWriter
from clip_retrieval.embeddings.vectors import open_vectors
from clip_retrieval.layout import EmbeddingsFolder, partition_named

BATCH = 64  # rows that inference writes at once
PARTITION = partition_named("0")


class NoDigest:
    """What a writer or a reader without checksums has in their place."""

    def __init__(self, *_: object) -> None:
        pass

    def update(self, _: object) -> None:
        pass

    add = update

    def check(self) -> None:
        pass

    def hexdigest(self) -> str:
        return ""


class Steps:
    """What is measured, each step with checksums and without."""

    def __init__(self, folder: Path, rows: int, dim: int) -> None:
        self.folder, self.rows, self.dim = EmbeddingsFolder(str(folder)), rows, dim
        self.name = self.folder.embedding_name("image", PARTITION)
        some = np.random.default_rng(0).standard_normal((4096, dim)).astype(np.float32)
        self.some = some / np.linalg.norm(some, axis=1, keepdims=True)
        places = [f"/data/photos/{number // 1000:04d}/IMG_{number:07d}.jpg" for number in range(rows)]
        captions = [f"a photo of number {number * 7919 % 10007} in a street" for number in range(rows)]
        self.table = pa.table({"image_path": places, "caption": captions})

    def all(self) -> dict[str, Callable[[bool], None]]:
        return {
            "rows written, 64 at once": self.write,
            "the first pass of `index`": self.examine,
            "the look of `--update` before it copies": self.look,
            "metadata written": self.write_table,
            "metadata read": self.read_table,
        }

    def write(self, has_sums: bool) -> None:  # noqa: FBT001
        with self.folder.staged(self.name) as staged, NpyWriter(staged, self.dim, np.dtype(np.float16)) as writer:
            if not has_sums:
                writer.digest = NoDigest()  # type: ignore[assignment]
            for start in range(0, self.rows, BATCH):
                writer.append(self.some[start % 4096 : start % 4096 + min(BATCH, self.rows - start)])
        if has_sums:
            stats = {row_sums.CHECKSUMS: {"image": writer.checksum}}
            self.folder.write_json(self.folder.stats_name(PARTITION), stats)

    def examine(self, has_sums: bool) -> None:  # noqa: FBT001
        with patch.object(vectors, "RowSum", vars(vectors)["RowSum"] if has_sums else NoDigest):
            found = open_vectors(self.folder, "img_emb")
            assert found is not None
            found.examine()

    def look(self, has_sums: bool) -> None:  # noqa: FBT001
        check_rows(self.folder, self.name, self.rows, self.dim)
        if has_sums:
            assert row_sums.find_damage(self.folder, self.name) is None

    def write_table(self, has_sums: bool) -> None:  # noqa: FBT001
        path, options = self.folder.path(f"{has_sums}.parquet"), {"data_page_size": 1 << 14}
        with pq.ParquetWriter(path, self.table.schema, write_page_checksum=has_sums, **options) as writer:
            for start in range(0, self.rows, 10_000):
                writer.write_table(self.table.slice(start, 10_000))

    def read_table(self, has_sums: bool) -> None:  # noqa: FBT001
        path = self.folder.path("True.parquet")
        pq.ParquetFile(path, memory_map=True, page_checksum_verification=has_sums).read(use_threads=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--runs", type=int, default=9)
    args = parser.parse_args()
    shutil.rmtree(args.folder, ignore_errors=True)
    print(f"{args.rows:,} x {args.dim} in half precision, {args.rows * args.dim * 2 / 1e6:,.0f} MB")
    print("| | without, CPU s (least) | with | ratio of medians, of the least |\n|---|---|---|---|")
    for title, step in Steps(args.folder, args.rows, args.dim).all().items():
        used: dict[bool, list[float]] = {False: [], True: []}
        for number in range(args.runs + 1):
            for has_sums, seconds in used.items():
                start = time.process_time()
                step(has_sums)
                if number:
                    seconds.append(time.process_time() - start)
        medians, least = [*map(statistics.median, used.values())], [*map(min, used.values())]
        shown = [f"{median:.3f} ({low:.3f})" for median, low in zip(medians, least, strict=True)]
        print(f"| {title} | {' | '.join(shown)} | {medians[1] / medians[0]:.2f}, {least[1] / least[0]:.2f} |")
    shutil.rmtree(args.folder)


if __name__ == "__main__":
    main()
