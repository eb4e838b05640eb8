"""Embeddings that cannot be indexed: one sentence that names the file, and nothing half-written."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from clip_retrieval import clip_index
from clip_retrieval.cli import cli
from clip_retrieval.errors import ClipRetrievalError, ConfigError, IndexBuildError, StorageError
from clip_retrieval.layout import IndexFolder
from clip_retrieval.search.files import write_file
from clip_retrieval.search.index import open_index

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


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def lead_nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to("gone.npy")


BAD = {
    "another dimension": (saving(np.ones((4, 8), np.float32)), "8 dimensions"),
    "no dimension": (saving(np.ones((4, 0), np.float32)), "dimension"),
    "Fortran order": (saving(np.asfortranarray(np.random.default_rng(0).random((4, 16)))), "Fortran order"),
    "one axis": (saving(np.ones(16, np.float32)), "1 axes"),
    "three axes": (saving(np.ones((2, 4, 16), np.float32)), "3 axes"),
    "integers": (saving(np.ones((4, 16), np.int64)), "int64"),
    "complex numbers": (saving(np.ones((4, 16), np.complex64)), "complex64"),
    "texts": (saving(np.full((4, 16), "a")), "<U1"),
    "a folder": (make_folder, "not a readable npy file: .*s a directory"),
    "a link to itself": (link_to_itself, "not a readable npy file: .*symbolic links"),
    "a link to nothing": (lead_nowhere, "not a readable npy file: .*No such file"),
    "fp64 too large for fp32": (saving(np.full((4, 16), 1e300)), "row 0 of .* not finite"),
    "truncated": (truncate, "not a readable npy file"),
    "cut in its header": (cut_header, "not a readable npy file"),
    "empty": (lambda path: path.write_bytes(b""), "not a readable npy file"),
    "text": (lambda path: path.write_text("hello, this"), "not a readable npy file: it is a file of another kind"),
    "objects": (save_pickle, "not a readable npy file"),
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
    assert re.search(reason, str(refused.value))
    assert "text_emb_1.npy" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "ix").exists()


def test_an_empty_kind_is_not_taken_for_none(tmp_path: Path, unit_rows: Rows, write_run: WriteRun) -> None:
    emb = write_run(tmp_path / "emb", [unit_rows(40)])
    with pytest.raises(ConfigError, match="index_key names a kind of index"):
        clip_index(str(emb), str(tmp_path / "ix"), index_key="")
    assert [path.name for path in tmp_path.iterdir()] == ["emb"]


def test_a_build_that_faiss_refuses_leaves_no_folder(tmp_path: Path, unit_rows: Rows, write_run: WriteRun) -> None:
    emb = write_run(tmp_path / "emb", [unit_rows(40)])
    with pytest.raises(ConfigError, match="faiss cannot make an index"):
        clip_index(str(emb), str(tmp_path / "above" / "ix"), index_key="PQ7")
    assert [path.name for path in tmp_path.iterdir()] == ["emb"]


@pytest.mark.parametrize("rows", [1, 5_000])
def test_a_full_disk_is_the_systems_error(unit_rows: Rows, rows: int) -> None:
    index = faiss.IndexFlatIP(16)
    index.add(unit_rows(rows))
    with pytest.raises(OSError, match="No space left on device"):
        write_file(index, Path("/dev/full"))


def test_a_dry_run_tells_of_our_engine_alone() -> None:
    with pytest.raises(ConfigError, match="dry_run says what our own engine would build"):
        clip_index("emb", "ix", dry_run=True, engine="autofaiss")


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
    with pytest.raises(StorageError, match=r"metadata_0\.parquet is not a readable parquet file"):
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
    for place in (tmp_path / "ix", tmp_path / "ix" / "below"):
        for options in ([], ["--update"], ["--dry_run"]):
            told = CliRunner().invoke(cli, ["index", str(emb), str(place), *options])
            assert (told.exit_code, told.output) == (1, f"Error: {tmp_path / 'ix'} is a file; name a folder\n")
    assert (tmp_path / "ix").read_text() == "in the way"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, unit_rows: Rows, write_run: WriteRun) -> None:
    emb = write_run(tmp_path / "emb", [unit_rows(4)])
    (emb / "img_emb" / "img_emb_0.npy").chmod(0)
    with pytest.raises(IndexBuildError, match=r"img_emb_0\.npy is not a readable npy file: .*Permission denied"):
        clip_index(str(emb), str(tmp_path / "ix"), engine="faiss")


@pytest.mark.parametrize("kind", ["NaN", "truncated", "another dimension", "a link to itself"])
def test_the_command_says_it_in_one_line_and_keeps_the_older_index(
    tmp_path: Path, unit_rows: Rows, write_run: WriteRun, kind: str
) -> None:
    emb = write_run(tmp_path / "emb", [unit_rows(4), unit_rows(4, seed=1)])
    clip_index(str(emb), str(tmp_path / "ix"), engine="faiss")
    before = {path: path.read_bytes() for path in (tmp_path / "ix").rglob("*") if path.is_file()}
    BAD[kind][0](emb / "img_emb" / "img_emb_1.npy")
    for options in ([], ["--update"]):
        told = CliRunner().invoke(cli, ["index", str(emb), str(tmp_path / "ix"), "--engine", "faiss", *options])
        assert told.exit_code == 1
        assert told.output.count("\n") == 1
        assert "img_emb_1.npy" in told.output
        assert {path: path.read_bytes() for path in (tmp_path / "ix").rglob("*") if path.is_file()} == before


def test_pictures_and_captions_of_different_number_are_refused(tmp_path: Path, unit_rows: Rows) -> None:
    for name, count in (("img_emb", 4), ("text_emb", 5)):
        (tmp_path / "emb" / name).mkdir(parents=True)
        np.save(tmp_path / "emb" / name / "0.npy", unit_rows(count))
    with pytest.raises(IndexBuildError, match="has 4 image embeddings but 5 text embeddings"):
        clip_index(str(tmp_path / "emb"), str(tmp_path / "ix"), engine="faiss")


@pytest.mark.parametrize("kind", [np.dtype(">f2"), np.dtype(">f4"), np.dtype("f8"), np.dtype(">f8")])
def test_every_kind_of_floating_point_numbers_is_indexed(
    tmp_path: Path, unit_rows: Rows, write_run: WriteRun, kind: np.dtype[np.generic]
) -> None:
    rows = unit_rows(30).astype(kind)
    rows[7] = 0
    emb = write_run(tmp_path / "emb", np.split(rows, 2))
    clip_index(str(emb), str(tmp_path / "ix"), engine="faiss")
    opened = open_index(IndexFolder(str(tmp_path / "ix")), "image")
    assert [opened.search(rows[row].astype(np.float32), 1).ids.tolist() for row in (3, 20)] == [[3], [20]]
    assert np.load(tmp_path / "ix" / "image.empty.npy").tolist() == [7]


def test_files_without_rows_between_others_do_not_count(tmp_path: Path, unit_rows: Rows, write_run: WriteRun) -> None:
    rows = unit_rows(12)
    emb = write_run(tmp_path / "emb", [rows[:0], rows[:5], rows[:0], rows[5:], rows[:0]])
    clip_index(str(emb), str(tmp_path / "ix"), engine="faiss")
    opened = open_index(IndexFolder(str(tmp_path / "ix")), "image")
    assert [opened.search(row, 1).ids[0] for row in rows] == list(range(12))


def test_files_of_which_none_has_rows_are_said_to_be_there(
    tmp_path: Path, unit_rows: Rows, write_run: WriteRun, caplog: pytest.LogCaptureFixture
) -> None:
    none = unit_rows(12)[:0]
    emb = write_run(tmp_path / "emb", [none, none])
    with pytest.raises(IndexBuildError, match=r"^the npy files in .*/img_emb have no rows; embed again"):
        clip_index(str(emb), str(tmp_path / "ix"))
    (emb / "img_emb").rename(emb / "other")
    with pytest.raises(IndexBuildError, match=r"^the npy files in .*/other have no rows; embed again"):
        clip_index(str(emb), str(tmp_path / "ix"), image_subfolder="other")
    with_texts = write_run(tmp_path / "both", [none], [unit_rows(12)])
    (with_texts / "metadata" / "metadata_0.parquet").unlink()
    assert list(clip_index(str(with_texts), str(tmp_path / "ix")).infos) == ["text"]
    assert re.search("img_emb have no rows: no image index", caplog.text)


@pytest.mark.parametrize(("modality", "name"), [("image", "an image"), ("text", "a text")])
def test_a_modality_without_embeddings_is_named(
    tmp_path: Path, unit_rows: Rows, write_run: WriteRun, caplog: pytest.LogCaptureFixture, modality: str, name: str
) -> None:
    parts = {"images": [unit_rows(9)], "texts": [unit_rows(9)]}
    parts[f"{modality}s"] = [np.zeros((9, 16), np.float32)]
    clip_index(str(write_run(tmp_path / "emb", **parts)), str(tmp_path / "ix"))
    assert f"no sample has {name} embedding: no {modality} index" in caplog.text


@pytest.mark.parametrize(("factor", "warned"), [(1.0, False), (1.004, False), (1.5, True), (1e-3, True), (1e-30, True)])
def test_rows_that_are_not_of_length_1_are_indexed_with_a_warning(
    tmp_path: Path, unit_rows: Rows, write_run: WriteRun, caplog: pytest.LogCaptureFixture, factor: float, warned: bool
) -> None:
    rows = unit_rows(6)
    rows[2] = 0
    rows[4:] *= factor
    built = clip_index(str(write_run(tmp_path / "emb", [rows])), str(tmp_path / "ix"), engine="faiss")
    assert built.infos["image"]["vectors dimension"] == 16
    assert ("2 image embeddings are not of length 1" in caplog.text) is warned
    assert ("the first is row 4 of " in caplog.text) is warned
    assert np.load(tmp_path / "ix" / "image.empty.npy").tolist() == [2]


def test_more_files_than_may_be_open_are_read_one_by_one(tmp_path: Path, unit_rows: Rows) -> None:
    resource = pytest.importorskip("resource")
    rows, opened = unit_rows(120), sum(1 for _ in os.scandir("/dev/fd"))
    (tmp_path / "emb" / "img_emb").mkdir(parents=True)
    for number, row in enumerate(rows):
        np.save(tmp_path / "emb" / "img_emb" / f"{number:04d}.npy", row[None])
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 60, limits[1]))
    try:
        clip_index(str(tmp_path / "emb"), str(tmp_path / "ix"), engine="faiss")
        clip_index(str(tmp_path / "emb"), str(tmp_path / "ix"), engine="faiss", update=True)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert open_index(IndexFolder(str(tmp_path / "ix")), "image").search(rows[107], 1).ids.tolist() == [107]
