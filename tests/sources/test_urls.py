"""Tables of urls: fetched from a server on loopback, in the order of the rows, even if the server fails."""

from __future__ import annotations

import gzip
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from clip_retrieval import clip_filter, clip_index, clip_inference
from clip_retrieval.errors import ConfigError, SourceError
from clip_retrieval.inference.summary import RunSummary
from clip_retrieval.network.fetch_many import InOrder

MODEL = "hash:64?size=32"
Read = Callable[[Path, str], pd.DataFrame]
ReadEmbeddings = Callable[[Path, str], NDArray[np.float16]]
Snapshot = Callable[[Path], dict[str, bytes]]


def embed(source: object, output: object, **options: object) -> RunSummary:
    given = {"num_prepro_workers": 0, "allow_private_addresses": True, "fetch_retries": 0, **options}
    return clip_inference(source, output, "urls", clip_model=MODEL, **given)


class Gallery:
    """Serves /N.jpg, the later the lower N is, and counts simultaneous requests."""

    def __init__(self, make_jpeg: Callable[[int], bytes]) -> None:
        self.asked: list[str] = []
        self.now = self.most = 0
        lock, gallery = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with lock:
                    gallery.asked.append(self.path)
                    gallery.now += 1
                    gallery.most = max(gallery.most, gallery.now)
                name = self.path.partition("?")[0].strip("/").removesuffix(".jpg")
                if name.isdigit():
                    time.sleep(0.02 * (3 - int(name) % 4))
                    body = make_jpeg(int(name))
                self.send_response(200 if name.isdigit() else 404)
                self.send_header("Content-Length", str(len(body) if name.isdigit() else 0))
                self.end_headers()
                with lock:
                    gallery.now -= 1
                if name.isdigit():
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def url(self, name: object) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/{name}.jpg"


@pytest.fixture
def gallery(make_jpeg: Callable[[int], bytes]) -> Iterator[Gallery]:
    served = Gallery(make_jpeg)
    yield served
    served.server.shutdown()
    served.server.server_close()


@pytest.fixture
def captions() -> list[str]:
    return [f"picture number {number}" for number in range(12)]


@pytest.mark.parametrize("form", ["csv", "tsv", "parquet", "semicolons", "bom", "utf-16", "csv.gz"])
def test_urls_give_the_embeddings_of_loose_files(
    form: str,
    tmp_path: Path,
    gallery: Gallery,
    captions: list[str],
    write_pictures: Callable[[Path, int], Path],
    read_embeddings: ReadEmbeddings,
    read_table: Read,
) -> None:
    table = pd.DataFrame({"URL": [gallery.url(i) for i in range(12)], "TEXT": captions, "similarity": range(12)})
    suffix = {"semicolons": "csv", "bom": "csv", "utf-16": "csv"}.get(form, form)
    source = tmp_path / f"table.{suffix}"
    if form == "parquet":
        table.to_parquet(source)
    else:
        mark = {"tsv": "\t", "semicolons": ";"}.get(form, ",")
        encoding = {"bom": "utf-8-sig", "utf-16": "utf-16"}.get(form, "utf-8")
        table.to_csv(source, index=False, sep=mark, encoding=encoding)
    clip_inference(write_pictures(tmp_path / "in", 12), tmp_path / "files", clip_model=MODEL, num_prepro_workers=0)

    summary = embed(source, tmp_path / "output", enable_metadata=True)

    assert summary.stats.reasons == {}
    for folder in ("img_emb", "text_emb"):
        expected = read_embeddings(tmp_path / "files", folder)
        np.testing.assert_array_equal(read_embeddings(tmp_path / "output", folder), expected)
    written = read_table(tmp_path / "output", "metadata")
    assert written["image_path"].tolist() == table["URL"].tolist()
    assert [int(value) for value in written["similarity"]] == list(range(12))
    assert 1 < gallery.most <= 4  # at once, from one host


def test_a_list_of_urls_is_a_table(tmp_path: Path, gallery: Gallery) -> None:
    (tmp_path / "urls.txt").write_text(f"{gallery.url(0)}\n\n  {gallery.url(1)}  \n")

    summary = embed(tmp_path / "urls.txt", tmp_path / "output")

    assert (summary.stats.sample_count, summary.stats.image_count) == (2, 2)


def test_partitions_processes_and_resuming_change_no_byte(
    tmp_path: Path, gallery: Gallery, captions: list[str], snapshot: Snapshot
) -> None:
    frame = pd.DataFrame({"url": [gallery.url(i) for i in range(12)], "caption": captions})
    frame.to_parquet(tmp_path / "t.parquet", row_group_size=3)
    embed(tmp_path / "t.parquet", tmp_path / "output", output_partition_count=3, num_prepro_workers=1)
    whole = snapshot(tmp_path / "output")
    (tmp_path / "output" / "metadata" / "metadata_1.parquet").unlink()
    gallery.asked.clear()

    again = embed(tmp_path / "t.parquet", tmp_path / "output", output_partition_count=3, fetch_concurrency=1)

    assert again.already_done == 2
    assert len(gallery.asked) < 12
    assert snapshot(tmp_path / "output") == whole


def test_what_cannot_be_fetched_costs_its_part_alone(tmp_path: Path, gallery: Gallery, read_table: Read) -> None:
    rows = [gallery.url(0), gallery.url("missing"), "", "no url", "ftp://x/a.jpg", gallery.url(1)]
    lines = [f'{url},"caption, {number}"' for number, url in enumerate(rows)]
    (tmp_path / "t.csv").write_text("url,caption\n" + "\n".join(lines))

    summary = embed(tmp_path / "t.csv", tmp_path / "output")

    assert (summary.stats.sample_count, summary.stats.image_count) == (6, 2)
    assert summary.stats.reasons == {"image:http_404": 1, "image:no_image": 1, "image:bad_url": 2}
    failures = read_table(tmp_path / "output", "failures")
    assert failures["key"].tolist() == ["1", "2", "3", "4"]
    assert set(failures["shard"]) == {str(tmp_path / "t.csv")}
    assert read_table(tmp_path / "output", "metadata")["caption"][1] == "caption, 1"


def test_private_addresses_are_refused_unless_allowed(tmp_path: Path, gallery: Gallery) -> None:
    (tmp_path / "t.csv").write_text(f"url,caption\n{gallery.url(0)},a\n")

    summary = embed(tmp_path / "t.csv", tmp_path / "output", allow_private_addresses=False)

    assert summary.stats.reasons == {"image:forbidden_address": 1}
    assert (summary.stats.text_count, gallery.asked) == (1, [])


def test_filter_fetches_hits_from_public_addresses_only(
    tmp_path: Path, gallery: Gallery, make_jpeg: Callable[[int], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t.csv").write_text(f"url,caption\n{gallery.url(0)}?size=1,a\n")
    monkeypatch.setattr("clip_retrieval.sources.urls.fetch", lambda *_, **__: make_jpeg(0))
    embed(tmp_path / "t.csv", tmp_path / "output")
    clip_index(tmp_path / "output", tmp_path / "index", engine="faiss")

    clip_filter("a", tmp_path / "refused", tmp_path / "index")
    monkeypatch.setattr("clip_retrieval.network.connections.is_public", lambda _: True)
    clip_filter("a", tmp_path / "hits", tmp_path / "index")

    assert "no public address" in (tmp_path / "refused" / "index.html").read_text()
    assert [path.name for path in (tmp_path / "hits" / "images").iterdir()] == ["00001_0.jpg"]
    assert set(gallery.asked) == {"/0.jpg?size=1"}


def test_captions_alone_fetch_nothing(tmp_path: Path, gallery: Gallery) -> None:
    (tmp_path / "t.csv").write_text(f"url,caption\n{gallery.url(0)},a\n")

    summary = embed(tmp_path / "t.csv", tmp_path / "output", enable_image=False)

    assert (summary.stats.text_count, gallery.asked) == (1, [])


def test_odd_rows_of_a_csv_are_told(tmp_path: Path, gallery: Gallery, read_table: Read) -> None:
    text = f'url,caption\n{gallery.url(0)}\n{gallery.url(1)},b,extra\n\n"{gallery.url(2)}","two\nlines"\n'
    (tmp_path / "t.csv").write_bytes(text.encode() + f"{gallery.url(3)},caf\xe9".encode("latin-1"))

    summary = embed(tmp_path / "t.csv", tmp_path / "output", num_prepro_workers=1)

    assert summary.stats.image_count == 4
    assert summary.stats.reasons == {"other:extra_cells": 1, "text:encoding": 1}
    assert read_table(tmp_path / "output", "metadata")["caption"].fillna("-").tolist() == ["-", "b", "two\nlines", "-"]


def test_a_cut_csv_keeps_what_came_before(tmp_path: Path, gallery: Gallery, read_table: Read) -> None:
    text = "url,caption\n" + "".join(f"{gallery.url(number)},{number}{os.urandom(300).hex()}\n" for number in range(2))
    packed = gzip.compress(text.encode())
    (tmp_path / "t.csv.gz").write_bytes(packed[: len(packed) - 100])

    summary = embed(tmp_path / "t.csv.gz", tmp_path / "output")

    assert summary.stats.image_count >= 1
    assert read_table(tmp_path / "output", "failures")[["part", "reason"]].values.tolist() == [["shard", "corrupt"]]


def test_json_lines_are_a_table(tmp_path: Path, gallery: Gallery, read_table: Read) -> None:
    rows: list[object] = [{"url": gallery.url(n), "caption": str(n), "tags": ["a"], "size": {"w": n}} for n in range(3)]
    lines = [json.dumps(row) for row in [*rows, 5]]
    (tmp_path / "t.jsonl").write_text("\n".join([*lines[:2], "", "{broken", *lines[2:]]))

    summary = embed(tmp_path / "t.jsonl", tmp_path / "output", enable_metadata=True)

    assert summary.stats.image_count == 3
    table = read_table(tmp_path / "output", "metadata")
    assert table[["caption", "size.w"]].values.tolist() == [["0", 0], ["1", 1], ["2", 2]]
    assert read_table(tmp_path / "output", "failures")[["key", "reason"]].values.tolist() == [
        ["2", "json"],
        ["4", "json"],
    ]


@pytest.mark.parametrize("name", ["t.csv", "t.txt", "t.jsonl", "t.parquet"])
def test_a_git_lfs_pointer_is_no_table(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")

    with pytest.raises(SourceError, match="git lfs pull"):
        embed(tmp_path / name, tmp_path / "output")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "has the columns a (text); b (text); name the one of the pictures with --url_column"),
        ("http://x/a.jpg,a\n", "holds a url already"),
        ("url,url\n1,2\n", "two columns of one name"),
        ("url,caption\n", "holds no row"),
        ("", "holds no row"),
    ],
)
def test_tables_that_mean_nothing_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)

    with pytest.raises(SourceError) as caught:
        embed(tmp_path / "t.csv", tmp_path / "output")
    assert message in str(caught.value)


def test_options_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fetch_concurrency must be at least 1"):
        embed(tmp_path / "t.csv", tmp_path / "output", fetch_concurrency=0)


# the order


def test_results_come_in_order_within_the_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clip_retrieval.network.fetch_many.LOOK_AHEAD", 2)
    monkeypatch.setattr("clip_retrieval.network.fetch_many.MOST_HELD", 10)
    lock, now, most, begun = threading.Lock(), {"a": 0, "b": 0}, {"a": 0, "b": 0}, []

    def fetch(url: str) -> bytes:
        host = url[7]
        with lock:
            begun.append(url)
            now[host] += 1
            most[host] = max(most[host], now[host])
        time.sleep(0.001 * (len(url) % 3))
        with lock:
            now[host] -= 1
        return b"12345"

    given = []

    def items() -> Iterator[tuple[int, str | None]]:
        for number in range(200):
            given.append(number)
            yield number, None if number % 7 == 0 else f"http://{'ab'[number % 2]}/{'x' * (number % 5)}"

    results = []
    for number, result in InOrder[int](fetch, 6, 2).results(items()):
        results.append((number, result))
        assert len(given) - number <= 2 * 6 + 2

    assert results == [(number, None if number % 7 == 0 else b"12345") for number in range(200)]
    assert max(most.values()) == 2


def test_a_bug_of_the_fetcher_is_not_swallowed() -> None:
    def fetch(url: str) -> bytes:
        raise KeyError(url)

    with pytest.raises(KeyError, match="http://x"):
        list(InOrder[int](fetch, 2, 2).results([(0, "http://x")]))


def test_threads_end_when_nobody_asks_any_more() -> None:
    before = threading.active_count()
    results = InOrder[int](lambda _: b"", 4, 4).results((number, f"http://{number}/") for number in range(100))
    next(results)

    results.close()  # type: ignore[attr-defined]

    for _ in range(500):
        if threading.active_count() <= before:
            break
        time.sleep(0.01)
    assert threading.active_count() <= before
