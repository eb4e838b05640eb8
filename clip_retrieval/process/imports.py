"""Modules imported by a thread while the main thread is in native code, which lets other threads run Python."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread


@contextmanager
def importing(*names: str) -> Iterator[None]:
    """Import modules in a thread during the block; one that cannot be imported raises where it is used."""

    def run() -> None:
        for name in names:
            with suppress(Exception):
                importlib.import_module(name)

    thread = Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join()
