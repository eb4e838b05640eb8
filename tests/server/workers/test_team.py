"""Messages between the processes of a server, and the share of each."""

from __future__ import annotations

import logging
import socket
from pathlib import Path

import pytest

from clip_retrieval.errors import ConfigError
from clip_retrieval.options import build_config
from clip_retrieval.server.config import BackConfig
from clip_retrieval.server.metrics import Metrics
from clip_retrieval.server.workers.channel import Task
from clip_retrieval.server.workers.team import share_of


def test_threads_are_shared_out_and_rounded_up_and_limits_are_of_each_worker() -> None:
    limits = share_of(build_config(BackConfig, {"workers": 2, "search_threads": 3, "max_waiting": 50})).limits
    assert (limits.search_threads, limits.max_waiting) == (2, 50)


def test_a_worker_gets_every_option_as_it_was_given() -> None:
    given = {"workers": 2, "columns_to_return": ("a", "b"), "cors": ("*",), "index_param": "nprobe=2", "port": 0}
    task = Task(config=build_config(BackConfig, given, ["ix"]), number=2, is_first=False, log_level=logging.INFO)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        task.send(ours)
        assert Task.receive(theirs) == task
        ours.close()
        with pytest.raises(EOFError):
            Task.receive(theirs)


@pytest.mark.parametrize("count", [0, 65])
def test_as_many_workers_as_nobody_wants_are_refused(count: int) -> None:
    with pytest.raises(ConfigError, match="workers must be at"):
        build_config(BackConfig, {"workers": count})


def test_figures_that_nobody_has_written_yet_are_none(tmp_path: Path) -> None:
    assert Metrics(tmp_path).summary() == "No request yet, go do some"
