"""What a worker knows of the others, and its share of what all of them may take."""

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
    """Return the options of one worker: the server's limits and threads are divided, rounded up."""
    limits = config.limits
    divided = {
        name: -(-getattr(limits, name) // config.workers) for name in ("max_waiting", "max_heavy", "search_threads")
    }
    return dataclasses.replace(config, limits=dataclasses.replace(limits, **divided))
