from __future__ import annotations

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from clip_retrieval import clip_index, clip_inference
from clip_retrieval.errors import IndexBuildError, StorageError
from clip_retrieval.inference.config import WorkerConfig
from clip_retrieval.inference.run import run_inference
from clip_retrieval.options import build_config
from clip_retrieval.scratch import is_alive
from clip_retrieval.storage import Folder

MODEL = "hash:16?size=32"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(6):
        Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_folder_name_is_not_the_root(name: str) -> None:
    with pytest.raises(StorageError, match="folder's name is empty"):
        Folder(name)


def test_this_process_is_alive_and_a_number_too_large_is_not() -> None:
    assert is_alive(os.getpid())
    assert not is_alive(999_999_999)


def test_an_unfinished_run_is_not_indexed(pictures: Path, tmp_path: Path) -> None:
    options = {"tasks": [0], "input_dataset": str(pictures), "output_folder": str(tmp_path / "out")}
    config = build_config(WorkerConfig, {**options, "output_partition_count": 3, "clip_model": MODEL})
    run_inference(config.run, config.tasks)
    with pytest.raises(IndexBuildError, match="1 of 3 partitions"):
        clip_index(str(tmp_path / "out"), str(tmp_path / "index"))


def test_a_link_to_a_folder_is_named(pictures: Path, tmp_path: Path) -> None:
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    (inputs / "album").symlink_to(pictures)
    (inputs / "a.png").write_bytes((pictures / "0.png").read_bytes())
    summary = clip_inference(str(inputs), str(tmp_path / "out"), clip_model=MODEL, num_prepro_workers=0)
    assert summary.stats.sample_count == 1
    assert summary.stats.reasons == {"other:linked_folder": 1}


def test_an_index_that_cannot_be_replaced_stays(pictures: Path, tmp_path: Path) -> None:
    clip_inference(str(pictures), str(tmp_path / "out"), clip_model=MODEL, num_prepro_workers=0)
    clip_index(str(tmp_path / "out"), str(tmp_path / "index"), engine="faiss")
    metadata = tmp_path / "index" / "metadata"
    for path in metadata.iterdir():
        path.unlink()
    metadata.rmdir()
    metadata.write_text("in the way")
    before = (tmp_path / "index" / "image.json").read_bytes()
    with pytest.raises(IndexBuildError, match="index/metadata is a file in the place of the metadata folder"):
        clip_index(str(tmp_path / "out"), str(tmp_path / "index"), engine="faiss")
    assert (tmp_path / "index" / "image.json").read_bytes() == before
    assert not (tmp_path / "index" / "_revision").exists()


def test_scratch_folders_come_and_go_beside_each_other(tmp_path: Path) -> None:
    """Each that ends removes the shared folder if it is empty, while the others may use it."""
    folder = Folder(str(tmp_path))

    def work(count: int) -> int:
        for i in range(count):
            folder.write_json(f"{threading.get_ident()}.json", {"i": i})
            folder.remove_leftovers()
        return count

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, [60] * 8)) == [60] * 8


def test_hidden_files_are_no_names_of_a_folder(tmp_path: Path) -> None:
    for name in ("img_emb_0.npy", "._img_emb_0.npy"):
        (tmp_path / name).write_bytes(b"")

    assert Folder(str(tmp_path)).names("", ".npy") == ["img_emb_0.npy"]


@pytest.mark.parametrize("keeps", [False, True])
def test_only_folders_that_keep_what_is_finished_say_so(tmp_path: Path, *, keeps: bool) -> None:
    folder = Folder(str(tmp_path / "out"), keeps=keeps)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(StorageError) as refused, folder.staged("rows.npy"):
        raise full
    said = "what is finished is kept" if keeps else "make room there"
    assert str(refused.value) == f"cannot write to {folder.url}: No space left on device; {said}"
    remote = Folder("memory://kept", keeps=keeps)
    with pytest.raises(StorageError) as refused, remote.answering():
        raise full
    said = "what is finished is kept, run it again" if keeps else "run it again"
    assert str(refused.value).endswith(f"device; {said}")
