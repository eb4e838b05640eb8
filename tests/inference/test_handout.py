"""Partitions go to whichever worker asks, again where one died, and what several workers expect is one number."""

from __future__ import annotations

import threading

from clip_retrieval.inference.distributors.handout import Handout
from clip_retrieval.inference.distributors.local import Estimates
from clip_retrieval.inference.telemetry.live import Live, News


def test_partitions_are_handed_out_in_order_and_once() -> None:
    handout = Handout([3, 5, 7])

    taken = [handout.take(), handout.take(), handout.take()]
    for partition_id in (3, 5, 7):
        handout.finish(partition_id)

    assert taken == [3, 5, 7]
    assert handout.take() is None
    assert handout.left() == []


def test_a_free_worker_waits_for_what_another_one_may_give_back() -> None:
    handout = Handout([3])
    handout.take()
    taken: list[int | None] = []
    waiting = threading.Thread(target=lambda: taken.append(handout.take()))
    waiting.start()

    handout.give_back(3)
    waiting.join(60)

    assert taken == [3]


def test_a_free_worker_leaves_when_the_last_partition_is_whole() -> None:
    handout = Handout([3])
    handout.take()
    taken: list[int | None] = []
    waiting = threading.Thread(target=lambda: taken.append(handout.take()))
    waiting.start()

    handout.finish(3)
    waiting.join(60)

    assert taken == [None]


def test_a_partition_that_two_workers_died_of_is_given_up() -> None:
    handout = Handout([3, 5])

    for _ in range(2):
        assert handout.take() == 3
        handout.give_back(3)

    assert handout.take() == 5
    assert handout.left() == [3, 5]


def test_nothing_is_handed_out_once_it_is_closed() -> None:
    handout = Handout([3, 5])
    handout.take()

    handout.close()

    assert handout.take() is None
    assert handout.left() == [3, 5]


def test_what_is_left_is_estimated_from_all_workers() -> None:
    live = Live(4)
    estimates = Estimates(live, share=0.5)

    estimates.hear(11, News(rows=10, total=1000))
    estimates.hear(12, News(rows=5, dropped=1, total=3000))
    estimates.hear(11, News(rows=10, total=2000))

    assert (live.look().total, live.look().done) == (1250, 26)
