"""Signals end a command in time, with its sentence, whatever it is doing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import pytest

from clip_retrieval.process.interrupts import StoppedError, ending_with, stopping_in_time

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends signals to processes")

NATIVE = """
import hashlib, threading
from clip_retrieval.process.interrupts import ending_with, stopping_in_time
from clip_retrieval.process.subprocesses import start_module
child = start_module("clip_retrieval.inference.distributors.worker_process")  # waits for a task
with stopping_in_time(), ending_with(lambda: f"tidied up after {child.poll()}"), ending_with(lambda: "a part of it"):
    threading.Timer(0.5, lambda: print("ready", flush=True)).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes in native code, which no signal ends
"""

FINALIZER = """
import os, time, weakref
from clip_retrieval.process.interrupts import StoppedError, stopping_in_time

class Thing:
    pass

def stops(reference):
    os.kill(os.getpid(), {number})  # what its handler raises here, Python cannot pass on

try:
    with stopping_in_time():
        thing = Thing()
        reference = weakref.ref(thing, stops)
        del thing
        print("after", flush=True)
        time.sleep(60)
except StoppedError as stop:
    raise SystemExit(stop.exit_code)
"""

WORKER = """
import os, signal, time
from clip_retrieval.inference.distributors import worker_process

class Thing:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)

def run(commands, messages):
    try:
        Thing()
        time.sleep(60)
    finally:
        messages.send(done=0)

worker_process.run = run
worker_process.main()
"""


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Undo what a stopped process does not need to undo."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["int", "term"])
def test_native_code_that_does_not_listen_is_ended(number: int, expected: int) -> None:
    command = [sys.executable, "-c", NATIVE]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()

    process.send_signal(number)
    try:
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()

    assert (process.returncode, errors) == (expected, "tidied up after -9\n")


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (FINALIZER.format(number=int(signal.SIGINT)), (130, "after\n", "")),
        (FINALIZER.format(number=int(signal.SIGTERM)), (143, "after\n", "")),
        (WORKER, (143, '{"done": 0}\n', "")),
    ],
    ids=["int", "term", "worker"],
)
def test_a_signal_is_not_lost_in_a_finalizer(script: str, expected: tuple[int, str, str]) -> None:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)

    assert (done.returncode, done.stdout, done.stderr) == expected


def test_what_else_a_finalizer_raises_is_told_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    class Thing:
        def __del__(self) -> None:
            raise ValueError("of another kind")

    told: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda lost: told.append(str(lost.exc_value)))
    hook = sys.unraisablehook

    with stopping_in_time():
        Thing()

    assert told == ["of another kind"]
    assert sys.unraisablehook is hook


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["int", "term"])
def test_a_signal_arrives_as_an_interrupt_with_the_sentence(number: int, expected: int) -> None:
    with pytest.raises(StoppedError) as caught, stopping_in_time(), ending_with(lambda: "tidied up"):
        os.kill(os.getpid(), number)

    assert str(caught.value) == "tidied up"
    assert caught.value.exit_code == expected


def test_a_second_signal_does_not_disturb_who_tidies_up() -> None:
    said = []

    def tidy_up() -> str:
        os.kill(os.getpid(), signal.SIGINT)
        said.append("tidied up")
        return said[0]

    with pytest.raises(StoppedError), stopping_in_time(), ending_with(tidy_up):
        os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)

    assert said == ["tidied up"]


def test_handlers_are_as_before_afterwards() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    with stopping_in_time():
        during = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert not set(during) & set(before)


@pytest.mark.parametrize("tidying", [nullcontext(), ending_with(lambda: "tidied up")], ids=["plain", "tidying"])
def test_an_error_while_a_stop_tidies_up_is_still_a_stop(tidying: AbstractContextManager[None]) -> None:
    def work() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            raise RuntimeError("cannot join thread before it is started")

    with pytest.raises(StoppedError) as caught, stopping_in_time(), tidying:
        work()
    assert caught.value.exit_code == 143


def test_an_error_that_no_stop_caused_stays_one() -> None:
    with pytest.raises(RuntimeError, match="broken"), stopping_in_time(), ending_with(lambda: "tidied up"):
        raise RuntimeError("broken")
