"""One thread per core, each computing on its own: threads of BLAS and OpenMP would spin between products."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import faiss
from threadpoolctl import threadpool_limits

from clip_retrieval.process.resources import count_cores


@contextmanager
def threads_alone() -> Iterator[ThreadPoolExecutor]:
    """Yield threads to map over."""
    alone = ThreadPoolExecutor(count_cores(), initializer=faiss.omp_set_num_threads, initargs=(1,))
    with threadpool_limits(1, user_api="blas"), alone as threads:
        yield threads
