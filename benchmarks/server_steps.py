"""Where the CPU time of one request goes: each step of /knn-service alone, in microseconds a request.

    python benchmarks/server_steps.py INDEX_FOLDER [--index_param nprobe=23,k_factor_rf=16] [--batch 1 8 32]

CPU seconds of the calling thread, the median of several rounds, so that other work on the machine counts little. A
step that takes a batch is measured with as many queries as clients would have waiting, and divided by them.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from server_load import bodies

from clip_retrieval.options import build_config
from clip_retrieval.query.answer import answer_many
from clip_retrieval.query.embed import Query
from clip_retrieval.search.cores import of_one_thread
from clip_retrieval.server import legacy
from clip_retrieval.server.asking import Ask, Shown
from clip_retrieval.server.config import BackConfig
from clip_retrieval.server.lanes import Lane, LaneSize
from clip_retrieval.server.local import LocalBuild
from clip_retrieval.server.messages import json_response, parse_json
from clip_retrieval.server.rows import read_rows
from clip_retrieval.server.run import Served, open_server

ROUNDS = 15
HITS = 20


def micros(work: Callable[[], Any], count: int, rounds: int = ROUNDS, clock: Any = time.thread_time) -> float:
    """Return the CPU microseconds of one of `count` requests that `work` does; the median of rounds."""
    work()
    taken = []
    for _ in range(rounds):
        start = clock()
        work()
        taken.append((clock() - start) / count * 1e6)
    return statistics.median(taken)


def show(name: str, value: float) -> None:
    print(f"{name:<66} {value:8.1f}", flush=True)


def ask_app(app: Any, request_bodies: list[bytes]) -> None:
    """Ask the application itself, one request after the other, without sockets and HTTP."""

    async def ask(body: bytes) -> None:
        headers = [(b"host", b"127.0.0.1:1234"), (b"content-length", str(len(body)).encode())]
        scope = {"type": "http", "method": "POST", "path": "/knn-service", "headers": headers, "query_string": b""}
        messages = [{"type": "http.request", "body": body, "more_body": False}]
        never = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            await never.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                assert message["status"] == 200, message

        await app(scope, receive, send)

    async def ask_all() -> None:
        for body in request_bodies:
            await ask(body)

    asyncio.run(ask_all())


def answer_with(found: Any) -> Any:
    """Return a stand-in of `Asker.ask` that has the answer already."""

    async def ask(asked: Ask) -> Any:  # noqa: ARG001
        return found

    return ask


def hand_over(at_once: int) -> None:
    """Have a lane do nothing for many items, `at_once` of them waiting."""
    lane: Lane[int, int] = Lane("nothing", list, LaneSize(threads=2))

    async def run() -> None:
        for _ in range(1024 // at_once):
            await asyncio.gather(*[lane.do(number) for number in range(at_once)])

    asyncio.run(run())
    lane.close()
    for thread in lane.threads:
        thread.join()


def steps_of_batch(served: Served, queries: list[Query], size: int) -> None:
    """Show what the search lane does with `size` requests at once: faiss, what is around it, metadata."""
    build = first_build(served)
    searcher, selection, columns = build.generation.first, legacy.plain_selection(HITS), build.usual_columns
    settings = searcher.index.settings_for(HITS) | (searcher.settings or {})
    inner, params = searcher.index.index, searcher.index.parameters(0, settings)
    rows = np.stack([query.embedding for query in queries])
    asks = [Ask(searcher, (query,), selection, Shown(build.generation, columns, 0, HITS)) for query in queries]
    found = [answer.found.ids for answer in answer_many(searcher, queries, selection)]
    cuts = [slice(start, start + size) for start in range(0, len(queries), size)]
    count = len(queries)
    with of_one_thread():
        faiss_time = micros(lambda: [inner.search(rows[cut], HITS, params=params) for cut in cuts], count, 7)
        many = micros(lambda: [answer_many(searcher, queries[cut], selection) for cut in cuts], count, 7)
        read = micros(lambda: [read_rows(build.generation, np.concatenate(found[cut]), columns) for cut in cuts], count)
        whole = micros(lambda: [served.asker.search(asks[cut]) for cut in cuts], count, 7)
    show(f"faiss, {size} at once ({settings})", faiss_time)
    show("  around it: settings, hits, selection", many - faiss_time)
    show(f"  metadata of {HITS} hits", read)
    show("  around all: requests to batches and back", whole - many - read)
    show("  lane of two threads, there and back", micros(lambda: hand_over(size), 1024, 7, time.process_time))


def first_build(served: Served) -> LocalBuild:
    build = served.indices.all()[0]
    assert isinstance(build, LocalBuild)
    return build


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index")
    parser.add_argument("--index_param")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 8, 32])
    given = parser.parse_args()
    options = {"clip_model": f"hash:{given.dim}?size=32", "index_param": given.index_param, "reload_seconds": 0}
    served = open_server(build_config(BackConfig, options, [given.index]))
    build = first_build(served)
    said = bodies("embedding", given.dim, random.Random(1))[:256]
    count, parsed = len(said), [parse_json(body) for body in said]
    vectors = [body["embedding_input"] for body in parsed]
    queries = [legacy.embed_values(build, vector).query for vector in vectors]
    print(f"CPU microseconds a request; a body has {len(said[0]):,} bytes")
    show("JSON of the body", micros(lambda: [parse_json(body) for body in said], count))
    show(
        "list of numbers to a query", micros(lambda: [legacy.embed_values(build, vector) for vector in vectors], count)
    )
    for size in given.batch:
        steps_of_batch(served, queries, size)
    shown = Shown(build.generation, build.usual_columns, 0, HITS)
    found = served.asker.search([Ask(build.generation.first, (queries[0],), legacy.plain_selection(HITS), shown)])[0]
    assert not isinstance(found, Exception)
    show("JSON of the answer", micros(lambda: [json_response(found[1][0]) for _ in said], count))
    ask_really = served.asker.ask
    served.asker.ask = answer_with(found)  # type: ignore[method-assign]
    show("application without lane and search", micros(lambda: ask_app(served.app, said), count, 9))
    served.asker.ask = ask_really  # type: ignore[method-assign]
    show(
        "application, one at a time, all threads",
        micros(lambda: ask_app(served.app, said), count, 7, time.process_time),
    )
    served.close()


if __name__ == "__main__":
    main()
