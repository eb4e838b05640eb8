"""`--update`: ids stay, only what is new is embedded, and a kill at any step changes nothing of the outcome."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from clip_retrieval import clip_filter, clip_index, clip_inference
from clip_retrieval.cli import cli
from clip_retrieval.curate.config import LabelConfig
from clip_retrieval.curate.label import run_label
from clip_retrieval.errors import ClipRetrievalError, ConfigError, IndexBuildError, SourceError, StorageError
from clip_retrieval.inference.config import WorkerConfig
from clip_retrieval.inference.revisions import changes
from clip_retrieval.inference.summary import RunSummary
from clip_retrieval.layout import JOURNAL, EmbeddingsFolder, Partition, next_partition, partition_named
from clip_retrieval.metadata import open_metadata
from clip_retrieval.options import build_config
from clip_retrieval.revision import only_one
from clip_retrieval.storage import Folder

MODEL = "hash:64?size=32"
Read = Callable[[Path, str], NDArray[np.float16]]
Table = Callable[[Path, str], pd.DataFrame]
Write = Callable[[Path, int], Path]
RunUntil = Callable[[int | None, Callable[[], object]], list[str]]


def embed(photos: Path, output: Path, **options: object) -> RunSummary:
    fixed = {"clip_model": MODEL, "num_prepro_workers": 0, "enable_metadata": True, "batch_size": 4}
    return clip_inference(str(photos), str(output), **{**fixed, **options})


def update(photos: Path, output: Path, **options: object) -> dict[str, int]:
    summary = embed(photos, output, update=True, **options)
    assert summary.revised is not None
    return summary.revised.to_json()


def did(**counts: int) -> dict[str, int]:
    return {"kept": 0, "renamed": 0, "embedded": 0, "removed": 0, "failing": 0, **counts}


def whole(output: Path) -> dict[str, bytes]:
    """Return every byte but the seconds of stats."""
    return {
        str(path.relative_to(output)): path.read_bytes()
        for path in sorted(output.rglob("*"))
        if path.is_file() and path.parent.name != "stats"
    }


def names(table: pd.DataFrame) -> list[str | None]:
    return [None if path is None else Path(path).name for path in table["image_path"]]


@pytest.fixture
def photos(tmp_path: Path, write_pictures: Write) -> Path:
    return write_pictures(tmp_path / "photos", 7)


@pytest.fixture
def done(request: pytest.FixtureRequest, photos: Path, tmp_path: Path) -> Path:
    """Make a run of three partitions with 2, 2 and 3 rows, or of as many as the test asks for; return its folder."""
    embed(photos, tmp_path / "output", output_partition_count=getattr(request, "param", 3))
    return tmp_path / "output"


def add(photos: Path, make_sample: Callable[[int], list[tuple[str, bytes]]], number: int) -> None:
    for name, payload in make_sample(number):
        (photos / name).write_bytes(payload)


def remove(photos: Path, number: int) -> None:
    for suffix in ("jpg", "txt", "json"):
        (photos / f"{number:05d}.{suffix}").unlink()


def rename(photos: Path, number: int, stem: str) -> None:
    for suffix in ("jpg", "txt", "json"):
        (photos / f"{number:05d}.{suffix}").rename(photos / f"{stem}.{suffix}")


@pytest.fixture
def changed(photos: Path, done: Path, make_sample: Callable[[int], list[tuple[str, bytes]]]) -> Path:
    """Remove 1, change 3, rename 4, add 8 and 9 after the run; return the input."""
    assert done.exists()
    remove(photos, 1)
    (photos / "00003.txt").write_bytes(b"another caption")
    rename(photos, 4, "sub-four")
    add(photos, make_sample, 8)
    add(photos, make_sample, 9)
    return photos


def test_an_update_does_without_pandas(changed: Path, done: Path) -> None:
    """pyarrow's own `pa.array` and `empty_table` import pandas: 0.4 s and 25 MB."""
    words = ["inference", str(changed), str(done), "--clip_model", MODEL, "--enable_metadata", "True", "--update"]
    code = f"import sys\nfrom clip_retrieval.cli import cli\ncli({words!r}, standalone_mode=False)\nprint(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ended.stdout.splitlines()[-1].split())
    assert "clip_retrieval.inference.revisions.edit" in loaded
    assert "pandas" not in loaded
    assert len(EmbeddingsFolder(str(done)).partitions()) == 4


def test_ids_stay_and_only_what_is_new_is_embedded(
    changed: Path, done: Path, read_embeddings: Read, read_table: Table
) -> None:
    before, texts = read_embeddings(done, "img_emb"), read_embeddings(done, "text_emb")

    assert update(changed, done) == did(kept=4, renamed=1, embedded=3, removed=2)

    rows, table = read_embeddings(done, "img_emb"), read_table(done, "metadata")
    assert len(rows) == len(table) == 10
    kept = [0, 2, 4, 5, 6]
    assert (rows[kept] == before[kept]).all()
    assert (read_embeddings(done, "text_emb")[kept] == texts[kept]).all()
    assert not rows[[1, 3]].any()
    assert not read_embeddings(done, "text_emb")[[1, 3]].any()
    assert table.iloc[[1, 3]].isna().all(axis=None)
    expected = ["00000.jpg", None, "00002.jpg", None, "sub-four.jpg", "00005.jpg", "00006.jpg"]
    assert names(table) == [*expected, "00003.jpg", "00008.jpg", "00009.jpg"]
    assert list(table["caption"][7:]) == ["another caption", "picture number 8", "picture number 9"]
    assert list(table["source.site"][8:]) == ["generated", "generated"]


def test_every_row_has_the_vector_that_a_new_run_gives_its_picture(
    changed: Path, done: Path, tmp_path: Path, read_embeddings: Read, read_table: Table
) -> None:
    update(changed, done)
    embed(changed, tmp_path / "anew")
    anew: dict[str | None, NDArray[np.float16]] = dict(
        zip(
            names(read_table(tmp_path / "anew", "metadata")), read_embeddings(tmp_path / "anew", "img_emb"), strict=True
        )
    )
    updated = zip(names(read_table(done, "metadata")), read_embeddings(done, "img_emb"), strict=True)
    found: dict[str | None, NDArray[np.float16]] = {name: row for name, row in updated if name is not None}
    assert found.keys() == anew.keys()
    assert all((found[name] == row).all() for name, row in anew.items())


def test_the_figures_stay_true(changed: Path, done: Path) -> None:
    (changed / "broken.jpg").write_bytes(b"no picture")
    (changed / "notes.doc").write_bytes(b"words")

    summary = embed(changed, done, update=True)

    stats = summary.stats
    assert (stats.sample_count, stats.deleted_count, stats.skipped_count) == (10, 2, 1)
    assert (stats.image_count, stats.text_count) == (8, 8)
    assert dict(stats.reasons) == {"image:decode": 1, "other:not_an_image": 1}
    assert summary.partition_count == 4


def test_an_updated_folder_is_done(changed: Path, done: Path) -> None:
    update(changed, done)
    before = whole(done)

    summary = embed(changed, done)

    assert whole(done) == before
    assert (summary.already_done, summary.partition_count, summary.stats.sample_count) == (4, 4, 10)


def test_an_update_without_changes_writes_nothing(photos: Path, done: Path) -> None:
    before = whole(done)

    assert update(photos, done) == did(kept=7)

    assert whole(done) == before


def test_files_that_are_only_touched_are_read_once_and_kept(
    photos: Path, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.utime(photos / "00002.jpg", (1, 1))
    assert update(photos, done) == did(kept=7)
    monkeypatch.setattr(changes, "digest_files", None)  # would be called again, had the ledger not learned the new time

    assert update(photos, done) == did(kept=7)


def test_an_unchanged_file_is_not_read(photos: Path, done: Path) -> None:
    path = photos / "00002.jpg"
    time = path.stat().st_mtime_ns
    path.write_bytes(bytes(path.stat().st_size))
    os.utime(path, ns=(time, time))

    assert update(photos, done) == did(kept=7)


def test_rows_may_swap_their_names(photos: Path, done: Path, read_embeddings: Read, read_table: Table) -> None:
    before = read_embeddings(done, "img_emb")
    rename(photos, 0, "waiting")
    rename(photos, 5, "00000")
    for suffix in ("jpg", "txt", "json"):
        (photos / f"waiting.{suffix}").rename(photos / f"00005.{suffix}")

    assert update(photos, done) == did(kept=5, renamed=2)

    assert (read_embeddings(done, "img_emb") == before).all()
    assert names(read_table(done, "metadata"))[::5] == ["00005.jpg", "00000.jpg"]


def test_a_deleted_picture_that_comes_back_is_a_new_row(
    photos: Path, done: Path, read_table: Table, make_sample: Callable[[int], list[tuple[str, bytes]]]
) -> None:
    remove(photos, 2)
    assert update(photos, done) == did(kept=6, removed=1)
    add(photos, make_sample, 2)

    assert update(photos, done) == did(kept=6, embedded=1)

    assert names(read_table(done, "metadata"))[2::5] == [None, "00002.jpg"]


def test_a_broken_picture_is_tried_again_only_when_it_changed(
    photos: Path, done: Path, make_jpeg: Callable[[int], bytes], read_table: Table
) -> None:
    (photos / "x.jpg").write_bytes(b"broken")
    assert update(photos, done) == did(kept=7, failing=1)
    assert update(photos, done) == did(kept=7)
    (photos / "x.jpg").write_bytes(make_jpeg(50))

    assert update(photos, done) == did(kept=7, embedded=1)

    assert not len(read_table(done, "failures"))
    assert embed(photos, done).stats.skipped_count == 0


def test_failures_follow_renamed_and_deleted_files(photos: Path, tmp_path: Path, read_table: Table) -> None:
    (photos / "00001.json").write_bytes(b"{")
    (photos / "00002.json").write_bytes(b"[")
    (photos / "gone.jpg").write_bytes(b"broken")
    embed(photos, tmp_path / "output")
    rename(photos, 1, "one")
    remove(photos, 2)
    (photos / "gone.jpg").unlink()

    assert update(photos, tmp_path / "output") == did(kept=5, renamed=1, removed=1)

    assert list(read_table(tmp_path / "output", "failures")["key"]) == ["one.jpg"]
    stats = embed(photos, tmp_path / "output").stats
    assert (dict(stats.reasons), stats.skipped_count) == ({"metadata:json": 1}, 0)


def test_large_updates_are_appended_in_parts(changed: Path, done: Path, read_table: Table) -> None:
    update(changed, done, write_batch_size=2)

    files = sorted(path.name for path in (done / "metadata").iterdir())
    assert files == [f"metadata_{name}.parquet" for name in ("0", "1", "2", "2_0001", "2_0002")]
    assert names(read_table(done, "metadata"))[7:] == ["00003.jpg", "00008.jpg", "00009.jpg"]


def test_names_of_partitions_sort_in_the_order_of_appending() -> None:
    partitions = [partition_named("09")]
    for _ in range(10_050):
        partitions.append(next_partition(partitions[-1], 1))
    for name in (EmbeddingsFolder.metadata_name, lambda partition: EmbeddingsFolder.embedding_name("image", partition)):
        found = [name(partition) for partition in partitions]
        assert sorted(found) == found
        assert len({EmbeddingsFolder.stats_name(partition) for partition in partitions}) == len(partitions)
    assert partition_named("07").name == "07"
    assert partition_named("07_0012") == Partition(7, 10, 0, 0, "_0012")


def test_embedding_reader_reads_updated_folders_in_our_order(
    photos: Path, done: Path, make_sample: Callable[[int], list[tuple[str, bytes]]], read_embeddings: Read
) -> None:
    embedding_reader = pytest.importorskip("embedding_reader")
    for number in range(10, 22):
        add(photos, make_sample, number)
        update(photos, done)
    expected = read_embeddings(done, "img_emb")
    reader = embedding_reader.EmbeddingReader(str(done / "img_emb"), file_format="npy")
    found = np.concatenate([rows for rows, _ in reader(batch_size=5, show_progress=False)])
    assert len(expected) == 19
    assert (found == expected).all()


def test_index_and_filter_work_on_updated_folders(changed: Path, done: Path, tmp_path: Path) -> None:
    update(changed, done)
    clip_index(str(done), str(tmp_path / "index"), engine="faiss")

    hits = clip_filter(
        str(changed / "sub-four.jpg"), str(tmp_path / "hits"), str(tmp_path / "index"), num_results=20, threshold=-1
    )

    assert len(hits) == 8  # deleted rows are never hits
    assert (hits["id"][0], Path(hits["image_path"][0]).name) == (4, "sub-four.jpg")
    assert set(hits["id"]) == {0, 2, 4, 5, 6, 7, 8, 9}


def test_columns_that_were_added_are_left_out_by_name_once_rows_change_in_place(
    photos: Path, done: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    label = build_config(LabelConfig, {"outlier": True, "name": "odd"}, (str(done),))
    run_label(label)
    clip_index(str(done), str(tmp_path / "index"), index_key="Flat")
    rename(photos, 4, "renamed")
    update(photos, done)
    metadata = open_metadata(EmbeddingsFolder(str(done)))
    assert metadata is not None
    assert "outlier" in metadata.schema.names  # a name changes no embedding
    remove(photos, 3)
    update(photos, done)
    for folder in (done, tmp_path / "index"):
        if folder != done:
            clip_index(str(done), str(folder), update=True)
        metadata = open_metadata(EmbeddingsFolder(str(folder)))
        assert metadata is not None
        assert "outlier" not in metadata.schema.names
    assert "columns/odd was made before embeddings changed" in caplog.text
    run_label(label)
    metadata = open_metadata(EmbeddingsFolder(str(done)))
    assert metadata is not None
    assert metadata.columns(["outlier"])["outlier"].null_count == 1


def test_other_changes_are_told_in_numbers(changed: Path, done: Path) -> None:
    with pytest.raises(ConfigError, match=r"the input has changed since .*: 3 new, 2 gone; .* with --update"):
        embed(changed, done)


def test_an_update_of_an_empty_folder_is_a_plain_run(photos: Path, tmp_path: Path) -> None:
    summary = embed(photos, tmp_path / "new", update=True)
    plain = embed(photos, tmp_path / "plain")
    assert (summary.stats.sample_count, summary.revised) == (plain.stats.sample_count, None)


def test_what_a_stopped_run_did_not_finish_is_embedded_by_update(
    photos: Path, done: Path, make_sample: Callable[[int], list[tuple[str, bytes]]], read_table: Table
) -> None:
    (done / "metadata" / "metadata_2.parquet").unlink()
    add(photos, make_sample, 8)
    with pytest.raises(ConfigError, match="had 7 names, and has 8 now; run with --update"):
        embed(photos, done)

    assert update(photos, done) == did(kept=4, embedded=4)

    assert not (done / "img_emb" / "img_emb_2.npy").exists()
    assert names(read_table(done, "metadata")) == [f"{number:05d}.jpg" for number in (0, 1, 2, 3, 4, 5, 6, 8)]
    assert embed(photos, done).stats.sample_count == 8


def test_captions_that_are_all_gone_leave_their_column(photos: Path, done: Path, read_table: Table) -> None:
    for path in photos.glob("*.txt"):
        path.unlink()

    assert update(photos, done) == did(embedded=7, removed=7)

    assert list(read_table(done, "metadata")["caption"].isna()) == [True] * 14
    assert embed(photos, done).already_done == 4


def test_captions_that_are_new_are_refused_by_name(tmp_path: Path, make_jpeg: Callable[[int], bytes]) -> None:
    photos, output = tmp_path / "in", tmp_path / "out"
    photos.mkdir()
    (photos / "a.jpg").write_bytes(make_jpeg(1))
    embed(photos, output)
    (photos / "a.txt").write_text("words")
    with pytest.raises(ConfigError, match=r"holds captions now, and .* add --enable_text False"):
        update(photos, output)
    assert update(photos, output, enable_text=False) == did(kept=1)


def test_paths_that_are_no_utf8_are_found_again(tmp_path: Path, make_jpeg: Callable[[int], bytes]) -> None:
    photos, output = tmp_path / "in", tmp_path / "out"
    photos.mkdir()
    try:
        (photos / os.fsdecode(b"caf\xe9.jpg")).write_bytes(make_jpeg(1))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (photos / "a.jpg").write_bytes(make_jpeg(2))
    embed(photos, output)
    assert update(photos, output) == did(kept=2)


def test_another_model_is_refused_before_anything_is_written(changed: Path, done: Path) -> None:
    before = whole(done)
    with pytest.raises(ConfigError, match="clip_model hash:64"):
        update(changed, done, clip_model="hash:16?size=32")
    manifest = json.loads((done / "manifest.json").read_text())
    manifest["encoder"]["fingerprint"] = "another"
    (done / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match="fingerprint another -> "):
        update(changed, done)
    assert {**whole(done), "manifest.json": b""} == {**before, "manifest.json": b""}


def test_other_inputs_than_folders_are_refused(tmp_path: Path, write_shards: Callable[[Path, int, int], Path]) -> None:
    shards = write_shards(tmp_path / "shards", 2, 2)
    embed(shards, tmp_path / "out", input_format="webdataset")
    with pytest.raises(ConfigError, match="update follows a folder of files"):
        update(shards, tmp_path / "out", input_format="webdataset")


def test_a_folder_without_its_ledger_is_refused(photos: Path, done: Path) -> None:
    shutil.rmtree(done / "ledger")
    with pytest.raises(ConfigError, match=r"ledger_0\.parquet is missing"):
        update(photos, done)


def test_an_input_that_is_empty_by_now_empties_nothing(photos: Path, done: Path) -> None:
    before = whole(done)
    for path in photos.iterdir():
        path.unlink()
    with pytest.raises(SourceError):
        update(photos, done)
    assert whole(done) == before


def test_a_folder_that_cannot_be_listed_is_not_taken_for_gone(
    photos: Path, done: Path, write_pictures: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = write_pictures(photos / "closed", 2)
    update(photos, done)
    before, real = whole(done), os.scandir

    def scandir(path: Any) -> Any:
        if str(path) == str(closed):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(SourceError, match=r"closed cannot be listed \(Permission denied\)"):
        update(photos, done)
    assert whole(done) == before


@pytest.fixture
def logging_as_before() -> Iterator[None]:
    """Take away the handlers that the command line installs."""
    level = logging.getLogger("clip_retrieval").level
    yield
    logging.getLogger().handlers.clear()
    logging.getLogger("clip_retrieval").setLevel(level)


@pytest.mark.usefixtures("logging_as_before")
@pytest.mark.parametrize("flag", ["--update", "--retry-failed", "--retry_failed=True"])
def test_the_command_line_says_what_was_done(photos: Path, done: Path, flag: str) -> None:
    options = ["--clip_model", MODEL, "--num_prepro_workers", "0", "--enable_metadata", "True", "--batch_size", "4"]
    command = ["inference", str(photos), str(done), *options, flag]
    said = CliRunner().invoke(cli, command)
    assert said.exit_code == 0, said.output
    assert "  7 kept\n" in said.output
    told = CliRunner().invoke(cli, [*command, "--json"])
    assert json.loads(told.stdout)["revised"] == did(kept=7)


def test_workers_refuse_to_revise(photos: Path, done: Path) -> None:
    options = {"output_partition_count": 3, "tasks": "0", "update": True}
    with pytest.raises(ConfigError, match="give them to `inference`"):
        build_config(WorkerConfig, {"input_dataset": str(photos), "output_folder": str(done), **options})


def test_two_updates_at_once_are_refused(photos: Path, done: Path) -> None:
    with only_one(Folder(str(done))), pytest.raises(StorageError, match="another process is changing"):
        update(photos, done)


@pytest.mark.parametrize("done", [2], indirect=True)  # each partition more is the same steps once more
def test_a_kill_at_any_step_changes_nothing_of_the_outcome(
    changed: Path, done: Path, tmp_path: Path, run_until: RunUntil
) -> None:
    (changed / "broken.jpg").write_bytes(b"no picture")
    shutil.copytree(done, tmp_path / "expected")
    steps = run_until(None, lambda: update(changed, tmp_path / "expected", write_batch_size=2))
    expected = whole(tmp_path / "expected")
    assert len(steps) > 30
    for last, step in enumerate(steps):
        output = tmp_path / f"killed-{last}"
        shutil.copytree(done, output)
        run_until(last, partial(update, changed, output, write_batch_size=2))
        check_half_done(changed, output)

        embed(changed, output, update=True, write_batch_size=2)

        assert whole(output) == expected, f"killed before step {last}: {step}"
        shutil.rmtree(output)


def check_half_done(photos: Path, output: Path) -> None:
    """A folder in between is as it was before, or refused."""
    if (output / JOURNAL).exists():
        with pytest.raises(IndexBuildError, match="run its `clip-retrieval inference` again"):
            clip_index(str(output), f"{output}-index", engine="faiss")
    elif (
        len(list((output / "metadata").iterdir()))
        != json.loads((output / "manifest.json").read_text())["partition_count"]
    ):
        with pytest.raises(IndexBuildError, match="let inference finish"):
            clip_index(str(output), f"{output}-index", engine="faiss")
        with pytest.raises(ConfigError, match="with --update"):
            embed(photos, output)


def test_a_plain_run_finishes_the_journal_before_it_looks(changed: Path, done: Path, run_until: RunUntil) -> None:
    steps = run_until(None, lambda: update(changed, shutil.copytree(done, done.with_name("copy"))))
    run_until(steps.index("move"), lambda: update(changed, done))
    assert (done / JOURNAL).exists()
    with pytest.raises(ClipRetrievalError, match="with --update"):
        embed(changed, done)
    assert not (done / JOURNAL).exists()
    update(changed, done)
    assert embed(changed, done).stats.sample_count == 10


def test_an_object_store_is_updated_too(
    tmp_path: Path, write_pictures: Write, make_jpeg: Callable[[int], bytes]
) -> None:
    photos = write_pictures(tmp_path / "in", 3)
    output = f"memory://updates-{os.getpid()}"
    clip_inference(str(photos), output, clip_model=MODEL, num_prepro_workers=0)
    (photos / "x.jpg").write_bytes(make_jpeg(50))
    remove(photos, 1)
    summary = clip_inference(str(photos), output, clip_model=MODEL, num_prepro_workers=0, update=True)
    assert summary.revised is not None
    assert summary.revised.to_json() == did(kept=2, embedded=1, removed=1)
    assert clip_inference(str(photos), output, clip_model=MODEL, num_prepro_workers=0).already_done == 2
    assert not Folder(output).exists("_revision")
