"""A quick start: no idle threads that spin, no garbage collection during imports, no unused parts of NumPy."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

# Parts of NumPy 1.26 that a query does not use: 30 ms of every start. NumPy 2 loads them when they are named.
UNUSED_PARTS = ("ctypeslib", "fft", "ma", "polynomial", "random")
SPIN = "OPENBLAS_THREAD_TIMEOUT"  # log2 of the cycles that an idle thread of OpenBLAS spins; unset, 26: about 30 ms


@contextmanager
def starting_quickly() -> Iterator[None]:
    """Import the modules of a command in the block, NumPy among them, without spinning threads and garbage collection.

    On two cores, spinning threads take one from the thread that opens the model. Only for commands, which own their
    process: importing this package changes nothing.
    """
    spins = os.environ.get(SPIN)
    os.environ.setdefault(SPIN, "4")  # read when a library is loaded; not for child processes
    try:
        with without_garbage():
            import_numpy()
            yield
        if gc.isenabled():
            gc.freeze()  # all that is loaded now stays
    finally:
        if spins is None:
            os.environ.pop(SPIN, None)


@contextmanager
def without_garbage() -> Iterator[None]:
    """Import modules in the block without garbage collection: imports leave no garbage."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def import_numpy() -> None:
    """Import NumPy; of NumPy 1.26 without unused parts, which are loaded when they are named."""
    if "numpy" in sys.modules or not is_numpy_1():
        importlib.import_module("numpy")
        return
    names = [f"numpy.{part}" for part in UNUSED_PARTS]
    sys.modules.update({name: ModuleType(name) for name in names})
    try:
        numpy = importlib.import_module("numpy")
    finally:
        for name in names:
            sys.modules.pop(name, None)
    for part in UNUSED_PARTS:
        vars(numpy).pop(part, None)
    of_numpy = vars(numpy)["__getattr__"]

    def find(name: str) -> Any:
        return importlib.import_module(f"numpy.{name}") if name in UNUSED_PARTS else of_numpy(name)

    vars(numpy)["__getattr__"] = find


def is_numpy_1() -> bool:
    """Say whether the installed NumPy is 1.26, by its file, before it is imported."""
    spec = importlib.util.find_spec("numpy")
    if spec is None or spec.origin is None:
        return False
    try:
        return '"1.26.' in Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return False
