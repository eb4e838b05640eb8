"""Who may use the server, how many requests at once, and how others are refused."""

from __future__ import annotations

import asyncio
import base64
import http.server
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from clip_retrieval.errors import ConfigError
from clip_retrieval.query.searcher import Searcher

KEY = "0123456789abcdef0123"
ASKS = {"text": "dog", "modality": "image", "num_images": 1, "indice_name": None}


def test_no_origin_may_ask_unless_it_is_named(client: Any, index: Path, serve: Any) -> None:
    origin = {"origin": "https://example.org"}
    assert "access-control-allow-origin" not in client.post("/knn-service", ASKS, headers=origin).headers
    assert client.request("OPTIONS", "/knn-service", headers=origin).status_code == 405
    for plain in (client, serve(index, cors=["*"])):
        assert plain.request("OPTIONS", "/knn-service").headers["allow"] == "GET, HEAD, POST, OPTIONS"
    every = serve(index, cors=["*"])
    assert every.post("/knn-service", ASKS, headers=origin).headers["access-control-allow-origin"] == "*"
    assert every.post("/knn-service", b"{", headers=origin).headers["access-control-allow-origin"] == "*"
    one = serve(index, cors=["https://example.org/"])
    preflight = one.request("OPTIONS", "/v1/search", headers=origin | {"access-control-request-method": "POST"})
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == "https://example.org"
    assert "access-control-allow-origin" not in one.get("/indices-list", headers={"origin": "https://evil.org"}).headers


def test_a_key_is_wanted_where_there_are_some(tmp_path: Path, index: Path, serve: Any) -> None:
    (tmp_path / "keys").write_text(f"# ours\n{KEY}\n\nfedcba98765432100000\n")
    client = serve(index, api_key_file=str(tmp_path / "keys"))
    assert client.post("/knn-service", ASKS).status_code == 401
    assert client.get("/metrics").status_code == 401
    for headers in ({"x-api-key": KEY}, {"authorization": f"Bearer {KEY}"}, {"authorization": f"bearer  {KEY}"}):
        assert client.post("/knn-service", ASKS, headers=headers).status_code == 200
    for wrong in (KEY[:-1], KEY + "0", "# ours", ""):
        assert client.post("/knn-service", ASKS, headers={"x-api-key": wrong}).status_code == 401
    for path in ("/", "/healthz", "/readyz", "/config.json", "/v1/docs"):
        assert client.get(path).status_code == 200


@pytest.mark.parametrize(("content", "said"), [("", "holds no key"), ("short", "shorter than 16"), (None, "cannot be")])
def test_a_file_of_keys_without_a_good_one_is_refused(
    tmp_path: Path, index: Path, serve: Any, content: str | None, said: str
) -> None:
    if content is not None:
        (tmp_path / "keys").write_text(content)
    with pytest.raises(ConfigError, match=said):
        serve(index, api_key_file=str(tmp_path / "keys"))


@pytest.mark.parametrize("host", ["localhost:1234", "127.0.0.1", "[::1]:1234", "192.168.0.7:80", "x.localhost"])
def test_names_of_this_machine_are_answered(client: Any, host: str) -> None:
    assert client.get("/indices-list", headers={"host": host}).status_code == 200


def test_a_name_that_a_web_page_gave_this_machine_is_not_answered(client: Any, index: Path, serve: Any) -> None:
    for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example:1234"):
        assert client.get("/indices-list", headers={"host": host}).status_code == 421
    named = serve(index, allowed_hosts=["search.example"])
    assert named.get("/indices-list", headers={"host": "search.example"}).status_code == 200
    assert serve(index, host="0.0.0.0").get("/indices-list", headers={"host": "any.example"}).status_code == 200


def test_unknown_paths_and_methods_are_json_too(client: Any) -> None:
    for path in ("/nothing", "/../etc/passwd", "/%2e%2e/etc/passwd", "/v1/nothing", "/v1/pictures"):
        answer = client.get(path)
        assert (answer.status_code, "message" in answer.json()) == (404, True)
    refused = client.get("/knn-service")
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
    assert client.request("DELETE", "/").status_code == 405
    assert client.request("HEAD", "/indices-list").content == b""


def test_answers_carry_the_headers_that_keep_pages_safe(client: Any) -> None:
    for path in ("/indices-list", "/nothing"):
        assert client.get(path).headers["x-content-type-options"] == "nosniff"
    for path in ("/", "/v1/docs", "/style.css"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]


def test_a_body_that_is_too_large_is_not_read(index: Path, serve: Any) -> None:
    client = serve(index, max_body_bytes=1000)
    read: list[int] = []

    async def parts() -> Any:
        for part in range(100):
            read.append(part)
            yield b" " * 500

    assert client.post("/knn-service", b" " * 1001).status_code == 413
    answer = client.request("POST", "/knn-service", content=parts())
    assert (answer.status_code, answer.headers["connection"]) == (413, "close")
    assert len(read) < 10


def test_a_picture_of_too_many_pixels_is_refused(index: Path, serve: Any, make_jpeg: Callable[[int], bytes]) -> None:
    picture = base64.b64encode(make_jpeg(1)).decode()
    body = {"image": picture, "modality": "image", "num_images": 1, "indice_name": None}
    answer = serve(index, max_pixels=100).post("/knn-service", body)
    assert (answer.status_code, "more than 100 pixels" in answer.json()["message"]) == (400, True)
    assert serve(index).post("/knn-service", body).status_code == 200


class Gate:
    """Holds searches up until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.opened = threading.Semaphore(0), threading.Event()
        self.searched = 0
        real = Searcher.search_many

        def search_many(searcher: Searcher, queries: Any, k: int, **options: Any) -> Any:
            self.entered.release()
            assert self.opened.wait(30)
            self.searched += len(queries)
            return real(searcher, queries, k, **options)

        monkeypatch.setattr(Searcher, "search_many", search_many)


def test_one_request_too_many_is_refused_before_its_body_is_read(
    index: Path, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, gate, read = serve(index, max_waiting=4), Gate(monkeypatch), []

    async def body() -> Any:
        read.append(1)
        yield b"{}"

    async def ask_all() -> Any:
        waiting = [asyncio.create_task(client.http.post("/knn-service", json=ASKS)) for _ in range(4)]
        while client.served.app.in_work < 4:
            await asyncio.sleep(0)
        refused = await client.http.post("/knn-service", content=body())
        gate.opened.set()
        return refused, await asyncio.gather(*waiting)

    refused, answered = client.run(ask_all())
    assert (refused.status_code, refused.headers["retry-after"], read) == (429, "1", [])
    assert [answer.status_code for answer in answered] == [200] * 4
    assert client.post("/knn-service", ASKS).status_code == 200  # the overload is over


def test_a_request_whose_client_hung_up_is_not_searched(
    index: Path, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, gate = serve(index, search_threads=1), Gate(monkeypatch)
    hung_up = asyncio.Event()

    async def ask(*, stays: bool) -> list[dict[str, Any]]:
        messages: list[Any] = [{"type": "http.request", "body": b'{"text":"dog","num_images":1}', "more_body": False}]
        sent: list[dict[str, Any]] = []

        async def receive() -> Any:
            if messages:
                return messages.pop(0)
            await (asyncio.Event() if stays else hung_up).wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/knn-service", "headers": [(b"host", b"localhost")]}
        await client.served.app(scope, receive, send)
        return sent

    async def ask_all() -> Any:
        first = asyncio.create_task(ask(stays=True))
        await asyncio.to_thread(gate.entered.acquire)  # the one thread that searches is busy now
        gone = [asyncio.create_task(ask(stays=False)) for _ in range(5)]
        while len(client.served.asker.searching.waiting) < 5:
            await asyncio.sleep(0.001)
        hung_up.set()
        unanswered = await asyncio.gather(*gone)
        gate.opened.set()
        return await first, unanswered

    answered, unanswered = client.run(ask_all())
    assert answered[0]["status"] == 200
    assert unanswered == [[]] * 5
    assert client.post("/knn-service", ASKS).status_code == 200
    assert gate.searched == 2  # the first and the last
    assert "clip_retrieval_hang_ups_total 5.0" in client.get("/metrics").text


def test_an_answer_that_takes_too_long_is_given_up(index: Path, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    client, gate = serve(index, request_timeout=0.2), Gate(monkeypatch)
    answer = client.post("/knn-service", ASKS)
    assert (answer.status_code, "longer than 0.2 s" in answer.json()["message"]) == (503, True)
    gate.opened.set()
    assert client.post("/knn-service", ASKS).status_code == 200


def test_what_takes_long_has_a_lane_of_its_own(tmp_path: Path, write_index: Any, unit_rows: Any, serve: Any) -> None:
    rows = unit_rows(1500, 16)
    client = serve(write_index(tmp_path / "ix", pd.DataFrame({"caption": [""] * 1500}), rows=rows), max_heavy=2)
    body = {"embedding_input": rows[0].tolist(), "num_images": 0, "num_result_ids": 1200, "deduplicate": True}

    async def ask_all() -> list[int]:
        answers = await asyncio.gather(*[client.http.post("/knn-service", json=body) for _ in range(8)])
        return [answer.status_code for answer in answers]

    statuses = client.run(ask_all())
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 2
    hits = client.post("/knn-service", body).json()
    found = rows[[hit["id"] for hit in hits]]
    assert (np.tril(found @ found.T, -1) < 0.94).all()


def test_health_says_that_the_threads_work_and_that_something_was_found(client: Any) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    ready = client.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (200, "ready")
    assert ready.json()["indices"] == {"words": client.get("/v1/indices").json()["indices"][0]["generation"]}


def test_a_server_that_cannot_encode_is_not_ready_and_still_answers_vectors(index: Path, serve: Any) -> None:
    client = serve(index, clip_model="onnx:/there/is/no/such/model")
    ready = client.get("/readyz")
    assert (ready.status_code, "no/such/model" in ready.text) == (503, True)
    assert client.get("/healthz").status_code == 200
    refused = client.post("/knn-service", ASKS)
    assert (refused.status_code, "no/such/model" in refused.text) == (503, True)
    vector = {"embedding_input": [1.0] * 16, "modality": "image", "num_images": 1}
    assert client.post("/knn-service", vector).status_code == 200


def test_a_server_that_does_not_search_is_not_ready(index: Path, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    client = serve(index)

    def fail(*_: Any) -> Any:
        raise RuntimeError("the index is gone")

    monkeypatch.setattr(Searcher, "search_many", fail)
    answer = client.get("/readyz")
    assert answer.status_code in (500, 503)
    assert client.post("/knn-service", ASKS).json() == {"message": "Internal Server Error"}
    monkeypatch.undo()
    assert client.post("/knn-service", ASKS).status_code == 200  # no thread ended


URLS = [
    "http://127.0.0.1:{port}/", "http://localhost:{port}/", "http://[::1]:{port}/", "http://0.0.0.0:{port}/",
    "http://2130706433:{port}/", "http://0x7f.1:{port}/", "http://127.1:{port}/", "http://[::ffff:127.0.0.1]:{port}/",
    "http://10.0.0.1/", "http://192.168.1.1/", "http://172.16.0.1/", "http://169.254.169.254/latest/meta-data/",
    "http://[fd00::1]/", "http://[fe80::1]/", "http://[64:ff9b::7f00:1]/", "http://100.64.0.1/", "http://224.0.0.1/",
    "file:///etc/passwd", "ftp://127.0.0.1/", "gopher://127.0.0.1:{port}/", "dict://127.0.0.1:{port}/", "//127.0.0.1/",
    "http://user:word@127.0.0.1:{port}/", "http://127.0.0.1:{port}@example.invalid/", "/etc/passwd", "pipe:id", "http://",
    "data:image/png;base64,AAAA", "http://127.0.0.1:99999/", "http://a b/", "http://\n127.0.0.1/", "", " ",
]  # fmt: skip


def test_no_url_leads_into_the_network_of_the_server(index: Path, serve: Any) -> None:
    client, asked = serve(index, allow_image_urls=True, fetch_retries=0, fetch_timeout=2), []
    with socket.create_server(("127.0.0.1", 0)) as trap:
        port = trap.getsockname()[1]
        trap.settimeout(0)
        for url in URLS:
            picture = url.format(port=port)
            old = client.post("/knn-service", {"image_url": picture, "modality": "image", "num_images": 1})
            new = client.post("/v1/search", {"queries": [[{"image_url": picture}]]})
            asked += [(picture, answer.status_code) for answer in (old, new) if answer.status_code != 400]
            assert "127.0.0.1 is" not in old.text  # the address of a name stays private
        with pytest.raises(BlockingIOError):
            trap.accept()
    assert not asked


def test_pictures_of_urls_are_fetched_where_that_was_allowed(
    index: Path, serve: Any, make_jpeg: Callable[[int], bytes]
) -> None:
    picture = make_jpeg(3)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(picture)))
            self.end_headers()
            self.wfile.write(picture)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        client = serve(index, allow_image_urls=True, allow_private_addresses=True)
        url = f"http://127.0.0.1:{web.server_address[1]}/a.jpg"
        by_url = client.post("/knn-service", {"image_url": url, "modality": "image", "num_images": 3})
        web.shutdown()
    body = {"image": base64.b64encode(picture).decode(), "modality": "image", "num_images": 3}
    assert by_url.json() == client.post("/knn-service", body).json()


def test_a_body_that_does_not_come_is_not_waited_for(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clip_retrieval.server.messages.SECONDS_FOR_A_BODY", 0.05)

    async def body() -> Any:
        yield b"{"
        await asyncio.sleep(30)

    answer = client.request("POST", "/knn-service", content=body())
    assert (answer.status_code, "did not arrive in time" in answer.json()["message"]) == (408, True)
    assert client.served.app.in_work == 0


def test_a_thread_that_is_stuck_is_told_of(index: Path, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    client, gate = serve(index, request_timeout=0.05), Gate(monkeypatch)
    assert client.post("/knn-service", ASKS).status_code == 503
    while client.get("/healthz").status_code == 200:
        pass  # until the search has taken twice as long as a request may
    assert client.get("/healthz").json() == {"status": "stuck: search"}
    gate.opened.set()
    while client.get("/healthz").status_code != 200:
        pass
    assert client.post("/knn-service", ASKS).status_code == 200
