"""Damaged index files are found by their checksums, and those without any open as before."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from clip_retrieval import checksums, clip_index
from clip_retrieval.cli import cli
from clip_retrieval.errors import ClipRetrievalError, StorageError
from clip_retrieval.index.combine import run_combine
from clip_retrieval.index.config import CombineConfig
from clip_retrieval.index.score import score_index
from clip_retrieval.layout import IndexFolder
from clip_retrieval.search.index import open_index

Rows = Callable[..., NDArray[np.float32]]
WriteRun = Callable[..., Path]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def built(tmp_path: Path, unit_rows: Rows, write_run: WriteRun) -> Path:
    """Give an index folder of 300 pictures and captions, beside emb."""
    emb = write_run(tmp_path / "emb", [unit_rows(300)], [unit_rows(300, seed=1)])
    clip_index(str(emb), str(tmp_path / "ix"))
    return tmp_path / "ix"


def flip(path: Path) -> None:
    """Change a region of the rows, which faiss cannot see."""
    data = bytearray(path.read_bytes())
    data[-500:-400] = bytes(byte ^ 1 for byte in data[-500:-400])
    path.write_bytes(data)


def test_a_flipped_region_is_found_when_a_small_file_is_opened(built: Path) -> None:
    open_index(IndexFolder(str(built)), "image", memory_map=True)
    flip(built / "image.index")
    faiss.read_index(str(built / "image.index"))
    with pytest.raises(StorageError, match=r"image\.index is damaged: its bytes differ from what was written"):
        open_index(IndexFolder(str(built)), "image", memory_map=True)
    open_index(IndexFolder(str(built)), "text")


def test_a_large_file_is_compared_on_demand_and_its_size_always(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "CHECKED_BYTES", 100)
    flip(built / "text.index")
    open_index(IndexFolder(str(built)), "text")
    run = CliRunner().invoke
    result = run(cli, ["index", "info", str(built), "--check"])
    assert (result.exit_code, "text.index is damaged" in result.output) == (1, True)
    with (built / "text.index").open("ab") as file:
        file.write(b"more")
    with pytest.raises(StorageError, match=r"text\.index has 1?[0-9,]+ bytes and had [0-9,]+ when it was written"):
        open_index(IndexFolder(str(built)), "text")


def test_files_on_a_store_are_not_fetched_twice_to_be_opened(built: Path) -> None:
    flip(built / "image.index")
    store = IndexFolder("memory://checked-index")
    store.fs.put(str(built), store.root, recursive=True)
    open_index(store, "image")  # as large as it was
    with store.fs.open(store.path("image.index"), "ab") as file:
        file.write(b"more")
    with pytest.raises(StorageError, match=r"image\.index has [0-9,]+ bytes and had"):
        open_index(store, "image")


@pytest.mark.parametrize("name", ["gone.index", "../../../../../../../../dev/zero"])
def test_what_a_manifest_names_and_is_no_file_is_not_read(built: Path, name: str) -> None:
    manifest = json.loads((built / "manifest.json").read_text())
    manifest["indices"]["image"]["sums"][name] = {"bytes": 0, "xxh3_64": "0" * 16}
    (built / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(StorageError, match=f"{name} is missing or is not a file"):
        open_index(IndexFolder(str(built)), "image")


def test_a_damaged_list_of_zero_rows_is_found(tmp_path: Path, unit_rows: Rows, write_run: WriteRun) -> None:
    rows = unit_rows(300)
    rows[[5, 90]] = 0
    emb, built = write_run(tmp_path / "emb", [rows]), tmp_path / "ix"
    clip_index(str(emb), str(built))
    score_index(str(built), str(emb), tune=True)
    run_combine(CombineConfig(input_folder=str(built), output_folder=str(tmp_path / "merged")))
    for folder in (built, tmp_path / "merged"):
        open_index(IndexFolder(str(folder)), "image")
        np.save(folder / "image.empty.npy", np.array([5, 91]))
        with pytest.raises(StorageError, match=r"image\.empty\.npy is damaged"):
            open_index(IndexFolder(str(folder)), "image")


def test_check_says_what_it_compared(built: Path) -> None:
    run = CliRunner().invoke
    assert "as written (1 file)" in run(cli, ["index", "info", str(built), "--check"]).output
    assert json.loads(run(cli, ["index", "info", str(built), "--check", "--json"]).output)["indices"]["text"]["checked"]
    (built / "manifest.json").unlink()
    flip(built / "text.index")
    assert "no checksums" in run(cli, ["index", "info", str(built), "--check"]).output
    open_index(IndexFolder(str(built)), "text")


def test_damage_is_not_carried_into_a_merged_or_updated_index(built: Path, tmp_path: Path) -> None:
    flip(built / "image.index")
    with pytest.raises(ClipRetrievalError, match=r"image\.index is damaged"):
        run_combine(CombineConfig(input_folder=str(built), output_folder=str(tmp_path / "out")))
    with pytest.raises(ClipRetrievalError, match=r"image\.index is damaged"):
        clip_index(str(tmp_path / "emb"), str(built), update=True)


def test_tuning_and_updates_write_checksums_anew(
    built: Path, tmp_path: Path, unit_rows: Rows, write_run: WriteRun
) -> None:
    def check() -> str:
        result = CliRunner().invoke(cli, ["index", "info", str(built), "--check"])
        assert result.exit_code == 0, result.output
        return (built / "manifest.json").read_text()

    first = check()
    score_index(str(built), str(tmp_path / "emb"), tune=True, wanted_recall=0.5)
    check()
    write_run(
        tmp_path / "emb", [unit_rows(300), unit_rows(40, seed=2)], [unit_rows(300, seed=1), unit_rows(40, seed=3)]
    )
    clip_index(str(tmp_path / "emb"), str(built), update=True)
    assert json.loads(check())["indices"]["image"]["sums"] != json.loads(first)["indices"]["image"]["sums"]
