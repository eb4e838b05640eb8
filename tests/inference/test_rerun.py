"""A second run into the same folder: goes on, does nothing, or refuses; and runs that are shared out by hand."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from clip_retrieval import clip_inference
from clip_retrieval.errors import ClipRetrievalError, ConfigError, StorageError
from clip_retrieval.inference import missing
from clip_retrieval.inference.config import WorkerConfig
from clip_retrieval.inference.run import run_inference
from clip_retrieval.inference.summary import RunSummary
from clip_retrieval.layout import FEW
from clip_retrieval.options import build_config
from clip_retrieval.scratch import HOST

Snapshot = Callable[[Path], dict[str, bytes]]


@pytest.fixture
def shards(tmp_path: Path, write_shards: Callable[[Path, int, int], Path]) -> Path:
    return write_shards(tmp_path / "shards", 6, 3)


def options(shards: Path, output: Path, **changes: object) -> dict[str, object]:
    return {
        "input_dataset": shards,
        "output_folder": output,
        "input_format": "webdataset",
        "clip_model": "hash:16?size=32",
        "output_partition_count": 3,
        "num_prepro_workers": 0,
        **changes,
    }


def embed(shards: Path, output: Path, **changes: object) -> RunSummary:
    return clip_inference(**options(shards, output, **changes))


def run_task(shards: Path, output: Path, tasks: object, **changes: object) -> RunSummary:
    config = build_config(WorkerConfig, options(shards, output, tasks=tasks, **changes))
    return run_inference(config.run, config.tasks)


def times(output: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}


@pytest.fixture
def done(shards: Path, tmp_path: Path) -> Path:
    """Make a whole run; return its folder."""
    embed(shards, tmp_path / "output")
    return tmp_path / "output"


def test_a_finished_run_is_not_touched(shards: Path, done: Path) -> None:
    before = times(done)

    summary = embed(shards, done)

    assert times(done) == before
    assert (summary.already_done, summary.partition_count, summary.stats.sample_count) == (3, 3, 18)


def test_partitions_without_samples_are_not_made_again(shards: Path, tmp_path: Path) -> None:
    embed(shards, tmp_path / "output", output_partition_count=10)
    before = times(tmp_path / "output")

    summary = embed(shards, tmp_path / "output", output_partition_count=10)

    assert times(tmp_path / "output") == before
    assert (summary.already_done, summary.partition_count, summary.stats.sample_count) == (10, 10, 18)


def test_only_what_is_missing_is_made_again(shards: Path, done: Path, snapshot: Snapshot) -> None:
    expected, before = snapshot(done), times(done)
    (done / "metadata" / "metadata_1.parquet").unlink()

    summary = embed(shards, done)

    changed = {Path(path).name for path, time in times(done).items() if before[path] != time}
    assert snapshot(done) == expected
    names = {"img_emb_1.npy", "text_emb_1.npy", "metadata_1.parquet", "failures_1.parquet", "ledger_1.parquet"}
    assert changed == {*names, "1.json"}
    assert summary.already_done == 2


def test_what_killed_runs_left_behind_is_removed(shards: Path, done: Path) -> None:
    scratch = done / "_partial" / f"{HOST}.999999999.abc"
    scratch.mkdir(parents=True)
    (scratch / "image").write_bytes(b"half")

    embed(shards, done)

    assert not (done / "_partial").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"clip_model": "hash:8?size=32"}, "clip_model hash:16?size=32 -> hash:8?size=32"),
        ({"output_partition_count": 2}, "partition_count 3 -> 2"),
        ({"enable_metadata": True}, "enable_metadata False -> True"),
        ({"enable_text": False}, "leave out --enable_text False"),
        ({"require_all": True}, "require_all False -> True"),
        ({"wds_caption_key": "caption"}, "wds_caption_key txt -> caption"),
        ({"precision": "fp16"}, "precision auto -> fp16"),
    ],
)
def test_other_options_are_refused_with_both_values(
    shards: Path, done: Path, change: dict[str, object], words: str
) -> None:
    before = times(done)

    with pytest.raises(ConfigError) as caught:
        embed(shards, done, **change)

    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert times(done) == before


@pytest.mark.parametrize("suffix", ["jpg", "txt"])
def test_what_git_lfs_had_not_fetched_is_embedded_once_it_has(
    tmp_path: Path, write_pictures: Callable[[Path, int], Path], suffix: str
) -> None:
    photos = write_pictures(tmp_path / "photos", 2)
    pointer, real = photos / f"00000.{suffix}", (photos / f"00000.{suffix}").read_bytes()
    pointer.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    wanted = {"clip_model": "hash:16?size=32", "num_prepro_workers": 0}
    part = {"jpg": "image", "txt": "text"}[suffix]

    assert clip_inference(photos, tmp_path / "out", **wanted).stats.reasons == {f"{part}:git_lfs_pointer": 1}
    pointer.write_bytes(real)
    again = clip_inference(photos, tmp_path / "out", **wanted).stats

    assert (again.image_count, again.text_count, again.reasons) == (2, 2, {})


@pytest.mark.parametrize("suffix", ["jpg", "txt"])
def test_a_part_that_was_added_beside_the_others_is_named(
    tmp_path: Path, write_pictures: Callable[[Path, int], Path], suffix: str
) -> None:
    photos = write_pictures(tmp_path / "photos", 1)
    added = (photos / f"00000.{suffix}").rename(tmp_path / "away")
    wanted = {"clip_model": "hash:16?size=32", "num_prepro_workers": 0}
    clip_inference(photos, tmp_path / "out", **wanted)
    added.rename(photos / f"00000.{suffix}")

    word, name = {"jpg": ("pictures", "enable_image"), "txt": ("captions", "enable_text")}[suffix]
    with pytest.raises(ConfigError, match=f"photos holds {word} now, and .*add --{name} False"):
        clip_inference(photos, tmp_path / "out", **wanted)
    if suffix == "txt":
        assert clip_inference(photos, tmp_path / "out", **wanted, enable_text=False).already_done == 1


def test_other_options_may_be_taken_while_nothing_is_finished(shards: Path, done: Path) -> None:
    for folder in ("metadata", "img_emb", "text_emb", "failures", "stats"):
        shutil.rmtree(done / folder)

    assert embed(shards, done, require_all=True).already_done == 0


@pytest.mark.parametrize(
    "change", [{"num_prepro_workers": 1}, {"device": "cpu"}, {"max_skipped": 0.5}, {"cache_path": "/tmp"}]
)
def test_options_that_change_no_byte_may_change(shards: Path, done: Path, change: dict[str, object]) -> None:
    assert embed(shards, done, **change).already_done == 3


def test_another_input_is_refused(shards: Path, done: Path) -> None:
    shutil.copy(shards / "000.tar", shards / "006.tar")

    with pytest.raises(ConfigError, match=r"the input has changed .* had 6 names, and has 7 now"):
        embed(shards, done)
    (shards / "000.tar").unlink()
    with pytest.raises(ConfigError, match=r"has 6 names, but not the same; use a new folder"):
        embed(shards, done)
    other = shutil.copytree(shards, shards.with_name("others"))
    with pytest.raises(ConfigError, match=f"it was {shards}, and is {other} now; use a new folder"):
        embed(other, done)


def test_embeddings_without_a_manifest_are_refused(shards: Path, done: Path) -> None:
    (done / "manifest.json").unlink()

    with pytest.raises(ConfigError, match=r"holds embeddings without a manifest\.json"):
        embed(shards, done)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"format_version": 99}', "newer clip-retrieval"),
        (b"{broken", "is not valid JSON"),
        (b"[]", "expected `object`, got `array`"),
        (b"\xff\xfe", "is not valid JSON"),
        (b"{}", "was not written by `inference`"),
    ],
)
def test_a_manifest_that_is_none_of_ours_is_refused(shards: Path, done: Path, content: bytes, words: str) -> None:
    (done / "manifest.json").write_bytes(content)

    with pytest.raises(ClipRetrievalError, match=words):
        embed(shards, done)


def test_stats_that_are_lost_are_one_sentence(shards: Path, done: Path) -> None:
    (done / "stats" / "1.json").unlink()

    with pytest.raises(StorageError, match=r"1\.json"):
        embed(shards, done)


def test_the_manifest_depends_on_neither_time_nor_machine(shards: Path, done: Path) -> None:
    kept = (done / "manifest.json").read_bytes()
    shutil.rmtree(done)

    embed(shards, done)

    assert (done / "manifest.json").read_bytes() == kept
    manifest = json.loads(kept)
    assert manifest["encoder"]["clip_model"] == "hash:16?size=32"
    assert manifest["encoder"]["dimension"] == 16
    assert manifest["partition_count"] == 3


def test_tasks_make_the_folder_that_one_run_makes(shards: Path, done: Path, tmp_path: Path, snapshot: Snapshot) -> None:
    output = tmp_path / "tasks"

    run_task(shards, output, "[2]")
    run_task(shards, output, (0, 1))

    assert snapshot(output) == snapshot(done)
    assert not (output / "_partial").exists()


def test_a_task_that_is_done_is_not_made_again(shards: Path, tmp_path: Path) -> None:
    output = tmp_path / "tasks"
    run_task(shards, output, "0,2")
    before = times(output)

    summary = run_task(shards, output, "0,2")

    assert times(output) == before
    assert (summary.already_done, summary.stats.sample_count) == (2, 12)


def test_a_run_goes_on_from_what_tasks_made(shards: Path, done: Path, tmp_path: Path, snapshot: Snapshot) -> None:
    output = tmp_path / "tasks"
    run_task(shards, output, 1)

    summary = embed(shards, output)

    assert summary.already_done == 1
    assert snapshot(output) == snapshot(done)


def test_a_task_outside_of_the_plan_is_refused(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tasks \[3\] are outside of 0 to 2"):
        run_task(shards, tmp_path / "tasks", "1,3")


def test_tasks_need_a_count_of_partitions(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="output_partition_count must be given"):
        run_task(shards, tmp_path / "tasks", "1", output_partition_count=None)


def test_a_task_with_other_options_is_refused(shards: Path, tmp_path: Path) -> None:
    run_task(shards, tmp_path / "tasks", 0)

    with pytest.raises(ConfigError, match="require_all False -> True"):
        run_task(shards, tmp_path / "tasks", 1, require_all=True)


def test_a_tar_that_was_missing_is_read_when_it_is_there(shards: Path, tmp_path: Path) -> None:
    pattern = str(shards / "{000..006}.tar")
    first = clip_inference(
        pattern, str(tmp_path / "out"), "webdataset", clip_model="hash:16?size=32", num_prepro_workers=0
    )
    shutil.copy(shards / "000.tar", shards / "006.tar")
    second = clip_inference(
        pattern, str(tmp_path / "out"), "webdataset", clip_model="hash:16?size=32", num_prepro_workers=0
    )
    assert first.stats.reasons["shard:missing"] == 1
    assert not second.stats.reasons
    assert second.stats.sample_count > first.stats.sample_count


@pytest.mark.parametrize("few", [FEW, 0])
def test_a_partition_that_was_killed_while_it_was_made_again_is_made_again_once_more(
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    few: int,
    snapshot: Snapshot,
    run_until: Callable[[int | None, Callable[[], object]], list[str]],
) -> None:
    monkeypatch.setattr(missing, "FEW", few)

    def run(name: str) -> None:
        clip_inference(
            str(shards / "{000..006}.tar"), str(tmp_path / name), "webdataset", clip_model="hash:16?size=32",
            num_prepro_workers=0,
        )  # fmt: skip

    run("out")
    shutil.copytree(tmp_path / "out", tmp_path / "before")
    shutil.copy(shards / "000.tar", shards / "006.tar")
    steps = run_until(None, lambda: run("out"))
    for number in range(len(steps)):
        shutil.copytree(tmp_path / "before", tmp_path / f"{number}")
        run_until(number, partial(run, f"{number}"))
        run(f"{number}")
        assert snapshot(tmp_path / f"{number}") == snapshot(tmp_path / "out"), steps[number]


@pytest.mark.parametrize("output", ["in/", ".", "link", "in/../in", "in/sub/.."])
def test_the_input_folder_is_refused_as_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to("in")
    monkeypatch.chdir(tmp_path / "in" if output == "." else tmp_path)

    with pytest.raises(ConfigError, match="is the input"):
        clip_inference(tmp_path / "in", output, clip_model="hash:16?size=32", num_prepro_workers=0)


def test_other_spellings_of_a_path_are_the_same_input(shards: Path, tmp_path: Path) -> None:
    for spelling in (str(shards), f"{shards}/", f"{shards}/../{shards.name}/"):
        summary = clip_inference(
            spelling, str(tmp_path / "out"), "webdataset", clip_model="hash:16?size=32", num_prepro_workers=0
        )
    assert summary.already_done == 1


def test_a_list_of_tars_may_be_longer_than_a_path(shards: Path, tmp_path: Path) -> None:
    names = sorted(map(str, shards.glob("*.tar"))) * 50
    assert len(str(names)) > os.pathconf("/", "PC_PATH_MAX")

    summary = embed(shards, tmp_path / "output", input_dataset=str(names), output_partition_count=1)
    again = embed(shards, tmp_path / "output", input_dataset=str(names), output_partition_count=1)

    assert (summary.stats.sample_count, again.already_done) == (18 * 50, 1)
