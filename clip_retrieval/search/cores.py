"""How many cores building and measuring keep busy: threads of faiss and of NumPy's matrix products."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import faiss

VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")  # read by a process when it starts


@contextmanager
def using_cores(count: int | None) -> Iterator[None]:
    """Limit OpenMP, which faiss uses, and every BLAS of this process to `count` threads; None: their defaults.

    OpenMP has a separate count for each Python thread: the limit applies to this thread.
    """
    if count is None:
        yield
        return
    from threadpoolctl import threadpool_limits  # 5 ms of every start, which a search does not need

    with threadpool_limits(limits=count):
        yield


@contextmanager
def of_one_thread() -> Iterator[None]:
    """Make faiss use one OpenMP thread for calls from this Python thread; other threads are not affected.

    One query is not enough work for several threads. faiss starts them anyway if rows are refined, and waits for the
    last of them: on a busy machine ten times as long as the query takes.
    """
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def core_variables(count: int | None) -> dict[str, str]:
    """Return environment variables that limit a new process to `count` cores."""
    return {} if count is None else dict.fromkeys(VARIABLES, str(count))
