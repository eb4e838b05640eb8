"""Inference in tasks of a cluster: rounds of jobs, what ends them, and the device of a task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from clip_retrieval import clip_inference
from clip_retrieval.clusters.base import Here
from clip_retrieval.encoder.config import EncoderConfig
from clip_retrieval.errors import ClusterError
from clip_retrieval.inference.config import InferenceConfig
from clip_retrieval.inference.distributors.arrivals import Arrivals
from clip_retrieval.inference.distributors.cluster import cut, device_of, make_in_tasks
from clip_retrieval.inference.plan import PlannedRun, open_output, plan_run
from clip_retrieval.inference.telemetry.live import Live
from clip_retrieval.inference.worker.kept import SHELF
from clip_retrieval.options import build_config
from clip_retrieval.sources import open_source

PARTITIONS = 6
Snapshot = Callable[[Path], dict[str, bytes]]


def no_gpu() -> None:
    return None


@dataclass
class InThisProcess:
    """A cluster of this process alone, whose jobs end after some tasks, as an engine's do that gives up."""

    lasts: list[int]  # tasks that each job runs before it fails; a job more runs all
    name: str = "a cluster"
    cores_of_task: int | None = None
    rows_of_task: int | None = None
    is_here: bool = True
    gpu_of_task: Callable[[], str | None] = no_gpu
    ran: list[Sequence[Any]] = field(default_factory=list)

    def share(self, value: bytes) -> Here:
        return Here(value)

    def run(self, title: str, function: Callable[[Any], None], tasks: Sequence[Any]) -> None:
        last = self.lasts.pop(0) if self.lasts else len(tasks)
        for task in tasks[:last]:
            self.ran.append(task)
            function(task)
        if last < len(tasks):
            raise ClusterError(f"{title} failed: a worker died")


@pytest.fixture
def options(write_shards: Callable[[Path, int, int], Path], tmp_path: Path) -> dict[str, Any]:
    shards = write_shards(tmp_path / "shards", PARTITIONS, 2)
    return {
        "input_dataset": str(shards),
        "input_format": "webdataset",
        "clip_model": "hash:16?size=32",
        "num_prepro_workers": 0,
        "output_partition_count": PARTITIONS,
    }


@pytest.fixture
def run(options: dict[str, Any], tmp_path: Path) -> PlannedRun:
    config = build_config(InferenceConfig, {**options, "output_folder": str(tmp_path / "out")})
    return plan_run(config, open_output(config), open_source(config.source, config.output_folder))


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Close what tasks kept in this process, as the end of a worker does."""
    monkeypatch.setenv("CLIP_RETRIEVAL_CORES", "1")
    monkeypatch.setattr(SHELF, "is_kept", True)
    yield
    SHELF.close()


def test_a_job_that_ends_early_is_followed_by_one_with_what_is_left(
    run: PlannedRun, options: dict[str, Any], tmp_path: Path, snapshot: Snapshot, caplog: pytest.LogCaptureFixture
) -> None:
    cluster, live = InThisProcess([4, 1]), Live(PARTITIONS)
    make_in_tasks(cluster, run, Arrivals(run, live))
    assert cluster.ran == [[0], [1], [2], [3], [4], [5]]
    assert [record.message for record in caplog.records] == [
        "embedding failed: a worker died; 2 partitions are tried again",
        "embedding failed: a worker died; 1 partition is tried again",
    ]
    assert (live.look().rows, live.look().partitions_done) == (2 * PARTITIONS, PARTITIONS)
    clip_inference(**options, output_folder=str(tmp_path / "whole"))
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "whole")


def test_a_job_that_makes_nothing_ends_the_run_with_its_error(run: PlannedRun) -> None:
    cluster = InThisProcess([3, 0])
    with pytest.raises(ClusterError, match="a worker died"):
        make_in_tasks(cluster, run, Arrivals(run, Live(PARTITIONS)))
    assert cluster.ran == [[0], [1], [2]]


def test_outputs_that_this_machine_does_not_see_are_told_of(run: PlannedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = InThisProcess([])
    monkeypatch.setattr(cluster, "run", lambda *_: None)
    with pytest.raises(ClusterError, match=r"not in .*out here; every node has to see that folder"):
        make_in_tasks(cluster, run, Arrivals(run, Live(PARTITIONS)))


def test_many_partitions_are_contiguous_runs_of_nearly_one_length() -> None:
    assert cut([3, 5, 6], most=10) == [[3], [5], [6]]
    runs = cut(range(500_001), most=10_000)
    assert len(runs) == 10_000
    assert {len(one) for one in runs} == {50, 51}
    assert [number for one in runs for number in one] == [*range(500_001)]


@pytest.mark.parametrize(
    ("visible", "gpu", "device"), [("", "3", "cuda:3"), ("4,5", "5", "cuda:1"), ("4,5", None, "cuda:0")]
)
def test_the_gpu_of_a_task_is_called_as_torch_calls_it(
    monkeypatch: pytest.MonkeyPatch, run: PlannedRun, visible: str, gpu: str | None, device: str
) -> None:
    monkeypatch.setattr(
        "clip_retrieval.inference.distributors.cluster.list_devices", lambda _: [f"cuda:{i}" for i in range(8)]
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    config = InferenceConfig(
        source=run.config.source, output_folder="out", encoder=EncoderConfig(clip_model="ViT-B/32")
    )
    assert device_of(config, gpu) == device


def test_a_model_that_runs_on_no_gpu_takes_none(run: PlannedRun) -> None:
    assert device_of(run.config, "3") == "cpu"
