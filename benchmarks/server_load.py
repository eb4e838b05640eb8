"""A server under load: requests a second and latencies, with a fixed number of clients, and at a fixed rate.

    python benchmarks/server_load.py FOLDER --rows 1000000 [--index_key IVF4096,SQ8] [--kind embedding|text|mixed]
    python benchmarks/server_load.py FOLDER --clients 1 8 32 256 --seconds 10
    python benchmarks/server_load.py FOLDER --rates 1000 15000         # open loop: arrivals do not wait for answers
    python benchmarks/server_load.py FOLDER --url http://127.0.0.1:1234  # a server that runs already, of any make

Makes FOLDER/index once (rows in clusters, six columns of metadata), starts `clip-retrieval back` on it, and asks
/knn-service as clip-retrieval 2's clients do, 20 hits with metadata. `mixed`: vectors, texts, pictures that are none,
clients that hang up, and 3,000 ids with near-duplicates as the original front asks. The generator takes part of the
CPU: its seconds are printed beside the server's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import select
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import uvloop

from clip_retrieval.process.resources import raise_file_limit

POOL = 512  # different bodies of each kind
HITS = 20
WORDS = "dog cat rocket sun tree house boat pizza heart bicycle mountain bridge table bird tower sea".split()
HUNG_UP = "hung up"
CONNECTIONS, MOST_CONNECTIONS = 1024, 4096  # of an open loop: when it begins, and later


@dataclass
class Outcome:
    """What came of requests: how many of each status, and the seconds of those that were accepted."""

    statuses: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)

    def add(self, status: str, seconds: float) -> None:
        self.statuses[status] += 1
        if status == "200":
            self.seconds.append(seconds)

    def row(self, label: str, duration: float) -> str:
        taken = np.array(self.seconds or [float("nan")]) * 1000
        p50, p90, p99 = np.percentile(taken, [50, 90, 99])
        rest = {status: count for status, count in sorted(self.statuses.items()) if status != "200"}
        rate = self.statuses["200"] / duration
        return f"{label:<14} {rate:8.0f}/s   p50 {p50:7.1f}  p90 {p90:7.1f}  p99 {p99:7.1f} ms   {rest or ''}"


class Connection(asyncio.Protocol):
    """One kept-alive HTTP connection, with as little between the socket and the clock as Python allows."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.transport: asyncio.Transport | None = None
        self.answer: asyncio.Future[str] | None = None
        self.received = b""

    async def ask(self, request: bytes, *, hangs_up: bool = False) -> str:
        """Send a request, and return the status of its answer."""
        loop = asyncio.get_running_loop()
        try:
            if self.transport is None:
                self.transport, _ = await loop.create_connection(lambda: self, self.host, self.port)
            self.answer, self.received = loop.create_future(), b""
            self.transport.write(request)
            if hangs_up:
                await asyncio.sleep(0.002)
                self.answer.cancel()
                self.close()
                return HUNG_UP
            return await self.answer
        except OSError as error:
            self.close()
            await asyncio.sleep(0.01)  # a server that is started anew refuses at once
            return type(error).__name__

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, end, body = self.received.partition(b"\r\n\r\n")
        if not end or self.answer is None or self.answer.done():
            return
        lowered = head.lower()
        length = int(lowered.partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(body) >= length:
            if b"connection: close" in lowered:
                self.close()
            self.answer.set_result(head[9:12].decode())

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(error if isinstance(error, OSError) else ConnectionResetError())

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()
        self.transport = None


def make_index(folder: Path, rows: int, dim: int, key: str) -> Path:
    """Write an index folder of rows in clusters; kept for the next run."""
    import faiss
    import pyarrow as pa
    import pyarrow.parquet as pq

    from clip_retrieval.metadata.write import write_metadata_arrow
    from clip_retrieval.storage import Folder

    target = folder / "index"
    if (target / "metadata.arrow").exists():
        return target
    rng = np.random.default_rng(0)
    (target / "metadata").mkdir(parents=True, exist_ok=True)
    centers = rng.standard_normal((max(8, rows // 200), dim), dtype=np.float32)
    index = faiss.index_factory(dim, key, faiss.METRIC_INNER_PRODUCT)
    for start in range(0, rows, 100_000):
        count = min(100_000, rows - start)
        part = centers[rng.integers(0, len(centers), count)] + 0.7 * rng.standard_normal((count, dim), dtype=np.float32)
        faiss.normalize_L2(part)
        if not index.is_trained:
            index.train(part)
        index.add(part)
    faiss.write_index(index, str(target / "image.index"))
    ids = range(rows)
    table = pa.table(
        {
            "image_path": [f"{i:09d}" for i in ids],
            "caption": [f"a photo of a {WORDS[i % 16]} number {i}" for i in ids],
            "url": [f"https://example.org/pictures/{i // 1000}/{i}.jpg" for i in ids],
            "width": np.arange(rows) % 2000,
            "height": np.arange(rows) % 1500,
            "NSFW": ["UNLIKELY"] * rows,
        }
    )
    pq.write_table(table, target / "metadata/metadata_0.parquet")
    write_metadata_arrow(Folder(str(target)), Folder(str(target)))
    return target


def bodies(kind: str, dim: int, rng: random.Random) -> list[bytes]:
    """Return bodies of one kind, as clip-retrieval 2's clients send them."""
    usual = {"modality": "image", "num_images": HITS, "indice_name": None}
    if kind == "text":
        said = [{"text": f"a photo of a {rng.choice(WORDS)} near a {rng.choice(WORDS)} {i}"} for i in range(POOL)]
        return [json.dumps({**usual, **one}).encode() for one in said]
    vectors = np.random.default_rng(rng.randrange(10**6)).standard_normal((POOL, dim))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    extra = {"deduplicate": True, "num_result_ids": 3000} if kind == "heavy" else {}
    said = [{"embedding_input": [round(value, 7) for value in vector]} for vector in vectors.tolist()]
    if kind == "bad":
        said = [{"image": "bm8gcGljdHVyZQ=="}]
    return [json.dumps({**usual, **extra, **one}).encode() for one in said]


def requests(kind: str, dim: int) -> list[tuple[bytes, bool]]:
    """Return whole requests, and whether their client hangs up."""
    rng = random.Random(1)
    shares = {"mixed": {"embedding": 70, "text": 20, "bad": 5, "heavy": 1, HUNG_UP: 4}}.get(kind, {kind: 1})
    made = {name: bodies("embedding" if name == HUNG_UP else name, dim, rng) for name in shares}
    chosen = rng.choices(list(shares), list(shares.values()), k=POOL * (8 if len(shares) > 1 else 1))
    whole = []
    for name in chosen:
        body = rng.choice(made[name])
        head = f"POST /knn-service HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        whole.append((head.encode() + body, name == HUNG_UP))
    return whole


async def closed_loop(
    place: tuple[str, int], pool: Sequence[tuple[bytes, bool]], clients: int, seconds: float
) -> Outcome:
    """Have clients that send their next request as soon as they have an answer."""
    outcome, end = Outcome(), time.perf_counter() + seconds

    async def ask_on(number: int) -> None:
        connection, at = Connection(*place), number * 7919
        while time.perf_counter() < end:
            request, hangs_up = pool[at % len(pool)]
            start, at = time.perf_counter(), at + 1
            status = await connection.ask(request, hangs_up=hangs_up)
            outcome.add(status, time.perf_counter() - start)
            if status == "429":
                await asyncio.sleep(0.05)
        connection.close()

    await asyncio.gather(*[ask_on(number) for number in range(clients)])
    return outcome


class Arrivals:
    """An open loop: requests go out at a rate, whatever becomes of them; latency counts from when one was due.

    Connections are kept, and at most MOST_CONNECTIONS: a server that is late makes later requests wait.

    Plain epoll: asyncio takes 80 us a request, which is no load for a server that refuses one in 30.
    """

    def __init__(self, place: tuple[str, int], pool: Sequence[tuple[bytes, bool]]) -> None:
        raise_file_limit()
        self.place, self.pool = place, pool
        self.outcome = Outcome()
        self.epoll = select.epoll()
        self.sockets: dict[int, socket.socket] = {}
        self.free: list[int] = []
        self.due: dict[int, float] = {}  # of the request that is under way on a socket
        self.received: dict[int, bytes] = {}
        self.lags: list[float] = []  # seconds that requests went out too late

    def run(self, rate: float, seconds: float) -> Outcome:
        for _ in range(CONNECTIONS):
            self.connect()
        start, sent, count = time.perf_counter(), 0, int(rate * seconds)
        while sent < count or self.due:
            now = time.perf_counter()
            while sent < count and start + sent / rate <= now and (self.free or len(self.sockets) < MOST_CONNECTIONS):
                self.send(sent, start + sent / rate)
                sent += 1
            wait = start + sent / rate - time.perf_counter() if sent < count else 1.0
            if wait < 0 and not self.free:
                wait = 1.0  # for an answer
            if now > start + seconds + 30:
                self.outcome.statuses["no answer in 30 s"] += len(self.due)
                break
            select.select([self.epoll], [], [], max(0.0, wait))  # epoll's own clock has milliseconds
            for number, _ in self.epoll.poll(0):
                self.receive(number)
        for one in self.sockets.values():
            one.close()
        return self.outcome

    def send(self, sent: int, due: float) -> None:
        if not self.free:
            self.connect()
        number = self.free.pop()
        self.due[number], self.received[number] = due, b""
        self.lags.append(time.perf_counter() - due)
        try:
            self.sockets[number].send(self.pool[sent % len(self.pool)][0])
        except OSError as error:
            self.lose(number, type(error).__name__)

    def connect(self) -> None:
        one = socket.create_connection(self.place)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        one.settimeout(0)
        self.sockets[one.fileno()] = one
        self.epoll.register(one.fileno(), select.EPOLLIN)
        self.free.append(one.fileno())

    def receive(self, number: int) -> None:
        try:
            data = self.sockets[number].recv(65536)
        except OSError:
            data = b""
        if not data:
            self.lose(number, "lost")
            return
        self.received[number] += data
        head, end, body = self.received[number].partition(b"\r\n\r\n")
        if end and len(body) >= int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]):
            self.outcome.add(head[9:12].decode(), time.perf_counter() - self.due.pop(number))
            self.free.append(number)

    def lose(self, number: int, why: str) -> None:
        self.sockets.pop(number).close()  # epoll forgets it
        if self.due.pop(number, None) is not None:
            self.outcome.statuses[why] += 1
        else:
            self.free.remove(number)


def family(process: int) -> list[int]:
    """Return a process and its children (Linux)."""
    return [process, *map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split())]


def cpu_seconds(process: int) -> float:
    """Return the CPU seconds of a process and its children (Linux)."""
    ticks = 0
    for one in family(process):
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def memory(process: int) -> str:
    """Return the memory of a process and its children by its kind (Linux)."""
    return "; ".join(map(memory_of, family(process)))


def memory_of(process: int) -> str:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    found = {
        line.split(":")[0]: int(line.split()[1]) // 1024 for line in lines if line.startswith(("RssA", "RssF", "VmHWM"))
    }
    return f"anonymous {found.get('RssAnon')} MiB, mapped {found.get('RssFile')} MiB, peak {found.get('VmHWM')} MiB"


async def wait_for(place: tuple[str, int], seconds: float = 120) -> None:
    """Return when the server answers a search."""
    end = time.perf_counter() + seconds
    request = b"GET /indices-list HTTP/1.1\r\nHost: localhost\r\n\r\n"
    while await Connection(*place).ask(request) != "200":
        if time.perf_counter() > end:
            raise SystemExit("the server did not start")
        await asyncio.sleep(0.02)


def measure(given: argparse.Namespace, place: tuple[str, int], process: int | None) -> None:
    pool = requests(given.kind, given.dim)
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    runs: list[tuple[str, float]] = [(f"{clients} clients", clients) for clients in given.clients]
    runs += [(f"{rate:g}/s", rate) for rate in given.rates]
    asyncio.run(closed_loop(place, pool, 4, 1.0))  # warm
    for label, size in runs:
        arrivals = Arrivals(place, pool) if label.endswith("/s") else None
        own = resource.getrusage(resource.RUSAGE_SELF)
        before = cpu_seconds(process) if process else 0.0
        start = time.perf_counter()
        if arrivals is None:
            outcome = asyncio.run(closed_loop(place, pool, int(size), given.seconds))
        else:
            outcome = arrivals.run(size, given.seconds)
        duration = time.perf_counter() - start
        now = resource.getrusage(resource.RUSAGE_SELF)
        mine = now.ru_utime + now.ru_stime - own.ru_utime - own.ru_stime
        theirs = (cpu_seconds(process) - before) if process else float("nan")
        answered = max(1, sum(outcome.statuses.values()))
        print(f"{outcome.row(label, duration)}   CPU ms a request: server {1000 * theirs / answered:.2f}, generator "
              f"{1000 * mine / answered:.2f}", flush=True)  # fmt: skip
        if arrivals is not None:
            print(f"{'':<14} the generator itself was late by {1000 * np.percentile(arrivals.lags, 99):.1f} ms (p99)")
    if process:
        print(memory(process))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--index_key", default="IVF4096,SQ8")
    parser.add_argument("--kind", default="embedding", choices=["embedding", "text", "heavy", "mixed"])
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 8, 32, 256])
    parser.add_argument("--rates", type=float, nargs="*", default=[])
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--url")
    parser.add_argument("--port", type=int, default=18123)
    parser.add_argument("--back", nargs="*", default=[], help="more options of `back`, without their dashes: a=1 b=2")
    given = parser.parse_args()
    if given.url:
        target = urlsplit(given.url)
        measure(given, (target.hostname or "127.0.0.1", target.port or 80), None)
        return 0
    index = make_index(given.folder, given.rows, given.dim, given.index_key)
    options = [f"--{option}" for option in ["index_param=nprobe=16", "clip_model=hash:512?size=32", *given.back]]
    command = [sys.executable, "-m", "clip_retrieval", "back", str(index), f"--port={given.port}", *options]
    start = time.perf_counter()
    with subprocess.Popen(command) as server:
        try:
            asyncio.run(wait_for(("127.0.0.1", given.port)))
            print(f"starts in {time.perf_counter() - start:.2f} s; {memory(server.pid)}", flush=True)
            measure(given, ("127.0.0.1", given.port), server.pid)
        finally:
            server.terminate()
            server.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
