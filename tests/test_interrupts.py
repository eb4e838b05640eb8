"""Signals end a command in time, with its sentence, whatever it does just then."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from clip_retrieval.interrupts import StoppedError, ending_with, stopping_in_time

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends signals to processes")

NATIVE = """
import hashlib, threading
from clip_retrieval.interrupts import ending_with, stopping_in_time
with stopping_in_time(), ending_with(lambda: "tidied up"):
    threading.Timer(0.5, lambda: print("ready", flush=True)).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes in native code, which no signal ends
"""


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Undo what a stopped process has no need to undo."""
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

    assert (process.returncode, errors) == (expected, "tidied up\n")


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
