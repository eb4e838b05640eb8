"""What a worker knows of the others, and its share of the threads."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from clip_retrieval.server.config import BackConfig


@dataclass
class Team:
    """The processes that answer at one socket, as the supervisor last told of them."""

    count: int
    figures: Path  # where all of them keep what /metrics says
    ready: int = 1
    stuck: int = 0


def share_of(config: BackConfig) -> BackConfig:
    """Return the options of one worker: threads that search are divided, rounded up; limits are of each."""
    threads = -(-config.limits.search_threads // config.workers)
    return dataclasses.replace(config, limits=dataclasses.replace(config.limits, search_threads=threads))
