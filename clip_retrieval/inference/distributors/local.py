"""Several workers on this machine: a process for each device."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

from clip_retrieval.errors import WorkerError
from clip_retrieval.inference.distributors.handout import Handout
from clip_retrieval.inference.missing import needs_work
from clip_retrieval.inference.plan import PlannedRun
from clip_retrieval.inference.telemetry.live import Live, News
from clip_retrieval.options import to_json
from clip_retrieval.process.resources import CORES_VARIABLE, count_cores
from clip_retrieval.process.subprocesses import describe_end, start_module

logger = logging.getLogger(__name__)

SECONDS_TO_END = 1.0  # time for a stopped worker to remove unfinished files
SECONDS_TO_LEAVE = 10.0  # time for an idle worker to end


def make_on_devices(run: PlannedRun, live: Live) -> None:
    """Make the missing partitions by a process for each device; raises WorkerError on those that could not be made.

    A worker that dies is reported at once, and the others make its partitions.
    """
    devices = run.devices[: len(run.missing)]
    team = Team(run, devices, Estimates(live, run.share_of(run.missing)))
    team.run()
    left = [i for i in team.handout.left() if needs_work(run.folder, run.partitions[i])]
    if left:
        raise WorkerError(team.explain(left))


class Estimates:
    """Forwards the news of several workers, with the mean of their estimates of the whole input."""

    def __init__(self, live: Live, share: float) -> None:
        self.live, self.share = live, share
        self.of_workers: dict[int, int] = {}

    def hear(self, worker: int, news: News) -> None:
        if news.total is not None:
            self.of_workers[worker] = news.total
            estimates = list(self.of_workers.values())
            self.live.hear(0, News(total=round(sum(estimates) / len(estimates) * self.share)))
        self.live.hear(worker, replace(news, total=None))


class Team:
    """One worker per device, and their shared queue."""

    def __init__(self, run: PlannedRun, devices: Sequence[str], estimates: Estimates) -> None:
        self.config, self.run_id, self.estimates = run.config, run.run, estimates
        self.handout = Handout([partition.id for partition in run.missing])
        self.sentences: list[str] = []  # why workers ended early
        self.general: str | None = None  # an error that every worker would meet, such as a full disk
        self.is_over = False  # after the run has ended, workers' news is ignored
        self.cores = max(1, count_cores() // len(devices))
        self.workers = [Worker(self, device) for device in devices]

    def run(self) -> None:
        try:
            for worker in self.workers:
                worker.thread.start()
            for worker in self.workers:
                worker.thread.join()
        finally:
            self.end()

    def explain(self, left: Sequence[int]) -> str:
        """Return the error message for partitions that could not be made."""
        if self.general is not None:
            return self.general
        why, numbers = "; ".join(dict.fromkeys(self.sentences)), ", ".join(map(str, left))
        return f"{why}; not made: partitions {numbers}; what is finished is kept, run the same command to go on"

    def lose(self, worker: Worker, sentence: str, *, is_general: bool) -> None:
        """Handle a worker's death: a general error ends the run, otherwise warn and let the others go on."""
        if self.is_over:
            return
        self.sentences.append(sentence)
        if worker.partition_id is not None:
            self.handout.give_back(worker.partition_id)
        if is_general:
            self.general = sentence
            self.stop()
        elif any(other.thread.is_alive() for other in self.workers if other is not worker):
            logger.warning("%s; the others go on", sentence)

    def stop(self) -> None:
        """End all workers, busy or not."""
        self.is_over = True
        self.handout.close()
        for worker in self.workers:
            worker.process.terminate()

    def end(self) -> None:
        self.stop()
        deadline = time.monotonic() + SECONDS_TO_END
        for worker in self.workers:
            worker.close(deadline)


class Worker:
    """One worker process, and the thread that gives it partitions and listens to it."""

    def __init__(self, team: Team, device: str) -> None:
        self.team, self.device = team, device
        self.partition_id: int | None = None
        cores = str(team.cores)
        threads = {CORES_VARIABLE: cores, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", cores)}
        self.process = start_module("clip_retrieval.inference.distributors.worker_process", **threads)
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self) -> None:
        """Give the worker partitions one by one, until none is left or it died."""
        assert self.process.stdin is not None
        try:
            self.send({"config": to_json(self.team.config), "device": self.device, "run": self.team.run_id})
            while (partition_id := self.team.handout.take()) is not None:
                self.partition_id = partition_id
                self.send(partition_id)
                if not self.listen():
                    break
                self.team.handout.finish(partition_id)
                self.partition_id = None
            self.process.stdin.close()
            describe_end(self.process, SECONDS_TO_LEAVE)
        except OSError:
            self.listen()  # its pipe is closed: it may have said why
        except Exception as error:  # a thread's error would be lost otherwise  # noqa: BLE001
            self.team.lose(self, f"unexpected message from the worker on {self.device}: {error!r}", is_general=True)

    def send(self, message: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()

    def listen(self) -> bool:
        """Read the worker's news until its partition is whole; False if the worker ended first."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            message = json.loads(line)
            if "news" in message:
                self.team.estimates.hear(self.process.pid, News(**message["news"]))
            elif "done" in message:
                return True
            elif "error" in message:
                self.team.lose(self, message["error"], is_general=message["is_general"])
                return False
        how = describe_end(self.process, SECONDS_TO_END)
        where = "" if self.partition_id is None else f" while it made partition {self.partition_id}"
        self.team.lose(self, f"the worker on {self.device} {how}{where}", is_general=False)
        return False

    def close(self, deadline: float) -> None:
        describe_end(self.process, max(0.0, deadline - time.monotonic()))
        self.process.kill()
        self.process.wait()
        if self.thread.ident is not None:  # it was started before Ctrl-C came
            self.thread.join()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                continue
