"""Inference on real clusters of Spark and Ray on loopback, with workers that are killed."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.clusters

Snapshot = Callable[[Path], dict[str, bytes]]
PARTITIONS, SAMPLES = 12, 3  # samples in a partition
HELD = (1, 10)  # partitions with a picture that holds its worker, while it should
POISONED = 6  # partition with a picture that kills its worker, while it should
PATIENCE_SECONDS = 600  # of a machine that is busy otherwise


@dataclass(frozen=True)
class Job:
    """An input, and the folder whose files say what its pictures do to workers of clusters."""

    source: Path
    control: Path

    def command(self, output: Path, strategy: str, *options: object) -> list[str]:
        words: list[object] = [sys.executable, "-m", "clip_retrieval", "inference", self.source, output, "webdataset"]
        words += ["--clip_model", "hash:16?size=32", "--output_partition_count", PARTITIONS, "--batch_size", 5]
        words += ["--num_prepro_workers", 0, "--distribution_strategy", strategy, "--json"]
        return [str(word) for word in (*words, *options)]

    def run_here(self, output: Path) -> None:
        command = self.command(output, "sequential")
        subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_SECONDS)

    def marks(self, word: str) -> list[int]:
        return [int(path.name.rpartition("-")[2]) for path in self.control.glob(f"{word}-*")]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, make_sample: Any, write_tar: Any) -> Job:
    folder = tmp_path_factory.mktemp("source")
    job = Job(folder / "shards", folder / "control")
    job.control.mkdir()
    words = dict.fromkeys(HELD, "hold") | {POISONED: "poison"}
    for shard in range(PARTITIONS):
        members = [member for i in range(SAMPLES) for member in make_sample(shard * SAMPLES + i)]
        last = f"\n{words[shard]} {job.control}".encode() if shard in words else b""
        tail = [(name, data + last if name.endswith("jpg") else data) for name, data in members[-3:]]
        write_tar(job.source / f"{shard:03}.tar", [*members[:-3], *tail])
    return job


@pytest.fixture
def job(source: Job) -> Job:
    for path in source.control.iterdir():
        path.unlink()
    return source


@pytest.fixture(scope="module")
def whole(source: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give what one process makes of the input."""
    output = tmp_path_factory.mktemp("sequential") / "out"
    source.run_here(output)
    return output


@pytest.fixture(params=["pyspark", "ray"])
def cluster(request: pytest.FixtureRequest) -> tuple[str, Any, list[object]]:
    """Give a strategy, its running engine, and the options that lead there."""
    name, option = {"pyspark": ("spark", "--spark_master"), "ray": ("ray", "--ray_address")}[request.param]
    engine = request.getfixturevalue(name)
    return request.param, engine, [option, engine.address]


def check_is_quiet(said: str) -> None:
    """Assert that a user sees no traceback, and no message of an engine."""
    foreign = re.compile(r"Traceback|raylet|java|\tat |WARN|ERROR|log4j|ray::")
    assert not [line for line in said.splitlines() if foreign.search(line)]


def test_a_killed_node_costs_nothing_and_a_partition_that_kills_its_workers_costs_only_itself(
    cluster: tuple[str, Any, list[object]], job: Job, whole: Path, tmp_path: Path, snapshot: Snapshot
) -> None:
    strategy, engine, options = cluster
    (job.control / "hold").touch()
    (job.control / "poison").touch()
    with engine.running(*job.command(tmp_path / "out", strategy, *options)) as driver:
        engine.wait_for(lambda: len(job.marks("hold")) == 2 or driver.poll() is not None, "a held worker on each node")
        assert driver.poll() is None, driver.communicate()
        engine.kill_a_node(job.marks("hold"))
        (job.control / "hold").unlink()
        said, errors = driver.communicate(timeout=PATIENCE_SECONDS)
    assert driver.returncode == 1
    last = errors.splitlines()[-1]
    assert last.startswith(f"Error: not made: partitions {POISONED} (partition {POISONED} on ")
    assert last.count("its worker died") == len(job.marks("poison")) == 2
    check_is_quiet(said + errors)
    made, wanted = snapshot(tmp_path / "out"), snapshot(whole)
    assert {name for name in wanted if name not in made} == {name for name in wanted if f"_{POISONED:02}." in name}
    assert made == {name: wanted[name] for name in made}
    job.run_here(tmp_path / "out")
    assert snapshot(tmp_path / "out") == wanted
    assert not (tmp_path / "out" / "attempts").exists()


def test_ctrl_c_ends_the_tasks_and_says_how_far_the_run_is(
    cluster: tuple[str, Any, list[object]], job: Job, tmp_path: Path
) -> None:
    strategy, engine, options = cluster
    (job.control / "hold").touch()
    with engine.running(*job.command(tmp_path / "out", strategy, *options)) as driver:
        engine.wait_for(lambda: len(job.marks("hold")) == 2 or driver.poll() is not None, "a held worker on each node")
        driver.send_signal(signal.SIGINT)
        said, errors = driver.communicate(timeout=PATIENCE_SECONDS)
    assert driver.returncode == 128 + signal.SIGINT, errors
    assert re.search(rf"^stopped: \d+ of {PARTITIONS} partitions are done; give the same command", errors, re.MULTILINE)
    check_is_quiet(said + errors)
    engine.wait_for(lambda: not engine.alive(job.marks("hold")), "the end of the tasks")
