"""Parts that are made on this machine, one after the other, with a progress bar."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from clip_retrieval.clusters.base import Here
from clip_retrieval.index.planning.costs import ROWS_OF_PART

logger = logging.getLogger(__name__)


Task = TypeVar("Task")


class LocalRunner:
    """Runs tasks in this process, on all cores of faiss."""

    cores_of_task: int | None = None
    rows_of_task: int | None = ROWS_OF_PART
    is_here = True

    def share(self, value: bytes) -> Here:
        """Return the value, for tasks to read."""
        return Here(value)

    def run(self, title: str, function: Callable[[Task], None], tasks: Sequence[Task]) -> None:
        """Run the function on one task after the other."""
        for task in tasks:
            logger.debug("%s: %s", title, task)
            function(task)
