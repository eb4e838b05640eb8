from __future__ import annotations

from threading import Event

from clip_retrieval.process.stoppable import Stoppable, go_on_if_wanted

SECONDS_TO_HANG = 60


def test_work_ends_where_it_asks_after_it_was_stopped() -> None:
    begun, stopped, done = Event(), Event(), []

    def work() -> None:
        go_on_if_wanted()
        done.append("first half")
        begun.set()
        stopped.wait(SECONDS_TO_HANG)
        go_on_if_wanted()
        done.append("second half")

    thread = Stoppable(work)
    thread.start()
    assert begun.wait(SECONDS_TO_HANG)
    thread.is_unwanted.set()
    stopped.set()
    thread.stop()
    assert (done, thread.is_alive()) == (["first half"], False)


def test_errors_of_the_work_are_dropped() -> None:
    thread = Stoppable(lambda: next(iter(())))
    thread.start()
    thread.join(SECONDS_TO_HANG)  # pytest fails on what threads raise
    assert not thread.is_alive()


def test_a_thread_that_was_never_started_can_be_stopped_and_other_threads_always_go_on() -> None:
    done = []
    thread = Stoppable(lambda: done.append("work"))
    thread.stop()
    go_on_if_wanted()  # raises in a thread that was stopped, and this one was not
    assert (done, thread.ident) == ([], None)
