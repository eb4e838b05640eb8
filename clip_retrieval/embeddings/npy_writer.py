"""An npy file that grows row by row: memory stays flat, and the finished file is what numpy.save writes."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

HEADER_BYTES = 128  # numpy pads its header to a multiple of 64; these shapes always end at 128


class NpyWriter:
    """Appends rows [n, d] of one dtype, and writes the row count into the header at the end."""

    def __init__(self, path: Path, dim: int, dtype: np.dtype[np.floating[Any]]) -> None:
        self.path, self.dim, self.dtype = path, dim, dtype
        self.row_count = 0
        self.file = path.open("wb")
        self.file.write(b"\0" * HEADER_BYTES)

    def append(self, rows: NDArray[np.float32]) -> None:
        self.file.write(np.ascontiguousarray(rows, dtype=self.dtype).tobytes())
        self.row_count += len(rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.file.seek(0)
            header = {
                "descr": self.dtype.str,
                "fortran_order": False,
                "shape": (self.row_count, self.dim),
            }
            np.lib.format.write_array_header_1_0(self.file, header)  # type: ignore[no-untyped-call]
            assert self.file.tell() == HEADER_BYTES
        self.file.close()
