"""Fetching urls of strangers: only public addresses, within limits of time and size, politely."""

from __future__ import annotations

import datetime
import email.utils
import gzip
import ipaddress
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from clip_retrieval.errors import ConfigError
from clip_retrieval.network.connections import FetchError, is_public
from clip_retrieval.network.fetch import USER_AGENT, asks_to_be_left_out, fetch, parse_url, pause_of
from clip_retrieval.network.limits import FetchLimits

Answer = Callable[[BaseHTTPRequestHandler], None]
LIMITS = FetchLimits(allow_private_addresses=True, fetch_timeout=5.0, fetch_retries=0)


class Site:
    """A server on loopback whose paths are answered by functions."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append((self.path, dict(self.headers)))
                site.answers[self.path](self)

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server.server_port}{path}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def site() -> Iterator[Site]:
    here = Site()
    yield here
    here.close()


def answer(body: bytes = b"", status: int = 200, **headers: str) -> Answer:
    def send(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in ({"Content_Length": str(len(body))} | headers).items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(body)

    return send


def problem(url: str, limits: FetchLimits = LIMITS) -> FetchError:
    with pytest.raises(FetchError) as caught:
        fetch(url, limits, pause=lambda _: None)
    return caught.value


def test_a_page_is_fetched_and_told_who_asks(site: Site) -> None:
    site.answers["/a%20b.jpg?x=%C3%BC"] = answer(b"picture")

    assert fetch(site.url("/a b.jpg?x=ü"), LIMITS) == b"picture"
    assert site.asked[0][1]["User-Agent"] == USER_AGENT
    assert USER_AGENT.startswith("clip-retrieval/")


def test_a_body_without_a_length_is_read_to_its_end(site: Site) -> None:
    def send(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        request.wfile.write(b"x" * 200_000)

    site.answers["/a"] = send

    assert len(fetch(site.url("/a"), LIMITS)) == 200_000


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.0.0.1", "172.16.9.9", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "240.0.0.1", "198.18.0.1", "::1", "::", "fe80::1", "fc00::1", "fec0::1", "ff02::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "2001:0:7f00:1::", "64:ff9b::7f00:1", "64:ff9b::a00:1",
        "2001:db8::1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0x7f000001", "2130706433"])
def test_private_hosts_are_not_asked(site: Site, host: str) -> None:
    site.answers["/"] = answer(b"secret")

    error = problem(f"http://{host}:{site.server.server_port}/", FetchLimits())

    assert error.reason == "forbidden_address"
    assert site.asked == []


def names(monkeypatch: pytest.MonkeyPatch, **addresses: list[str]) -> None:
    """Let host names lead to these addresses."""

    def look_up(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        return [(0, 0, 0, "", (address, port)) for address in addresses[host.partition(".")[0]]]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


def test_a_name_that_leads_to_a_private_address_is_not_asked(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.answers["/"] = answer(b"secret")
    names(monkeypatch, inside=["127.0.0.1"])

    error = problem(f"http://inside.example:{site.server.server_port}/", FetchLimits())

    assert (error.reason, site.asked) == ("forbidden_address", [])


def test_the_checked_address_is_the_one_that_is_asked(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that resolves to another address the second time is looked up only once."""
    site.answers["/"] = answer(b"here")
    answers = iter([["127.0.0.1"]])
    monkeypatch.setattr("clip_retrieval.network.connections.look_up", lambda *_: next(answers))

    assert fetch(f"http://rebinding.example:{site.server.server_port}/", LIMITS) == b"here"
    assert site.asked[0][1]["Host"] == f"rebinding.example:{site.server.server_port}"


def test_a_redirect_to_a_private_address_is_not_followed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first host counts as public here, the one that it redirects to does not."""
    site.answers["/"] = answer(status=302, Location=f"http://localhost:{site.server.server_port}/secret")
    site.answers["/secret"] = answer(b"secret")
    monkeypatch.setattr("clip_retrieval.network.connections.is_public", lambda address: str(address) == "127.0.0.1")
    found = {"outside.example": ["127.0.0.1"], "localhost": ["::1"]}
    monkeypatch.setattr("clip_retrieval.network.connections.look_up", lambda host, *_: found[host])

    error = problem(f"http://outside.example:{site.server.server_port}/", FetchLimits())

    assert error.reason == "forbidden_address"
    assert [path for path, _ in site.asked] == ["/"]


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://x/y", "gopher://127.0.0.1/"])
def test_a_redirect_to_another_scheme_is_not_followed(site: Site, location: str) -> None:
    site.answers["/"] = answer(status=301, Location=location)

    assert problem(site.url("/")).reason == "bad_url"


def test_redirects_are_followed_a_few_times(site: Site) -> None:
    for step in range(5):
        site.answers[f"/{step}"] = answer(status=307, Location=f"/{step + 1}")
    site.answers["/5"] = answer(b"end")
    site.answers["/loop"] = answer(status=302, Location="/loop")

    assert fetch(site.url("/0"), LIMITS) == b"end"
    assert problem(site.url("/loop")).reason == "redirects"


@pytest.mark.parametrize(
    "url",
    [
        "", "a.jpg", "ftp://x/a", "file:///etc/passwd", "http://", "http:///a", "http://[::1", "http://x:99999/",
        "http://user:word@x/", "javascript:x", "http://x\udc80/a", "http://" + "a" * 70 + ".com/",
    ],
)  # fmt: skip
def test_what_is_no_url_is_told(url: str) -> None:
    assert problem(url).reason == "bad_url"


def test_a_host_with_other_letters_is_asked_by_its_ascii_name() -> None:
    assert parse_url("https://münchen.example:8443/ä?q").netloc == "xn--mnchen-3ya.example:8443"


@pytest.mark.parametrize("part", ["head", "first line", "body", "nothing"])
def test_a_server_that_drips_or_hangs_is_left_in_time(site: Site, part: str) -> None:
    stopped = threading.Event()

    def drip(request: BaseHTTPRequestHandler) -> None:
        if part == "head":
            request.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        elif part == "body":
            request.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        for _ in range(0 if part == "nothing" else 1000):
            request.wfile.write(b"x")
            request.wfile.flush()
            if stopped.wait(0.02):
                return
        stopped.wait(20)

    site.answers["/"] = drip
    try:
        error = problem(site.url("/"), FetchLimits(allow_private_addresses=True, fetch_timeout=0.3, fetch_retries=0))
    finally:
        stopped.set()

    assert error.reason == "timeout"  # a server that ends by itself, after 20 seconds, would be cut: `connection`


def test_a_look_up_that_hangs_is_left_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: stopped.wait(20))
    try:
        assert problem("http://slow.example/", FetchLimits(fetch_timeout=0.2, fetch_retries=0)).reason == "timeout"
    finally:
        stopped.set()


def test_a_name_that_does_not_exist_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)

    assert problem("http://nowhere.example/").reason == "unresolved"


def test_a_server_that_is_not_there_is_told() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    assert problem(f"http://127.0.0.1:{port}/").reason == "connection"


def test_a_server_without_tls_is_told(site: Site) -> None:
    assert problem(site.url("/").replace("http:", "https:")).reason in {"tls", "connection"}


@pytest.fixture
def secured(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """The site under TLS, with a certificate for localhost that is trusted once it is in SSL_CERT_FILE."""
    x509 = pytest.importorskip("cryptography.x509")
    hashes, serialization, ec = (
        pytest.importorskip(f"cryptography.hazmat.primitives.{name}")
        for name in ("hashes", "serialization", "asymmetric.ec")
    )
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    begin = datetime.datetime(2020, 1, 1)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, begin, begin.replace(year=2120))
    names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    certificate = made.add_extension(names, critical=False).sign(key, hashes.SHA256())
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "ca.pem").write_bytes(pem)
    (tmp_path / "both.pem").write_bytes(pem + key.private_bytes(*form))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "both.pem")
    site.server.socket = context.wrap_socket(site.server.socket, server_side=True)
    monkeypatch.setattr(site.server, "handle_error", lambda *_: None)
    site.answers["/"] = answer(b"secured")
    return site


@pytest.mark.parametrize(("host", "is_trusted"), [("localhost", True), ("localhost", False), ("other.example", True)])
def test_certificates_are_checked_against_the_name(
    secured: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, is_trusted: bool
) -> None:
    monkeypatch.setattr("clip_retrieval.network.connections.look_up", lambda *_: ["127.0.0.1"])
    monkeypatch.setattr("clip_retrieval.network.connections.tls_context", ssl.create_default_context)
    if is_trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    url = f"https://{host}:{secured.server.server_port}/"

    if host == "localhost" and is_trusted:
        assert fetch(url, LIMITS) == b"secured"
    else:
        assert problem(url).reason == "tls"
        assert secured.asked == []


@pytest.mark.parametrize("length", [{"Content-Length": "99999999999"}, {}])
def test_too_large_a_body_is_left(site: Site, length: dict[str, str]) -> None:
    def send(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        for name, value in length.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(b"x" * 5000)

    site.answers["/"] = send
    limits = FetchLimits(allow_private_addresses=True, fetch_max_bytes=4999)

    assert problem(site.url("/"), limits).reason == "too_many_bytes"


def test_a_body_of_exactly_the_largest_size_is_taken(site: Site) -> None:
    site.answers["/"] = answer(b"x" * 5000)

    assert len(fetch(site.url("/"), FetchLimits(allow_private_addresses=True, fetch_max_bytes=5000))) == 5000


def test_a_body_that_is_cut_is_fetched_again(site: Site) -> None:
    answers = iter([answer(b"half", Content_Length="8"), answer(b"complete")])
    site.answers["/"] = lambda request: next(answers)(request)

    limits = FetchLimits(allow_private_addresses=True, fetch_retries=1)

    assert fetch(site.url("/"), limits, pause=lambda _: None) == b"complete"


@pytest.mark.parametrize(("status", "tries"), [(429, 3), (500, 3), (503, 3), (400, 1), (403, 1), (404, 1), (410, 1)])
def test_only_what_may_pass_is_tried_again(site: Site, status: int, tries: int) -> None:
    site.answers["/"] = answer(status=status)

    error = problem(site.url("/"), FetchLimits(allow_private_addresses=True, fetch_retries=2))

    assert error.reason == f"http_{status}"
    assert len(site.asked) == tries


def test_the_pause_is_the_one_that_the_server_asks_for(site: Site) -> None:
    answers = iter([answer(status=429, Retry_After="7"), answer(status=503), answer(b"now")])
    site.answers["/"] = lambda request: next(answers)(request)
    pauses: list[float] = []

    body = fetch(site.url("/"), FetchLimits(allow_private_addresses=True, fetch_retries=2), pause=pauses.append)

    assert body == b"now"
    assert pauses == [7.0, 1.0]


def test_who_asks_for_a_long_pause_is_not_asked_again(site: Site) -> None:
    site.answers["/"] = answer(status=429, Retry_After="3600")

    assert problem(site.url("/"), FetchLimits(allow_private_addresses=True)).reason == "http_429"
    assert len(site.asked) == 1


def test_a_pause_may_be_a_date_or_nonsense() -> None:
    later = pause_of(email.utils.formatdate(time.time() + 100, usegmt=True))
    assert later is not None
    assert 90 < later < 101
    assert pause_of("soon") is None


@pytest.mark.parametrize(
    ("tag", "is_refused"),
    [
        ("noai", True), ("NoIndex, follow", True), ("all, noimageai", True), ("none", True),
        ("clip-retrieval: noai", True),
        ("googlebot: noindex", False), ("nofollow", False), ("max-image-preview:large", False), ("", False),
        ("unavailable_after: 25 Jun 2030 15:00:00 PST", False),
    ],
)  # fmt: skip
def test_robots_tags(site: Site, tag: str, is_refused: bool) -> None:
    site.answers["/"] = answer(b"picture", X_Robots_Tag=tag)

    assert asks_to_be_left_out(tag) == is_refused
    if is_refused:
        assert problem(site.url("/")).reason == "robots_tag"
    allowed = FetchLimits(allow_private_addresses=True, respect_robots_tag=False)
    assert fetch(site.url("/"), allowed) == b"picture"


@pytest.mark.parametrize(("name", "value"), [("fetch_timeout", 0), ("fetch_retries", -1), ("fetch_max_bytes", 0)])
def test_limits_that_mean_nothing_are_refused(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=name):
        FetchLimits(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(b"picture", mtime=0)),
        ("X-GZIP", gzip.compress(b"picture", mtime=0)),
        ("deflate", zlib.compress(b"picture")),
        ("gzip", b"picture"),
        ("identity", b"picture"),
    ],
)
def test_compression_that_was_not_asked_for_is_undone(site: Site, encoding: str, body: bytes) -> None:
    site.answers["/a"] = answer(body, Content_Encoding=encoding)

    assert fetch(site.url("/a"), LIMITS) == b"picture"


@pytest.mark.parametrize(
    ("encoding", "body", "reason"),
    [
        ("br", b"\x0b\x03\x80picture\x03", "content_encoding"),
        ("gzip, gzip", gzip.compress(gzip.compress(b"picture", mtime=0), mtime=0), "content_encoding"),
        ("gzip", gzip.compress(b"picture", mtime=0)[:-9], "content_encoding"),
        ("gzip", gzip.compress(bytes(100_000), mtime=0), "too_many_bytes"),
    ],
)
def test_compression_that_cannot_be_undone_is_named(site: Site, encoding: str, body: bytes, reason: str) -> None:
    site.answers["/a"] = answer(body, Content_Encoding=encoding)

    limits = FetchLimits(allow_private_addresses=True, fetch_retries=0, fetch_max_bytes=1000)
    assert problem(site.url("/a"), limits).reason == reason
