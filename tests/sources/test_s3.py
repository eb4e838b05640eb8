"""Inputs and outputs on S3: a real server on loopback, behind a proxy that fails, drips and cuts."""

from __future__ import annotations

import functools
import http.client
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pandas as pd
import pyarrow as pa
import pytest

from clip_retrieval import clip_inference
from clip_retrieval.errors import StorageError
from clip_retrieval.inference.config import InferenceConfig
from clip_retrieval.inference.plan import Plan, open_plan
from clip_retrieval.inference.run import plan_only
from clip_retrieval.inference.status import read_status
from clip_retrieval.inference.summary import RunSummary
from clip_retrieval.inference.telemetry.live import Live
from clip_retrieval.inference.worker.worker import run_worker
from clip_retrieval.options import build_config

s3fs = pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")
loaders = pytest.importorskip("botocore.loaders")
create_loader = functools.cache(loaders.create_loader)  # every client reads megabytes of JSON, once with this

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of the server's libraries
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # connections that the proxy cut
]
MODEL = "hash:64?size=32"
Snapshot = Callable[[Path], dict[str, bytes]]
Fault = Callable[[str, int], str | None]  # ("GET /path", number of the request) -> 500, cut, drip, or None


class Handler(BaseHTTPRequestHandler):
    """Hands one request on."""

    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def hand_on(self) -> None:
        body, fault = self.body(), self.proxy.note(self.command, self.path)
        if fault == "500":
            self.answer(500, {"Content-Type": "text/xml"}, b"<Error><Code>InternalError</Code></Error>")
            return
        connection = http.client.HTTPConnection("127.0.0.1", self.proxy.target_port)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "transfer-encoding"}
        connection.request(self.command, self.path, body, headers | {"Content-Length": str(len(body))})
        response = connection.getresponse()
        data = response.read()
        connection.close()
        self.answer(response.status, dict(response.getheaders()), data, fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = hand_on  # noqa: N815 -- http.server's names

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        data = b""
        while size := int(self.rfile.readline().strip() or b"0", 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def answer(self, status: int, headers: dict[str, str], data: bytes, fault: str | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        length = headers.get("Content-Length", str(len(data))) if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", length)
        self.end_headers()
        if fault == "cut":
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return
        step = max(1, len(data) // 8) if fault == "drip" else max(1, len(data))
        for start in range(0, len(data), step):
            self.wfile.write(data[start : start + step])
            time.sleep(0.002 * (fault == "drip"))

    def log_message(self, *_: object) -> None:
        return


class Proxy:
    """Stands before the server; `fault` picks the requests that go wrong."""

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.lock = threading.Lock()
        self.start_counting()
        handler = type("BoundHandler", (Handler,), {"proxy": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def start_counting(self, fault: Fault = lambda *_: None) -> None:
        self.fault, self.faults = fault, 0
        self.lines: list[str] = []

    def note(self, method: str, path: str) -> str | None:
        with self.lock:
            self.lines.append(f"{method} {path}")
            fault = self.fault(f"{method} {path}", len(self.lines))
            self.faults += fault is not None
            return fault


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    started = moto_server.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    started.start()
    yield started.get_host_and_port()[1]
    started.stop()


@pytest.fixture
def proxy(server: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    between = Proxy(server)
    monkeypatch.setenv("AWS_ENDPOINT_URL", between.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr("botocore.loaders.create_loader", create_loader)
    monkeypatch.setattr("botocore.retryhandler.delay_exponential", lambda *_, **__: 0.001)  # seconds between tries
    s3fs.S3FileSystem.clear_instance_cache()
    yield between
    between.start_counting()
    s3fs.S3FileSystem.clear_instance_cache()
    between.server.shutdown()
    between.server.server_close()


@pytest.fixture
def bucket(proxy: Proxy, tmp_path: Path) -> str:
    name = f"s3://{tmp_path.name.replace('_', '-').lower()[-40:].strip('-')}"
    proxy.start_counting()
    s3fs.S3FileSystem().mkdir(name)
    return name


def upload(folder: Path, url: str) -> str:
    s3fs.S3FileSystem().put(f"{folder}/", url, recursive=True)
    s3fs.S3FileSystem.clear_instance_cache()
    return url


def embed(source: object, output: object, kind: str, **options: Any) -> RunSummary:
    return clip_inference(source, output, kind, clip_model=MODEL, **{"num_prepro_workers": 0, **options})


def every(count: int, kind: str) -> Fault:
    return lambda line, number: kind if number % count == 0 and (kind == "500" or line.startswith("GET")) else None


@pytest.fixture
def inputs(
    tmp_path: Path,
    make_sample: Callable[[int], list[tuple[str, bytes]]],
    write_pictures: Callable[[Path, int], Path],
    write_shards: Callable[[Path, int, int], Path],
) -> Path:
    """The same ten samples in four formats."""
    root = tmp_path / "in"
    write_pictures(root / "files", 10)
    write_shards(root / "webdataset", 2, 5)
    samples = [make_sample(number) for number in range(10)]
    images = [{"bytes": sample[0][1], "path": sample[0][0]} for sample in samples]
    table = pa.table({"image": images, "text": [sample[1][1].decode() for sample in samples]})
    (root / "parquet").mkdir()
    pa.parquet.write_table(table, root / "parquet" / "a.parquet", row_group_size=3)
    (root / "datasets").mkdir()
    with pa.ipc.new_stream(str(root / "datasets" / "a.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=4)
    (root / "datasets" / "state.json").write_text('{"_data_files": [{"filename": "a.arrow"}]}')
    return root


@pytest.mark.parametrize("kind", ["files", "webdataset", "parquet", "datasets"])
def test_a_store_that_fails_now_and_then_changes_no_byte(
    kind: str, inputs: Path, proxy: Proxy, bucket: str, tmp_path: Path, snapshot: Snapshot
) -> None:
    source, local = upload(inputs / kind, f"{bucket}/in"), tmp_path / "local"
    embed(inputs / kind, local, kind)
    for fault in ("500", "cut", "drip"):
        remote = tmp_path / fault
        s3fs.S3FileSystem.clear_instance_cache()
        proxy.start_counting(every(3, fault))

        summary = embed(source, remote, kind)

        assert proxy.faults, fault
        assert summary.stats.reasons == {}, fault
        for name in ("img_emb", "text_emb"):
            found, wanted = (
                {path.name: path.read_bytes() for path in (folder / name).iterdir()} for folder in (remote, local)
            )
            assert found == wanted, fault
        captions = [pd.read_parquet(folder / "metadata")["caption"].tolist() for folder in (remote, local)]
        assert captions[0] == captions[1], fault
        assert snapshot(remote).keys() == snapshot(local).keys(), fault


def test_reader_processes_read_from_a_store(inputs: Path, proxy: Proxy, bucket: str, tmp_path: Path) -> None:
    source = upload(inputs / "files", f"{bucket}/in")
    proxy.start_counting(every(9, "500"))

    summary = embed(source, tmp_path / "remote", "files", num_prepro_workers=1)

    assert (summary.stats.image_count, summary.stats.reasons) == (10, {})
    assert proxy.faults


def test_files_of_a_store_cost_one_request_each(inputs: Path, proxy: Proxy, bucket: str, tmp_path: Path) -> None:
    source = upload(inputs / "files", f"{bucket}/in")
    proxy.start_counting()

    # A reader process has not listed the folder: only what it asks for each object counts.
    embed(source, tmp_path / "remote", "files", num_prepro_workers=1)

    objects = [line for line in proxy.lines if ".jpg" in line or ".txt" in line]
    assert Counter(line.split()[0] for line in objects) == {"GET": 20}
    assert len(proxy.lines) - len(objects) < 10  # listing


def test_an_object_that_is_never_given_is_named(inputs: Path, proxy: Proxy, bucket: str, tmp_path: Path) -> None:
    source = upload(inputs / "files", f"{bucket}/in")
    proxy.start_counting(lambda line, _: "500" if "00004.jpg" in line else None)

    summary = embed(source, tmp_path / "remote", "files")

    assert summary.stats.reasons == {"image:unreadable": 1}
    assert summary.stats.sample_count == 10


def test_output_on_a_store_that_fails_is_whole_or_absent(
    inputs: Path, proxy: Proxy, bucket: str, tmp_path: Path
) -> None:
    embed(inputs / "files", tmp_path / "local", "files", output_partition_count=3)
    broken = {"now": True}
    proxy.start_counting(
        lambda line, _: "500" if broken["now"] and line.startswith("PUT") and "emb_2" in line else None
    )
    options = {"output_partition_count": 3}

    with pytest.raises(StorageError) as caught:
        embed(inputs / "files", f"{bucket}/out", "files", **options)
    broken["now"] = False
    proxy.fault = every(4, "500")
    s3fs.S3FileSystem.clear_instance_cache()
    again = embed(inputs / "files", f"{bucket}/out", "files", **options)

    assert "\n" not in str(caught.value)
    assert again.already_done == 2
    store = s3fs.S3FileSystem(use_listings_cache=False)
    for folder in ("img_emb", "text_emb", "metadata"):
        written = {path.rpartition("/")[2]: store.cat_file(path) for path in store.ls(f"{bucket}/out/{folder}")}
        assert written == {path.name: path.read_bytes() for path in (tmp_path / "local" / folder).iterdir()}


def test_a_store_that_never_answers_ends_in_a_sentence(proxy: Proxy, bucket: str, tmp_path: Path) -> None:
    proxy.start_counting(lambda *_: "500")

    with pytest.raises(StorageError) as caught:
        embed(f"{bucket}/in", tmp_path / "out", "files")

    assert f"{bucket}/in" in str(caught.value)


def run_side_by_side(plans: list[Plan]) -> None:
    """Run a worker for each plan at the same moment, all of them given all partitions."""
    barrier, ended = threading.Barrier(len(plans)), list[Plan]()

    def work(plan: Plan) -> None:
        barrier.wait()
        run_worker(plan, range(len(plan.partitions)), "cpu", Live(1).teller())
        ended.append(plan)

    threads = [threading.Thread(target=work, args=(plan,)) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ended) == len(plans)


def listed(proxy: Proxy) -> list[str]:
    """Return the prefixes that were listed as folders."""
    queries = [
        parse_qs(line.partition("?")[2]) for line in proxy.lines if line.startswith("GET") and "list-type" in line
    ]
    return [query.get("prefix", [""])[0] for query in queries]


def test_workers_at_once_on_a_store_that_fails_lose_nothing_and_list_nothing_but_attempts(
    inputs: Path, proxy: Proxy, bucket: str, tmp_path: Path
) -> None:
    embed(inputs / "webdataset", tmp_path / "local", "webdataset", output_partition_count=2)
    source, output = upload(inputs / "webdataset", f"{bucket}/in"), f"{bucket}/out"
    words = {"clip_model": MODEL, "num_prepro_workers": 0, "output_partition_count": 2}
    config = build_config(InferenceConfig, words, [source, output, "webdataset"])
    plan_only(config)
    run_worker(open_plan(config, "r"), [0], "cpu", Live(1).teller())  # the first writes the manifest
    s3fs.S3FileSystem.clear_instance_cache()
    proxy.start_counting(every(7, "500"))

    run_side_by_side([open_plan(config, "r") for _ in range(3)])

    assert proxy.faults
    prefixes = [prefix.rstrip("/") for prefix in listed(proxy)]
    assert not {
        prefix for prefix in prefixes if prefix in ("", "in", "out", "out/metadata", "out/failures", "out/stats")
    }
    proxy.start_counting()
    status = read_status(output)
    assert (status.is_complete, status.works) == (True, [])
    assert len([prefix for prefix in listed(proxy) if prefix.rstrip("/") == "out/metadata"]) == 1
    store = s3fs.S3FileSystem(use_listings_cache=False)
    for folder in ("img_emb", "text_emb", "metadata"):
        written = {path.rpartition("/")[2]: store.cat_file(path) for path in store.ls(f"{output}/{folder}")}
        local = {path.name: path.read_bytes() for path in (tmp_path / "local" / folder).iterdir()}
        assert written.keys() == local.keys()
        if folder != "metadata":  # it names the tars
            assert written == local


def test_a_worker_that_dies_of_its_store_leaves_no_half_partition_and_another_finishes(
    inputs: Path, proxy: Proxy, bucket: str
) -> None:
    source, output = upload(inputs / "webdataset", f"{bucket}/in"), f"{bucket}/out"
    words = {"clip_model": MODEL, "num_prepro_workers": 0, "output_partition_count": 2}
    config = build_config(InferenceConfig, words, [source, output, "webdataset"])
    plan_only(config)
    proxy.start_counting(lambda line, _: "500" if line.startswith("PUT") and "/metadata_1" in line else None)

    with pytest.raises(StorageError):
        run_worker(open_plan(config, "r"), [0, 1], "cpu", Live(1).teller())
    seen = read_status(output)
    proxy.start_counting()

    assert (seen.done, [(work.partition, work.state) for work in seen.works]) == (1, [("1", "failed")])
    assert len(run_worker(open_plan(config, "r"), [0, 1], "cpu", Live(1).teller())) == 1
    assert read_status(output).is_complete
