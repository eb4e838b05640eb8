"""Embeddings that were damaged after their run: `--update` makes their rows again, and nothing copies them unseen."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
from numpy.typing import NDArray

from clip_retrieval import clip_index, clip_inference
from clip_retrieval.embeddings import row_sums
from clip_retrieval.errors import ClipRetrievalError, StorageError
from clip_retrieval.inference.revisions.damage import find_damage
from clip_retrieval.inference.summary import RunSummary
from clip_retrieval.layout import EmbeddingsFolder
from clip_retrieval.storage import Folder
from tests.encoder.damage import cut_off, make_empty, overwrite_middle, put_folder, write_garbage, write_zeros

Read = Callable[[Path, str], NDArray[np.float16]]
WriteTar = Callable[[Path, Sequence[tuple[str, bytes]]], Path]


def add_bytes(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0\0")


def lose_a_row(path: Path) -> None:
    np.save(path, np.load(path)[:-1])


WAYS = [cut_off, write_garbage, make_empty, write_zeros, add_bytes, lose_a_row, Path.unlink, overwrite_middle]


def read_other(output: Path, folder: str, path: Path) -> dict[str, bytes]:
    return {other.name: other.read_bytes() for other in (output / folder).iterdir() if other != path}


def embed(source: Path, output: Path, **options: object) -> RunSummary:
    fixed = {"clip_model": "hash:64?size=32", "num_prepro_workers": 0, "output_partition_count": 3}
    return clip_inference(str(source), str(output), **{**fixed, **options})


@pytest.fixture
def photos(tmp_path: Path, write_pictures: Callable[[Path, int], Path]) -> Path:
    return write_pictures(tmp_path / "photos", 7)


@pytest.fixture
def done(photos: Path, tmp_path: Path) -> Path:
    """Make a run of three partitions with 2, 2 and 3 rows; return its folder."""
    embed(photos, tmp_path / "output")
    return tmp_path / "output"


@pytest.mark.parametrize("damage", WAYS)
@pytest.mark.parametrize("folder", ["img_emb", "text_emb"])
def test_an_update_embeds_the_rows_of_a_damaged_file_again(
    photos: Path,
    done: Path,
    tmp_path: Path,
    read_embeddings: Read,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None],
    folder: str,
) -> None:
    clip_index(str(done), str(tmp_path / "index"), index_key="Flat")
    before = read_embeddings(done, "img_emb"), read_embeddings(done, "text_emb")
    path = done / folder / f"{folder}_2.npy"
    damage(path)
    for suffix in ("jpg", "txt", "json"):
        (photos / f"00005.{suffix}").unlink()
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        summary = embed(photos, done, update=True)
    assert summary.revised is not None
    assert summary.revised.to_json() == {"kept": 4, "renamed": 0, "embedded": 2, "removed": 3, "failing": 0}
    (told,) = [message for message in caplog.messages if str(path) in message]
    assert "what the input still has of its 3 rows is embedded again" in told
    for rows, was in zip((read_embeddings(done, "img_emb"), read_embeddings(done, "text_emb")), before, strict=True):
        assert len(rows) == 9
        assert (rows[:4] == was[:4]).all()
        assert not rows[4:7].any()
        assert (rows[7:] == was[[4, 6]]).all()
    stats = summary.stats
    assert (stats.sample_count - stats.deleted_count, stats.image_count, stats.text_count) == (6, 6, 6)
    again = embed(photos, done, update=True).revised
    assert again is not None
    caplog.clear()
    damage(path)
    before_last = read_other(done, folder, path)
    assert embed(photos, done, update=True).revised == again
    assert not np.load(path).any()
    assert np.load(path).shape == (3, 64)
    assert read_other(done, folder, path) == before_last
    (told,) = [message for message in caplog.messages if str(path) in message]
    assert "it is written again, without embeddings" in told
    assert again.to_json() == {"kept": 6, "renamed": 0, "embedded": 0, "removed": 0, "failing": 0}
    clip_index(str(done), str(tmp_path / "index"), update=True)
    assert clip_index(str(done), str(tmp_path / "new"), index_key="Flat") is not None


def test_a_folder_in_the_place_of_rows_is_called_that(photos: Path, done: Path) -> None:
    path = done / "img_emb" / "img_emb_1.npy"
    put_folder(path)
    with pytest.raises(StorageError, match=rf"{path} is a folder, not an npy file; move it away"):
        embed(photos, done, update=True)
    assert (path / "inside").exists()
    path.rename(done.parent / "moved")
    again = embed(photos, done, update=True).revised
    assert again is not None
    assert again.embedded == 2


@pytest.mark.parametrize("damage", WAYS)
def test_a_retry_refuses_a_damaged_file_and_says_that_an_update_mends_it(
    photos: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    (photos / "00001.jpg").write_bytes(b"no picture")
    done = tmp_path / "output"
    embed(photos, done)
    path = done / "img_emb" / "img_emb_0.npy"
    damage(path)
    state = path.read_bytes() if path.exists() else None
    with pytest.raises(
        ClipRetrievalError, match=rf"{path}.*; inference --update instead of --retry_failed embeds its rows"
    ):
        embed(photos, done, retry_failed=True)
    assert (path.read_bytes() if path.exists() else None) == state
    embed(photos, done, update=True)
    embed(photos, done, retry_failed=True)


def test_a_retry_compares_only_the_rows_of_partitions_that_it_fills(photos: Path, tmp_path: Path) -> None:
    picture = photos / "00005.jpg"
    whole = picture.read_bytes()
    picture.write_bytes(b"no picture")
    done = tmp_path / "output"
    embed(photos, done)
    picture.write_bytes(whole)
    path = done / "img_emb" / "img_emb_0.npy"
    overwrite_middle(path)
    state = path.read_bytes()
    again = embed(photos, done, retry_failed=True).revised
    assert again is not None
    assert (again.embedded, path.read_bytes()) == (1, state)


def test_several_partitions_are_read_at_once(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = Barrier(2, timeout=60)  # fails if no second thread arrives

    def find(folder: Folder, name: str) -> str | None:
        if name in ("img_emb/img_emb_0.npy", "img_emb/img_emb_1.npy"):
            both.wait()
        return found(folder, name)

    found = row_sums.find_damage
    monkeypatch.setenv("CLIP_RETRIEVAL_CORES", "2")
    monkeypatch.setattr(row_sums, "find_damage", find)
    folder = EmbeddingsFolder(str(done))
    assert find_damage(folder, folder.partitions()) == []


def test_a_partition_of_tars_is_made_again_as_its_sentence_says(
    tmp_path: Path, write_tar: WriteTar, make_sample: Callable[[int], list[tuple[str, bytes]]], read_embeddings: Read
) -> None:
    for number in range(3):
        write_tar(tmp_path / "tars" / f"{number}.tar", make_sample(number))
    output, options = tmp_path / "output", {"input_format": "webdataset"}
    embed(tmp_path / "tars", output, **options)
    before = read_embeddings(output, "img_emb")
    cut_off(output / "img_emb" / "img_emb_1.npy")
    with pytest.raises(StorageError, match="without --retry_failed: it makes that partition again") as error:
        embed(tmp_path / "tars", output, retry_failed=True, **options)
    named = re.search(r"remove (\S+),", str(error.value))
    assert named is not None
    Path(named[1]).unlink()
    embed(tmp_path / "tars", output, **options)
    assert (read_embeddings(output, "img_emb") == before).all()
    embed(tmp_path / "tars", output, retry_failed=True, **options)
