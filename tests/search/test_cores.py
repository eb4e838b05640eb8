"""`--nb_cores`: every library that computes in threads keeps to it, and is as before afterwards."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray
from threadpoolctl import threadpool_info, threadpool_limits

from clip_retrieval import clip_index
from clip_retrieval.index.score import score_index
from clip_retrieval.search.cores import core_variables, using_cores


def thread_counts() -> set[int]:
    return {int(library["num_threads"]) for library in threadpool_info()}


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """Have two threads of everything before, on any machine where that is possible."""
    with threadpool_limits(limits=2):
        yield


class Witness(logging.Handler):
    """Notes how many threads there are whenever something is told."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.seen: set[int] = set()

    def emit(self, record: logging.LogRecord) -> None:
        if "index" in record.getMessage():
            self.seen |= thread_counts()


def test_faiss_and_numpy_keep_to_it_and_are_as_before_afterwards() -> None:
    before = thread_counts()
    with using_cores(1):
        assert thread_counts() == {1}
        assert faiss.omp_get_max_threads() == 1
    assert thread_counts() == before
    assert faiss.omp_get_max_threads() == 2


def test_without_it_nothing_changes() -> None:
    before = thread_counts()
    with using_cores(None):
        assert thread_counts() == before


def test_a_build_and_a_score_keep_to_it(
    tmp_path: Path, write_run: Callable[..., Path], unit_rows: Callable[..., NDArray[np.float32]]
) -> None:
    emb, witness = write_run(tmp_path / "emb", [unit_rows(50)]), Witness()
    logger = logging.getLogger("clip_retrieval")
    level = logger.level
    logger.addHandler(witness)
    logger.setLevel(logging.DEBUG)
    try:
        clip_index(str(emb), str(tmp_path / "ix"), nb_cores=1)
    finally:
        logger.removeHandler(witness)
        logger.setLevel(level)
    assert witness.seen == {1}
    score_index(str(tmp_path / "ix"), str(emb), nb_cores=1)
    assert faiss.omp_get_max_threads() == 2


def test_a_process_that_is_started_keeps_to_it() -> None:
    count = "[library['num_threads'] for library in threadpoolctl.threadpool_info()]"
    code = f"import json, numpy, faiss, threadpoolctl\nprint(json.dumps({count}))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | core_variables(1), capture_output=True, text=True, check=True
    )
    assert set(json.loads(done.stdout)) == {1}
    assert core_variables(None) == {}
