"""npy files of embeddings, here and on stores: what their headers say, and their rows."""

from __future__ import annotations

import io
import math
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from clip_retrieval.blobs import POINTER_BYTES, with_retries
from clip_retrieval.errors import DAMAGED_NPY, IndexBuildError, describe_os_error
from clip_retrieval.git_lfs import describe_pointer
from clip_retrieval.local_files import check_regular
from clip_retrieval.storage import Folder

HEADER_BYTES = 4096  # NumPy writes 128 for a two-dimensional array of numbers
ZIP = b"PK"
OTHER_KIND = "it is a file of another kind"
FORMAT: Any = npy_format  # numpy.lib.format has no type hints
HEADER_READERS = {(1, 0): FORMAT.read_array_header_1_0, (2, 0): FORMAT.read_array_header_2_0}


@dataclass(frozen=True)
class Shape:
    """The header of an npy file."""

    axes: tuple[int, ...]
    dtype: np.dtype[Any]
    in_rows: bool  # in C order
    byte_count: int  # bytes of the numbers, without the header
    rest: int = 0  # bytes of the file after them


def read_shape(folder: Folder, name: str) -> Shape:
    """Read a file's header, without the rest; raises IndexBuildError if header or file is cut off."""
    if folder.is_local:
        rows = open_npy(folder, name)
        return Shape(rows.shape, rows.dtype, bool(rows.flags.c_contiguous), rows.nbytes)
    try:
        return parse_header(*read_head(folder, name))
    except (ValueError, EOFError, OSError) as error:
        raise unreadable(folder, name, error) from error


def read_head(folder: Folder, name: str) -> tuple[bytes, int | None]:
    """Return the first bytes of a file on a store, and its size if the store says it."""
    path = folder.path(name)
    with folder.answering():
        size = folder.fs.size(path)
        end = HEADER_BYTES if size is None else min(HEADER_BYTES, int(size))
        head: bytes = with_retries(folder.fs, lambda: folder.fs.cat_file(path, start=0, end=end)) if end else b""
    return head, size


def parse_header(head: bytes, size: int | None) -> Shape:
    """Parse a header; raises ValueError if it is not one, or promises more bytes than the file has."""
    if head.startswith(ZIP):
        raise ValueError("it is an archive of several arrays")
    if head and not head.startswith(FORMAT.MAGIC_PREFIX):
        raise ValueError(OTHER_KIND)
    file = io.BytesIO(head)
    axes, dtype, in_rows = read_header(file)
    byte_count = math.prod(axes) * dtype.itemsize
    whole = file.tell() + byte_count
    if size is not None and size < whole:
        raise ValueError(f"it has {size:,} bytes, and should have {whole:,}")
    return Shape(axes, dtype, in_rows, byte_count, 0 if size is None else size - whole)


def read_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    """Read the header of an open file: axes, kind of number, and whether it is in C order; raises ValueError."""
    version = FORMAT.read_magic(file)
    if version not in HEADER_READERS:
        raise ValueError("it holds records, not numbers")
    axes, is_in_columns, dtype = HEADER_READERS[version](file)
    return axes, dtype, not is_in_columns


def check_rows(folder: Folder, name: str, row_count: int, dimension: int) -> None:
    """Check that a file is whole, and has rows of this shape: only header and size are read.

    Raises IndexBuildError if it is not, and OSError if the file is missing or cannot be read.
    """
    if folder.is_local:
        check_regular(folder.path(name))
    try:
        shape = parse_header(*read_head(folder, name))
    except DAMAGED_NPY as error:
        raise unreadable(folder, name, error) from error
    if shape.rest:
        raise unreadable(folder, name, f"{shape.rest:,} bytes follow its rows")
    if shape.axes != (row_count, dimension):
        axes = " x ".join(f"{length:,}" for length in shape.axes) or "one"
        raise unreadable(folder, name, f"it holds {axes} numbers, and should hold {row_count:,} x {dimension:,}")
    if shape.dtype.kind != "f" or not shape.in_rows:
        raise unreadable(folder, name, "it does not hold floating-point numbers in rows")


def open_npy(folder: Folder, name: str) -> NDArray[Any]:
    """Return the rows: memory-mapped if the folder is on this machine."""
    try:
        if folder.is_local:
            check_regular(folder.path(name))
            rows = np.load(folder.path(name), mmap_mode="r", allow_pickle=False)
        else:
            rows = np.load(io.BytesIO(folder.read_bytes(name)), allow_pickle=False)
    except ValueError as error:
        raise unreadable(folder, name, error if begins_as_array(folder, name) else OTHER_KIND) from error
    except PermissionError as error:
        raise IndexBuildError(f"cannot read {describe_os_error(error)}") from error
    except (OSError, *DAMAGED_NPY) as error:
        raise unreadable(folder, name, error) from error
    if not isinstance(rows, np.ndarray):
        rows.close()
        raise unreadable(folder, name, "it is an archive of several arrays")
    return rows


def begins_as_array(folder: Folder, name: str) -> bool:
    """Say whether a file is npy or npz; NumPy would take any other file for a pickle."""
    with folder.open(name) as file:
        return file.read(len(FORMAT.MAGIC_PREFIX)).startswith((FORMAT.MAGIC_PREFIX, ZIP))


def unreadable(folder: Folder, name: str, why: object) -> IndexBuildError:
    with suppress(OSError), folder.open(name) as file:
        why = describe_pointer(file.read(POINTER_BYTES)) or why
    return IndexBuildError(f"{folder.path(name)} is not a readable npy file: {why}")


def in_fortran_order(path: str) -> IndexBuildError:
    return IndexBuildError(f"{path} is in Fortran order; save it with numpy.ascontiguousarray first")
