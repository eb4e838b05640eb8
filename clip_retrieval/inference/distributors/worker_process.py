"""A worker process: reads a task, then partitions, as JSON lines on stdin; reports on stdout."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
from collections.abc import Iterator
from io import TextIOWrapper
from typing import IO

from clip_retrieval.errors import ClipRetrievalError, EncoderError, WorkerError
from clip_retrieval.inference.config import InferenceConfig
from clip_retrieval.inference.plan import open_plan
from clip_retrieval.inference.telemetry.live import News, Teller
from clip_retrieval.inference.worker.worker import run_worker
from clip_retrieval.options import from_json
from clip_retrieval.process.interrupts import StoppedError, stopping_in_time
from clip_retrieval.process.standard_streams import log_to_stderr, take_stdout
from clip_retrieval.process.subprocesses import end_with_parent

OF_ONE_DEVICE = (EncoderError, WorkerError)  # errors that other devices and workers may not meet


class Messages:
    """Sends news to the process that started this one."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream

    def tell(self, news: News) -> None:
        self.send(news=dataclasses.asdict(news))

    def send(self, **message: object) -> None:
        self.stream.write(json.dumps(message) + "\n")
        self.stream.flush()


def given_partitions(commands: IO[str], messages: Messages) -> Iterator[int]:
    """Yield one partition after the other as they are given; when the next is requested, the last one is done."""
    for line in commands:
        yield json.loads(line)
        messages.send(done=json.loads(line))


def run(commands: IO[str], messages: Messages) -> None:
    """Make partitions until no more are given."""
    line = commands.readline()
    if not line:
        return  # the parent has ended
    task = json.loads(line)
    config = from_json(InferenceConfig, task["config"])
    plan = open_plan(config, task["run"])
    report = Teller(messages.tell)
    report.estimate_total = plan.source.estimate_total
    run_worker(plan, given_partitions(commands, messages), task["device"], report)


def main() -> None:
    messages = Messages(TextIOWrapper(take_stdout()))
    end_with_parent()
    log_to_stderr(logging.WARNING)
    try:
        with stopping_in_time():  # removes half-made files
            run(sys.stdin, messages)
    except StoppedError as stop:
        sys.exit(stop.exit_code)
    except ClipRetrievalError as error:
        messages.send(error=str(error), is_general=not isinstance(error, OF_ONE_DEVICE))
        sys.exit(1)
    except BrokenPipeError:
        os._exit(1)  # the parent has ended


if __name__ == "__main__":
    main()
