"""An npy file that grows row by row: memory stays flat, and the finished file is what numpy.save writes."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import xxhash
from numpy.typing import NDArray

HEADER_BYTES = 128  # numpy pads its header to a multiple of 64; these shapes always end at 128


class NpyWriter:
    """Appends rows [n, d] of one dtype, and writes the row count into the header at the end."""

    def __init__(self, path: Path, dim: int, dtype: np.dtype[np.floating[Any]]) -> None:
        self.path, self.dim, self.dtype = path, dim, dtype
        self.row_count = 0
        self.digest = xxhash.xxh3_64()
        self.file = path.open("wb")
        self.file.write(b"\0" * HEADER_BYTES)

    def append(self, rows: NDArray[np.floating[Any]]) -> None:
        stored = np.ascontiguousarray(rows, dtype=self.dtype).data
        self.file.write(stored)
        self.digest.update(stored)
        self.row_count += len(rows)

    @property
    def checksum(self) -> str:
        """The checksum of the rows so far, in hexadecimal digits; the header is none of them."""
        return self.digest.hexdigest()

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
