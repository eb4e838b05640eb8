"""clip.cpp, for the tests that compare with it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

RUN_CLIP_CPP = """
import ctypes, pathlib, sys
import numpy as np

folder, model, tower, work = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3], pathlib.Path(sys.argv[4])
ctypes.CDLL(str(folder / "libggml.so"), mode=ctypes.RTLD_GLOBAL)  # libclip does not find it by itself
library = ctypes.CDLL(str(folder / "libclip.so"))

class Tokens(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("size", ctypes.c_size_t)]

class Picture(ctypes.Structure):
    _fields_ = [("width", ctypes.c_int), ("height", ctypes.c_int), *Tokens._fields_]

library.clip_model_load.restype = ctypes.c_void_p
context = ctypes.c_void_p(library.clip_model_load(model.encode(), 0))
rows = np.load(work / "given.npy")
found = np.zeros((len(rows), int(sys.argv[5])), np.float32)
for row, out in zip(rows, found):
    if tower == "image":
        function, given = library.clip_image_encode, Picture(row.shape[1], row.shape[0], row.ctypes.data, row.size)
    else:
        function, given = library.clip_text_encode, Tokens(row.ctypes.data, int(row.argmax()) + 1)
    function.restype = ctypes.c_bool
    assert function(context, 2, ctypes.byref(given), ctypes.c_void_p(out.ctypes.data), ctypes.c_bool(False))
np.save(work / "found.npy", found)
"""


@pytest.fixture(scope="session")
def clip_cpp() -> Path:
    """Return the folder of clip.cpp's libraries."""
    pytest.importorskip("clip_cpp", reason="clip_cpp has wheels for Linux on x86-64 only")
    spec = find_spec("clip_cpp")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


@pytest.fixture
def run_clip_cpp(tmp_path: Path, clip_cpp: Path) -> Callable[..., NDArray[np.float32]]:
    """Give a function from a model, a tower and its inputs (pixels [n, s, s, 3], or ids) to clip.cpp's embeddings.

    It runs in a separate process: clip.cpp reads memory before it writes it, and is wrong in the third digit if
    that is not zero. In a new process, blocks of 64 KiB and more come zeroed from the system.
    """

    def run(model: Path, tower: Literal["image", "text"], given: NDArray[Any], dim: int) -> NDArray[np.float32]:
        np.save(tmp_path / "given.npy", np.ascontiguousarray(given))
        command: list[str | Path] = [sys.executable, "-c", RUN_CLIP_CPP, clip_cpp, model, tower, tmp_path, str(dim)]
        subprocess.run(command, check=True, env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"})
        found: NDArray[np.float32] = np.load(tmp_path / "found.npy")
        return found

    return run
