"""--dry_run: what it says comes true, and nothing is written."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from clip_retrieval import clip_inference
from clip_retrieval.cli import cli
from clip_retrieval.errors import ConfigError, SourceError
from clip_retrieval.inference.dry_run.estimate import Estimate
from clip_retrieval.inference.dry_run.measure import estimate_inference

OPTIONS = {"clip_model": "hash:64?size=32", "num_prepro_workers": 1, "batch_size": 32}
WritePictures = Callable[[Path, int], Path]


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """Take away the handlers that the command line installs."""
    level = logging.getLogger("clip_retrieval").level
    yield
    logging.getLogger().handlers.clear()
    logging.getLogger("clip_retrieval").setLevel(level)


def estimate(source: Path, output: Path, **options: object) -> Estimate:
    return estimate_inference(str(source), str(output), **(OPTIONS | options))


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_samples_are_exact_and_disk_is_close(tmp_path: Path, write_pictures: WritePictures) -> None:
    source = write_pictures(tmp_path / "in", 700)
    options = {"enable_metadata": True, "output_partition_count": 3}
    told = estimate(source, tmp_path / "out", **options)
    was_written = (tmp_path / "out").exists()
    clip_inference(str(source), str(tmp_path / "out"), **(OPTIONS | options))

    assert not was_written
    assert (told.samples, told.rows, told.task.certainty) == (700, 700, "exact")
    assert sum(told.disk.values()) == pytest.approx(size_of(tmp_path / "out"), rel=0.2)
    assert told.seconds > 0
    assert told.memory is None or sum(told.memory.values()) > 0


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_samples_are_enough(tmp_path: Path, write_pictures: WritePictures, count: int) -> None:
    source = write_pictures(tmp_path / "in", count)
    told = estimate(source, tmp_path / "out", num_prepro_workers=0)
    clip_inference(str(source), str(tmp_path / "out"), **OPTIONS)

    assert told.rows == count
    assert sum(told.disk.values()) == pytest.approx(size_of(tmp_path / "out"), rel=0.4)  # the manifest is not counted


def test_tars_are_sampled_not_copied_to_the_cache(
    tmp_path: Path, write_shards: Callable[[Path, int, int], Path]
) -> None:
    source, cache = write_shards(tmp_path / "in", 6, 20), tmp_path / "cache"
    told = estimate(source, tmp_path / "out", input_format="webdataset", cache_path=str(cache))

    assert (told.samples, told.task.certainty) == (120, "estimated")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_what_is_done_is_not_counted_again(tmp_path: Path, write_pictures: WritePictures) -> None:
    source, output = write_pictures(tmp_path / "in", 40), tmp_path / "out"
    clip_inference(str(source), str(output), output_partition_count=4, **OPTIONS)
    (output / "metadata/metadata_2.parquet").unlink()
    before = size_of(output)

    told = estimate(source, output, output_partition_count=4)

    assert (told.task.samples, told.samples, told.task.missing_count) == (40, 10, 1)
    assert size_of(output) == before


def test_another_run_in_the_folder_is_refused_as_the_run_would(tmp_path: Path, write_pictures: WritePictures) -> None:
    source, output = write_pictures(tmp_path / "in", 4), tmp_path / "out"
    clip_inference(str(source), str(output), **OPTIONS)

    with pytest.raises(ConfigError, match="with captions"):
        estimate(source, output, enable_text=False)


def test_what_cannot_be_used_is_told_with_its_reason(tmp_path: Path, write_pictures: WritePictures) -> None:
    source = write_pictures(tmp_path / "in", 10)
    for number in range(5):
        (source / f"{number:05d}.jpg").write_bytes(b"no picture")

    told = estimate(source, tmp_path / "out", enable_text=False)

    assert (told.samples, told.rows, told.measured.reasons) == (10, 5, {"image:decode": 5})


def test_a_folder_without_a_usable_sample_is_still_estimated(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jpg").write_bytes(b"no picture")

    told = estimate(tmp_path / "in", tmp_path / "out")

    assert (told.samples, told.rows) == (1, 0)


def test_an_input_without_samples_is_one_sentence(
    tmp_path: Path, write_tar: Callable[[Path, list[tuple[str, bytes]]], Path]
) -> None:
    write_tar(tmp_path / "0.tar", [("readme.md", b"hello")])

    with pytest.raises(SourceError, match=r"no sample of .* was found"):
        estimate(tmp_path / "0.tar", tmp_path / "out", input_format="webdataset")


def test_the_command_prints_a_table_or_json(tmp_path: Path, write_pictures: WritePictures) -> None:
    words = [
        "inference",
        str(write_pictures(tmp_path / "in", 12)),
        str(tmp_path / "out"),
        "--clip_model",
        "hash:64?size=32",
    ]
    words += ["--num_prepro_workers", "0"]

    table = CliRunner().invoke(cli, [*words, "--dry-run"])
    as_json = CliRunner().invoke(cli, [*words, "--dry_run", "True", "--json"])

    assert (table.exit_code, as_json.exit_code) == (0, 0)
    assert "estimated from 12 samples; nothing was written" in table.stdout
    told = json.loads(as_json.stdout)
    assert (told["samples"], told["certainty"], told["partitions_to_do"], told["warnings"]) == (12, "exact", 1, [])
    assert told["disk_bytes"]["embeddings"] == 12 * 2 * 64 * 2
    assert set(told["rates"]) == {"source", "read", "decode", "encode", "write"}
    assert not (tmp_path / "out").exists()


def test_one_task_of_a_shared_run_is_estimated_alone(tmp_path: Path, write_pictures: WritePictures) -> None:
    words = ["inference.worker", "--tasks", "[0]", "--output_partition_count", "4", "--num_prepro_workers", "0"]
    words += ["--clip_model", "hash:64?size=32", "--dry_run", "--json"]
    words += [f"--input_dataset={write_pictures(tmp_path / 'in', 12)}", f"--output_folder={tmp_path / 'out'}"]

    done = CliRunner().invoke(cli, words)

    assert done.exit_code == 0
    assert (json.loads(done.stdout)["samples_to_do"], json.loads(done.stdout)["samples"]) == (3, 12)


def test_from_python_a_dry_run_never_runs(tmp_path: Path, write_pictures: WritePictures) -> None:
    with pytest.raises(ConfigError, match="estimate_inference"):
        clip_inference(str(write_pictures(tmp_path / "in", 1)), str(tmp_path / "out"), dry_run=True, **OPTIONS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["update", "retry_failed"])
def test_what_cannot_be_estimated_is_refused(tmp_path: Path, write_pictures: WritePictures, option: str) -> None:
    with pytest.raises(ConfigError, match="dry_run estimates whole runs"):
        estimate(write_pictures(tmp_path / "in", 1), tmp_path / "out", **{option: True})


def test_a_run_that_was_begun_on_several_devices_is_estimated_on_one(
    tmp_path: Path, write_pictures: WritePictures
) -> None:
    source, output = write_pictures(tmp_path / "in", 40), tmp_path / "out"
    clip_inference(str(source), str(output), device="cpu,cpu", **OPTIONS)
    (output / "metadata/metadata_2.parquet").unlink()

    told = estimate(source, output)

    assert (told.samples, told.task.missing_count, told.task.partition_count) == (5, 1, 8)
