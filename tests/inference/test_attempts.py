"""Attempts at partitions: what the folder says of those under way, and which are given up."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from clip_retrieval.errors import ConfigError
from clip_retrieval.inference import attempts
from clip_retrieval.inference.attempts import attempting, attempts_at, is_given_up
from clip_retrieval.inference.config import InferenceConfig
from clip_retrieval.inference.plan import Plan, open_plan
from clip_retrieval.inference.run import run_inference
from clip_retrieval.inference.telemetry.live import Live, Report
from clip_retrieval.inference.telemetry.stats import Stats
from clip_retrieval.inference.worker import kept
from clip_retrieval.inference.worker.worker import FailedPartitionsError, run_worker
from clip_retrieval.layout import EmbeddingsFolder, Partition
from clip_retrieval.options import build_config
from clip_retrieval.sources.config import SourceConfig
from clip_retrieval.sources.protocol import Source
from clip_retrieval.sources.types import Failure, Sample

Snapshot = Callable[[Path], dict[str, bytes]]
HERE = Partition(3, 20, 0, 1)


def report() -> Report:
    return Live(1).teller()


def config_of(source: Path, output: Path, **options: object) -> InferenceConfig:
    fixed = {"clip_model": "hash:16?size=32", "output_partition_count": 4, "num_prepro_workers": 0}
    return build_config(InferenceConfig, fixed | options, [source, output])


@pytest.fixture
def source(tmp_path: Path, write_pictures: Callable[[Path, int], Path]) -> Path:
    return write_pictures(tmp_path / "in", 8)


@pytest.fixture
def folder(tmp_path: Path) -> EmbeddingsFolder:
    return EmbeddingsFolder(str(tmp_path / "out"))


@dataclass(frozen=True)
class Broken:
    """A source that raises where it reads one of its units."""

    whole: Source
    bad: tuple[int, ...]

    @property
    def config(self) -> SourceConfig:
        return self.whole.config

    @property
    def units(self) -> object:
        return self.whole.units

    @property
    def samples_per_unit(self) -> int | None:
        return self.whole.samples_per_unit

    def estimate_total(self) -> int | None:
        return self.whole.estimate_total()

    def read(self, start: int, stop: int) -> Iterator[Sample | Failure]:
        for number in range(start, stop):
            if number in self.bad:
                raise RuntimeError("a broken unit")
            yield from self.whole.read(number, number + 1)


def broken_plan(config: InferenceConfig, *bad: int, run: str = "r") -> Plan:
    plan = open_plan(config, run)
    return replace(plan, source=Broken(plan.source, bad))  # type: ignore[arg-type]  # units are a sequence


def ends(folder: EmbeddingsFolder, partition: Partition) -> list[tuple[int, str | None, str]]:
    return [(one.number, one.end, one.reason) for one in attempts_at(folder, partition).values()]


def fail(folder: EmbeddingsFolder, run: str, error: BaseException) -> None:
    with contextlib.suppress(type(error)), attempting(folder, HERE, run, "cpu", report()):
        raise error


def test_an_attempt_has_a_file_while_it_goes_on_and_none_after_a_good_end(
    folder: EmbeddingsFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "SECONDS_BETWEEN_WRITES", 0.001)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "17")
    stats = Stats(sample_count=7)

    with attempting(folder, HERE, "r", "cuda:1", report()) as marked:
        marked.begin(stats)
        while (seen := next(iter(attempts_at(folder, HERE).values()))).figures is None:
            pass
        assert (seen.number, seen.pid, seen.device, seen.end) == (1, os.getpid(), "cuda:1", None)
        assert seen.task == {"SLURM_ARRAY_TASK_ID": "17"}
        assert seen.figures["sample_count"] == 7

    assert not Path(folder.path("attempts")).exists()


def test_an_attempt_that_fails_says_why_and_the_next_good_one_takes_its_file_away(folder: EmbeddingsFolder) -> None:
    fail(folder, "r", ValueError("no luck\nat all"))

    assert ends(folder, HERE) == [(1, "failed", "ValueError: no luck at all")]
    with attempting(folder, HERE, "r", "cpu", report()):
        assert [number for number, *_ in ends(folder, HERE)] == [1, 2]
    assert ends(folder, HERE) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit()])
def test_attempts_that_were_stopped_do_not_count(folder: EmbeddingsFolder, error: BaseException) -> None:
    for _ in range(3):
        fail(folder, "r", error)

    assert [end for _, end, _ in ends(folder, HERE)] == ["stopped"] * 3
    assert not is_given_up(folder, HERE, "r")


def test_two_attempts_of_one_run_that_ended_badly_are_the_last(folder: EmbeddingsFolder) -> None:
    fail(folder, "r", ValueError("1"))
    assert not is_given_up(folder, HERE, "r")

    fail(folder, "r", ValueError("2"))

    assert is_given_up(folder, HERE, "r")
    assert not is_given_up(folder, HERE, "another run")


def test_a_file_that_is_no_marker_changes_nothing(folder: EmbeddingsFolder) -> None:
    folder.write_json(f"{folder.attempts_name(HERE)}/x.json", ["nonsense"])

    assert attempts_at(folder, HERE) == {}
    assert not is_given_up(folder, HERE, "r")


def test_a_worker_whose_process_is_gone_is_lost_at_once(folder: EmbeddingsFolder) -> None:
    with attempting(folder, HERE, "r", "cpu", report()):
        [alive] = attempts_at(folder, HERE).values()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()

    assert not alive.is_silent(0)
    assert replace(alive, pid=gone.pid).is_silent(0)
    assert not replace(alive, pid=gone.pid, host="elsewhere").is_silent(0)
    assert replace(alive, host="elsewhere").is_silent(3600)


def test_a_partition_that_fails_leaves_the_others_to_be_made(source: Path, tmp_path: Path) -> None:
    plan = broken_plan(config_of(source, tmp_path / "out"), 2)

    with pytest.raises(FailedPartitionsError, match="partition 1 failed: RuntimeError: a broken unit") as caught:
        run_worker(plan, range(4), "cpu", report())

    assert [*caught.value.errors] == [1]
    assert [partition.id for partition in plan.folder.partitions()] == [0, 2, 3]


def test_a_partition_that_fails_twice_is_passed_over_in_that_run_alone(source: Path, tmp_path: Path) -> None:
    plan = broken_plan(config_of(source, tmp_path / "out"), 2)
    for _ in range(2):
        with pytest.raises(FailedPartitionsError):
            run_worker(plan, [1], "cpu", report())

    assert run_worker(plan, [1], "cpu", report()) == []
    assert len(run_worker(open_plan(plan.config, "the next command"), [1], "cpu", report())) == 1


def test_a_worker_in_which_two_partitions_in_a_row_fail_takes_no_more(source: Path, tmp_path: Path) -> None:
    plan = broken_plan(config_of(source, tmp_path / "out"), 0, 2, 4, 6)

    with pytest.raises(FailedPartitionsError) as caught:
        run_worker(plan, range(4), "cpu", report())

    assert [*caught.value.errors] == [0, 1]


def test_two_copies_of_a_task_at_once_make_the_same_bytes(source: Path, tmp_path: Path, snapshot: Snapshot) -> None:
    wanted = config_of(source, tmp_path / "one")
    run_inference(wanted)
    plans = [open_plan(config_of(source, tmp_path / "two"), "r") for _ in range(2)]
    barrier = threading.Barrier(2)

    def make(plan: Plan) -> None:
        barrier.wait()
        run_worker(plan, range(4), "cpu", report())

    threads = [threading.Thread(target=make, args=(plan,)) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert snapshot(tmp_path / "two") == snapshot(tmp_path / "one")
    assert not (tmp_path / "two" / "attempts").exists()


def test_equipment_is_kept_between_the_tasks_of_an_engine(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = kept.Shelf()
    monkeypatch.setattr(kept, "SHELF", shelf)
    kept.keep_equipment()
    plan = open_plan(config_of(source, tmp_path / "out"), "r")

    run_worker(plan, [0], "cpu", report())
    first = shelf.held["cpu"][2]
    run_worker(open_plan(plan.config, "r"), [1], "cpu", report())
    assert shelf.held["cpu"][2] is first

    with pytest.raises(FailedPartitionsError):
        run_worker(broken_plan(plan.config, 4), [2], "cpu", report())
    assert shelf.held == {}
    run_worker(plan, [3], "cpu", report())
    assert shelf.held["cpu"][2] is not first
    shelf.close()


@pytest.mark.parametrize("strategy", ["sequential", "multiprocess"])
def test_a_strategy_of_this_machine_makes_the_same_bytes(
    strategy: str, source: Path, tmp_path: Path, snapshot: Snapshot
) -> None:
    run_inference(config_of(source, tmp_path / "one"))

    run_inference(config_of(source, tmp_path / "two", distribution_strategy=strategy))

    assert snapshot(tmp_path / "two") == snapshot(tmp_path / "one")


def test_an_unknown_strategy_is_refused_with_those_that_there_are(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"distribution_strategy takes .*sequential.*ray"):
        config_of(source, tmp_path / "out", distribution_strategy="dask")


def kill_at(picture: bytes, tmp_path: Path) -> dict[str, str]:
    """Return an environment in which a process that opens this picture is killed."""
    folder = tmp_path / "startup"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import os\n"
        "from PIL import Image\n"
        "open_picture = Image.open\n"
        "def open_or_die(file, *arguments, **options):\n"
        f"    if file.getvalue() == {picture!r}:\n"
        "        os.kill(os.getpid(), 9)\n"
        "    return open_picture(file, *arguments, **options)\n"
        "Image.open = open_or_die\n"
    )
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "CLIP_RETRIEVAL_RUN": "r"}


def test_a_partition_that_kills_its_worker_twice_is_given_up_and_named_and_the_rest_is_made(
    source: Path, tmp_path: Path
) -> None:
    bad, output = b"this picture kills", tmp_path / "out"
    (source / "00002.jpg").write_bytes(bad)
    folder, environment = EmbeddingsFolder(str(output)), kill_at(bad, tmp_path)
    command = [sys.executable, "-m", "clip_retrieval", "inference.worker", "0,1,2,3", str(source), str(output), "4"]
    options = ["--clip_model", "hash:16?size=32", "--num_prepro_workers", "0"]

    def start() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *options], env=environment, capture_output=True, text=True, check=False, timeout=300
        )

    codes = [start().returncode for _ in range(2)]
    told = [json.loads(path.read_text()) for path in output.glob("attempts/*/*.json")]
    last = start()

    assert codes == [-9, -9]
    assert sorted(one["number"] for one in told) == [1, 2]
    assert {one["end"] for one in told} == {None}
    assert [partition.id for partition in folder.partitions()] == [0, 2, 3]
    assert last.returncode == 1
    said = last.stderr.splitlines()[-1]
    assert said.startswith("Error: not made: partitions 1 (partition 1 on ")
    assert said.count("its worker died") == 2


def test_what_is_not_made_is_named_at_the_end_of_a_run(source: Path, tmp_path: Path) -> None:
    config = config_of(source, tmp_path / "out")
    plan = broken_plan(config, 2)
    with contextlib.suppress(FailedPartitionsError):
        run_worker(plan, [1], "cpu", report())

    said = attempts.explain_left(plan.folder, [plan.partitions[1], plan.partitions[3]], "r")

    assert said.startswith("not made: partitions 1, 3 (partition 1 on ")
    assert "a broken unit" in said
