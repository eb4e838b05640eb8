"""The page of the hits as Python writes it: one file, with the data for its scripts."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from clip_retrieval import clip_filter

WriteIndex = Callable[..., Path]
HOSTILE = "</script><script>alert(\"1\")</script> & 'x' @data@ @plain@ <!-- ${cards} <img src=x onerror=alert(1)>"


class Tags(HTMLParser):
    """Collects the tags of a page: name, attributes, and the text that begins each."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], str]] = []
        self.is_open = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), ""))
        self.is_open = True

    def handle_endtag(self, tag: str) -> None:  # noqa: ARG002 -- as HTMLParser has it
        self.is_open = False

    def handle_data(self, data: str) -> None:
        if self.is_open:
            tag, about, text = self.found.pop()
            self.found.append((tag, about, text + data))

    def names(self) -> list[str]:
        return [tag for tag, _, _ in self.found]


def write_picture(path: Path, size: tuple[int, int] = (12, 12), turned: int = 1) -> str:
    exif = Image.Exif()
    exif[0x0112] = turned
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, exif=exif)
    return str(path)


def ask(query: object, out: Path, index: Path, **options: object) -> tuple[Tags, dict[str, Any]]:
    """Return the tags of the page, and the data in it."""
    clip_filter(query, str(out), str(index), **options)
    tags = Tags((out / "index.html").read_text())
    (data,) = [text for _, about, text in tags.found if about.get("id") == "data"]
    return tags, json.loads(data)


def test_the_sheet_needs_nothing_but_itself(tmp_path: Path, write_index: WriteIndex) -> None:
    metadata = pd.DataFrame({"image_path": [write_picture(tmp_path / "a.png")], "caption": ["cat"]})
    tags, data = ask("cat", tmp_path / "out", write_index(tmp_path / "ix", metadata))
    assert not [name for _, about, _ in tags.found for name in about if name in ("src", "href")]
    assert not {"link", "iframe", "img"} & set(tags.names())
    (hit,) = data["queries"][0]["hits"]
    assert hit["file"] == hit["row"]["picture"] == "images/00001_a.png"
    assert Image.open(io.BytesIO(base64.b64decode(hit["thumbnail"]))).size == (12, 12)


def test_the_policy_of_the_sheet_allows_its_own_script_and_style_alone(tmp_path: Path, write_index: WriteIndex) -> None:
    tags, _ = ask("cat", tmp_path / "out", write_index(tmp_path / "ix", pd.DataFrame({"caption": ["cat"]})))
    (policy,) = [about["content"] for _, about, _ in tags.found if about.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    for tag in ("script", "style"):
        (text,) = [text for name, about, text in tags.found if name == tag and about.get("id") != "data"]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}';" in policy
    assert "default-src 'none'" in policy


def test_hostile_captions_names_and_queries_stay_data(tmp_path: Path, write_index: WriteIndex) -> None:
    metadata = pd.DataFrame({"caption": [HOSTILE], HOSTILE: ["x"], "image_path": [HOSTILE]})
    tags, data = ask(HOSTILE, tmp_path / "out", write_index(tmp_path / "ix", metadata))
    assert tags.names().count("script") == 2
    assert "img" not in set(tags.names())
    assert data["title"] == data["queries"][0]["text"] == HOSTILE
    (hit,) = data["queries"][0]["hits"]
    assert hit["row"]["caption"] == hit["row"]["image_path"] == HOSTILE
    assert hit["row"][HOSTILE] == "x"
    assert (hit["thumbnail"], hit["file"]) == (None, None)
    assert hit["problem"]


def test_values_without_a_json_form_are_shown_as_text_or_not_at_all(tmp_path: Path, write_index: WriteIndex) -> None:
    metadata = pd.DataFrame(
        {"caption": ["cat"], "part": [float("nan")], "seen": [pd.Timestamp("2026-11-30")], "raw": [b"\xff<"]}
    )
    _, data = ask("cat", tmp_path / "out", write_index(tmp_path / "ix", metadata))
    row = data["queries"][0]["hits"][0]["row"]
    assert (row["part"], row["raw"]) == (None, "\ufffd<")
    assert row["seen"].startswith("2026-11-30")


def test_a_picture_that_is_not_exported_is_shown_from_where_it_lies(tmp_path: Path, write_index: WriteIndex) -> None:
    path = write_picture(tmp_path / "a #1.png")
    index = write_index(tmp_path / "ix", pd.DataFrame({"image_path": [path], "caption": ["cat"]}))
    _, data = ask("cat", tmp_path / "out", index, export="none")
    assert data["queries"][0]["hits"][0]["file"] == (tmp_path / "a #1.png").as_uri()


def test_thumbnails_stand_upright(tmp_path: Path, write_index: WriteIndex) -> None:
    path = write_picture(tmp_path / "a.jpg", size=(40, 20), turned=6)
    _, data = ask(
        "cat", tmp_path / "out", write_index(tmp_path / "ix", pd.DataFrame({"image_path": [path], "caption": ["cat"]}))
    )
    thumbnail = base64.b64decode(data["queries"][0]["hits"][0]["thumbnail"])
    assert Image.open(io.BytesIO(thumbnail)).size == (20, 40)


def test_the_hits_can_be_read_without_scripts(tmp_path: Path, write_index: WriteIndex) -> None:
    index = write_index(tmp_path / "ix", pd.DataFrame({"caption": ["a <cat>", "dog"]}))
    ask("dog", tmp_path / "out", index)
    page = (tmp_path / "out" / "index.html").read_text()
    plain = page[page.index("<noscript>") : page.index("</noscript>")]
    assert "dog</li>" in plain
    assert "a &lt;cat&gt;</li>" in plain
