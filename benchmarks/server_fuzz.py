"""Malformed bodies and paths, at every endpoint of a server: each must be answered, and none with 500.

    python benchmarks/server_fuzz.py --count 100000 [--seed 0] [--index INDEX_FOLDER]

The application is asked in this process, without sockets. Without --index an index of the hash encoder is made. Every
request that fails is printed; the exit code is 1 then.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from clip_retrieval.options import build_config
from clip_retrieval.server.config import BackConfig
from clip_retrieval.server.run import open_server

AT_ONCE = 32  # requests in work
PIXEL = base64.b64encode(
    bytes.fromhex(
        "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c63f8cfc0f01f0005000"
        "1ff89993d1d0000000049454e44ae426082"
    )
).decode()
VECTOR = [0.1, -0.2] * 8
USUAL: dict[str, dict[str, Any]] = {
    "/knn-service": {
        "text": "dog", "image": None, "image_url": None, "embedding_input": None, "modality": "image",
        "num_images": 3, "num_result_ids": 5, "indice_name": None, "deduplicate": True, "use_mclip": False,
        "use_safety_model": True, "use_violence_detector": True, "aesthetic_score": "9", "aesthetic_weight": "0.5",
    },
    "/metadata": {"ids": [0, 1, 2], "indice_name": None, "generation": None},
    "/v1/search": {
        "queries": ["dog - cat", [{"text": "sun", "weight": 0.5}, {"id": 1}, {"embedding": VECTOR}, {"image": PIXEL}]],
        "index": None, "modality": "image", "limit": 3, "offset": 1, "threshold": 0.0, "where": "id < 5",
        "surprise": 0.5, "deduplicate": 0.9, "diverse": 0.5, "columns": ["caption"], "thumbnails": True,
        "embeddings": True, "encoding_format": "base64", "generation": None,
    },
    "/v1/embed": {"input": ["dog", {"image": PIXEL}], "model": "x", "index": None, "encoding_format": "float"},
}  # fmt: skip
NASTY: list[Any] = [
    *(None, True, False, 0, 1, -1, 2**31, 2**63, -(2**63), 2**64, 10**30, 0.5, -0.0, 1e300, 1e-320, "", " ", "\0"),
    *("a" * 5000, "\u202e\ud83d\ude00", "'; DROP TABLE rows; --", "../../etc/passwd", "/etc/passwd", "pipe:id"),
    *("file:///etc/passwd", "http://127.0.0.1:1/", "${jndi:ldap://x}", "%s%n%x", "NaN", "Infinity", "null", "(((("),
    *("id = (SELECT 1)", "1=1 OR 1", "width >= 'a'", "caption LIKE '%%%'", "regexp_matches(caption, '(a+)+$')"),
    *(PIXEL, PIXEL[:40], "data:image/png;base64,AA", [], [[]], [None], [1], VECTOR, [VECTOR], VECTOR[:3], [0.0] * 16),
    *([1e38] * 16, ["a"] * 70, [{}], {}, {"a": 1}, {"image": 1}, {"text": "a", "id": 1}, [{"text": "a", "weight": 0}]),
    *([{"id": -1}], [{"embedding": []}], ["- a"], ["a - a"], ["''"]),
]
PATHS = [
    "/", "/indices-list", "/metrics", "/metrics-summary", "/config.json", "/healthz", "/v1/indices", "/v1/docs",
    "/v1/openapi.json", "/v1/pictures/words/1", "/v1/pictures/words/1?size=3", "/v1/pictures/words/1?original=1",
    "/v1/pictures/..%2f..%2fetc%2fpasswd/1", "/../../etc/passwd", "/%00", "/v1/pictures/words/%00", "/style.css",
]  # fmt: skip


class Attack(NamedTuple):
    """One request."""

    method: str
    path: str
    body: bytes


def make_attacks(count: int, seed: int) -> Iterator[Attack]:
    """Yield requests; the same ones for one seed."""
    rng = random.Random(seed)
    for _ in range(count):
        if rng.random() < 0.1:
            path = rng.choice(PATHS)
            yield Attack(rng.choice(["GET", "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"]), spoil(rng, path), b"")
        else:
            path = rng.choice(list(USUAL))
            yield Attack("POST", path, make_body(rng, USUAL[path]))


def spoil(rng: random.Random, path: str) -> str:
    if rng.random() < 0.5:
        return path
    at = rng.randrange(1, len(path) + 1)
    return path[:at] + rng.choice(["/", "//", "%2f", "?", "&a=b", "%ff", "..", "\u00e9", "0" * 300]) + path[at:]


def make_body(rng: random.Random, usual: dict[str, Any]) -> bytes:
    said: Any = dict(usual)
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        name = rng.choice([*said, "colour", ""])
        if rng.random() < 0.2:
            said.pop(name, None)
        else:
            said[name] = rng.choice(NASTY)
    if rng.random() < 0.05:
        said = rng.choice([said, [said], rng.choice(NASTY)])
    body = json.dumps(said).encode()
    kind = rng.random()
    if kind < 0.1:
        return body[: rng.randrange(len(body) + 1)]
    if kind < 0.2:
        changed = bytearray(body)
        for _ in range(rng.randrange(1, 6)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        return bytes(changed)
    if kind < 0.22:
        depth = rng.choice([10, 1000, 100_000])
        return rng.choice([b"[" * depth, b'{"a":' * depth, b"[" * depth + b"]" * depth])
    return rng.randbytes(rng.randrange(200)) if kind < 0.25 else body


async def attack(app: Any, attacks: Iterator[Attack]) -> tuple[Counter[str], list[tuple[Attack, str]]]:
    """Send requests, some at once; return how often each status came, and what was answered 500 or not at all."""
    statuses: Counter[str] = Counter()
    failed: list[tuple[Attack, str]] = []
    transport = httpx.ASGITransport(app, raise_app_exceptions=True)

    async def send_on(client: httpx.AsyncClient) -> None:
        for one in attacks:
            try:
                answer = await asyncio.wait_for(client.request(one.method, one.path, content=one.body), 60)
            except (httpx.InvalidURL, UnicodeError):
                continue  # the client refuses to send it
            except Exception as error:  # whatever escapes is a fault  # noqa: BLE001
                failed.append((one, repr(error)))
                continue
            statuses[str(answer.status_code)] += 1
            if answer.status_code == 500:
                failed.append((one, answer.text))

    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        await asyncio.gather(*[send_on(client) for _ in range(AT_ONCE)])
    return statuses, failed


def make_index(folder: Path) -> Path:
    """Write a small index of the hash encoder."""
    import numpy as np
    import pandas as pd

    from clip_retrieval import clip_index, load_encoder

    words = ["cat", "dog", "rocket", "sun", "sea", "tree", "house", "boat"]
    (folder / "embeddings/img_emb").mkdir(parents=True)
    (folder / "embeddings/metadata").mkdir()
    encoder = load_encoder("hash:16?size=32")
    np.save(folder / "embeddings/img_emb/img_emb_0.npy", encoder.encode_texts(words).astype(np.float16))
    table = pd.DataFrame({"caption": words, "width": range(8), "image_path": [f"{word}.jpg" for word in words]})
    table.to_parquet(folder / "embeddings/metadata/metadata_0.parquet")
    clip_index(str(folder / "embeddings"), str(folder / "words"))
    return folder / "words"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--index")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        index = given.index or str(make_index(Path(scratch)))
        options = {"clip_model": "hash:16?size=32"} if given.index is None else {}
        served = open_server(build_config(BackConfig, options, [index]))
        start = time.perf_counter()
        statuses, failed = asyncio.run(attack(served.app, make_attacks(given.count, given.seed)))
        served.close()
    for one, said in failed[:50]:
        print(f"{one.method} {one.path}: {said[:300]}\n    {one.body[:500]!r}")
    print(
        f"{sum(statuses.values()):,} answers in {time.perf_counter() - start:.0f} s: {dict(sorted(statuses.items()))}"
    )
    print(f"{len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
