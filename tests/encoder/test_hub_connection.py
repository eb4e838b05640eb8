"""If the hub cannot be reached, local models are used, and others are refused at once, with the reason."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants

from clip_retrieval.encoder import hub_connection
from clip_retrieval.encoder.config import EncoderConfig
from clip_retrieval.encoder.engines.openclip_published import asks_hub, resolve_weights
from clip_retrieval.encoder.hub_connection import find_obstacle, hub_or_cache, why_not_fetched
from clip_retrieval.encoder.load import load_encoder
from clip_retrieval.encoder.uri import DEMO_MODEL, parse_uri
from clip_retrieval.errors import EncoderError

NOBODY = "http://127.0.0.1:9"


@pytest.fixture
def hub_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Go online, to a hub at an address of this machine that the test sets as constants.ENDPOINT."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", NOBODY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    close_session()
    yield monkeypatch
    close_session()


@pytest.mark.usefixtures("hub_at")
@pytest.mark.parametrize(
    ("model", "what"),
    [
        ("ViT-B/32", "the weights of ViT-B/32 are not on this machine"),
        ("open_clip:hf-hub:org/name", "the weights of open_clip:hf-hub:org/name are not on this machine"),
        ("hf_clip:org/name", "org/name is neither a folder here, nor whole in the hub's cache,"),
        ("gguf:org/name", "org/name is neither a folder here, nor whole in the hub's cache,"),
    ],
)
def test_a_model_that_is_not_here_is_refused_without_retries(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: str, what: str
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("huggingface_hub waits for its next try"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(EncoderError) as caught:
        load_encoder(EncoderConfig(clip_model=model, clip_cache_path=str(tmp_path), device="cpu"))
    assert str(caught.value).startswith(what)
    assert f"could not be fetched (no connection to {NOBODY}: " in str(caught.value)
    assert not constants.HF_HUB_OFFLINE
    assert not hub_connection.obstacles


def test_blocks_that_overlap_end_offline_mode_with_the_last_of_them(hub_at: pytest.MonkeyPatch) -> None:
    error = OSError("the library's sentence\nand advice")
    first, second = hub_or_cache(), hub_or_cache()
    with first:
        second.__enter__()
        assert why_not_fetched(error).startswith(f"no connection to {NOBODY}: ")
    assert is_offline()
    second.__exit__(None, None, None)
    assert not is_offline()
    assert why_not_fetched(error) == "the library's sentence"
    hub_at.setattr(constants, "HF_HUB_OFFLINE", True)
    with hub_or_cache():
        assert why_not_fetched(error) == "the library's sentence"
    assert is_offline()
    assert find_obstacle(1) == "offline mode is enabled by HF_HUB_OFFLINE"


def is_offline() -> bool:
    return constants.HF_HUB_OFFLINE


class Refusing(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Be quiet."""


def test_a_hub_that_refuses_is_there(hub_at: pytest.MonkeyPatch) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub_at.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        assert find_obstacle(60) is None
        server.shutdown()


def test_a_hub_that_takes_long_to_answer_is_there(hub_at: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hub_at.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert find_obstacle(0.1) is None


def test_a_client_that_never_returns_is_not_waited_for(hub_at: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    hub_at.setattr("socket.getaddrinfo", lambda *_, **__: ended.wait() and [])
    assert find_obstacle(0.1) == f"{NOBODY} does not answer within 0.1 seconds"
    ended.set()


@pytest.mark.parametrize(
    ("model", "asks"),
    [
        ("ViT-B/32", True),
        ("open_clip:hf-hub:org/name", True),
        ("random:ViT-B-32", False),
        ("random:ViT-B-16-SigLIP", True),  # its tokenizer
        (f"open_clip:local-dir:{DEMO_MODEL}", False),
        (f"open_clip:ViT-B-32/{DEMO_MODEL}/open_clip_model.safetensors", False),
    ],
)
def test_the_hub_is_asked_for_weights_and_tokenizers_that_it_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: str, asks: bool
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert asks_hub(resolve_weights(parse_uri(model), None)) is asks
