"""How many cores building and measuring keep busy: faiss's threads and those of the matrix products of NumPy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import faiss

VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")  # read by a process when it starts


@contextmanager
def using_cores(count: int | None) -> Iterator[None]:
    """Limit OpenMP, which faiss uses, and every BLAS of this process to `count` threads; None: their defaults.

    OpenMP counts for each thread of Python by itself: this one is kept to it.
    """
    if count is None:
        yield
        return
    from threadpoolctl import threadpool_limits  # 5 ms of every start, and a search does without

    with threadpool_limits(limits=count):
        yield


@contextmanager
def of_one_thread() -> Iterator[None]:
    """Have faiss use one OpenMP thread for calls from this Python thread; other threads are not affected.

    One query is no work for several threads. faiss begins them all the same where rows are refined, and then waits for
    the last of them: on a busy machine ten times as long as the query takes.
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
