"""How far a run is, as its folder alone shows it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import fsspec
import pytest
from click.testing import CliRunner

from clip_retrieval.cli import cli
from clip_retrieval.commands.reports.status import progress_of, watch_run, why
from clip_retrieval.errors import StorageError
from clip_retrieval.inference.attempts import BEATS_UNTIL_LOST, Marker, attempting, make_marker
from clip_retrieval.inference.config import InferenceConfig
from clip_retrieval.inference.plan import Cut
from clip_retrieval.inference.run import plan_only, run_inference
from clip_retrieval.inference.status import RunStatus, read_status
from clip_retrieval.inference.telemetry.live import Live
from clip_retrieval.inference.telemetry.stats import Stats
from clip_retrieval.layout import EmbeddingsFolder
from clip_retrieval.options import build_config

COUNT = 12
PARTITIONS = Cut(120, COUNT)


@pytest.fixture
def folder(tmp_path: Path) -> EmbeddingsFolder:
    """Give the folder of a run of twelve partitions, of which four are done."""
    made = EmbeddingsFolder(str(tmp_path / "out"))
    write_run(made, 4)
    return made


def write_run(folder: EmbeddingsFolder, done: int) -> None:
    folder.write_json("manifest.json", {"format_version": 1, "partition_count": COUNT})
    for partition in PARTITIONS[:done]:
        stats = Stats(sample_count=9, skipped_count=1, total_duration=2.0)
        folder.write_json(folder.stats_name(partition), stats.to_json())
        with folder.staged(folder.metadata_name(partition)) as staged:
            staged.write_bytes(b"")


def mark(folder: EmbeddingsFolder, place: int, /, *, silent_beats: float = 0, **changes: object) -> Marker:
    """Write a marker of a partition, as another host wrote it some heartbeats ago."""
    partition = PARTITIONS[place]
    marker = make_marker(folder, partition, "r", "cuda:0", [])
    marker.attempt = replace(marker.attempt, **{"host": "elsewhere", **changes})  # type: ignore[arg-type]
    marker.write()
    if silent_beats:
        then = time.time() - silent_beats * marker.attempt.beat_seconds
        os.utime(folder.path(marker.name), (then, then))
    return marker


def seen(status: RunStatus) -> dict[str, list[tuple[str, int]]]:
    found: dict[str, list[tuple[str, int]]] = {}
    for work in status.works:
        found.setdefault(work.state, []).append((work.partition, work.attempt.number))
    return found


def test_partitions_are_done_running_lost_failed_or_waiting(folder: EmbeddingsFolder) -> None:
    mark(folder, 4)
    mark(folder, 5, silent_beats=BEATS_UNTIL_LOST + 1)
    mark(folder, 6, end="failed", reason="ValueError: no luck")
    mark(folder, 7, end="stopped", reason="the worker was asked to end")

    status = read_status(folder.url)

    assert (status.partition_count, status.done, status.waiting) == (12, 4, 5)
    assert seen(status) == {"running": [("04", 1)], "lost": [("05", 1)], "failed": [("06", 1)], "stopped": [("07", 1)]}


def test_a_worker_that_wrote_lately_is_not_lost_whatever_its_clock_says(folder: EmbeddingsFolder) -> None:
    marker = mark(folder, 4)
    told = asdict(replace(marker.attempt, told=time.time() - 10_000))
    folder.write_json(marker.name, told)

    assert seen(read_status(folder.url)) == {"running": [("04", 1)]}


def test_a_worker_of_this_machine_is_lost_as_soon_as_its_process_is_gone(folder: EmbeddingsFolder) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    own = make_marker(folder, PARTITIONS[4], "r", "cpu", []).attempt.host
    mark(folder, 4, host=own, pid=gone.pid)
    mark(folder, 5, host=own, pid=os.getpid())

    status = read_status(folder.url)
    assert seen(status) == {"lost": [("04", 1)], "running": [("05", 1)]}
    assert [(why(work), work.to_json()["reason"]) for work in status.works] == [
        ("its process is gone", "its process is gone"),
        ("", ""),
    ]


def test_a_worker_of_another_machine_is_only_known_to_be_silent(folder: EmbeddingsFolder) -> None:
    mark(folder, 4, silent_beats=BEATS_UNTIL_LOST + 1)

    work = read_status(folder.url).those("lost")[0]

    assert (work.reason, why(work).partition(" for ")[0]) == ("", "silent")


def test_a_node_that_was_given_up_and_goes_on_writing_is_an_old_copy(folder: EmbeddingsFolder) -> None:
    now = time.time()
    mark(folder, 4, number=1, since=now - 60)
    mark(folder, 4, number=2, since=now - 5)
    mark(folder, 0, number=1)  # that partition is done

    assert seen(read_status(folder.url)) == {"copy": [("00", 1), ("04", 1)], "running": [("04", 2)]}


def test_a_partition_that_is_done_is_not_failed_any_more(folder: EmbeddingsFolder) -> None:
    mark(folder, 1, end="failed")

    assert read_status(folder.url).works == []


def test_a_partition_that_no_worker_tries_again_is_given_up(folder: EmbeddingsFolder) -> None:
    mark(folder, 4, number=1, end="failed", since=1.0)
    mark(folder, 4, number=2, end="failed", since=2.0)
    mark(folder, 5, number=1, end="failed", run="an earlier command", since=1.0)
    mark(folder, 5, number=2, end="failed", since=2.0)

    assert [(work.partition, work.is_given_up) for work in read_status(folder.url).works] == [
        ("04", True),
        ("05", False),
    ]


def test_rate_and_time_left_are_those_of_workers_that_run(folder: EmbeddingsFolder) -> None:
    mark(folder, 4, figures=None)  # it just began: 5 samples a second, as in finished partitions
    status = read_status(folder.url)
    assert (status.samples, status.total, status.rate, status.seconds_left) == (40, 120, 5.0, 16.0)

    marker = make_marker(folder, PARTITIONS[5], "r", "cpu", [])
    marker.stats = Stats(sample_count=5)
    marker.write()

    status = read_status(folder.url)
    assert status.samples == 45
    assert status.rate > 5.0


def test_a_plan_tells_of_a_run_that_nobody_has_begun(
    tmp_path: Path, write_pictures: Callable[[Path, int], Path]
) -> None:
    source, output = write_pictures(tmp_path / "in", 6), tmp_path / "out"
    words = {"clip_model": "hash:16?size=32", "output_partition_count": 3, "num_prepro_workers": 0}
    config = build_config(InferenceConfig, words, [source, output])
    plan_only(config)

    status = read_status(str(output))
    assert (status.partition_count, status.done, status.waiting, status.total) == (3, 0, 3, 6)

    run_inference(config, [1])
    status = read_status(str(output))
    assert (status.done, status.waiting, status.samples, status.is_complete) == (1, 2, 2, False)

    run_inference(config)
    status = read_status(str(output))
    assert (status.is_complete, status.row_count, progress_of(status)) == (True, 6, "6 rows, complete")
    (output / "stats" / "1.json").write_text("{}")  # as folders of `dedup` have them
    assert progress_of(read_status(str(output))) == "6 rows, complete"
    (output / "metadata" / "metadata_1.parquet").write_bytes(b"damaged")
    assert read_status(str(output)).row_count is None


@pytest.fixture
def store() -> Iterator[EmbeddingsFolder]:
    fs = fsspec.filesystem("memory")
    with suppress(FileNotFoundError):
        fs.rm("/status-test", recursive=True)
    yield EmbeddingsFolder("memory://status-test/out")
    fs.rm("/status-test", recursive=True)


def test_a_store_tells_the_same(store: EmbeddingsFolder) -> None:
    write_run(store, 4)
    with suppress(ValueError), attempting(store, PARTITIONS[5], "r", "cpu", Live(1).teller()):
        raise ValueError("no luck")
    mark(store, 4)

    status = read_status(store.url)

    assert (status.done, status.waiting, status.total) == (4, 6, 120)
    assert seen(status) == {"running": [("04", 1)], "failed": [("05", 1)]}


def test_a_folder_without_a_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"holds no run of `inference`"):
        read_status(str(tmp_path))

    result = CliRunner().invoke(cli, ["status", str(tmp_path / "nowhere")])
    assert result.exit_code == 1
    assert result.output.startswith(f"Error: {tmp_path}/nowhere holds no run")


def test_an_index_is_no_run(folder: EmbeddingsFolder) -> None:
    folder.write_json("manifest.json", {"format_version": 1, "indices": {"image": {"rows": 9}}})

    result = CliRunner().invoke(cli, ["status", folder.url])

    assert result.exit_code == 1
    assert result.output.startswith(f"Error: {folder.url} holds no run")


def test_the_report_says_what_needs_a_person_first(folder: EmbeddingsFolder) -> None:
    mark(folder, 4, task={"SLURM_ARRAY_TASK_ID": "3"})
    mark(folder, 6, end="failed", reason="ValueError: no luck \x1b[2J")

    result = CliRunner().invoke(cli, ["status", folder.url], env={"COLUMNS": "160"})

    lines = result.output.splitlines()
    assert result.exit_code == 0
    assert lines[0] == f"{folder.url}: 4 of 12 partitions done (33 %), 1 running, 1 failed, 6 waiting"
    assert lines[1] == "  about 40 of 120 samples, 5.0 samples/s, 16 s left"
    rows = [line for line in lines if "│" in line]
    assert [row.split()[1] for row in rows[:1]] == ["06"]
    assert "ValueError: no luck \\x1b[2J" in rows[0]
    assert "SLURM_ARRAY_TASK_ID=3" in result.output
    assert max(map(len, lines[2:])) <= 160


def test_json_has_every_worker(folder: EmbeddingsFolder) -> None:
    for number in range(4, 8):
        mark(folder, number)

    result = CliRunner().invoke(cli, ["status", folder.url, "--json"])

    told = json.loads(result.output)
    assert (told["running"], told["waiting"], told["total_samples"]) == (4, 4, 120)
    assert [one["partition"] for one in told["running_partitions"]] == [4, 5, 6, 7]
    assert told["running_partitions"][0]["host"] == "elsewhere"


def test_watching_ends_when_the_run_is_complete(folder: EmbeddingsFolder, capsys: pytest.CaptureFixture[str]) -> None:
    def look() -> RunStatus:
        status = read_status(folder.url)
        write_run(folder, min(COUNT, status.done + 4))
        return status

    watch_run(look, 0.0)

    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1].split(" partitions")[0] for line in lines] == ["4 of 12", "8 of 12", "12 of 12"]
    assert lines[-1].endswith("complete")
