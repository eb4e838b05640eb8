"""An index folder that is opened once and searched often, by many threads."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from clip_retrieval import load_encoder
from clip_retrieval.encoder.uri import DEMO_MODEL
from clip_retrieval.errors import QueryError, StorageError
from clip_retrieval.layout import IndexFolder
from clip_retrieval.query.config import SearcherConfig
from clip_retrieval.query.searcher import Searcher, open_searcher

MODEL = "hash:16?size=32"
WORDS = ["cat", "dog", "rocket", "sun", "sea"]
WriteIndex = Callable[..., Path]


def open_folder(folder: Path, **options: Any) -> Searcher:
    return open_searcher(IndexFolder(str(folder)), SearcherConfig(**options))


def png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 40), (seed * 40 % 256, 90, 20)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, write_index: WriteIndex) -> Path:
    return write_index(tmp_path_factory.mktemp("searcher") / "ix", pd.DataFrame({"caption": WORDS}))


@pytest.mark.parametrize(
    "name",
    ["manifest.json", "image.json", "image.index", "image.empty.npy", "metadata.arrow", "metadata/metadata_0.parquet"],
)
def test_a_device_in_place_of_a_file_is_one_sentence(index: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "ix"
    shutil.copytree(index, folder)
    if name == "metadata.arrow":
        shutil.rmtree(folder / "metadata")  # it would be read instead
    for other in {"manifest.json", "metadata.arrow", name}:  # checksums would find it first
        (folder / other).unlink(missing_ok=True)
    (folder / name).symlink_to(os.devnull)  # a pipe would hang if this failed
    with pytest.raises(StorageError, match=f"{name} is a pipe, a socket or a device"):
        open_folder(folder)


def test_a_text_is_never_opened_as_a_file(index: Path, tmp_path: Path) -> None:
    (tmp_path / "dog.png").write_bytes(png(0))
    np.save(tmp_path / "dog.npy", np.ones(16, np.float32))
    searcher = open_folder(index)
    for name in ("dog.png", "dog.npy"):
        text = str(tmp_path / name)
        query = searcher.embed_text(text)
        assert query.kind == "text"
        assert query.embedding == pytest.approx(load_encoder(MODEL).encode_texts([text])[0])


def test_the_model_is_loaded_by_the_first_text_only(index: Path) -> None:
    searcher = open_folder(index, clip_model="onnx:/there/is/no/such/model")
    query = searcher.embed_vector(load_encoder(MODEL).encode_texts(["sun"])[0], "a vector")
    assert searcher.join(searcher.search(query, 1))["caption"].to_pylist() == ["sun"]
    with pytest.raises(Exception, match="no/such/model"):
        searcher.embed_text("sun")


def test_a_model_that_was_freed_is_loaded_again(index: Path) -> None:
    searcher = open_folder(index)
    before = searcher.embed_text("cat").embedding
    searcher.free_model()
    assert not searcher.loaded
    assert (searcher.embed_text("cat").embedding == before).all()


def test_many_threads_get_the_answers_of_one(index: Path) -> None:
    searcher = open_folder(index)
    encoder = load_encoder(MODEL)

    def ask(number: int) -> tuple[str, list[str]]:
        word = WORDS[number % len(WORDS)]
        by_kind = {
            0: lambda: searcher.embed_text(word),
            1: lambda: searcher.embed_picture(png(number % 5), "a picture"),
            2: lambda: searcher.embed_vector(encoder.encode_texts([word])[0], "a vector"),
        }
        query = by_kind[number % 3]()
        return query.kind, searcher.join(searcher.search(query, 2))["caption"].to_pylist()

    alone = [ask(number) for number in range(60)]
    fresh = searcher = open_folder(index)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, range(60)))
    assert together == alone
    assert all(answer[0] == WORDS[number % 5] for number, (kind, answer) in enumerate(alone) if kind != "image")
    assert len(fresh.loaded) == 1


def test_many_threads_share_an_onnx_model(tmp_path: Path, write_index: WriteIndex) -> None:
    """Tokenizer, sessions and counters of the real runtime."""
    encoder = load_encoder("demo")
    rows = encoder.encode_texts(["dog", "rocket", "red heart"])
    info = encoder.info
    manifest = {"clip_model": f"onnx:{DEMO_MODEL}", "fingerprint": info.fingerprint, "dimension": info.dimension}
    captions = pd.DataFrame({"caption": ["dog", "rocket", "red heart"]})
    searcher = open_folder(write_index(tmp_path / "ix", captions, rows=rows, manifest=manifest))

    def ask(number: int) -> str:
        query = searcher.embed_text(captions["caption"][number % 3])
        return str(searcher.join(searcher.search(query, 1))["caption"][0].as_py())

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, range(24)))
    assert answers == [captions["caption"][number % 3] for number in range(24)]


def test_stored_embeddings_serve_many_threads(tmp_path: Path, write_index: WriteIndex) -> None:
    rows = load_encoder(MODEL).encode_texts(WORDS)
    (tmp_path / "emb" / "img_emb").mkdir(parents=True)
    np.save(tmp_path / "emb" / "img_emb" / "img_emb_0.npy", rows)
    searcher = open_folder(
        write_index(tmp_path / "ix", pd.DataFrame({"caption": WORDS})), refine_from=str(tmp_path / "emb")
    )

    def ask(number: int) -> int:
        return int(searcher.search(searcher.embed_vector(rows[number % 5], "a vector"), 1).ids[0])

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(ask, range(30))) == [number % 5 for number in range(30)]


def test_the_folder_is_opened_once(tmp_path: Path, write_index: WriteIndex) -> None:
    folder = write_index(tmp_path / "ix", pd.DataFrame({"caption": WORDS}))
    searcher = open_folder(folder)
    query = searcher.embed_text("sea")
    for name in ("image.index", "manifest.json"):
        (folder / name).unlink()
    assert searcher.join(searcher.search(query, 1))["caption"].to_pylist() == ["sea"]


def test_metadata_that_was_replaced_under_an_opened_folder_is_not_mixed_with_the_index(
    tmp_path: Path, write_index: WriteIndex
) -> None:
    folder = write_index(tmp_path / "ix", pd.DataFrame({"caption": WORDS}))
    searcher = open_folder(folder)
    query = searcher.embed_text("sea")
    shutil.rmtree(folder)
    write_index(folder, pd.DataFrame({"caption": WORDS[::-1]}))
    with pytest.raises(Exception, match=r"metadata_0\.parquet was replaced since it was opened"):
        searcher.join(searcher.search(query, 1))


def test_bytes_that_are_no_picture_are_named_and_harm_no_other_query(index: Path) -> None:
    searcher = open_folder(index)
    with pytest.raises(QueryError, match="the upload cannot be used as a picture: no picture format recognised"):
        searcher.embed_picture(b"no picture", "the upload")
    assert len(searcher.search(searcher.embed_picture(png(0), "the upload"), 5).ids) == 5
