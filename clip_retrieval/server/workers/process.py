"""A worker: opens the indices, and answers on the connections that come from the supervisor by its channel (stdin)."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clip_retrieval.errors import ClipRetrievalError, describe_os_error
from clip_retrieval.process.interrupts import hearing_stop
from clip_retrieval.process.resources import raise_file_limit
from clip_retrieval.process.standard_streams import log_to_stderr
from clip_retrieval.process.subprocesses import end_with_parent
from clip_retrieval.server.config import BackConfig
from clip_retrieval.server.run import Served, open_server, tell_of_indices, warm_up
from clip_retrieval.server.sockets import make_server, run_server
from clip_retrieval.server.workers.channel import FAILED, LEAVES, READY, Task
from clip_retrieval.server.workers.line import Line
from clip_retrieval.server.workers.supervisor import FIGURES_VARIABLE
from clip_retrieval.server.workers.team import Team, share_of

SECONDS_OF_A_LOOK = 0.2  # after which a signal is noticed


def take_channel() -> socket.socket:
    """Return the channel that is this process's stdin, and put the null device in its place."""
    channel = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return channel


def serve(task: Task, channel: socket.socket) -> None:
    """Answer until the channel ends; a signal asks the supervisor to end it. Raises ClipRetrievalError."""
    config = share_of(task.config)
    team = Team(config.workers, Path(os.environ[FIGURES_VARIABLE]))
    with hearing_stop() as stop:
        served = open_server(config, team)
        try:
            with answering(served, config, Line(channel, team, served.health)) as line:
                if task.is_first:
                    tell_of_indices(served)
                warm_up(served)
                line.say(READY)
                is_told = False
                while not line.is_over.wait(SECONDS_OF_A_LOOK):
                    if stop.is_set() and not is_told:
                        line.say(LEAVES)
                        is_told = True
        finally:
            served.close()


@contextmanager
def answering(served: Served, config: BackConfig, line: Line) -> Iterator[Line]:
    """Let uvicorn answer on arriving connections during the block, in a thread."""
    server = make_server(served.app, config.access, config.limits.grace_seconds, line.end_one)
    served.app.begin = lambda: line.open(server)
    thread = threading.Thread(target=run_server, args=(server, None), name="server")
    thread.start()
    try:
        yield line
    finally:
        server.should_exit = True
        thread.join()


def log_as(task: Task) -> None:
    """Write the log to stderr line by line; only the first worker logs what is the same for all."""
    log_to_stderr(logging.WARNING)
    level = task.log_level if task.number == 1 else max(task.log_level, logging.WARNING)
    logging.getLogger("clip_retrieval").setLevel(level)
    for handler in logging.getLogger().handlers:
        if task.number > 1 and handler.formatter is not None:
            handler.formatter._style._fmt = f"worker {task.number}: %(message)s"


def main() -> int:
    channel = take_channel()
    end_with_parent()
    try:
        task = Task.receive(channel)
    except EOFError:
        return 1  # the supervisor has ended
    log_as(task)
    raise_file_limit()
    try:
        serve(task, channel)
    except (ClipRetrievalError, OSError) as error:
        said = describe_os_error(error) if isinstance(error, OSError) else str(error)
        channel.settimeout(None)
        channel.sendall(FAILED + said.encode(errors="replace"))
        return 1
    return 0


if __name__ == "__main__":
    code: Any = main()
    sys.stderr.flush()
    os._exit(code)  # as the command line does: Python's shutdown would only free memory
