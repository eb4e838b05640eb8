"""ClipClient and AsyncClipClient, at real servers."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from clip_retrieval import load_encoder
from clip_retrieval.clip_client import AsyncClipClient, ClipClient, Modality
from clip_retrieval.errors import ClientError, ConfigError
from clip_retrieval.options import build_config
from clip_retrieval.server.config import BackConfig
from clip_retrieval.server.run import listening

MODEL = "hash:16?size=32"
WORDS = ["cat", "dog", "rocket", "sun"]
KEY = "0123456789abcdef0123"
Answers = Sequence[tuple[int, dict[str, str], bytes]]


class Recorder(ThreadingHTTPServer):
    """A server that gives prepared answers, and keeps what it was sent; the last answer repeats."""

    daemon_threads = True

    def __init__(self, answers: Answers) -> None:
        super().__init__(("127.0.0.1", 0), Recording)
        self.answers = list(answers)
        self.requests: list[tuple[str, dict[str, str], bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Recording(BaseHTTPRequestHandler):
    server: Recorder

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
        answers = self.server.answers
        status, headers, answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if not status:
            return  # hangs up
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(answer))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST  # noqa: N815 -- the name that the class looks for

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def record() -> Iterator[Callable[..., Recorder]]:
    """Give a function from prepared answers to a running Recorder."""
    started: list[Recorder] = []

    def start(*answers: tuple[int, dict[str, str], bytes]) -> Recorder:
        server = Recorder(answers or [(200, {}, b"[]")])
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, write_index: Callable[..., Path]) -> Iterator[str]:
    """Give the address of a server of an index of four words, which wants a key."""
    folder = tmp_path_factory.mktemp("served")
    captions = pd.DataFrame({"caption": WORDS, "url": [f"http://example.org/{word}.jpg" for word in WORDS]})
    (folder / "keys").write_text(KEY)
    options = {"port": 0, "reload_seconds": 0, "api_key_file": str(folder / "keys")}
    config = build_config(BackConfig, options, [str(write_index(folder / "words", captions))])
    with listening(config) as started:
        yield started.url


@pytest.fixture(scope="module")
def client(server: str) -> Iterator[ClipClient]:
    with ClipClient(f"{server}/knn-service", "words", num_images=2, api_key=f"{KEY}\n") as opened:
        yield opened


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 40), (200, 90, 20)).save(file, "PNG")
    return file.getvalue()


def test_a_text_is_sent_exactly_as_by_the_original_client(record: Callable[..., Recorder]) -> None:
    server = record()
    assert ClipClient(f"{server.url}/knn-service", "laion5B").query(text="a dog") == []
    ((path, headers, body),) = server.requests
    assert path == "/knn-service"
    assert "content-type" not in headers
    assert body == (
        b'{"text": "a dog", "image": null, "image_url": null, "embedding_input": null, "deduplicate": true, '
        b'"use_safety_model": true, "use_violence_detector": true, "indice_name": "laion5B", "use_mclip": false, '
        b'"aesthetic_score": 9, "aesthetic_weight": 0.5, "modality": "image", "num_images": 40, "num_result_ids": 40}'
    )


def test_positions_of_the_original_constructor_mean_what_they_meant(record: Callable[..., Recorder]) -> None:
    server = record()
    url = f"{server.url}/knn-service"
    ClipClient(url, "x", True, 5, 0.25, Modality.TEXT, 7, False, False, False).query(embedding_input=[0.5, 1])
    body = json.loads(server.requests[0][2])
    assert body == {
        "text": None, "image": None, "image_url": None, "embedding_input": [0.5, 1], "deduplicate": False,
        "use_safety_model": False, "use_violence_detector": False, "indice_name": "x", "use_mclip": True,
        "aesthetic_score": 5, "aesthetic_weight": 0.25, "modality": "text", "num_images": 7, "num_result_ids": 7,
    }  # fmt: skip


def test_a_picture_is_a_url_for_the_server_or_a_file_of_ours(record: Callable[..., Recorder], tmp_path: Path) -> None:
    server = record()
    (tmp_path / "x.png").write_bytes(png())
    client = ClipClient(server.url, "x")
    client.query(image="https://example.org/x.png")
    client.query(image=str(tmp_path / "x.png"))
    by_url, by_file = (json.loads(body) for _, _, body in server.requests)
    assert (by_url["image"], by_url["image_url"]) == (None, "https://example.org/x.png")
    assert (base64.b64decode(by_file["image"]), by_file["image_url"]) == (png(), None)
    with pytest.raises(FileNotFoundError, match=r"nothing\.png"):
        client.query(image=str(tmp_path / "nothing.png"))


def test_a_query_is_of_one_kind(server: str) -> None:
    client = ClipClient(server)
    for given in ({}, {"text": "a", "image": "b"}, {"text": "a", "embedding_input": [1.0]}):
        with pytest.raises(ValueError, match="one of text, image and embedding_input"):
            client.query(**given)
    with pytest.raises(ValueError, match="2 rows"):
        client.query(embedding_input=np.eye(2))
    for url in ("localhost:1234", "http://", "http://[::1", "http://localhost:port", "ftp://localhost"):
        with pytest.raises(ConfigError, match="such as http://localhost:1234"):
            ClipClient(url)
    with pytest.raises(ConfigError, match="api_key") as caught:
        ClipClient(server, api_key="secret\nsecret")
    assert "secret" not in str(caught.value)


def test_the_original_methods_find_what_is_there(client: ClipClient, tmp_path: Path) -> None:
    hits = client.query(text="dog")
    assert len(hits) == 2
    assert (hits[0]["id"], hits[0]["caption"], hits[0]["url"]) == (1, "dog", "http://example.org/dog.jpg")
    assert hits[0]["similarity"] == pytest.approx(1, abs=1e-5)
    vector = load_encoder(MODEL).encode_texts(["sun"])
    assert client.query(embedding_input=vector)[0]["caption"] == "sun"  # a row of numpy, as it is
    (tmp_path / "x.png").write_bytes(png())
    assert len(client.query(image=tmp_path / "x.png")) == 2
    assert client.metadata([2])[0]["metadata"]["caption"] == "rocket"
    assert client.names() == ["words"]


def test_methods_of_v1_take_texts_pictures_rows_and_vectors(client: ClipClient) -> None:
    (about,) = client.indices()
    assert (about["name"], about["dimension"], about["rows"]["image"]) == ("words", 16, 4)
    hits = client.search("dog", limit=1, where="caption != 'dog'", columns=["caption"])
    assert [hit["metadata"]["caption"] for hit in hits] != ["dog"]
    embedded = client.embed(["sun", png()])
    assert np.linalg.norm(embedded, axis=1) == pytest.approx([1, 1], abs=1e-5)
    queries: list[Any] = [
        "rocket",
        [{"embedding": np.array(embedded[0])}],
        [{"image": png()}],
        [{"id": 0, "weight": 2.0}],
    ]
    answers = client.search_many(queries, limit=1)
    assert [answer["hits"][0]["metadata"]["caption"] for answer in answers[:2]] == ["rocket", "sun"]
    assert [answer["kind"] for answer in answers] == ["text", "embedding", "image", "row"]


def test_the_asynchronous_client_answers_the_same(server: str, client: ClipClient) -> None:
    async def ask() -> list[Any]:
        async with AsyncClipClient(server, "words", num_images=2, api_key=KEY) as asked:
            return await asyncio.gather(
                asked.query(text="dog"), asked.metadata([2]), asked.names(), asked.indices(), asked.search("dog"),
                asked.search_many(["dog"]), asked.embed(["sun"]),
            )  # fmt: skip

    assert asyncio.run(ask()) == [
        client.query(text="dog"), client.metadata([2]), client.names(), client.indices(), client.search("dog"),
        client.search_many(["dog"]), client.embed(["sun"]),
    ]  # fmt: skip


def test_pictures_come_by_row_as_they_are_or_small(record: Callable[..., Recorder], server: str) -> None:
    answers = record((200, {}, b'["a b"]'), (200, {}, b"small"), (200, {}, b"large"))
    client = ClipClient(answers.url)
    assert (client.picture(3), ClipClient(answers.url, "a/b").picture(3, size=None)) == (b"small", b"large")
    assert [path for path, *_ in answers.requests[1:]] == [
        "/v1/pictures/a%20b/3?size=256", "/v1/pictures/a%2Fb/3?original=1",
    ]  # fmt: skip
    with pytest.raises(ClientError, match="row 3 of words has no picture"):
        ClipClient(server, "words", api_key=KEY).picture(3)


def test_an_error_of_the_server_is_told_in_its_words_with_its_status(server: str) -> None:
    with pytest.raises(ClientError, match="answers 404: there is no index 'x'") as caught:
        ClipClient(server, "x", api_key=KEY).query(text="a")
    assert caught.value.status == 404
    with pytest.raises(ClientError, match="answers 401") as caught:
        ClipClient(server, "words").names()
    assert KEY not in repr(ClipClient(server, "words", api_key=KEY))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            (200, {"content-type": "text/html"}, b"<html>"),
            "answers text/html that is not what clip-retrieval answers; is this",
        ),
        ((200, {"content-type": "application/json"}, b'{"hits": []}'), "answers application/json that is not what"),
        ((301, {"location": "https://example.org/"}, b""), "it has moved to https://example.org/; give that address"),
        ((500, {}, b"oh"), "answers 500: Internal Server Error"),
        ((0, {}, b""), "cannot be asked: Server disconnected"),
    ],
    ids=["page", "another service", "moved", "broken", "hung up"],
)
def test_what_is_no_answer_is_one_sentence(
    record: Callable[..., Recorder], answer: tuple[int, dict[str, str], bytes], said: str
) -> None:
    with pytest.raises(ClientError, match=said):
        ClipClient(record(answer).url, retries=1, backoff=0).query(text="a")


def test_a_server_that_is_not_there_is_told_at_once() -> None:
    with pytest.raises(ClientError, match=r"http://127\.0\.0\.1:1 cannot be reached .*clip-retrieval back") as caught:
        ClipClient("http://127.0.0.1:1/knn-service", backoff=1e6).query(text="a")
    assert caught.value.status is None


@pytest.mark.parametrize("is_async", [False, True])
def test_a_busy_server_and_one_that_hangs_up_are_asked_again(record: Callable[..., Recorder], is_async: bool) -> None:
    date = "Sun, 06 Nov 1994 08:49:37 GMT"
    busy = [(429, {"retry-after": "0"}, b"{}"), (503, {"retry-after": date}, b""), (0, {}, b"")]
    server = record(*busy, (200, {}, b"[]"))

    async def ask() -> list[Any]:
        async with AsyncClipClient(server.url, backoff=0) as client:
            return await client.query(text="a")

    if is_async:
        assert asyncio.run(ask()) == []
    else:
        assert ClipClient(server.url, backoff=0).query(text="a") == []
    assert len(server.requests) == 4
    assert len({body for *_, body in server.requests}) == 1


def test_tries_end(record: Callable[..., Recorder]) -> None:
    server = record((429, {"retry-after": "0"}, b'{"message": "too many requests are waiting"}'))
    with pytest.raises(ClientError, match="answers 429: too many requests are waiting") as caught:
        ClipClient(server.url, retries=2, backoff=0).query(text="a")
    assert (caught.value.status, len(server.requests)) == (429, 3)
    patient = record((503, {"retry-after": "86400"}, b"{}"))
    with pytest.raises(ClientError, match="503"):
        ClipClient(patient.url).query(text="a")
    assert len(patient.requests) == 1  # nobody waits for a day
