"""Which partitions a worker takes where nobody hands them out: its own, then what others leave, nothing twice."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from clip_retrieval.inference.attempts import Marker, make_marker
from clip_retrieval.inference.config import InferenceConfig
from clip_retrieval.inference.distributors.takeover import OwnAndOthers, share_of
from clip_retrieval.inference.plan import Plan, open_plan
from clip_retrieval.layout import EmbeddingsFolder
from clip_retrieval.options import build_config

PARTITIONS = 60  # more than are looked for one by one


@pytest.fixture
def plan(tmp_path: Path, write_pictures: Callable[[Path, int], Path]) -> Plan:
    pictures = write_pictures(tmp_path / "in", PARTITIONS)
    options = {"clip_model": "hash:16", "output_partition_count": PARTITIONS}
    return open_plan(build_config(InferenceConfig, options, [pictures, tmp_path / "out"]), "this run")


def workers_of(plan: Plan, world: int) -> list[OwnAndOthers]:
    return [OwnAndOthers(plan=plan, rank=rank, world=world) for rank in range(world)]


def make(plan: Plan, number: int) -> None:
    partition = plan.partitions[number]
    plan.folder.write_json(plan.folder.stats_name(partition), {"sample_count": 1, "reasons": {}})
    with plan.folder.staged(plan.folder.metadata_name(partition)) as staged:
        staged.touch()


def begin(plan: Plan, number: int, pid: int | None = None) -> Marker:
    """Mark an attempt of another worker, of this process unless another is named."""
    marker = make_marker(plan.folder, plan.partitions[number], plan.run, "cpu", [])
    if pid is not None:
        marker.attempt = replace(marker.attempt, pid=pid)
    marker.write()
    return marker


def take_turns(plan: Plan, workers: Sequence[OwnAndOthers]) -> list[list[int]]:
    """Let the workers make one partition after the other, in turns; return what each made."""
    made: list[list[int]] = [[] for _ in workers]
    running = {number: iter(worker) for number, worker in enumerate(workers)}
    while running:
        for number, worker in [*running.items()]:
            partition = next(worker, None)
            if partition is None:
                del running[number]
            else:
                make(plan, partition)
                made[number].append(partition)
    return made


@pytest.mark.parametrize(("count", "world"), [(24, 5), (3, 7), (1, 1), (1000, 1000)])
def test_shares_follow_one_another_and_leave_nothing_out(count: int, world: int) -> None:
    shares = [share_of(count, rank, world) for rank in range(world)]
    assert [*itertools.chain(*shares)] == [*range(count)]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_workers_of_one_speed_make_their_own_share_each(plan: Plan) -> None:
    assert take_turns(plan, workers_of(plan, 3)) == [[*range(20)], [*range(20, 40)], [*range(40, 60)]]


def test_one_worker_alone_makes_everything_once(plan: Plan) -> None:
    [made] = take_turns(plan, [OwnAndOthers(plan=plan, rank=1, world=3)])
    assert made[:20] == [*range(20, 40)]
    assert made[20] == 59, "the others' shares are taken from their ends"
    assert sorted(made) == [*range(PARTITIONS)]


def test_a_straggler_is_left_with_what_it_has_begun(plan: Plan) -> None:
    begin(plan, 0)
    [_, fast] = [OwnAndOthers(plan=plan, rank=rank, world=2) for rank in range(2)]
    [made] = take_turns(plan, [fast])
    assert sorted(made) == [*range(1, PARTITIONS)]


def test_what_a_dead_worker_had_begun_is_taken_over(plan: Plan) -> None:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    begin(plan, 3, done.pid)
    [made] = take_turns(plan, [OwnAndOthers(plan=plan, rank=1, world=2)])
    assert made[-1] == 3
    assert sorted(made) == [*range(PARTITIONS)]


def test_a_partition_that_another_makes_just_now_is_left_to_it(plan: Plan) -> None:
    """So a task that is started again does not follow its first copy, which lives on, from partition to partition."""
    begin(plan, 5)
    [made] = take_turns(plan, [OwnAndOthers(plan=plan, rank=0, world=1)])
    assert sorted(made) == [number for number in range(PARTITIONS) if number != 5]


def test_a_worker_that_begins_when_all_is_made_does_nothing(plan: Plan) -> None:
    for number in range(PARTITIONS):
        make(plan, number)
    assert [*OwnAndOthers(plan=plan, rank=2, world=3)] == []


def test_a_partition_that_fails_is_not_taken_again_by_the_same_worker(plan: Plan) -> None:
    taken = []
    for number in OwnAndOthers(plan=plan, rank=0, world=2):
        taken.append(number)
        if number in (2, 50):  # one of its own, one of the other's
            begin(plan, number).end("failed", "cannot be read")
        else:
            make(plan, number)
        assert len(taken) <= PARTITIONS
    assert sorted(taken) == [*range(PARTITIONS)]


def test_several_partitions_are_taken_for_each_listing(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[str] = []
    names = type(plan.folder).names

    def counted(folder: EmbeddingsFolder, below: str, end: str) -> list[str]:
        listed.append(below)
        return names(folder, below, end)

    monkeypatch.setattr(type(plan.folder), "names", counted)
    take_turns(plan, [OwnAndOthers(plan=plan, rank=0, world=2)])
    assert listed.count("metadata") <= 20, "30 partitions of the other's share were taken"
