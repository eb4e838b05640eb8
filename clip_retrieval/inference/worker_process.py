"""A worker as a process of its own: a task as json on stdin, what it does as json lines on stdout."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
from typing import IO

from clip_retrieval.errors import ClipRetrievalError
from clip_retrieval.inference.config import InferenceConfig
from clip_retrieval.inference.live import News, Teller
from clip_retrieval.inference.worker import run_worker
from clip_retrieval.options import from_json


class Messages:
    """Sends news to the process that started this one."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream

    def tell(self, news: News) -> None:
        self.send(news=dataclasses.asdict(news))

    def send(self, **message: object) -> None:
        self.stream.write(json.dumps(message) + "\n")
        self.stream.flush()


def main() -> None:
    # Only messages may go to the pipe; what libraries print goes to stderr.
    messages = Messages(os.fdopen(os.dup(1), "w"))
    os.dup2(2, 1)
    logging.basicConfig(level=logging.WARNING)
    task = json.load(sys.stdin)
    try:
        report = Teller(messages.tell)
        run_worker(from_json(InferenceConfig, task["config"]), task["partition_ids"], task["device"], report)
    except ClipRetrievalError as error:
        messages.send(error=str(error))
        sys.exit(1)
    messages.send(finished=True)


if __name__ == "__main__":
    main()
