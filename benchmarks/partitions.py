"""What a run of very many partitions costs outside of its workers: planning, looking, summing up.

    python benchmarks/partitions.py FOLDER [500000]

Writes the folder of a run whose partitions are done but for a few (metadata, failures, stats: three small files each),
then measures in a process of its own each: `status` by command line, the plan of the same command again, the summary,
and the plan of 1,000,000 tars into a new folder. Prints seconds of wall and CPU, and the peak of memory.
"""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

MODEL = "hash:16?size=32"
SHARDS = 10**6
RUNNING = 100
MOST_LINKS = 60_000  # of one file; ext4 has 65,000


def config_of(output: Path, shards: int, partitions: int):
    from clip_retrieval.inference.config import InferenceConfig
    from clip_retrieval.options import build_config

    words = {"clip_model": MODEL, "output_partition_count": partitions, "enable_text": False}
    return build_config(InferenceConfig, words, [f"memory://b/{{0..{shards - 1}}}.tar", str(output), "webdataset"])


class Copies:
    """Files of one content, as hard links: a million of them take no room."""

    def __init__(self, data: bytes) -> None:
        self.data, self.first, self.count = data, Path(), MOST_LINKS

    def put(self, path: Path) -> None:
        if self.count == MOST_LINKS:
            path.write_bytes(self.data)
            self.first, self.count = path, 1
        else:
            os.link(self.first, path)
            self.count += 1


def make_folder(output: Path, count: int) -> None:
    """Write a run of `count` partitions, of which some are being made."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from clip_retrieval.inference.attempts import make_marker
    from clip_retrieval.inference.manifest import describe_options
    from clip_retrieval.inference.output.failures import FAILURE_SCHEMA
    from clip_retrieval.inference.plan import make_partitions
    from clip_retrieval.inference.telemetry.stats import Stats
    from clip_retrieval.layout import EmbeddingsFolder
    from clip_retrieval.sources import open_source

    config, folder = config_of(output, count, count), EmbeddingsFolder(str(output))
    source = open_source(config.source, config.output_folder)
    partitions = make_partitions(config, source)
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, FAILURE_SCHEMA, compression="snappy") as writer:
        writer.write_table(FAILURE_SCHEMA.empty_table())
    stats = json.dumps(Stats(sample_count=1000, image_count=1000, total_duration=2.0).to_json(), indent=2).encode()
    metadata = pa.BufferOutputStream()
    pq.write_table(pa.table({"image_path": ["x"]}), metadata)
    written = [Copies(data) for data in (metadata.getvalue().to_pybytes(), sink.getvalue(), stats)]
    for name in ("metadata", "failures", "stats"):
        (output / name).mkdir(parents=True, exist_ok=True)
    for partition in partitions:
        if partition.id >= count - RUNNING:
            make_marker(folder, partition, "run", "cpu", []).write()
            continue
        for copies, name in zip(written, (folder.metadata_name, folder.failures_name, folder.stats_name), strict=True):
            copies.put(Path(folder.path(name(partition))))
    folder.write_json("manifest.json", describe_options(config, source, partitions))


def plan(output: Path, shards: int, partitions: int) -> str:
    from clip_retrieval.inference.plan import plan_run
    from clip_retrieval.layout import EmbeddingsFolder
    from clip_retrieval.sources import open_source

    config = config_of(output, shards, partitions)
    start = time.perf_counter()
    source = open_source(config.source, config.output_folder)
    run = plan_run(config, EmbeddingsFolder(str(output)), source)
    return (
        f"{len(run.missing):,} of {len(run.partitions):,} to make, {time.perf_counter() - start:.2f} s without imports"
    )


def save(output: Path, shards: int, partitions: int) -> str:
    from clip_retrieval.inference.run import plan_only

    start = time.perf_counter()
    plan_only(config_of(output, shards, partitions))
    size = sum(path.stat().st_size for path in (output / "_plan").rglob("*") if path.is_file())
    return f"planned and saved, {size:,} bytes, {time.perf_counter() - start:.2f} s without imports"


def open_one(output: Path, shards: int, partitions: int) -> str:
    from clip_retrieval.inference.plan import open_plan

    start = time.perf_counter()
    opened = open_plan(config_of(output, shards, partitions))
    part = opened.partitions[partitions // 2]
    units = list(opened.source.units)[part.start : part.start + 1] if shards < 1000 else opened.source.units[part.start]
    return f"a worker opens it and has its unit {units}: {time.perf_counter() - start:.2f} s without imports"


def sum_all(output: Path, *_: int) -> str:
    from clip_retrieval.inference.summary import sum_up
    from clip_retrieval.layout import EmbeddingsFolder

    folder = EmbeddingsFolder(str(output))
    start = time.perf_counter()
    summary = sum_up(folder, folder.partitions(), [])
    return f"{summary.stats.sample_count:,} samples, {time.perf_counter() - start:.2f} s without imports"


def look(output: Path, *_: int) -> str:
    from clip_retrieval.inference.status import read_status

    start = time.perf_counter()
    status = read_status(str(output))
    return f"{status.done:,} done, {len(status.works)} running, {time.perf_counter() - start:.2f} s without imports"


STEPS = {"plan": plan, "save": save, "open": open_one, "sum": sum_all, "look": look}


def measure(words: list[str]) -> None:
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"  {time.perf_counter() - start:6.2f} s wall {cpu:6.2f} s CPU  {done.stdout.splitlines()[0]}", flush=True)


def main() -> None:
    output, count = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 500_000
    if len(sys.argv) > 3:
        said = STEPS[sys.argv[3]](output, int(sys.argv[4]), int(sys.argv[5]))
        print(f"{said}, peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MB")
        return
    done = output / "done"
    if not done.exists():
        make_folder(done, count)
    step = [sys.executable, __file__]
    print(f"status, {count:,} partitions")
    measure([sys.executable, "-m", "clip_retrieval", "status", str(done)])
    measure([*step, str(done), str(count), "look", str(count), str(count)])
    print("the same command again: plan")
    measure([*step, str(done), str(count), "plan", str(count), str(count)])
    print("summary")
    measure([*step, str(done), str(count), "sum", str(count), str(count)])
    for partitions in (SHARDS // 100, SHARDS):
        print(f"{SHARDS:,} tars, {partitions:,} partitions: plan, save, open")
        for name in ("plan", "save", "open"):
            measure([*step, str(output / "new"), str(count), name, str(SHARDS), str(partitions)])


if __name__ == "__main__":
    main()
