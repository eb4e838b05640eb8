"""Lanes: what waits is one batch, a bad item fails alone, and no thread ends."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from clip_retrieval.server.lanes import Job, Lane, LaneSize, one_by_one
from clip_retrieval.server.messages import HttpError


class Work:
    """Doubles numbers; waits before its first batch, and fails at negative ones, the whole batch."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.entered, self.opened = threading.Event(), threading.Event()

    def __call__(self, items: Sequence[int]) -> Sequence[int | Exception]:
        self.batches.append(list(items))
        self.entered.set()
        assert self.opened.wait(30)
        if any(item < 0 for item in items):
            raise ValueError(f"{items} are negative")
        return [2 * item for item in items]


@contextmanager
def open_lane(work: Any, **size: int) -> Iterator[Lane[int, int]]:
    lane: Lane[int, int] = Lane("test", work, LaneSize(**size))
    try:
        yield lane
    finally:
        lane.close()


async def ask_behind(lane: Lane[int, int], work: Work, items: Sequence[int]) -> list[Any]:
    """Ask with items that wait while the first one is in work."""
    first = asyncio.create_task(lane.do(0))
    await asyncio.to_thread(work.entered.wait, 30)
    waiting = [asyncio.create_task(lane.do(item)) for item in items]
    while len(lane.waiting) < len(items):
        await asyncio.sleep(0)
    work.opened.set()
    assert await first == 0
    return await asyncio.gather(*waiting, return_exceptions=True)


def test_what_waits_is_taken_as_one_batch() -> None:
    work = Work()
    with open_lane(work, most_at_once=5) as lane:
        assert asyncio.run(ask_behind(lane, work, range(1, 8))) == [2, 4, 6, 8, 10, 12, 14]
    assert work.batches == [[0], [1, 2, 3, 4, 5], [6, 7]]


def test_nothing_is_waited_for() -> None:
    work = Work()
    work.opened.set()
    with open_lane(work) as lane:
        assert asyncio.run(lane.do(4)) == 8
    assert work.batches == [[4]]


def test_threads_are_woken_once_for_all_that_comes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    woken: list[int] = []

    async def ask(lane: Lane[int, int]) -> None:
        asked = [asyncio.create_task(lane.do(item)) for item in range(7)]
        while not woken:
            await asyncio.sleep(0)
        assert len(lane.waiting) == 7
        for task in asked:
            task.cancel()

    with open_lane(Work(), threads=0, most_at_once=4) as lane:
        monkeypatch.setattr(lane.changed, "notify", woken.append)
        asyncio.run(ask(lane))
        assert woken == [2]  # as many as it takes


def test_a_loop_that_ends_before_it_wakes_threads_keeps_nothing_from_another() -> None:
    work = Work()
    work.opened.set()

    async def come(lane: Lane[int, int]) -> None:
        lane.waiting.append(Job(1, asyncio.get_running_loop().create_future()))
        lane.waking = asyncio.get_running_loop()

    with open_lane(work) as lane:
        asyncio.run(come(lane))  # as if it had ended just then
        assert asyncio.run(asyncio.wait_for(lane.do(4), 60)) == 8


def test_a_bad_item_of_a_batch_fails_alone() -> None:
    work = Work()
    with open_lane(work) as lane:
        found = asyncio.run(ask_behind(lane, work, [1, -1, 2, -2]))
        assert found[0::2] == [2, 4]
        assert [str(error) for error in found[1::2]] == ["[-1] are negative", "[-2] are negative"]
        assert asyncio.run(lane.do(5)) == 10  # the thread goes on
        assert lane.is_alive()


def test_an_item_that_nobody_waits_for_is_not_worked_at() -> None:
    work = Work()

    async def ask(lane: Lane[int, int]) -> None:
        first = asyncio.create_task(lane.do(0))
        await asyncio.to_thread(work.entered.wait, 30)
        gone, stays = asyncio.create_task(lane.do(1)), asyncio.create_task(lane.do(2))
        while len(lane.waiting) < 2:
            await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        work.opened.set()
        assert (await first, await stays) == (0, 4)

    with open_lane(work) as lane:
        asyncio.run(ask(lane))
    assert work.batches == [[0], [2]]


def test_one_more_than_may_wait_is_refused() -> None:
    work = Work()

    async def ask(lane: Lane[int, int]) -> None:
        first = asyncio.create_task(lane.do(0))
        await asyncio.to_thread(work.entered.wait, 30)
        waiting = [asyncio.create_task(lane.do(item)) for item in (1, 2)]
        await asyncio.sleep(0)
        with pytest.raises(HttpError, match="try again") as refused:
            await lane.do(3)
        assert (refused.value.status, refused.value.headers) == (429, ((b"retry-after", b"1"),))
        assert lane.seconds_behind() > 0
        work.opened.set()
        assert (await first, await asyncio.gather(*waiting)) == (0, [2, 4])
        assert lane.seconds_behind() == 0

    with open_lane(work, most_waiting=2) as lane:
        asyncio.run(ask(lane))


def test_items_with_nothing_in_common_have_results_of_their_own() -> None:
    def invert(item: int) -> float:
        return 1 / item

    found = one_by_one(invert)([2, 0, 4])
    assert (found[0], type(found[1]), found[2]) == (0.5, ZeroDivisionError, 0.25)


def test_an_item_that_failed_is_let_go_of_without_a_collection() -> None:
    class Thing:
        pass

    def fail(item: Thing) -> None:
        raise ValueError(f"{item} is bad")

    async def ask(lane: Lane[Any, Any]) -> weakref.ref[Thing]:
        thing = Thing()
        try:
            await lane.do(thing)
        except ValueError:
            return weakref.ref(thing)
        raise AssertionError("nothing failed")

    gc.disable()
    try:
        with open_lane(one_by_one(fail), most_at_once=1) as lane:
            failed = asyncio.run(ask(lane))
            end = time.monotonic() + 20
            while failed() is not None and time.monotonic() < end:  # the thread may be about to
                time.sleep(0.001)
        assert failed() is None
    finally:
        gc.enable()


def test_the_results_of_a_loop_that_has_ended_are_dropped() -> None:
    work = Work()
    with open_lane(work) as lane:

        async def leave() -> None:
            asyncio.create_task(lane.do(1))  # noqa: RUF006 -- the loop ends with it
            await asyncio.to_thread(work.entered.wait, 30)

        asyncio.run(leave())
        work.opened.set()
        assert asyncio.run(lane.do(2)) == 4
