"""Starting our own modules as programs, with the imports that this process has."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path

PR_SET_PDEATHSIG = 1  # linux/prctl.h
PACKAGE_ROOT = Path(__file__).parents[2]  # the folder that holds clip_retrieval/
SECONDS_TO_DIE = 2.0  # of a killed process; one that waits for a dead disk may take forever

started: weakref.WeakSet[subprocess.Popen[bytes]] = weakref.WeakSet()
starting = threading.Lock()


def module_command(module: str) -> list[str]:
    """Return the command that runs a module, without the working folder's files among its imports."""
    return [sys.executable, "-P", "-m", module]


def module_environment(**extra: str) -> dict[str, str]:
    """Return this process's environment, with its import path; the working folder is left out of that."""
    here = Path.cwd()
    rest = [entry for entry in sys.path if entry and Path(entry) != here]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys([str(PACKAGE_ROOT), *rest])), **extra}


def start_module(module: str, **extra: str) -> subprocess.Popen[bytes]:
    """Start a module of ours with pipes to its stdin and stdout; `extra` is added to its environment.

    Ctrl-C does not reach it, not even while it starts: its parent receives that, and ends it.
    """
    return start(module, (subprocess.PIPE, subprocess.PIPE), extra)


def start_with_channel(module: str, channel: int, **extra: str) -> subprocess.Popen[bytes]:
    """Start a module of ours as `start_module` does, with a file or socket as its stdin and our stdout as its own."""
    return start(module, (channel, None), extra)


def start(module: str, streams: tuple[int, int | None], extra: Mapping[str, str]) -> subprocess.Popen[bytes]:
    holds_signals = hasattr(signal, "pthread_sigmask")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if holds_signals else set()
    try:  # a child keeps the mask of the thread that starts it
        stdin, stdout = streams
        process = subprocess.Popen(module_command(module), stdin=stdin, stdout=stdout, env=module_environment(**extra))
    finally:
        if holds_signals:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    with starting:
        started.add(process)
    return process


def kill_started() -> None:
    """Kill what `start_module` started and still runs: this process is about to end, and removes their files."""
    with starting:
        there = list(started)
    for process in there:
        process.kill()
    for process in there:
        describe_end(process, SECONDS_TO_DIE)


def end_with_parent() -> None:
    """Have Linux kill this process when the thread that started it ends, for any reason.

    On other systems a child notices that its pipe closed, unless it hangs.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def describe_end(process: subprocess.Popen[bytes], patience_seconds: float) -> str:
    """Wait briefly for a process to end, and describe how it ended."""
    try:
        code = process.wait(patience_seconds)
    except subprocess.TimeoutExpired:
        return "does not end"
    return f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
