"""One server beside 2 and 4 parts with a server before them: the same rows, the same answers, what merging costs.

    python benchmarks/parts.py FOLDER --rows 1000000 [--index_key IVF4096,SQ8] [--parts 1 2 4] [--clients 1 8 32]

Makes FOLDER/index as server_load.py does, and cuts it into parts that share its centroids, so that parts look at the
same codes as the whole, and find the same hits; a part that is built by itself has fewer lists, and its own nprobe.
All servers and the generator share this machine: read the CPU of each request, and the latency of one client; what
parts gain on machines of their own, they cannot gain here.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from server_load import HITS, closed_loop, cpu_seconds, make_index, requests

CHECKED = 40  # queries whose hits are compared


def cut(index: Path, folder: Path, count: int, rows: int) -> list[Path]:
    """Cut an index folder of IVF into parts of consecutive rows; kept for the next run."""
    import faiss
    import pyarrow.parquet as pq

    from clip_retrieval.metadata.write import write_metadata_arrow
    from clip_retrieval.storage import Folder

    targets = [folder / f"parts-{count}" / str(number) for number in range(count)]
    if all((target / "metadata.arrow").exists() for target in targets):
        return targets
    whole, empty = (faiss.read_index(str(index / "image.index")) for _ in range(2))
    empty.reset()
    table = pq.read_table(index / "metadata/metadata_0.parquet")
    for number, target in enumerate(targets):
        start, stop = rows * number // count, rows * (number + 1) // count
        (target / "metadata").mkdir(parents=True, exist_ok=True)
        some, part = faiss.clone_index(empty), faiss.clone_index(empty)
        whole.copy_subset_to(some, faiss.InvertedLists.SUBSET_TYPE_ID_RANGE, start, stop)
        some.ntotal = stop - start
        part.merge_from(some, -start)
        faiss.write_index(part, str(target / "image.index"))
        pq.write_table(table.slice(start, stop - start), target / "metadata/metadata_0.parquet")
        write_metadata_arrow(Folder(str(target)), Folder(str(target)))
    return targets


@contextmanager
def back(*options: object) -> Iterator[tuple[int, str]]:
    """Run `back`; give its process and its address."""
    command = [sys.executable, "-m", "clip_retrieval", "back", *map(str, options), "--port=0", "--max_waiting=256"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            line = ""
            while " answers; its pages" not in line:
                line = process.stderr.readline()  # type: ignore[union-attr]
                if not line:
                    raise SystemExit(f"{' '.join(command)} did not start")
            yield process.pid, line.split()[0]
        finally:
            process.terminate()


def ids_of(url: str, bodies: Sequence[bytes]) -> list[list[int]]:
    found = []
    for body in bodies:
        with urllib.request.urlopen(urllib.request.Request(f"{url}/knn-service", body)) as answer:
            found.append([hit["id"] for hit in json.loads(answer.read())])
    return found


def measure(label: str, url: str, processes: dict[str, list[int]], given: argparse.Namespace) -> None:
    host, port = url.removeprefix("http://").split(":")
    pool = requests("embedding", given.dim)
    asyncio.run(closed_loop((host, int(port)), pool, 4, 1.0))  # warm
    for clients in given.clients:
        before = {name: sum(map(cpu_seconds, ids)) for name, ids in processes.items()}
        start = time.perf_counter()
        outcome = asyncio.run(closed_loop((host, int(port)), pool, clients, given.seconds))
        duration = time.perf_counter() - start
        answered = max(1, sum(outcome.statuses.values()))
        spent = {name: 1000 * (sum(map(cpu_seconds, ids)) - before[name]) / answered for name, ids in processes.items()}
        cpu = ", ".join(f"{name} {ms:.2f}" for name, ms in spent.items())
        print(f"{label:<10} {outcome.row(f'{clients} clients', duration)}   CPU ms a request: {cpu}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--index_key", default="IVF4096,SQ8")
    parser.add_argument("--nprobe", type=int, default=16)
    parser.add_argument("--parts", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=5)
    given = parser.parse_args()
    os.environ["OMP_WAIT_POLICY"] = "passive"
    index = make_index(given.folder, given.rows, given.dim, given.index_key)
    options = [f"--index_param=nprobe={given.nprobe}", "--clip_model=hash:512?size=32"]
    bodies = [request.partition(b"\r\n\r\n")[2] for request, _ in requests("embedding", given.dim)[:CHECKED]]
    with back(index, *options) as (process, url):
        wanted = ids_of(url, bodies)
        measure("one server", url, {"server": [process]}, given)
    for count in given.parts:
        with ExitStack() as stack:
            targets = cut(index, given.folder, count, given.rows)
            parts = [stack.enter_context(back(target, *options)) for target in targets]
            front = stack.enter_context(back("--parts", ",".join(address for _, address in parts)))
            found = ids_of(front[1], bodies)
            same = sum(len({*ours} & {*theirs}) for ours, theirs in zip(found, wanted, strict=True))
            print(f"{count} parts: {same} of {CHECKED * HITS} hits are those of one server", flush=True)
            measure(f"{count} parts", front[1], {"front": [front[0]], "parts": [pid for pid, _ in parts]}, given)
    return 0


if __name__ == "__main__":
    sys.exit(main())
