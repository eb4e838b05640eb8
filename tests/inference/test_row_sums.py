"""Checksums of embeddings: whoever writes rows writes them, and whoever reads all of a file compares them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import faiss
import numpy as np
import pytest
import xxhash
from click.testing import CliRunner

from clip_retrieval import clip_index, clip_inference
from clip_retrieval.checksums import sum_stream
from clip_retrieval.cli import cli
from clip_retrieval.embeddings import row_sums
from clip_retrieval.embeddings.row_sums import find_checksum
from clip_retrieval.embeddings.vectors import open_vectors
from clip_retrieval.errors import ClipRetrievalError, IndexBuildError
from clip_retrieval.inference.summary import RunSummary
from clip_retrieval.layout import EmbeddingsFolder
from tests.encoder.damage import overwrite_middle, zero_middle

WriteTar = Callable[[Path, Sequence[tuple[str, bytes]]], Path]


def embed(source: Path, output: Path | str, **options: object) -> RunSummary:
    fixed = {"clip_model": "hash:64?size=32", "num_prepro_workers": 0, "output_partition_count": 3}
    return clip_inference(str(source), str(output), **{**fixed, **options})


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(cli, [*map(str, arguments)], env={"COLUMNS": "400"})
    return done.exit_code, done.output


def check_sums(folder: Path, dtype: type = np.float16) -> None:
    """Check that the stats have the checksums of all rows, and that they are in no other place."""
    paths = sorted(folder.glob("*_emb/*.npy"))
    assert paths
    for path in paths:
        name = path.relative_to(folder).as_posix()
        rows = np.load(path)
        assert rows.dtype == dtype
        assert find_checksum(EmbeddingsFolder(str(folder)), name) == xxhash.xxh3_64_hexdigest(rows.tobytes())


@pytest.fixture
def photos(tmp_path: Path, write_pictures: Callable[[Path, int], Path]) -> Path:
    return write_pictures(tmp_path / "photos", 7)


@pytest.fixture
def done(photos: Path, tmp_path: Path) -> Path:
    """Make a run of three partitions with 2, 2 and 3 rows; return its folder."""
    embed(photos, tmp_path / "output")
    return tmp_path / "output"


def test_each_step_of_a_folder_writes_the_checksums_of_its_rows(
    photos: Path, done: Path, write_pictures: Callable[[Path, int], Path]
) -> None:
    check_sums(done)
    (photos / "00001.jpg").unlink()
    write_pictures(photos / "more", 2)
    (photos / "late.jpg").write_bytes(b"no picture")
    embed(photos, done, update=True)
    check_sums(done)
    (photos / "late.jpg").write_bytes((photos / "00002.jpg").read_bytes())
    assert embed(photos, done, retry_failed=True).revised is not None
    check_sums(done)
    assert len(json.loads((done / "stats" / "0.json").read_text())["checksums"]) == 2


@pytest.mark.parametrize("command", ["dedup", "select"])
def test_a_folder_of_kept_rows_has_the_checksums_of_its_own_rows(done: Path, tmp_path: Path, command: str) -> None:
    more = ["--count", 5] if command == "select" else []
    for overwrite in ("False", "True"):
        code, output = run(command, done, tmp_path / "kept", "--write", "embeddings", "--overwrite", overwrite, *more)
        assert code == 0, output
        check_sums(tmp_path / "kept" / "embeddings")
        assert run("status", tmp_path / "kept" / "embeddings", "--check")[0] == 0


@pytest.mark.parametrize("damage", [zero_middle, overwrite_middle])
@pytest.mark.parametrize("folder", ["img_emb", "text_emb"])
def test_an_index_is_not_built_of_damaged_rows_until_they_are_embedded_again(
    photos: Path, done: Path, tmp_path: Path, damage: Callable[[Path], None], folder: str
) -> None:
    path = done / folder / f"{folder}_1.npy"
    damage(path)
    for _ in range(2):
        with pytest.raises(IndexBuildError, match=rf"{path} is damaged: .*; inference --update embeds its rows again"):
            clip_index(str(done), str(tmp_path / "index"))
    assert not (tmp_path / "index").exists()
    embed(photos, done, update=True)
    clip_index(str(done), str(tmp_path / "index"), index_key="Flat")
    damage(path)  # of rows that are empty by now: zeros again, or another embedding
    if damage is overwrite_middle:
        with pytest.raises(IndexBuildError, match="is damaged"):
            clip_index(str(done), str(tmp_path / "index"), update=True)


def test_rows_that_were_changed_on_purpose_are_indexed_once_their_checksums_are_gone(
    done: Path, tmp_path: Path
) -> None:
    path, stats = done / "img_emb" / "img_emb_1.npy", done / "stats" / "1.json"
    np.save(path, np.load(path)[::-1])
    with pytest.raises(IndexBuildError, match=rf'on purpose, take "checksums" out of {stats}'):
        clip_index(str(done), str(tmp_path / "index"), index_key="Flat")
    stats.write_text(json.dumps({k: v for k, v in json.loads(stats.read_text()).items() if k != "checksums"}))
    clip_index(str(done), str(tmp_path / "index"), index_key="Flat")


@pytest.mark.parametrize("content", [None, b"[1]", b'{"checksums": 3}', b'{"checksums": {"image": 3}}'])
def test_folders_without_checksums_are_indexed_as_before(done: Path, tmp_path: Path, content: bytes | None) -> None:
    for path in (done / "stats").iterdir():
        path.unlink() if content is None else path.write_bytes(content)
    overwrite_middle(done / "img_emb" / "img_emb_1.npy")
    clip_index(str(done), str(tmp_path / "index"), index_key="Flat")
    assert faiss.read_index(str(tmp_path / "index" / "image.index")).ntotal == 7


@pytest.mark.parametrize("name", ["img_emb/img_emb_0.npy", "text_emb/text_emb_0.npy", "img_emb/img_emb_2.npy"])
def test_damaged_rows_are_not_copied_into_a_folder_with_new_checksums(done: Path, tmp_path: Path, name: str) -> None:
    overwrite_middle(done / name)
    code, output = run("select", done, tmp_path / "kept", "--write", "embeddings", "--count", 4)
    assert (code, f"{name} is damaged" in output) == ((0, False) if "2" in name else (1, True)), output


@pytest.mark.parametrize("command", ["dedup", "label"])
def test_commands_that_read_all_rows_refuse_damaged_ones(done: Path, tmp_path: Path, command: str) -> None:
    overwrite_middle(done / "img_emb" / "img_emb_1.npy")
    code, output = run(
        command, done, *([tmp_path / "kept"] if command == "dedup" else ["--label", "a", "--label", "b"])
    )
    assert (code, "img_emb_1.npy is damaged" in output) == (1, True), output


def test_tars_are_embedded_again_as_the_sentence_says(
    tmp_path: Path, write_tar: WriteTar, make_sample: Callable[[int], list[tuple[str, bytes]]]
) -> None:
    for number in range(3):
        is_bad = number == 1  # a picture that is to be tried again
        sample = [
            (name, b"no picture" if is_bad and name.endswith(".jpg") else data) for name, data in make_sample(number)
        ]
        write_tar(tmp_path / "tars" / f"{number}.tar", sample)
    output, options = tmp_path / "output", {"input_format": "webdataset"}
    embed(tmp_path / "tars", output, **options)
    path = output / "img_emb" / "img_emb_1.npy"
    before = path.read_bytes()
    overwrite_middle(path)
    metadata = output / "metadata" / "metadata_1.parquet"
    with pytest.raises(IndexBuildError, match=rf"remove {metadata}, and give the command of inference again"):
        clip_index(str(output), str(tmp_path / "index"))
    with pytest.raises(ClipRetrievalError, match=rf"remove {metadata}, .* again without --retry_failed"):
        embed(tmp_path / "tars", output, retry_failed=True, **options)
    metadata.unlink()
    embed(tmp_path / "tars", output, **options)
    assert path.read_bytes() == before
    assert run("status", output, "--check")[0] == 0


def test_status_names_all_that_is_damaged(done: Path) -> None:
    code, output = run("status", done, "--check")
    assert code == 0
    assert "3 partitions checked: no file damaged" in output
    overwrite_middle(done / "img_emb" / "img_emb_0.npy")
    zero_middle(done / "text_emb" / "text_emb_2.npy")
    damaged = done / "metadata" / "metadata_2.parquet"
    damaged.write_bytes(damaged.read_bytes().replace(b"picture number", b"picture nomber"))
    (done / "stats" / "1.json").unlink()
    code, output = run("status", done, "--check")
    assert code == 1
    assert "3 partitions checked: 3 files damaged" in output
    assert f"{done}/img_emb/img_emb_0.npy is damaged" in output
    assert f"{done}/text_emb/text_emb_2.npy is damaged" in output
    assert f"{damaged} cannot be read" in output
    assert f"remove {damaged}, and give the command of inference again" in output
    assert "2 files of embeddings without checksums" in output
    code, output = run("status", done, "--check", "--json")
    checked = json.loads(output)["checked"]
    assert (code, checked["partitions"], checked["unsummed"], len(checked["damage"])) == (1, 3, 2, 3)


@pytest.mark.parametrize("size", [60, 0, -1])  # of a cut; -1: zeros
def test_damaged_stats_are_refused_and_made_again_as_the_sentence_says(
    photos: Path, done: Path, tmp_path: Path, size: int
) -> None:
    stats = done / "stats" / "1.json"
    stats.write_bytes(bytes(99) if size < 0 else stats.read_bytes()[:size])
    zero_middle(done / "img_emb" / "img_emb_1.npy")
    with pytest.raises(ClipRetrievalError, match=r"1\.json is damaged: .*; remove .*metadata_1\.parquet, and give"):
        clip_index(str(done), str(tmp_path / "index"))
    code, output = run("status", done, "--check")
    assert code == 1
    assert output.count("1.json is damaged") == 1
    assert "1 file damaged" in output
    (done / "metadata" / "metadata_1.parquet").unlink()
    embed(photos, done)
    assert "no file damaged" in run("status", done, "--check")[1]
    check_sums(done)


def test_a_damaged_table_is_named_once(done: Path) -> None:
    (done / "metadata" / "metadata_1.parquet").write_bytes(b"zeros")
    output = run("status", done, "--check")[1]
    assert output.count("metadata_1.parquet is not a readable") == 1
    assert "1 file damaged" in output


def test_an_update_warns_where_metadata_is_gone_and_ids_change(
    photos: Path, done: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (done / "metadata" / "metadata_1.parquet").unlink()
    embed(photos, done, update=True)
    assert "metadata_1.parquet is missing: its samples become new rows at the end" in caplog.text


def test_a_file_that_an_update_replaces_while_it_is_read_is_not_called_damaged(photos: Path, done: Path) -> None:
    vectors = open_vectors(EmbeddingsFolder(str(done)), "img_emb")
    assert vectors is not None
    before, mixed = (vectors.checked_parts(vectors.files[number], 1) for number in (0, 2))
    next(before), next(mixed)
    for number in (0, 4, 6):  # the first rows of both files, and the last one
        (photos / f"{number:05}.jpg").unlink()
    embed(photos, done, update=True)
    assert len(list(before)) == 1  # all of its rows are those from before
    with pytest.raises(IndexBuildError, match=r"img_emb_2\.npy changed while it was read; run it again"):
        list(mixed)
    assert len(list(vectors.checked_parts(vectors.files[2], 1))) == 3


def test_a_check_reads_a_file_again_that_was_replaced_meanwhile(
    photos: Path, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sum_late(file: IO[bytes]) -> str:
        said = sum_stream(file)
        (photos / "00000.jpg").unlink()
        monkeypatch.undo()
        embed(photos, done, update=True)
        return f"not {said}"

    monkeypatch.setattr(row_sums, "sum_stream", sum_late)
    assert row_sums.find_damage(EmbeddingsFolder(str(done)), "img_emb/img_emb_0.npy") is None


def test_status_does_not_watch_and_check(done: Path) -> None:
    code, output = run("status", done, "--check", "--watch")
    assert (code, "leave --watch out" in output) == (1, True)


def test_what_is_copied_on_a_store_is_compared(photos: Path) -> None:
    output = "memory://row-sums/output"
    folder = EmbeddingsFolder(output)
    folder.remove("")
    embed(photos, output)
    name = "img_emb/img_emb_0.npy"
    data = folder.read_bytes(name)
    changed = bytearray(data)
    changed[-1] ^= 1
    folder.fs.pipe_file(folder.path(name), bytes(changed))
    for suffix in ("jpg", "txt", "json"):
        (photos / f"00001.{suffix}").unlink()
    with pytest.raises(IndexBuildError, match=rf"{name} is damaged: .*; remove it: inference --update embeds its rows"):
        embed(photos, output, update=True)
    folder.remove(name)
    revised = embed(photos, output, update=True).revised
    assert revised is not None
    assert (revised.embedded, revised.removed) == (1, 2)
    assert run("status", output, "--check")[0] == 0
    folder.remove("")
