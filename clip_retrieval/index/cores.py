"""How many cores building and measuring keep busy: faiss's threads and those of the matrix products of NumPy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits

VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")  # that processes look at when they start


@contextmanager
def using_cores(count: int | None) -> Iterator[None]:
    """Keep OpenMP, which faiss uses, and every BLAS of this process to `count` threads; None: as many as they take.

    OpenMP counts for each thread of Python by itself: this one is kept to it.
    """
    if count is None:
        yield
        return
    with threadpool_limits(limits=count):
        yield


def core_variables(count: int | None) -> dict[str, str]:
    """Return what keeps a process that is started with these variables to `count` cores."""
    return {} if count is None else dict.fromkeys(VARIABLES, str(count))
