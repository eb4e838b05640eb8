"""Protocols of what runs tasks: this machine or a cluster."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from clip_retrieval.errors import ClusterError
from clip_retrieval.progress import Advance
from clip_retrieval.version import __version__

SECONDS_TO_REACH = 10.0
Task = TypeVar("Task")


class Shared(Protocol):
    """A value that every machine gets once."""

    @property
    def value(self) -> bytes: ...


@dataclass(frozen=True)
class Here:
    """A value in this process, or one that travels with the function that uses it."""

    value: bytes


class Runner(Protocol):
    """Where tasks run."""

    @property
    def cores_of_task(self) -> int | None:
        """None: all that this process may use."""

    @property
    def rows_of_task(self) -> int | None:
        """None: by the number of rows."""

    @property
    def is_here(self) -> bool:
        """Whether tasks run on this machine, in this process."""

    def share(self, value: bytes) -> Shared:
        """Send a value to wherever tasks run."""

    def run(self, title: str, function: Callable[[Task], None], tasks: Sequence[Task]) -> None:
        """Run the function on every task; raises ClusterError when one has failed for good.

        If a task raises or its worker dies, the engine tries it again elsewhere, a few times.
        """


class Cluster(Runner, Protocol):
    """A cluster that this process talks to."""

    @property
    def name(self) -> str:
        """The engine and its address, for sentences."""

    @property
    def gpu_of_task(self) -> Callable[[], str | None]:
        """A function for tasks that returns the number of the task's GPU, if the engine gave it one."""


class ShowProgress(Protocol):
    """Shows how many tasks are done: a title and a count to a function that takes how many more are done."""

    def __call__(self, title: str, total: int, /) -> AbstractContextManager[Advance]: ...


@contextmanager
def show_nothing(title: str, total: int) -> Iterator[Advance]:  # noqa: ARG001 -- as ShowProgress has it
    """Show nothing, because something else shows the progress."""

    def advance(count: float) -> None:
        pass

    yield advance


def why_unreachable(address: str) -> str:
    """Return why nothing can be reached at an address such as ray://HOST:PORT; empty if it can, or names no port.

    The engines themselves would try for minutes.
    """
    host, mark, port = address.rpartition("://")[2].partition("/")[0].rpartition(":")
    try:
        if mark:
            socket.create_connection((host, int(port)), SECONDS_TO_REACH).close()
    except (OSError, ValueError) as error:
        return str(error)
    return ""


def check_version(version: str) -> None:
    """Raise ClusterError if the task was sent by another version of this package than the one that is to run it."""
    if version != __version__:
        raise ClusterError(
            f"clip-retrieval is {version} here and {__version__} on {socket.gethostname()}; install one version on "
            "every node"
        )


@dataclass(frozen=True)
class Checked:
    """A function for tasks that runs only with the version of this package that sent it."""

    function: Callable[[Any], None]
    version: str = __version__

    def __call__(self, task: Any) -> None:
        check_version(self.version)
        self.function(task)
