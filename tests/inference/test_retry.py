"""`--retry_failed`: parts that are there by now come to their rows, samples to the end, and nothing else changes."""

from __future__ import annotations

import gzip
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from clip_retrieval import clip_index, clip_inference
from clip_retrieval.errors import ConfigError
from clip_retrieval.inference.summary import RunSummary
from clip_retrieval.network.connections import FetchError
from clip_retrieval.sources import urls
from clip_retrieval.sources.types import Failure, Sample
from clip_retrieval.sources.webdataset import WebdatasetSource

MODEL = "hash:64?size=32"
Members = list[tuple[str, bytes]]
Read = Callable[[Path, str], NDArray[np.float16]]
Table = Callable[[Path, str], pd.DataFrame]
WriteTar = Callable[[Path, Sequence[tuple[str, bytes]]], Path]
MakeSample = Callable[[int], Members]
MakeJpeg = Callable[[int], bytes]
RunUntil = Callable[[int | None, Callable[[], object]], list[str]]


def embed(source: Path, output: Path, **options: object) -> RunSummary:
    fixed = {"clip_model": MODEL, "num_prepro_workers": 0, "enable_metadata": True, "batch_size": 4}
    return clip_inference(str(source), str(output), **{**fixed, **options})


def retry(source: Path, output: Path, **options: object) -> dict[str, int]:
    summary = embed(source, output, retry_failed=True, **options)
    assert summary.revised is not None
    return summary.revised.to_json()


def did(**counts: int) -> dict[str, int]:
    return {"kept": 0, "renamed": 0, "embedded": 0, "removed": 0, "failing": 0, **counts}


def whole(output: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(output)): path.read_bytes()
        for path in sorted(output.rglob("*"))
        if path.is_file() and path.parent.name != "stats"
    }


def reasons(table: pd.DataFrame) -> list[tuple[str, str]]:
    return sorted(zip(table["key"], table["part"] + ":" + table["reason"], strict=True))


@pytest.fixture
def photos(tmp_path: Path, write_pictures: Callable[[Path, int], Path]) -> Path:
    """Write seven samples: the picture of 1 is broken, the caption of 2, the json of 3; 5 has nothing to embed."""
    folder = write_pictures(tmp_path / "photos", 7)
    (folder / "00001.jpg").write_bytes(b"broken")
    (folder / "00002.txt").write_bytes(b"\xff\xff")
    (folder / "00003.json").write_bytes(b"{")
    (folder / "00005.jpg").write_bytes(b"broken")
    (folder / "00005.txt").unlink()
    return folder


@pytest.fixture
def done(request: pytest.FixtureRequest, photos: Path, tmp_path: Path) -> Path:
    """Make a run of three partitions, or of as many as the test asks for; return its folder."""
    embed(photos, tmp_path / "output", output_partition_count=getattr(request, "param", 3))
    return tmp_path / "output"


@pytest.fixture
def repaired(photos: Path, done: Path, make_sample: MakeSample) -> Path:
    """Repair everything but the caption of 2 after the run; return the input."""
    assert done.exists()
    for number, suffix in ((1, "jpg"), (3, "json"), (5, "jpg")):
        payload = dict(make_sample(number))[f"{number:05d}.{suffix}"]
        (photos / f"{number:05d}.{suffix}").write_bytes(payload)
    return photos


def test_parts_are_filled_in_and_samples_are_appended(
    repaired: Path, done: Path, tmp_path: Path, read_embeddings: Read, read_table: Table
) -> None:
    before = read_embeddings(done, "img_emb")
    assert not before[1].any()

    assert retry(repaired, done) == did(kept=4, embedded=3, failing=1)

    rows, table = read_embeddings(done, "img_emb"), read_table(done, "metadata")
    assert len(rows) == len(table) == 7
    same = [0, 2, 3, 4, 5]
    assert (rows[same] == before[same]).all()
    assert [Path(path).name for path in table["image_path"]][1::4] == ["00001.jpg", "00006.jpg"]
    assert Path(table["image_path"][6]).name == "00005.jpg"
    assert list(table["key"]) == [f"{number:05d}" for number in (0, 1, 2, 3, 4, 6, 5)]
    assert reasons(read_table(done, "failures")) == [("00002.jpg", "text:encoding")]
    embed(repaired, tmp_path / "anew")
    order = [0, 1, 2, 3, 4, 6, 5]
    assert (rows == read_embeddings(tmp_path / "anew", "img_emb")[order]).all()
    assert (read_embeddings(done, "text_emb") == read_embeddings(tmp_path / "anew", "text_emb")[order]).all()


def test_a_retry_does_without_pandas(repaired: Path, done: Path) -> None:
    words = ["inference", str(repaired), str(done), "--clip_model", MODEL, "--enable_metadata", "True"]
    code = "import sys\nfrom clip_retrieval.cli import cli\n"
    code += f"cli({[*words, '--retry_failed']!r}, standalone_mode=False)\nprint(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ended.stdout.splitlines()[-1].split())
    assert "clip_retrieval.inference.revisions.edit" in loaded
    assert "pandas" not in loaded
    assert len(list((done / "metadata").iterdir())) == 4


def test_the_figures_stay_true(repaired: Path, done: Path) -> None:
    before = embed(repaired, done).stats
    assert (before.sample_count, before.skipped_count, before.image_count, before.text_count) == (6, 1, 5, 5)

    stats = embed(repaired, done, retry_failed=True).stats

    assert (stats.sample_count, stats.skipped_count, stats.image_count, stats.text_count) == (7, 0, 7, 5)
    assert dict(stats.reasons) == {"text:encoding": 1}
    assert embed(repaired, done).already_done == 4


def test_an_update_goes_on_from_what_was_retried(repaired: Path, done: Path) -> None:
    retry(repaired, done)
    before = whole(done)

    assert embed(repaired, done, update=True).revised is not None

    assert {name: data for name, data in whole(done).items() if not name.startswith("ledger")} == {
        name: data for name, data in before.items() if not name.startswith("ledger")
    }


def test_what_fails_still_keeps_its_row_and_tells_the_new_reason(
    photos: Path, done: Path, read_table: Table, read_embeddings: Read
) -> None:
    before = read_embeddings(done, "img_emb")
    (photos / "00001.jpg").write_bytes(b"")

    assert retry(photos, done) == did(kept=6, failing=4)

    assert (read_embeddings(done, "img_emb") == before).all()
    assert ("00001.jpg", "image:empty") in reasons(read_table(done, "failures"))
    assert ("00005.jpg", "image:decode") in reasons(read_table(done, "failures"))
    stats = embed(photos, done).stats
    assert (stats.sample_count, stats.skipped_count) == (6, 1)


def test_a_row_whose_caption_is_another_by_now_is_left_to_update(
    repaired: Path, done: Path, read_embeddings: Read
) -> None:
    (repaired / "00001.txt").write_bytes(b"something else")
    before = read_embeddings(done, "text_emb")
    assert retry(repaired, done)["failing"] == 2
    assert (read_embeddings(done, "text_emb")[:6] == before).all()
    assert not read_embeddings(done, "img_emb")[1].any()


def test_nothing_is_done_where_nothing_failed(tmp_path: Path, write_pictures: Callable[[Path, int], Path]) -> None:
    photos = write_pictures(tmp_path / "in", 2)
    embed(photos, tmp_path / "out")
    before = whole(tmp_path / "out")
    assert retry(photos, tmp_path / "out") == did(kept=2)
    assert whole(tmp_path / "out") == before


def test_rows_that_an_update_emptied_stay_empty(
    tmp_path: Path, write_pictures: Callable[[Path, int], Path], make_sample: MakeSample, read_embeddings: Read
) -> None:
    photos, output = write_pictures(tmp_path / "in", 4), tmp_path / "out"
    (photos / "00003.json").write_bytes(b"{")
    embed(photos, output)
    (photos / "00001.jpg").write_bytes(make_sample(9)[0][1])
    (photos / "00002.json").write_bytes(b"{")
    embed(photos, output, update=True)
    (photos / "00002.json").write_bytes(make_sample(2)[2][1])

    assert retry(photos, output) == did(kept=3, embedded=1, failing=1)

    assert list(read_embeddings(output, "img_emb").any(axis=1)) == [True, False, False, True, True, True]
    assert embed(photos, output, update=True).stats.deleted_count == 2


def test_only_what_failed_is_read(repaired: Path, done: Path) -> None:
    for number in (0, 4, 6):
        (repaired / f"{number:05d}.jpg").write_bytes(b"would be broken")
    assert retry(repaired, done) == did(kept=4, embedded=3, failing=1)


def test_an_unfinished_run_is_finished_first(photos: Path, done: Path) -> None:
    (done / "metadata" / "metadata_1.parquet").unlink()
    with pytest.raises(ConfigError, match="has 2 of 3 partitions; finish it first"):
        retry(photos, done)


def test_update_and_retry_are_two_runs(photos: Path, done: Path) -> None:
    with pytest.raises(ConfigError, match="give one after the other"):
        retry(photos, done, update=True)


def tars(folder: Path, write_tar: WriteTar, make_sample: MakeSample, broken: dict[str, bytes]) -> Path:
    """Write two tars of three samples; some members have other bytes."""
    for shard in range(2):
        members = [member for number in range(3) for member in make_sample(shard * 3 + number)]
        write_tar(folder / f"{shard:03d}.tar", [(name, broken.get(name, data)) for name, data in members])
    return folder


def test_samples_of_tars_are_found_again(
    tmp_path: Path,
    write_tar: WriteTar,
    make_sample: MakeSample,
    read_embeddings: Read,
    read_table: Table,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = {"00004.jpg": b"broken", "00005.jpg": b"broken", "00005.txt": b"\xff", "00003.json": b"{"}
    shards, output = tars(tmp_path / "shards", write_tar, make_sample, broken), tmp_path / "out"
    options = {"input_format": "webdataset", "output_partition_count": 2}
    embed(shards, output, **options)
    before = read_embeddings(output, "img_emb")
    tars(shards, write_tar, make_sample, {})
    seen: list[str] = []
    real = WebdatasetSource.read_shard

    def noting(source: WebdatasetSource, url: str) -> Iterator[Sample | Failure]:
        seen.append(Path(url).name)
        return real(source, url)

    monkeypatch.setattr(WebdatasetSource, "read_shard", noting)

    assert retry(shards, output, **options) == did(kept=3, embedded=3)

    assert seen == ["001.tar"]
    rows, table = read_embeddings(output, "img_emb"), read_table(output, "metadata")
    assert list(table["image_path"]) == [f"{number:05d}" for number in range(6)]
    assert (rows[[0, 1, 2, 3]] == before[[0, 1, 2, 3]]).all()
    assert rows.any(axis=1).all()
    assert list(table["width"]) == [24] * 6
    assert not len(read_table(output, "failures"))
    assert embed(shards, output, **options).already_done == 3


def test_two_pictures_of_one_key_are_told_apart(
    tmp_path: Path, write_tar: WriteTar, make_jpeg: MakeJpeg, read_table: Table
) -> None:
    def members(second: bytes) -> Members:
        return [("a.jpg", make_jpeg(1)), ("a.png", second), ("b.jpg", make_jpeg(2))]

    shard, output = write_tar(tmp_path / "in" / "0.tar", members(b"broken")), tmp_path / "out"
    embed(shard, output, input_format="webdataset")
    write_tar(shard, members(make_jpeg(3)))
    assert retry(shard, output, input_format="webdataset") == did(kept=2, embedded=1)
    assert list(read_table(output, "metadata")["image_path"]) == ["a", "b", "a"]


def test_a_tar_that_comes_late_is_appended_and_ids_stay(
    tmp_path: Path, write_tar: WriteTar, make_sample: MakeSample, read_table: Table
) -> None:
    shards, output = tars(tmp_path / "shards", write_tar, make_sample, {}), tmp_path / "out"
    late = shards / "000.tar"
    shutil.move(late, tmp_path / "late.tar")
    pattern = shards / "{000..001}.tar"
    embed(pattern, output, input_format="webdataset")
    shutil.move(tmp_path / "late.tar", late)

    assert retry(pattern, output, input_format="webdataset") == did(kept=3, embedded=3)

    assert list(read_table(output, "metadata")["image_path"]) == ["00003", "00004", "00005", "00000", "00001", "00002"]
    assert not len(read_table(output, "failures"))
    assert retry(pattern, output, input_format="webdataset") == did(kept=6)


def test_ids_of_a_retried_folder_stay_though_a_tar_is_missing_still(
    tmp_path: Path, write_tar: WriteTar, make_sample: MakeSample, read_table: Table
) -> None:
    shards = tars(tmp_path / "shards", write_tar, make_sample, {"00001.jpg": b"broken", "00001.txt": b"\xff"})
    output, pattern = tmp_path / "out", shards / "{000..002}.tar"
    embed(pattern, output, input_format="webdataset")
    tars(shards, write_tar, make_sample, {})
    assert retry(pattern, output, input_format="webdataset") == did(kept=5, embedded=1, failing=1)
    before = whole(output)
    write_tar(shards / "002.tar", make_sample(6))

    assert embed(pattern, output, input_format="webdataset").already_done == 2

    assert whole(output) == before
    assert reasons(read_table(output, "failures")) == [("", "shard:missing")]
    assert retry(pattern, output, input_format="webdataset") == did(kept=6, embedded=1)
    assert list(read_table(output, "metadata")["image_path"])[4:] == ["00005", "00001", "00006"]


def test_a_tar_that_was_made_anew_gives_no_row_twice(
    tmp_path: Path, write_tar: WriteTar, make_sample: MakeSample, read_table: Table
) -> None:
    shard, output = tmp_path / "in" / "0.tar", tmp_path / "out"
    write_tar(shard, [*make_sample(1), *make_sample(2)])
    shard.write_bytes(shard.read_bytes()[: 512 * 9])
    embed(shard, output, input_format="webdataset")
    first = list(read_table(output, "metadata")["image_path"])
    write_tar(shard, [*make_sample(3), *make_sample(1), *make_sample(2)])

    retry(shard, output, input_format="webdataset")

    found = list(read_table(output, "metadata")["image_path"])
    assert found[: len(first)] == first
    assert len(set(found)) == len(found)


def test_only_the_urls_that_failed_are_fetched_again(
    tmp_path: Path, make_jpeg: MakeJpeg, read_table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    missing = {"http://a.example/1.jpg"}

    def fetch(url: str, limits: object) -> bytes:
        assert limits
        asked.append(url)
        if url in missing:
            raise FetchError("timeout", "no answer")
        return make_jpeg(int(url[-5]))

    monkeypatch.setattr(urls, "fetch", fetch)
    pd.DataFrame({"url": [f"http://a.example/{number}.jpg" for number in range(4)]}).to_parquet(tmp_path / "t.parquet")
    embed(tmp_path / "t.parquet", tmp_path / "out", input_format="urls")
    missing.clear()
    asked.clear()

    assert retry(tmp_path / "t.parquet", tmp_path / "out", input_format="urls") == did(kept=3, embedded=1)

    assert asked == ["http://a.example/1.jpg"]
    assert [path[-5] for path in read_table(tmp_path / "out", "metadata")["image_path"]] == ["0", "2", "3", "1"]


def test_the_rest_of_a_cut_tar_is_appended(
    tmp_path: Path, write_tar: WriteTar, make_sample: MakeSample, read_table: Table
) -> None:
    shards, output = tars(tmp_path / "shards", write_tar, make_sample, {}), tmp_path / "out"
    data = (shards / "000.tar").read_bytes()
    (shards / "000.tar").write_bytes(data[: 512 * 9])
    embed(shards, output, input_format="webdataset")
    first = list(read_table(output, "metadata")["image_path"])
    assert len(first) < 6
    assert retry(shards, output, input_format="webdataset") == did(kept=len(first), failing=1)
    assert reasons(read_table(output, "failures")) == [("", "shard:truncated")]
    (shards / "000.tar").write_bytes(data)

    retry(shards, output, input_format="webdataset")

    names = list(read_table(output, "metadata")["image_path"])
    assert names[: len(first)] == first
    assert sorted(set(names)) == [f"{number:05d}" for number in range(6)]
    assert not len(read_table(output, "failures"))


@pytest.mark.parametrize("image", [True, False])
@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.xz"])
def test_a_sample_at_the_cut_of_a_tar_gets_its_caption(
    tmp_path: Path, write_tar: WriteTar, make_sample: MakeSample, read_table: Table, suffix: str, *, image: bool
) -> None:
    def pack(data: bytes) -> bytes:
        return gzip.compress(data) if suffix == "tar.gz" else lzma.compress(data) if suffix == "tar.xz" else data

    members = [member for number in range(5) for member in make_sample(number)]
    data = write_tar(tmp_path / "whole.tar", members).read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as whole_tar:
        cut = whole_tar.getmember("00003.txt" if image else "00003.json").offset
    shard, output = tmp_path / "in" / f"0.{suffix}", tmp_path / "out"
    shard.parent.mkdir()
    shard.write_bytes(pack(data[:cut]))
    options: dict[str, Any] = {"input_format": "webdataset", "enable_image": image}
    embed(shard, output, **options)
    assert list(read_table(output, "metadata")["key"]) == ["00000", "00001", "00002"]
    expected = {"text:truncated", "metadata:truncated", "shard:truncated", *(["image:truncated"] if image else [])}
    assert {reason for _, reason in reasons(read_table(output, "failures"))} == expected
    assert retry(shard, output, **options)["embedded"] == 0
    shard.write_bytes(pack(data))

    retry(shard, output, **options)

    table, count = read_table(output, "metadata"), 5 if image else 4  # rows of captions alone do not say their tar
    assert list(table["caption"]) == [f"picture number {number}" for number in range(count)]
    assert list(table["key"]) == [f"{number:05d}" for number in range(count)]
    assert set(read_table(output, "failures")["part"]) == (set() if image else {"shard"})


@pytest.mark.parametrize("is_grouped", [True, False])
def test_a_sample_at_the_cut_of_an_archive_gets_its_caption(
    tmp_path: Path, write_tar: WriteTar, make_sample: MakeSample, read_table: Table, *, is_grouped: bool
) -> None:
    members = [member for number in range(5) for member in make_sample(number)]
    if not is_grouped:
        members.sort(key=lambda member: member[0][::-1])  # first the pictures, then the json, then the captions
    members = [(name, data) for name, data in members if name not in ("00001.txt",)]
    shard, output = write_tar(tmp_path / "0.tar", members), tmp_path / "out"
    data = shard.read_bytes()
    with tarfile.open(shard) as tar:
        shard.write_bytes(data[: tar.getmember("00003.txt").offset])
    options: dict[str, Any] = {"input_format": "archive", "enable_metadata": False}
    embed(shard, output, **options)
    kept = ["00000.jpg", "00001.jpg", "00002.jpg"] if is_grouped else ["00000.jpg", "00002.jpg"]
    assert list(read_table(output, "metadata")["image_path"]) == kept
    shard.write_bytes(data)

    retry(shard, output, **options)

    table = read_table(output, "metadata").set_index("image_path")
    assert table["caption"]["00003.jpg"] == "picture number 3"
    assert list(table.index)[: len(kept)] == kept
    assert sorted(table.index) == [f"{number:05d}.jpg" for number in range(5)]
    assert not len(read_table(output, "failures"))


def test_rows_of_tables_are_found_again(tmp_path: Path, make_jpeg: MakeJpeg, read_table: Table) -> None:
    def write(second: bytes, third: bytes) -> None:
        table = {"image": [make_jpeg(1), second, third, make_jpeg(4)], "caption": ["a", "b", None, "d"]}
        pd.DataFrame(table).to_parquet(tmp_path / "table.parquet")

    write(b"broken", b"broken")
    options = {"input_format": "parquet"}
    embed(tmp_path / "table.parquet", tmp_path / "out", **options)
    write(make_jpeg(2), make_jpeg(3))

    assert retry(tmp_path / "table.parquet", tmp_path / "out", **options) == did(kept=2, embedded=2)

    assert list(read_table(tmp_path / "out", "metadata")["caption"])[:3] == ["a", "b", "d"]
    assert not len(read_table(tmp_path / "out", "failures"))
    clip_index(str(tmp_path / "out"), str(tmp_path / "index"), engine="faiss")


@pytest.mark.parametrize("done", [2], indirect=True)  # each partition more is the same steps once more
def test_a_kill_at_any_step_changes_nothing_of_the_outcome(
    repaired: Path, done: Path, tmp_path: Path, run_until: RunUntil
) -> None:
    shutil.copytree(done, tmp_path / "expected")
    steps = run_until(None, lambda: retry(repaired, tmp_path / "expected"))
    expected = whole(tmp_path / "expected")
    assert len(steps) > 20
    for last, step in enumerate(steps):
        output = tmp_path / f"killed-{last}"
        shutil.copytree(done, output)
        run_until(last, partial(retry, repaired, output))

        retry(repaired, output)

        assert whole(output) == expected, f"killed before step {last}: {step}"
        shutil.rmtree(output)


def test_an_object_store_is_retried_too(repaired: Path) -> None:
    output = f"memory://retries-{os.getpid()}"
    (repaired / "00001.jpg").write_bytes(b"broken")
    options: dict[str, Any] = {"clip_model": MODEL, "num_prepro_workers": 0}
    clip_inference(str(repaired), output, **options)
    (repaired / "00001.jpg").write_bytes((repaired / "00000.jpg").read_bytes())
    summary = clip_inference(str(repaired), output, **options, retry_failed=True)
    assert summary.revised is not None
    assert summary.revised.to_json() == did(kept=6, embedded=1, failing=1)
