"""A cold `clip-retrieval filter --query`, from the shell to written results; and very many hits, by what takes time.

    python benchmarks/cold_filter.py FOLDER [--rows 1000000] [--dim 512] [--memory 500MB] [--runs 5] [--hits 100000]

Makes CLIP-like vectors in FOLDER, fifteen columns of metadata, the index that is planned for the memory (500 bytes a
row, unless --memory says otherwise) and a ViT-B/32 with random weights, as it is and as an ONNX folder with int8
weights. Each run is a fresh process; both models take turns; medians of wall time, CPU time (with that of ended child
processes) and of the largest resident memory, which counts pages of mapped files. `--pages drop` has the files'
pages dropped before each run (Linux), so that the disk is read.

Then one process asks for --hits hits by a vector, without pictures: search, the rows of metadata, and writing them.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

ARCHITECTURE = "ViT-B-32"
MODEL = f"random:{ARCHITECTURE}?seed=0"
BYTES_A_ROW = 500
QUERY = "a red dog in the snow"
WRITTEN = ("parquet", "json", "jsonl", "csv", "ids")  # each alone
COMMAND = (sys.executable, "-m", "clip_retrieval")


def prepare(folder: Path, rows: int, dim: int, memory: str) -> None:
    """Make what is asked, where it is not there yet. In a process of its own: the one that measures stays small."""
    from index_vectors import make_vectors
    from metadata import make

    from clip_retrieval import clip_index

    embeddings, index = folder / "embeddings", folder / "index"
    make_vectors(embeddings, rows, dim, -(-rows // 10))
    if not (embeddings / "metadata").exists():
        make(embeddings, rows)
    if not (index / "manifest.json").exists():
        clip_index(str(embeddings), str(index), max_index_memory_usage=memory)
    for made, words in (("onnx", ("convert", MODEL)), ("int8", ("quantize", folder / "onnx"))):
        if not (folder / made).exists():
            wanted = ("--to", "onnx") if made == "onnx" else ("--type", "int8")
            subprocess.run([*COMMAND, *map(str, words), str(folder / made), *wanted], check=True)


def run_cold(command: list[str], environment: dict[str, str]) -> tuple[float, float, float]:
    """Return wall and CPU seconds and the largest resident MB of a command."""
    start = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return wall, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e6


def measure_cold(args: argparse.Namespace) -> None:
    models = {"ONNX, int8": f"onnx:{args.folder / 'int8'}", "torch": MODEL}
    output = args.folder / "found"
    environment = os.environ | {"CLIP_RETRIEVAL_CACHE": str(args.folder / "cache")}  # in which nothing is converted
    runs: dict[str, list[tuple[float, float, float]]] = {name: [] for name in models}
    if args.pages == "drop":
        from metadata import drop_pages  # loads pyarrow: this process grows
    for number in range(args.runs + 1):
        for name, model in models.items():
            shutil.rmtree(output, ignore_errors=True)
            if args.pages == "drop":
                drop_pages(args.folder / "index")
                drop_pages(args.folder / "int8")
            words = ("filter", "--query", QUERY, "--clip_model", model, "--export", "none")
            command = [*COMMAND, *words, "--output_folder", str(output), "--indice_folder", str(args.folder / "index")]
            used = run_cold(command, environment)
            if number:  # the first one fills the page cache
                runs[name].append(used)
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    print(f"\nLargest resident memory of the process that measures, below which none can be seen: {own:.0f} MB\n")
    print("| model | wall, s | CPU, s | resident, MB |\n|---|---|---|---|")
    for name, used in runs.items():
        wall, cpu, held = (statistics.median(values) for values in zip(*used, strict=True))
        print(f"| {name} | {wall:.2f} | {cpu:.2f} | {held:.0f} |", flush=True)


def measure_many(folder: Path, count: int, runs: int) -> None:
    """Print how long many hits take, by parts; medians after a first run."""
    import msgspec
    import numpy as np

    from clip_retrieval.filter.hits import Asked, Hits, collect_hits
    from clip_retrieval.filter.tables import write_tables
    from clip_retrieval.layout import IndexFolder
    from clip_retrieval.query.answer import answer
    from clip_retrieval.query.config import SearcherConfig, SelectionConfig
    from clip_retrieval.query.searcher import open_searcher
    from clip_retrieval.storage import Folder

    spent = [0.0]

    class Watched(Hits):
        """Hits that note how long their rows of metadata take."""

        def block(self, start: int, stop: int):
            began = time.perf_counter()
            table = super().block(start, stop)
            spent[0] += time.perf_counter() - began
            return table

    opening = time.perf_counter()
    searcher = open_searcher(IndexFolder(str(folder / "index")), SearcherConfig())
    print(f"\nOpening the index: {1e3 * (time.perf_counter() - opening):.0f} ms\n")
    print("| written | hits | search, ms | metadata, ms | write, ms | in all, ms | CPU ms | first run, ms |")
    print("|---|---|---|---|---|---|---|---|")
    vectors = np.load(folder / "embeddings" / "queries_text.npy")
    for form in WRITTEN:
        parts = []
        for number in range(runs + 1):
            start, cpu, spent[0] = time.perf_counter(), time.process_time(), 0.0
            query = searcher.embed_vector(vectors[number % len(vectors)], "a vector")
            answered = answer(searcher, query, SelectionConfig(num_results=count))
            middle = time.perf_counter()
            hits = collect_hits(searcher, [Asked(1, query.text, answered)], is_batch=False)
            write_tables(Folder(str(folder / "many")), Watched(**msgspec.structs.asdict(hits)), (form,))
            end, cpu = time.perf_counter(), time.process_time() - cpu
            seconds = (middle - start, spent[0], end - middle - spent[0], end - start, cpu)
            parts.append([1e3 * part for part in seconds])
        cells = " | ".join(f"{statistics.median(part):.0f}" for part in zip(*parts[1:], strict=True))
        print(f"| {form} | {hits.count:,} | {cells} | {parts[0][-2]:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--memory", help="bound of the index; 500 bytes a row without it")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--hits", type=int, default=100_000)
    parser.add_argument("--pages", choices=("keep", "drop"), default="keep")
    parser.add_argument("--part", choices=("prepare", "many"), help=argparse.SUPPRESS)  # in processes of their own
    args = parser.parse_args()
    if args.part == "prepare":
        prepare(args.folder, args.rows, args.dim, args.memory or str(BYTES_A_ROW * args.rows))
    elif args.part == "many":
        measure_many(args.folder, args.hits, args.runs)
    else:
        subprocess.run([sys.executable, *sys.argv, "--part", "prepare"], check=True)
        measure_cold(args)
        subprocess.run([sys.executable, *sys.argv, "--part", "many"], check=True)


if __name__ == "__main__":
    main()
