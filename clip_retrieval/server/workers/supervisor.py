"""The process that supervises workers: it starts and replaces them, and gives each its share of the connections.

It opens no index and no model. A connection goes to the worker that has the fewest.
"""

from __future__ import annotations

import logging
import os
import selectors
import shutil
import socket
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path

from clip_retrieval.errors import ConfigError, WorkerError
from clip_retrieval.installed import need
from clip_retrieval.process.interrupts import hearing_stop
from clip_retrieval.process.resources import CORES_VARIABLE, count_cores, raise_file_limit
from clip_retrieval.process.subprocesses import describe_end, start_with_channel
from clip_retrieval.scratch import make_temporary
from clip_retrieval.server.config import BackConfig
from clip_retrieval.server.listen import bind, tell_address, url_of
from clip_retrieval.server.workers.channel import (
    ALIVE,
    CONNECTION,
    ENDED,
    FAILED,
    LEAVES,
    READY,
    SECONDS_OF_A_BEAT,
    STUCK,
    STUCK_ONES,
    Task,
)

logger = logging.getLogger(__name__)

MODULE = "clip_retrieval.server.workers.process"
FIGURES_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client keeps figures in this folder, files per process
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
SECONDS_OF_A_TURN = 0.25  # after which a signal is noticed
AT_ONCE = 64  # connections that are accepted before messages of workers are read
LATE_SECONDS = 5 * SECONDS_OF_A_BEAT  # without a sign of life; then others get the connections
SECONDS_TO_END = 5.0  # of a worker, after the grace time of its requests
FIRST_DELAY, LONGEST_DELAY = 0.1, 30.0  # seconds before a worker is replaced; doubled while replacements fail


class Worker:
    """One process, and what it has reported."""

    def __init__(self, task: Task, environment: dict[str, str]) -> None:
        self.number, self.is_first = task.number, task.is_first
        self.channel, other = socket.socketpair()
        with other:
            self.process = start_with_channel(MODULE, other.fileno(), **environment)
        task.send(self.channel)
        self.channel.settimeout(0)
        self.connections = 0
        self.is_ready = self.is_stuck = self.is_leaving = False
        self.heard_at = time.monotonic()
        self.failure: bytearray | None = None

    def is_late(self, seconds: float = LATE_SECONDS) -> bool:
        return time.monotonic() - self.heard_at > seconds

    def hear(self, said: bytes) -> None:
        """Process the worker's messages."""
        self.heard_at = time.monotonic()
        for place in range(len(said)):
            word = said[place : place + 1]
            if self.failure is not None:
                self.failure += word
            elif word == ENDED:
                self.connections -= 1
            elif word == READY:
                self.is_ready = True
            elif word in (ALIVE, STUCK):
                self.is_stuck = word == STUCK
            elif word == LEAVES:
                self.is_leaving = True
            elif word == FAILED:
                self.failure = bytearray()

    def give(self, connection: socket.socket) -> bool:
        """Pass a connection on, unless the worker has no room now."""
        try:
            socket.send_fds(self.channel, [bytes([CONNECTION])], [connection.fileno()])
        except OSError:  # its channel is full, or broken: then its end is noticed next
            return False
        self.connections += 1
        return True

    def tell(self, said: bytes) -> None:
        with suppress(OSError):  # as above
            self.channel.send(said)

    def leave(self) -> None:
        """Let the worker finish its requests, and end."""
        self.is_ready, self.is_leaving = False, True
        with suppress(OSError):
            self.channel.shutdown(socket.SHUT_WR)


class Supervisor:
    """Workers by number, and the socket whose connections they get."""

    def __init__(self, config: BackConfig, listener: socket.socket, figures: Path) -> None:
        self.config, self.listener, self.figures = config, listener, figures
        self.workers: dict[int, Worker] = {}
        self.leaving: list[Worker] = []
        self.due = {1: 0.0}  # number of a worker -> time of its start
        self.delays: dict[int, float] = {}
        self.has_answered = False  # whether any worker has been ready
        self.waiting: deque[socket.socket] = deque()  # connections that no worker had room for
        self.told: tuple[int, int] | None = None
        self.selector = selectors.DefaultSelector()
        listener.settimeout(0)
        cores = str(max(1, count_cores() // config.workers))
        threads = {name: os.environ.get(name, cores) for name in THREAD_VARIABLES}
        self.environment = {CORES_VARIABLE: cores, FIGURES_VARIABLE: str(figures), **threads}

    @property
    def there(self) -> list[Worker]:
        return [*self.workers.values(), *self.leaving]

    def run(self, stop: threading.Event) -> None:
        """Supervise until a signal says stop. Raises ConfigError if the first worker cannot start."""
        while not stop.is_set():
            self.start_due()
            for key, _ in self.selector.select(SECONDS_OF_A_TURN):
                if isinstance(key.data, Worker):
                    self.hear(key.data)
                else:
                    self.accept()
            self.give_waiting()
            self.tell_all()

    def start_due(self) -> None:
        for number in [number for number, when in self.due.items() if when <= time.monotonic()]:
            del self.due[number]
            task = Task(
                config=self.config,
                number=number,
                is_first=not self.has_answered,
                log_level=logging.getLogger("clip_retrieval").getEffectiveLevel(),
            )
            worker = self.workers[number] = Worker(task, self.environment)
            self.selector.register(worker.channel, selectors.EVENT_READ, worker)

    def accept(self) -> None:
        for _ in range(AT_ONCE):
            try:
                connection, _ = self.listener.accept()
            except OSError:  # no connection is left, or no file may be opened until one is closed
                return
            self.waiting.append(connection)
            self.give_waiting()
            if self.waiting:
                return

    def give_waiting(self) -> None:
        """Give connections to the workers with the fewest, and accept new ones only when all are given."""
        ready = [worker for worker in self.workers.values() if worker.is_ready]
        while self.waiting:
            ready.sort(key=lambda worker: (worker.is_late(), worker.connections))
            if not any(worker.give(self.waiting[0]) for worker in ready):
                break
            self.waiting.popleft().close()
        is_taking = self.listener in self.selector.get_map()
        if ready and not self.waiting and not is_taking:
            self.selector.register(self.listener, selectors.EVENT_READ)
        elif is_taking and (not ready or self.waiting):
            self.selector.unregister(self.listener)

    def hear(self, worker: Worker) -> None:
        try:
            said = worker.channel.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        if not said:
            self.end(worker)
            return
        was_ready, was_leaving = worker.is_ready, worker.is_leaving
        worker.hear(said)
        if worker.is_ready and not was_ready:
            self.welcome(worker)
        if worker.is_leaving and not was_leaving:
            self.part_with(worker)

    def welcome(self, worker: Worker) -> None:
        """Use a worker that is ready; after the first one, start the others."""
        self.delays.pop(worker.number, None)
        self.told = None  # tell it too
        if not self.has_answered:
            self.has_answered = True
            tell_address(url_of(self.listener, self.config.access), self.config.access)
            self.due.update(dict.fromkeys(range(2, self.config.workers + 1), 0.0))

    def part_with(self, worker: Worker) -> None:
        """Let a worker end as it was told to, and start another one in its place."""
        worker.leave()
        self.leaving.append(self.workers.pop(worker.number))
        self.due[worker.number] = 0.0

    def end(self, worker: Worker) -> None:
        """Clean up after a worker that has ended, and replace it. Raises ConfigError for the first one."""
        self.selector.unregister(worker.channel)
        worker.channel.close()
        how = describe_end(worker.process, SECONDS_TO_END)
        worker.process.kill()
        for file in self.figures.glob(f"gauge_live*_{worker.process.pid}.db"):
            file.unlink(missing_ok=True)
        if worker in self.leaving:
            self.leaving.remove(worker)
            return
        del self.workers[worker.number]
        sentence = (worker.failure or b"").decode(errors="replace")
        if not self.has_answered:
            raise ConfigError(sentence) if sentence else WorkerError(f"the server's first process {how}")
        delay = self.delays.get(worker.number, FIRST_DELAY)
        self.delays[worker.number] = min(LONGEST_DELAY, 2 * delay)
        self.due[worker.number] = time.monotonic() + delay
        why = f"{how}: {sentence}" if sentence else how
        logger.warning("worker %d (process %d) %s; another one replaces it", worker.number, worker.process.pid, why)

    def tell_all(self) -> None:
        """Tell all workers how many of them are ready and how many hang, if that has changed."""
        most = 2 * self.config.limits.request_timeout
        ready = sum(worker.is_ready for worker in self.workers.values())
        stuck = sum(worker.is_stuck or (worker.is_ready and worker.is_late(most)) for worker in self.workers.values())
        if (ready, stuck) != self.told and ready:
            self.told = (ready, stuck)
            for worker in self.workers.values():
                worker.tell(bytes([ready, STUCK_ONES + stuck]))

    def stop(self) -> None:
        """Accept nothing new, and wait until the workers have finished their requests."""
        for worker in self.workers.values():
            worker.leave()
        end = time.monotonic() + self.config.limits.grace_seconds + SECONDS_TO_END
        for worker in self.there:
            describe_end(worker.process, max(0.0, end - time.monotonic()))

    def close(self) -> None:
        for worker in self.there:
            worker.process.kill()
            worker.channel.close()
        for connection in self.waiting:
            connection.close()
        self.selector.close()


def run_workers(config: BackConfig) -> None:
    """Serve with several processes until a signal says stop. Raises ClipRetrievalError."""
    if not hasattr(socket, "send_fds"):
        raise ConfigError(
            "several workers need to pass sockets between processes, which Windows cannot do; leave --workers "
            "out, or start one server per port behind a load balancer"
        )
    need("uvicorn", "the server", ConfigError, extra="serve")
    raise_file_limit()
    figures = make_temporary()
    try:
        with hearing_stop() as stop, bind(config.access) as listener:
            supervisor = Supervisor(config, listener, figures)
            try:
                supervisor.run(stop)
                listener.close()
                logger.info("stopping: requests in progress are answered first")
                supervisor.stop()
            finally:
                supervisor.close()
    finally:
        shutil.rmtree(figures, ignore_errors=True)
