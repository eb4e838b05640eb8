"""Embeddings that cannot be indexed: one sentence that names the file, and nothing half-written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from clip_retrieval import clip_index
from clip_retrieval.errors import ClipRetrievalError, IndexBuildError, StorageError

Rows = Callable[..., NDArray[np.float32]]
WriteRun = Callable[..., Path]
Spoil = Callable[[Path], None]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def cut_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


def save_archive(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, rows=np.ones((4, 16), np.float32))


def save_pickle(path: Path) -> None:
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


def saving(rows: NDArray[np.generic]) -> Spoil:
    return lambda path: np.save(path, rows)


def holding(value: float) -> NDArray[np.float16]:
    rows = np.ones((4, 16), np.float16)
    rows[2, 5] = value
    return rows


BAD = {
    "another dimension": (saving(np.ones((4, 8), np.float32)), "8 dimensions"),
    "no dimension": (saving(np.ones((4, 0), np.float32)), "dimension"),
    "Fortran order": (saving(np.asfortranarray(np.random.default_rng(0).random((4, 16)))), "Fortran order"),
    "one axis": (saving(np.ones(16, np.float32)), "1 axes"),
    "three axes": (saving(np.ones((2, 4, 16), np.float32)), "3 axes"),
    "integers": (saving(np.ones((4, 16), np.int64)), "int64"),
    "complex numbers": (saving(np.ones((4, 16), np.complex64)), "complex64"),
    "truncated": (truncate, "no readable npy file"),
    "cut in its header": (cut_header, "no readable npy file"),
    "empty": (lambda path: path.write_bytes(b""), "no readable npy file"),
    "text": (lambda path: path.write_text("hello"), "no readable npy file"),
    "objects": (save_pickle, "no readable npy file"),
    "an npz archive": (save_archive, "npy"),
    "NaN": (saving(holding(np.nan)), "not finite"),
    "infinity": (saving(holding(np.inf)), "not finite"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_named_in_one_sentence_and_nothing_is_written(
    tmp_path: Path, unit_rows: Rows, write_run: WriteRun, kind: str
) -> None:
    spoil, reason = BAD[kind]
    emb = write_run(tmp_path / "emb", [unit_rows(4), unit_rows(4, seed=1)], [unit_rows(4), unit_rows(4, seed=1)])
    spoil(emb / "text_emb" / "text_emb_1.npy")
    with pytest.raises(IndexBuildError) as refused:
        clip_index(str(emb), str(tmp_path / "ix"), engine="faiss")
    assert reason in str(refused.value)
    assert "text_emb_1.npy" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not [path for path in (tmp_path / "ix").rglob("*") if path.is_file()]


def test_embeddings_without_any_dimension_are_refused(tmp_path: Path, write_run: WriteRun) -> None:
    emb = write_run(tmp_path / "emb", [np.ones((4, 0), np.float32)])
    with pytest.raises(IndexBuildError, match=r"img_emb_0\.npy"):
        clip_index(str(emb), str(tmp_path / "ix"), engine="faiss")


@pytest.mark.parametrize("rows", [0, 3, 5])
def test_embeddings_and_metadata_of_different_length_are_refused(
    tmp_path: Path, unit_rows: Rows, write_run: WriteRun, rows: int
) -> None:
    emb = write_run(tmp_path / "emb", [unit_rows(4)])
    pd.DataFrame({"caption": ["x"] * rows}).to_parquet(emb / "metadata" / "metadata_0.parquet")
    with pytest.raises(IndexBuildError, match=f"has 4 image embeddings but {rows} rows of metadata"):
        clip_index(str(emb), str(tmp_path / "ix"), engine="faiss")
    assert not (tmp_path / "ix").exists()


def test_a_broken_metadata_file_is_named(tmp_path: Path, unit_rows: Rows, write_run: WriteRun) -> None:
    emb = write_run(tmp_path / "emb", [unit_rows(4)])
    (emb / "metadata" / "metadata_0.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(StorageError, match=r"metadata_0\.parquet is no readable parquet file"):
        clip_index(str(emb), str(tmp_path / "ix"), engine="faiss")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(IndexBuildError, match=r"there is no folder .*none"):
        clip_index(str(tmp_path / "none"), str(tmp_path / "ix"))
    assert not (tmp_path / "ix").exists()


@pytest.mark.parametrize("subfolders", [[], ["img_emb"], ["img_emb", "text_emb", "metadata"]])
def test_a_folder_without_embeddings_says_what_it_should_hold(tmp_path: Path, subfolders: list[str]) -> None:
    (tmp_path / "emb").mkdir()
    for name in subfolders:
        (tmp_path / "emb" / name).mkdir()
    with pytest.raises(IndexBuildError, match=r"holds no embeddings: neither img_emb/\*\.npy nor text_emb/\*\.npy"):
        clip_index(str(tmp_path / "emb"), str(tmp_path / "ix"))
    assert not (tmp_path / "ix").exists()


def test_a_file_instead_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "emb").write_text("no folder")
    with pytest.raises(ClipRetrievalError, match="emb"):
        clip_index(str(tmp_path / "emb"), str(tmp_path / "ix"))


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_built(
    tmp_path: Path, unit_rows: Rows, write_run: WriteRun
) -> None:
    emb = write_run(tmp_path / "emb", [unit_rows(4)])
    (tmp_path / "ix").write_text("in the way")
    with pytest.raises(StorageError, match=r"cannot write to .*ix"):
        clip_index(str(emb), str(tmp_path / "ix"), engine="faiss")
