"""Queries: a text, a picture or a vector, only with the model of the index."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image

from clip_retrieval import clip_filter, clip_index, clip_inference, load_encoder
from clip_retrieval.encoder.uri import DEMO_MODEL
from clip_retrieval.errors import ClipRetrievalError, QueryError
from clip_retrieval.filter.config import FilterConfig
from clip_retrieval.filter.kinds import kind_of
from clip_retrieval.filter.run import run_filter
from clip_retrieval.query.config import QueryConfig

MODEL = "hash:16?size=32"
WriteIndex = Callable[..., Path]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, write_index: WriteIndex) -> Path:
    captions = ["cat", "dog", "a/b", "photo.of", "rocket"]
    return write_index(tmp_path_factory.mktemp("query") / "ix", pd.DataFrame({"caption": captions}))


def ask(query: object, out: Path, index: Path, **options: object) -> pd.DataFrame:
    return clip_filter(query, str(out), str(index), **options)


def test_a_text_finds_its_row_with_similarity_one(index: Path, tmp_path: Path) -> None:
    hits = ask("dog", tmp_path, index)
    assert isinstance(hits, pd.DataFrame)
    assert (hits.caption[0], hits.id[0], hits["rank"][0]) == ("dog", 1, 1)
    assert hits.similarity[0] == pytest.approx(1, abs=1e-5)
    assert len(hits) == 5


def test_a_picture_finds_itself(tmp_path: Path, write_pictures: Callable[[Path, int], Path]) -> None:
    write_pictures(tmp_path / "in", 5)
    clip_inference(
        str(tmp_path / "in"), str(tmp_path / "emb"), clip_model=MODEL, num_prepro_workers=0, enable_text=False
    )
    clip_index(str(tmp_path / "emb"), str(tmp_path / "ix"), engine="faiss")
    hits = ask(tmp_path / "in" / "00003.jpg", tmp_path / "out", tmp_path / "ix", num_results=1)
    assert hits.image_path.tolist() == [str(tmp_path / "in" / "00003.jpg")]
    assert hits.similarity[0] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("shape", [(16,), (1, 16)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_vector_of_any_length_finds_its_row(
    index: Path, tmp_path: Path, shape: tuple[int, ...], dtype: type[np.floating[Any]]
) -> None:
    vector = load_encoder(MODEL).encode_texts(["rocket"])[0]
    np.save(tmp_path / "query.npy", (7 * vector).astype(dtype).reshape(shape))
    hits = ask(tmp_path / "query.npy", tmp_path / "out", index)
    assert hits.caption[0] == "rocket"
    assert hits.similarity[0] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(("wanted", "found"), [(1, 1), (4, 4), (5, 5), (6, 5), (10_000, 5)])
def test_no_more_hits_than_wanted_or_than_rows(index: Path, tmp_path: Path, wanted: int, found: int) -> None:
    assert len(ask("dog", tmp_path, index, num_results=wanted)) == found


def test_a_threshold_leaves_out_what_is_less_similar(index: Path, tmp_path: Path) -> None:
    assert ask("dog", tmp_path, index, threshold=0.99).caption.tolist() == ["dog"]
    assert len(ask("dog", tmp_path, index, threshold=-1)) == 5


@pytest.mark.parametrize(
    "text",
    ["cat/dog", "a/b", "a photo.jpg of a dog", "version 2.0", "dog.", "...", "what? *", "x" * 5000, "http", "a: //b"],
)
def test_a_text_with_slashes_or_dots_is_still_a_text(text: str) -> None:
    assert kind_of(text) == "text"


@pytest.mark.parametrize("name", ["dog.jpg", "pictures/dog.PNG", "x.jfif", "query.npy", "/a b/dog.jpeg"])
def test_a_file_that_is_not_there_is_an_error_and_no_text(index: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(QueryError, match=f"there is no file {name}"):
        ask(name, tmp_path / "out", index)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["/", ".", "..", "photos/", "./photos", "{here}/photos"])
def test_a_path_of_a_folder_is_no_text(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(QueryError, match="is a folder; a query is a text, or the path of a picture"):
        ask(name.format(here=tmp_path), tmp_path / "out", index)
    assert not (tmp_path / "out").exists()


def test_a_device_is_no_query(index: Path, tmp_path: Path) -> None:
    with pytest.raises(QueryError, match="/dev/null is not a regular file"):
        ask("/dev/null", tmp_path / "out", index)


def test_a_word_that_a_folder_is_called_is_asked_with_a_note(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dog").mkdir()
    monkeypatch.chdir(tmp_path)
    config = FilterConfig(asked=QueryConfig(query=("dog",)), output_folder="dog", indice_folder=str(index))
    first, again = run_filter(config), run_filter(config)
    assert first.query.warning == "dog is also the name of a folder here; it was used as a word"
    assert again.query.warning is None  # it holds the hits of a query
    assert first.table["caption"][0].as_py() == "dog"


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1/dog", "s3://bucket/dog.jpg", "HTTP://localhost/x", "file:///etc/passwd"]
)
def test_a_url_is_fetched_as_strangers_urls_are_and_never_a_text(index: Path, tmp_path: Path, url: str) -> None:
    with pytest.raises(QueryError, match="cannot be used as a picture"):
        ask(url, tmp_path / "out", index)


def test_a_picture_that_is_a_git_lfs_pointer_says_so(index: Path, tmp_path: Path) -> None:
    (tmp_path / "query.jpg").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(QueryError, match=r"query\.jpg cannot be used as a picture: a Git LFS pointer, not the file"):
        ask(str(tmp_path / "query.jpg"), tmp_path / "out", index)


def test_a_page_and_a_frame_find_themselves(
    tmp_path: Path, make_pdf: Callable[..., bytes], make_video: Callable[..., bytes]
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a b.pdf").write_bytes(make_pdf("", "", ""))
    (tmp_path / "in" / "film.mp4").write_bytes(make_video("red", "green", "blue"))
    clip_inference(tmp_path / "in", tmp_path / "emb", clip_model="demo", video_frames="rate", num_prepro_workers=0)
    clip_index(tmp_path / "emb", tmp_path / "index")
    for place in ("a b.pdf#page=2", "a b.pdf#page=3", "film.mp4#t=0", "film.mp4#t=2"):
        hits = ask(tmp_path / "in" / place, tmp_path / "out", tmp_path / "index")
        assert hits["image_path"][0] == str(tmp_path / "in" / place)
        assert hits["similarity"][0] > 0.95


def test_a_pdf_or_video_without_its_place_is_no_query(
    index: Path, tmp_path: Path, make_pdf: Callable[..., bytes], make_video: Callable[..., bytes]
) -> None:
    pdf, film = tmp_path / "a.pdf", tmp_path / "b.MP4"
    pdf.write_bytes(make_pdf("one"))
    film.write_bytes(make_video("red"))
    for query, told in (
        (pdf, f"{pdf} is a PDF, which holds many pictures; name a page of it, {pdf}#page=1"),
        (film, f"which holds many pictures; name a frame of it by its seconds, {film}#t=12.5"),
        (f"{film}#t=1.50", "name a frame of it by its seconds"),
        (f"{pdf}#t=1", "name a page of it"),
        (f"{pdf}#page=9", "cannot be used as a picture: the PDF has 1 pages"),
        (f"{film}#t=99", "cannot be used as a picture: the video ends after"),
        (tmp_path / "gone.pdf", "there is no file"),
        (f"{tmp_path}/gone.mp4#t=1", f"there is no file {tmp_path}/gone.mp4"),
        ("gone.mp4", "there is no file gone.mp4"),
    ):
        with pytest.raises(QueryError, match=re.escape(told)):
            ask(query, tmp_path / "out", index)
    (tmp_path / "c.pdf#page=1").write_bytes(b"404: Not Found")
    with pytest.raises(QueryError, match="no picture format recognised: it is a text file"):
        ask(tmp_path / "c.pdf#page=1", tmp_path / "out", index)


def test_a_text_file_says_to_give_its_text(index: Path, tmp_path: Path) -> None:
    (tmp_path / "query.txt").write_text("a dog")
    with pytest.raises(QueryError, match=r"query\.txt cannot be used as a picture: it is a text file; give the text"):
        ask(tmp_path / "query.txt", tmp_path / "out", index)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that opens and cannot be read")
def test_a_query_file_that_cannot_be_read_is_named(index: Path, tmp_path: Path) -> None:
    with pytest.raises(QueryError, match=r"/proc/self/mem cannot be used as a picture: .* is a window into the kernel"):
        ask("/proc/self/mem", tmp_path / "out", index)


@pytest.mark.parametrize("content", [b"", b"no picture", b"\xff\xd8\xff\xe0 cut short"])
@pytest.mark.parametrize("name", ["query.jpg", "notes.txt"])
def test_a_query_file_that_is_no_picture_is_named(index: Path, tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(QueryError, match=f"{name} cannot be used as a picture"):
        ask(tmp_path / name, tmp_path / "out", index)


def save_archive(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, rows=np.ones(16, np.float32))


VECTORS: dict[str, tuple[NDArray[np.generic], str]] = {
    "zero": (np.zeros(16, np.float32), "has no direction"),
    "NaN": (np.full(16, np.nan, np.float32), "has no direction"),
    "infinite": (np.full(16, np.inf, np.float32), "has no direction"),
    "several": (np.ones((2, 16), np.float32), "one vector"),
    "none": (np.ones((0, 16), np.float32), "one vector"),
    "deep": (np.ones((1, 1, 16), np.float32), "one vector"),
    "text": (np.array(["a"] * 16), "not numbers"),
    "long": (np.ones(8, np.float32), "8 dimensions, the index has 16"),
    "scalar": (np.array(3, np.float32), "one vector"),
}  # fmt: skip


@pytest.mark.parametrize("kind", VECTORS)
def test_an_array_that_is_no_query_is_refused_in_a_sentence(index: Path, tmp_path: Path, kind: str) -> None:
    array, reason = VECTORS[kind]
    np.save(tmp_path / "query.npy", array)
    with pytest.raises(QueryError, match=reason):
        ask(tmp_path / "query.npy", tmp_path / "out", index)


@pytest.mark.parametrize(
    "spoil", [lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"\x93NUMPY"), save_archive]
)
def test_a_file_that_is_no_npy_is_refused_in_a_sentence(
    index: Path, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(tmp_path / "query.npy")
    with pytest.raises(QueryError, match=r"query\.npy"):
        ask(tmp_path / "query.npy", tmp_path / "out", index)


def test_another_model_than_the_indexs_is_refused_with_both_names(index: Path, tmp_path: Path) -> None:
    with pytest.raises(QueryError, match=r"the index was made with the model hash:16\?size=32, and demo is another"):
        ask("dog", tmp_path, index, clip_model="demo")
    assert len(ask("dog", tmp_path, index, clip_model=MODEL)) == 5


def test_other_weights_under_the_same_name_are_refused_with_both_fingerprints(
    tmp_path: Path, write_index: WriteIndex
) -> None:
    encoder = {"clip_model": MODEL, "fingerprint": "before", "dimension": 16, "precision": "fp32"}
    index = write_index(tmp_path / "ix", pd.DataFrame({"caption": ["cat"]}), manifest=encoder)
    with pytest.raises(QueryError, match="fingerprint before -> hash-16-0"):
        ask("cat", tmp_path / "out", index)


@pytest.mark.parametrize("manifest", ["absent", "without encoder"])
def test_an_index_that_does_not_name_its_model_needs_clip_model(
    tmp_path: Path, write_index: WriteIndex, manifest: str
) -> None:
    index = write_index(tmp_path / "ix", pd.DataFrame({"caption": ["cat", "dog"]}), manifest=None)
    if manifest == "without encoder":
        (index / "manifest.json").write_text(json.dumps({"format_version": 1, "encoder": None}))
    with pytest.raises(QueryError, match="give --clip_model"):
        ask("dog", tmp_path / "out", index)
    assert ask("dog", tmp_path / "out", index, clip_model=MODEL).caption[0] == "dog"


def test_a_model_of_another_dimension_than_an_unnamed_index_is_refused(tmp_path: Path, write_index: WriteIndex) -> None:
    index = write_index(tmp_path / "ix", pd.DataFrame({"caption": ["cat"]}), manifest=None)
    with pytest.raises(QueryError, match="the query has 8 dimensions, the index has 16"):
        ask("cat", tmp_path / "out", index, clip_model="hash:8")


def test_a_vector_needs_no_model(tmp_path: Path, write_index: WriteIndex) -> None:
    index = write_index(tmp_path / "ix", pd.DataFrame({"caption": ["cat"]}), manifest=None)
    np.save(tmp_path / "query.npy", np.ones(16, np.float32))
    assert len(ask(tmp_path / "query.npy", tmp_path / "out", index)) == 1


def test_a_missing_index_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(QueryError, match=r"there is no index folder .*none"):
        ask("cat", tmp_path / "out", tmp_path / "none")


def test_an_index_that_knows_more_rows_than_the_metadata_is_refused(tmp_path: Path, write_index: WriteIndex) -> None:
    rows = load_encoder(MODEL).encode_texts(["cat", "dog"])
    index = write_index(tmp_path / "ix", pd.DataFrame({"caption": ["cat"]}), rows=rows)
    with pytest.raises(ClipRetrievalError, match="an index of 2 rows and 1 rows of metadata"):
        ask("cat", tmp_path / "out", index)


def test_a_query_from_the_shell_loads_neither_pandas_nor_torch_nor_readers_of_inputs(
    index: Path, tmp_path: Path
) -> None:
    """pyarrow's own `pa.array` imports pandas, in 0.4 s."""
    words = ["filter", "dog", str(tmp_path / "out"), str(index)]
    code = f"import sys\nfrom clip_retrieval.cli import cli\ncli({words!r}, standalone_mode=False)\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "clip_retrieval.query.searcher" in loaded
    unwanted = {"pandas", "torch", "regex", "ftfy", "tarfile", "zipfile", "http.client", "fsspec", "numpy.ma"}
    unwanted |= {
        f"clip_retrieval.{name}"
        for name in ("sources.types", "inference.run", "embeddings.vectors", "query.surprise", "search.within")
    }
    assert loaded & unwanted == set()


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index made with an ONNX folder, named relative to the working folder."""
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(DEMO_MODEL, home / "model", ignore=shutil.ignore_patterns("open_clip_config.json"))
    (home / "pictures").mkdir()
    for i in range(5):
        Image.new("RGB", (70, 64), (50 * i, 90, 20)).save(home / "pictures" / f"{i}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        clip_inference("pictures", "embeddings", clip_model="onnx:model", num_prepro_workers=0)
        clip_index("embeddings", "index", engine="faiss")
    return home


def test_an_onnx_index_is_asked_from_any_folder_whatever_its_runtime(
    embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bulk work may have run on OpenVINO in bfloat16; a query runs on what opens soonest."""
    monkeypatch.chdir(tmp_path)
    assert len(ask("a dog", tmp_path / "out", embedded / "index")) == 5


@pytest.mark.parametrize("name", ["demo", "onnx:{moved}", "{moved}", "open_clip:local-dir:{whole}"])
def test_a_model_is_known_by_its_weights_not_by_its_name(embedded: Path, tmp_path: Path, name: str) -> None:
    moved = shutil.copytree(embedded / "model", tmp_path / "moved")
    model = name.format(moved=moved, whole=DEMO_MODEL)
    assert len(ask("a dog", tmp_path / "out", embedded / "index", clip_model=model)) == 5


def test_other_preprocessing_is_another_model(embedded: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(embedded / "model", tmp_path / "moved")
    about = json.loads((moved / "model.json").read_text())
    about["preprocess"]["mean"] = [0.1, 0.5, 0.5]
    (moved / "model.json").write_text(json.dumps(about))
    with pytest.raises(QueryError, match="but another preprocessing"):
        ask("a dog", tmp_path / "out", embedded / "index", clip_model=f"onnx:{moved}")
