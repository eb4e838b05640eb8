"""The server on a real socket: started, sent bad requests, stopped."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from clip_retrieval.errors import ConfigError
from clip_retrieval.options import build_config
from clip_retrieval.query.searcher import Searcher
from clip_retrieval.server.config import BackConfig
from clip_retrieval.server.run import Listening, listening

ASK = json.dumps({"text": "dog", "modality": "image", "num_images": 1, "indice_name": None}).encode()
HEAD = "POST /knn-service HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n"


def config(index: Path, **options: Any) -> BackConfig:
    return build_config(BackConfig, {"port": 0, "reload_seconds": 0, **options}, [str(index)])


@pytest.fixture
def server(index: Path) -> Iterator[Listening]:
    with listening(config(index)) as opened:
        yield opened


def port_of(server: Listening) -> int:
    return int(server.url.rpartition(":")[2])


def ask(url: str, body: bytes = ASK) -> Any:
    with urllib.request.urlopen(urllib.request.Request(f"{url}/knn-service", body), timeout=30) as answer:
        return json.loads(answer.read())


def test_requests_follow_each_other_on_one_connection(server: Listening) -> None:
    with socket.create_connection(("127.0.0.1", port_of(server)), timeout=30) as sock:
        for body in (ASK, b"{", ASK):
            sock.sendall(HEAD.format(len(body)).encode() + body)
            answer = sock.recv(65536)
            assert answer.startswith(b"HTTP/1.1 400" if body == b"{" else b"HTTP/1.1 200")


def test_requests_that_follow_each_other_at_once_are_refused_in_order(server: Listening) -> None:
    admission = server.served.app.admission
    admission.in_work += 10_000
    try:
        with socket.create_connection(("127.0.0.1", port_of(server)), timeout=60) as sock:
            one = HEAD.format(len(ASK)).encode() + ASK
            sock.sendall(one * 3 + b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            found = b""
            while b'{"status"' not in found:
                found += sock.recv(65536)
            statuses = [part.split()[0] for part in found.split(b"HTTP/1.1 ")[1:]]
            assert statuses == [b"429", b"429", b"429", b"200"]
            admission.in_work -= 10_000
            sock.sendall(one)
            assert sock.recv(65536).startswith(b"HTTP/1.1 200")
    finally:
        admission.in_work = 0


@pytest.mark.parametrize(
    "sent",
    [
        b"\r\n\r\n",
        b"nonsense",
        b"POST /knn-service HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{",
        b"POST /knn-service HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"a: b\r\n" * 20_000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=["empty", "nonsense", "half", "chunk", "headers", "tls"],
)
def test_a_client_that_speaks_badly_or_hangs_up_harms_nobody(server: Listening, sent: bytes) -> None:
    for _ in range(3):
        sock = socket.create_connection(("127.0.0.1", port_of(server)), timeout=30)
        with sock, suppress(OSError):  # the server may have closed the connection already
            sock.sendall(sent)
    assert ask(server.url)[0]["caption"] == "dog"
    assert server.served.app.in_work == 0 or wait_until(lambda: server.served.app.in_work == 0)


def wait_until(is_so: Callable[[], bool], seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while not is_so() and time.monotonic() < end:
        time.sleep(0.005)
    return is_so()


def test_a_client_that_hangs_up_ends_its_request(server: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, real = threading.Event(), Searcher.search_many
    monkeypatch.setattr(Searcher, "search_many", lambda *of, **options: (opened.wait(30), real(*of, **options))[1])
    with socket.create_connection(("127.0.0.1", port_of(server)), timeout=30) as sock:
        sock.sendall(HEAD.format(len(ASK)).encode() + ASK)
        assert wait_until(lambda: server.served.app.in_work == 1)
    assert wait_until(lambda: server.served.app.in_work == 0)  # though the search goes on
    opened.set()
    assert ask(server.url)[0]["caption"] == "dog"


def test_a_stopped_server_answers_what_is_under_way(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, opened, real = threading.Event(), threading.Event(), Searcher.search_many

    def search_many(*of: Any, **options: Any) -> Any:
        entered.set()
        assert opened.wait(30)
        return real(*of, **options)

    monkeypatch.setattr(Searcher, "search_many", search_many)
    answers: list[Any] = []
    with listening(config(index)) as server:
        asking = threading.Thread(target=lambda: answers.append(ask(server.url)))
        asking.start()
        assert entered.wait(30)
        threading.Timer(0.2, opened.set).start()
    asking.join()
    assert answers[0][0]["caption"] == "dog"
    with pytest.raises(OSError, match="refused"):
        ask(server.url)


def test_a_port_that_is_taken_is_one_sentence(index: Path, server: Listening) -> None:
    taken = rf"port {port_of(server)} of 127.0.0.1 is in use"
    with pytest.raises(ConfigError, match=taken), listening(config(index, port=port_of(server))):
        pass


def test_https_is_spoken_with_a_certificate(tmp_path: Path, index: Path) -> None:
    made = subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")),
        ],
        capture_output=True, check=False,
    )  # fmt: skip
    if made.returncode:
        pytest.skip("openssl is not installed")
    files = {"ssl_certfile": str(tmp_path / "cert.pem"), "ssl_keyfile": str(tmp_path / "key.pem")}
    trusting = ssl.create_default_context(cafile=files["ssl_certfile"])
    trusting.check_hostname = False
    with listening(config(index, **files)) as server:
        assert server.url.startswith("https://")
        with urllib.request.urlopen(f"{server.url}/healthz", context=trusting, timeout=30) as answer:
            assert json.loads(answer.read()) == {"status": "ok"}
    wrong = files | {"ssl_certfile": files["ssl_keyfile"]}
    with pytest.raises(ConfigError, match="cannot be used as a certificate"), listening(config(index, **wrong)):
        pass


def test_the_command_serves_without_torch_until_it_is_told_to_stop(index: Path) -> None:
    code = (
        "import os, sys\n"
        "from clip_retrieval.cli import run_command\n"
        f"sys.argv = ['clip-retrieval', 'back', {str(index)!r}, '--port', '0']\n"
        "code = run_command()\n"
        "print(code, sorted(HEAVY & set(sys.modules)), flush=True)\n"
    ).replace("HEAVY", "{'torch', 'open_clip', 'pandas', 'transformers', 'onnxruntime'}")
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            check_serving(process)
        finally:
            process.kill()


def check_serving(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    assert process.stdout is not None
    lines: list[str] = []
    while not any(" answers" in line for line in lines):
        lines.append(process.stderr.readline())
        assert lines[-1], lines
    assert ask(lines[-1].split()[0])[0]["caption"] == "dog"
    os.kill(process.pid, signal.SIGTERM)
    assert process.stdout.read() == "0 []\n"
    assert "stopping: requests in progress are answered first" in process.stderr.read()
