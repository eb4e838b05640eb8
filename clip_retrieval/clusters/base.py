"""Protocols of what runs tasks: this machine or a cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

Task = TypeVar("Task")


class Shared(Protocol):
    """A value sent to every executor once: Spark's Broadcast."""

    @property
    def value(self) -> bytes: ...


class Runner(Protocol):
    """Where parts are made."""

    @property
    def cores_of_task(self) -> int | None:
        """None: all that the build may use."""

    @property
    def rows_of_task(self) -> int | None:
        """None: by the number of rows."""

    @property
    def is_here(self) -> bool:
        """Whether tasks run on this machine, in this process."""

    def share(self, value: bytes) -> Shared:
        """Send a value to wherever tasks run."""

    def run(self, title: str, function: Callable[[Task], None], tasks: Sequence[Task]) -> None:
        """Run the function on every task; raises IndexBuildError when one has failed for good."""
