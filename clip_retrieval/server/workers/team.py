"""What a worker knows about the others, and its share of the threads."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from clip_retrieval.server.config import BackConfig


@dataclass
class Team:
    """The processes that answer on one socket, as last reported by the supervisor."""

    count: int
    figures: Path  # folder in which all of them keep the figures of /metrics
    ready: int = 1
    stuck: int = 0


def share_of(config: BackConfig) -> BackConfig:
    """Return the options of one worker: search_threads is divided, rounded up; limits apply to each worker."""
    threads = -(-config.limits.search_threads // config.workers)
    return dataclasses.replace(config, limits=dataclasses.replace(config.limits, search_threads=threads))
