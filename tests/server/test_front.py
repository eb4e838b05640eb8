"""The web page's files, and the server that has only these."""

from __future__ import annotations

import gzip
import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from clip_retrieval.errors import ConfigError
from clip_retrieval.options import build_config
from clip_retrieval.server.app import page_headers
from clip_retrieval.server.config import FrontConfig
from clip_retrieval.server.front import open_front
from clip_retrieval.server.listen import bind
from clip_retrieval.server.sockets import answering
from clip_retrieval.server.static import OURS


def test_files_are_sent_compressed_to_who_takes_that_and_not_twice(client: Any) -> None:
    body = (OURS / "front.js").read_bytes()
    plain = client.get("/front.js", headers={"accept-encoding": "identity"})
    packed = client.get("/front.js", headers={"accept-encoding": "gzip"})
    assert plain.content == packed.content == body
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert int(packed.headers["content-length"]) == len(gzip.compress(body, mtime=0)) < len(body) / 2
    for answer, how in ((plain, "identity"), (packed, "gzip")):
        again = client.get("/front.js", headers={"accept-encoding": how, "if-none-match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    assert plain.headers["etag"] != packed.headers["etag"]


def test_the_page_may_ask_its_server_and_no_other(client: Any) -> None:
    policy = client.get("/").headers["content-security-policy"]
    assert "connect-src 'self';" in policy
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize(
    ("backend", "allowed"),
    [
        ("https://search.example.org/photos/", "'self' https://search.example.org"),
        ("http://[::1]:1234", "'self' http://[::1]:1234"),
        ("http://a.example; script-src *", "'self' http://a.example"),
        (None, "'self'"),
    ],
)
def test_a_page_for_a_server_elsewhere_may_ask_that_one(backend: str | None, allowed: str) -> None:
    policy = dict(page_headers(backend))[b"content-security-policy"].decode()
    assert f"connect-src {allowed};" in policy
    assert "script-src *" not in policy


def test_an_index_says_whether_its_pictures_are_served(client: Any, index: Path, serve: Any) -> None:
    assert client.get("/v1/indices").json()["indices"][0]["pictures"] is False
    other = serve(index, pictures_below=(str(index),))
    assert other.get("/v1/indices").json()["indices"][0]["pictures"] is True


def test_the_page_alone_names_the_server_that_it_asks() -> None:
    config = build_config(FrontConfig, {"port": 0}, ["https://search.example.org", "photos"])
    with bind(config.access) as sock, answering(sock, open_front(config), config.access, 1) as url:
        with urllib.request.urlopen(f"{url}/config.json", timeout=60) as answer:
            assert json.load(answer) == {
                "defaultBackend": "https://search.example.org", "defaultIndex": "photos", "urlColumn": "url",
            }  # fmt: skip
        with urllib.request.urlopen(url, timeout=60) as answer:
            assert answer.read() == (OURS / "index.html").read_bytes()
            assert "connect-src 'self' https://search.example.org;" in answer.headers["content-security-policy"]


def test_a_backend_that_is_no_address_is_refused() -> None:
    with pytest.raises(ConfigError, match="default_backend is an address"):
        build_config(FrontConfig, {}, ["localhost:1234"])
