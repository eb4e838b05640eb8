"""The PDF or video that a hit is in: whole or in ranges, only below the roots."""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from clip_retrieval.errors import ImageError
from clip_retrieval.server import files
from clip_retrieval.server.files import read_piece, read_range
from clip_retrieval.server.messages import HttpError

KEY = "0123456789abcdef-key"


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., bytes]) -> Path:
    """Give a video in its own folder."""
    path = tmp_path_factory.mktemp("films") / "a b.mov"
    path.write_bytes(make_video("red", "blue"))
    return path


@pytest.fixture(scope="module")
def held(film: Path, tmp_path_factory: pytest.TempPathFactory, write_index: Callable[..., Path]) -> Path:
    """Give an index of two frames, a page that is gone, a picture, and a frame of a folder that is not served."""
    other = film.parents[0].with_name("secret")
    other.mkdir()
    (other / "b.mp4").write_bytes(film.read_bytes())
    folder = film.parent
    paths = [f"{film}#t=0", f"{film}#t=1.5", f"{folder}/gone.pdf#page=1", f"{folder}/c.jpg", f"{other}/b.mp4#t=0"]
    metadata = pd.DataFrame({"image_path": paths, "caption": list("abcde")})
    return write_index(tmp_path_factory.mktemp("held") / "index", metadata)


def test_a_file_is_served_whole_or_in_ranges(
    held: Path, film: Path, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "PIECE_BYTES", 1000)
    monkeypatch.setattr(files, "MOST_BYTES", 500)
    client, data = serve(held, pictures_below=(str(film.parent),)), film.read_bytes()
    name = client.get("/v1/indices").json()["indices"][0]["name"]
    path = f"/v1/files/{name}/1"

    whole = client.get(path)
    assert (whole.status_code, whole.content) == (200, data)
    assert whole.headers["content-type"] == "video/mp4"
    assert whole.headers["accept-ranges"] == "bytes"
    for asked, start, stop in (
        ("10-19", 10, 20),
        ("100-", 100, 600),
        ("-7", len(data) - 7, len(data)),
        ("0-999999", 0, 500),
    ):
        answer = client.get(path, headers={"range": f"bytes={asked}"})
        assert (answer.status_code, answer.content) == (206, data[start:stop])
        assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(data)}"
    for ignored in (
        {"range": "bytes=5-2"},
        {"range": "bytes=0-1,4-5"},
        {"range": "rows=0-1"},
        {"range": "bytes=0-1", "if-range": '"a tag"'},
        {"range": "bytes=0-1", "if-range": "Mon, 30 Nov 2026 00:00:00 GMT"},
    ):
        answer = client.get(path, headers=ignored)
        assert (answer.status_code, answer.content) == (200, data), ignored
    head = client.request("HEAD", path, headers={"range": "bytes=0-1"})
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(data)))
    beyond = client.get(path, headers={"range": f"bytes={len(data)}-"})
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{len(data)}")


def test_files_that_are_gone_or_not_below_the_roots_are_none(held: Path, film: Path, serve: Any) -> None:
    client = serve(held, pictures_below=(str(film.parent),))
    (index,) = client.get("/v1/indices").json()["indices"]
    assert index["files"] is True
    for row in (2, 3, 4, 5):
        answer = client.get(f"/v1/files/{index['name']}/{row}")
        assert (answer.status_code, "message" in answer.json()) == (404, True)
    closed = serve(held)
    assert closed.get("/v1/indices").json()["indices"][0]["files"] is False
    assert closed.get(f"/v1/files/{index['name']}/0").status_code == 404


def test_a_signed_link_stands_in_for_a_key(held: Path, film: Path, serve: Any, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"{'0' * 20}\n{KEY}\n")
    client = serve(held, pictures_below=(str(film.parent),), api_key_file=str(tmp_path / "keys"))
    name = client.get("/v1/indices", headers={"x-api-key": KEY}).json()["indices"][0]["name"]
    path, soon = f"/v1/files/{name}/0", int(time.time()) + 3600

    def link(key: str = KEY, *, signed: str = path, asked: str = path, expires: int = soon, said: int = 0) -> str:
        text = f"{signed}\n{expires}".encode()
        signature = hmac.new(key.encode(), text, "sha256").hexdigest()
        return f"{asked}?expires={said or expires}&signature={signature}"

    answer = client.get(link(), headers={"range": "bytes=0-9"})
    assert (answer.status_code, answer.content) == (206, film.read_bytes()[:10])
    assert client.request("HEAD", link()).status_code == 200
    start, _, signature = link().rpartition("=")
    assert client.get(f"{start}={signature.upper()}").status_code == 200
    for wrong in (
        link("another key of 20 b"),
        link(signed=f"/v1/files/{name}/1"),
        link(asked=f"/v1/pictures/{name}/0"),
        link(said=soon + 1),
        link(asked="/v1/indices", signed="/v1/indices"),
        f"{path}?expires={soon}&signature=",
        f"{path}?expires=soon&signature=%C3%A9",
        f"{path}?signature=0",
    ):
        refused = client.get(wrong)
        told = "the signature of this link is wrong" if "/files/" in wrong else "this server requires a key"
        assert (refused.status_code, told in refused.json()["message"]) == (401, True), wrong
        assert client.get(wrong, headers={"x-api-key": KEY}).status_code != 401
    assert "requires a key" in client.get(path).json()["message"]
    assert "requires a key" in client.get(f"{path}?signature=0", headers={"x-api-key": "wrong"}).json()["message"]
    for expires, what in ((int(time.time()) - 1, "has expired"), (int(time.time()) + 90_000, "at most a day")):
        refused = client.get(link(expires=expires))
        assert (refused.status_code, what in refused.json()["message"]) == (401, True)
    assert client.post("/v1/search?" + link().partition("?")[2], {"queries": ["sea"]}).status_code == 401


def test_a_frame_is_a_small_picture_in_answers(held: Path, film: Path, serve: Any) -> None:
    client = serve(held, pictures_below=(str(film.parent),))
    name = client.get("/v1/indices").json()["indices"][0]["name"]
    first, second = (client.get(f"/v1/pictures/{name}/{row}?size=32") for row in (0, 1))
    assert first.headers["content-type"] == second.headers["content-type"] == "image/jpeg"
    assert first.content != second.content


@pytest.mark.parametrize(
    "asked",
    [
        None, b"", b"bytes=", b"bytes=-", b"bytes=1-2,4-5", b"bytes=1-2, 4-5", b"bytes=a-b", b"lines=1-2", b"bytes 1-2",
        b"bytes=5-4", b"bytes=20-10", b"bytes=+1-2", b"bytes=1 -2", b"bytes=0x1-2", b"bytes=--2", b"bytes=1-2-3",
    ],
)  # fmt: skip
def test_ranges_that_are_none_mean_the_whole_file(asked: bytes | None) -> None:
    assert read_range(asked, 10) is None


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        (b"bytes=0-0", 0, 1), (b"bytes=3-", 3, 10), (b"bytes=9-9", 9, 10), (b"bytes=2-99", 2, 10), (b"bytes=-3", 7, 10),
        (b"bytes=-99", 0, 10), (b"Bytes=1-2", 1, 3), (b"BYTES=-1", 9, 10), (b"bytes= 1-2", 1, 3),
        (b"bytes=,1-2 ,", 1, 3),
        (b"bytes=0001-" + b"0" * 5000 + b"2", 1, 3), (b"bytes=1-" + b"9" * 5000, 1, 10),
        (b"bytes=-" + b"9" * 5000, 0, 10),
    ],
)  # fmt: skip
def test_a_range_is_what_rfc_9110_says(asked: bytes, start: int, stop: int) -> None:
    assert read_range(asked, 10) == (start, stop)


@pytest.mark.parametrize("asked", [b"bytes=10-", b"bytes=10-12", b"bytes=-0", b"bytes=" + b"9" * 5000 + b"-"])
def test_a_range_with_nothing_in_it_is_refused_with_the_size(asked: bytes) -> None:
    with pytest.raises(HttpError) as caught:
        read_range(asked, 10)
    assert (caught.value.status, caught.value.headers) == (416, ((b"content-range", b"bytes */10"),))


def test_a_range_of_an_empty_file() -> None:
    assert read_range(b"bytes=-5", 0) is None
    for asked in (b"bytes=0-", b"bytes=0-5", b"bytes=-0"):
        with pytest.raises(HttpError):
            read_range(asked, 0)


def test_a_file_that_is_gone_cannot_be_read() -> None:
    with pytest.raises((OSError, ImageError)):
        read_piece("/nowhere.mp4", 0, 5)


@pytest.mark.parametrize("kind", ["files", "pictures"])
def test_a_row_that_there_is_not_is_told_how_many_there_are(held: Path, film: Path, serve: Any, kind: str) -> None:
    client = serve(held, pictures_below=(str(film.parent),))
    name = client.get("/v1/indices").json()["indices"][0]["name"]
    for path, status, told in (
        (f"{name}/5", 404, f"there is no row 5; the index {name} has 5 rows: ids are 0 to 4"),
        (f"{name}/{10**30}", 404, "has 5 rows: ids are 0 to 4"),
        (f"{name}/-1", 400, "the id of a row is a whole number from 0 on, not '-1'"),
        (f"{name}/1.0", 400, "a whole number from 0 on, not '1.0'"),
        (f"{name}/%C2%B2", 400, "a whole number from 0 on, not '²'"),
        (f"{name}/", 400, "a whole number from 0 on, not ''"),
        ("nothing/1", 404, f"there is no index 'nothing'; there are {name}"),
        (name, 404, f"the path is /v1/{kind}/INDEX/ROW"),
    ):
        answer = client.get(f"/v1/{kind}/{path}")
        assert (answer.status_code, told in answer.json()["message"]) == (status, True), answer.text
    if kind == "files":
        assert "is not a page or frame, or its PDF" in client.get(f"/v1/files/{name}/3").json()["message"]
    else:
        for size in ("0", "1025", "-5", "1.5", "0000000512999"):
            assert client.get(f"/v1/pictures/{name}/0?size={size}").status_code == 400, size


def test_the_name_of_an_index_is_decoded_once(held: Path, film: Path, serve: Any, tmp_path: Path) -> None:
    (tmp_path / "indices.json").write_text(json.dumps({"50%41 a/b": str(held)}))
    client = serve(tmp_path / "indices.json", pictures_below=(str(film.parent),))

    answer = client.get("/v1/files/50%2541%20a%2Fb/0")

    assert (answer.status_code, answer.content) == (200, film.read_bytes())
