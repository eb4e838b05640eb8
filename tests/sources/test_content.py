"""Files that are not of the expected format: what they are, and what to do with them."""

from __future__ import annotations

import gzip
import io
import zipfile
from pathlib import Path

import pytest

from clip_retrieval import clip_inference
from clip_retrieval.errors import SourceError
from clip_retrieval.sources.content import explain_refusal
from clip_retrieval.sources.csv_table import open_csv


def zip_of(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zipped:
        zipped.writestr(name, "content")
    return file.getvalue()


STRANGERS = [
    (zip_of("a.jpg"), "a zip; give --input_format archive"),
    (b"#!/bin/sh\nexit\n" + zip_of("a.jpg"), "unpacks itself, which is a zip; give --input_format archive"),
    (gzip.compress(b"\xff\xd8\xff picture"), "a compressed file without a tar or table inside"),
    (b"\x28\xb5\x2f\xfd not even zstandard", "a compressed file without a tar or table inside"),
    (b"PAR1 table PAR1", "a parquet table; give --input_format parquet"),
    (b"<!DOCTYPE html><p>403", "a web page, perhaps a server's error; fetch the file again"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
    (b'\xef\xbb\xbf{"url": "http://x/1.jpg"}\n', "JSON; a table of urls has one object a line"),
    (b'[\n  {\n "url": "http://x/1.jpg"}]', "JSON; a table of urls has one object a line"),
]


@pytest.mark.parametrize(("payload", "words"), STRANGERS)
def test_a_file_that_is_no_tar_says_what_it_is(tmp_path: Path, payload: bytes, words: str) -> None:
    (tmp_path / "x.tar").write_bytes(payload)

    reason, detail = explain_refusal(str(tmp_path / "x.tar"), "not_a_tar", "bad checksum", "a tar")

    assert reason == "not_a_tar"
    assert words in detail
    assert detail.startswith("not a tar, but ")


def test_what_is_not_known_keeps_the_library_s_words(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"hello")

    assert explain_refusal(str(tmp_path / "x.tar"), "not_a_tar", "too short", "a tar")[1] == "not a tar (too short)"


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("parquet", "not a readable parquet file, but a zip; give --input_format archive"),
        ("urls", "is a zip; give --input_format archive"),
    ],
)
def test_a_zip_given_as_a_table_is_sent_to_its_format(tmp_path: Path, form: str, words: str) -> None:
    (tmp_path / "x.zip").write_bytes(zip_of("a.jpg"))

    with pytest.raises(SourceError, match=words):
        clip_inference(tmp_path / "x.zip", tmp_path / "out", form, clip_model="hash:16?size=32")


def test_binary_data_is_no_csv(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"\x01\x00\x02,\x00\n1,2\n")

    with pytest.raises(SourceError, match=r"x\.csv is not text: its first line holds NUL characters"):
        clip_inference(tmp_path / "x.csv", tmp_path / "out", "urls", clip_model="hash:16?size=32")


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.json", "x.txt"])
@pytest.mark.parametrize(
    "text", ['{"url": "http://x/1.jpg"}\n{"url": "http://x/2.jpg"}\n', '[{"url": "http://x/1.jpg"}]']
)
def test_json_under_another_name_is_not_taken_for_a_csv(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)

    with pytest.raises(SourceError, match=r"is JSON; a table of urls has one object a line, and a name that ends with"):
        open_csv(str(tmp_path / name))
