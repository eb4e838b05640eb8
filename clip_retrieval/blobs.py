"""Reads files and parts of files, at any url that fsspec or `pipe:` can open."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar
from uuid import uuid4

from clip_retrieval import compression
from clip_retrieval.errors import StorageError, first_line
from clip_retrieval.git_lfs import describe_pointer
from clip_retrieval.paths import PIPE, describe_special, is_on_store, is_pipe, local_path, without_query

T = TypeVar("T")
Opener = Callable[[str], AbstractContextManager[IO[bytes]]]
Stamp = tuple[int, int, int, int]  # of a local file: device, inode, size, mtime in nanoseconds
OWN_MODULES = sys.stdlib_module_names | {"clip_retrieval", "pyarrow"}
POINTER_BYTES = 64  # enough of a file to recognize a Git LFS pointer
LARGEST_BLOB = 1 << 29  # bytes of one picture, caption or json; /dev/zero and sparse files give any number
SKIP_BYTES = 1 << 20
STORE_RETRIES = 3
FIRST_PAUSE = 0.2  # seconds; doubles after each try
FINAL_ERRORS = (
    *(FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ImportError, ValueError),
    CancelledError,  # the reader has given up
)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
STOPPED_EARLY = (-13, 141)  # exit by SIGPIPE, directly or in a shell: we closed the pipe early


class BlobRef(NamedTuple):
    """A reference to bytes in a file, read when they are needed."""

    url: str
    offset: int = 0
    size: int | None = None  # None: to the end of the file
    crc: int | None = None  # CRC-32 that the bytes must have, if an archive keeps one
    extents: tuple[tuple[int, int], ...] | None = None  # (place, size) of the data of a sparse file; the rest is zeros
    stamp: Stamp | None = None  # of the listed file; a file with another stamp is not read


class Lost(NamedTuple):
    """Bytes that cannot be read, and why: `reason` is one word for counting, `detail` a sentence."""

    reason: str
    detail: str


Blob = bytes | BlobRef | Lost


class LostError(OSError):
    """A Lost blob was read, or a blob was refused; `reason` is one word for counting."""

    def __init__(self, lost: Lost) -> None:
        super().__init__(lost.detail)
        self.reason = lost.reason


class StoreError(OSError):
    """An error of a store's library, as an OSError."""


def read_blob(blob: Blob, opener: Opener | None = None) -> bytes:
    """Return the bytes; raises OSError if they cannot be read, are damaged, or exceed LARGEST_BLOB.

    `opener` opens the file of a BlobRef; None: `open_url`.
    """
    if isinstance(blob, Lost):
        raise LostError(blob)
    data = blob if isinstance(blob, bytes) else checked(blob, read_ref(blob, opener or open_url))
    pointer = describe_pointer(data)
    if pointer is not None:
        raise LostError(Lost("git_lfs_pointer", pointer))
    return data


def read_file(path: Path) -> bytes:
    """Return the bytes of a local file, even if its name looks like a url; raises OSError as `read_blob` does."""
    return read_blob(BlobRef(str(path.absolute())))


def read_ref(ref: BlobRef, opener: Opener) -> bytes:
    """Return the referenced bytes, fewer if the file ends early."""
    if ref.size is not None and ref.size > LARGEST_BLOB:
        raise LostError(too_large(ref.size))
    is_member = ref.size is not None  # offsets of members count decompressed bytes
    is_compressed = without_query(ref.url).endswith(compression.SUFFIXES)
    if is_on_store(ref.url) and not is_compressed and not (is_member and is_packed(ref.url)):
        return read_from_store(ref)
    path = None if is_compressed or is_member else local_path(ref.url)
    if path is not None and (size := path.stat().st_size) > LARGEST_BLOB:
        raise LostError(too_large(size))
    with (opener if path is None else open_raw)(ref.url) as file:
        skip(file, ref.offset)
        is_sparse = ref.extents is not None
        data = read_sparse(file, ref.size or 0, ref.extents or ()) if is_sparse else read_most(file, ref.size)
        if ref.stamp is not None and stamp_of(file) != ref.stamp:  # after reading: it may have changed until then
            raise LostError(replaced(ref.url))
        return data


def stamp_of(file: IO[bytes]) -> Stamp:
    """Return numbers that differ if another file takes this one's name, or if this file changes."""
    about = os.fstat(file.fileno())
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns


def replaced(url: str) -> Lost:
    return Lost("replaced", f"{url} was replaced or changed while it was read; read it again")


def check_regular(path: Path) -> None:
    """Raise LostError unless the path is a regular file; OSError if nothing is there."""
    kind = "a folder" if path.is_dir() else describe_special(path)
    if kind is not None:
        raise LostError(Lost("not_a_file", f"{path} is {kind}, not a file"))


def read_most(file: IO[bytes], size: int | None) -> bytes:
    data = file.read(LARGEST_BLOB + 1 if size is None else size)
    if len(data) > LARGEST_BLOB:
        raise LostError(too_large(None))
    return data


def read_sparse(file: IO[bytes], size: int, extents: tuple[tuple[int, int], ...]) -> bytes:
    """Return the content of a sparse file, with its holes; its pieces of data follow each other in `file`."""
    data = bytearray(size)
    for place, count in extents:
        data[place : place + count] = file.read(count)
    return bytes(data)


def too_large(size: int | None) -> Lost:
    held = "" if size is None else f": {size:,}"
    return Lost("too_large", f"more than {LARGEST_BLOB:,} bytes for one picture or text{held}")


def checked(ref: BlobRef, data: bytes) -> bytes:
    """Return the bytes; raises LostError if they do not match the archive's checksum."""
    if ref.crc is not None and zlib.crc32(data) != ref.crc:
        raise LostError(Lost("corrupt", "the bytes do not have the checksum (CRC-32) that the archive keeps of them"))
    return data


@cache
def is_packed(url: str) -> bool:
    """Say whether a tar on a store is compressed, though its name does not say so."""
    if not without_query(url).endswith(".tar"):
        return False
    return compression.opener_of(read_from_store(BlobRef(url, 0, compression.MAGIC_BYTES))) is not None


def open_store(url: str) -> tuple[Any, str]:
    """Return the file system of a url, and the path in it. Raises ValueError or ImportError as fsspec does."""
    import fsspec  # noqa: PLC0415 -- 30 to 50 ms, which a command on this machine's files does not need

    fs, path = fsspec.core.url_to_fs(url)
    return fs, path


def read_from_store(ref: BlobRef) -> bytes:
    """Return the bytes with one request, retried if the error may pass; raises OSError."""
    start = ref.offset or None
    end = None if ref.size is None else ref.offset + ref.size
    with store_errors(ref.url):
        fs, path = open_store(ref.url)
        # otherwise s3fs asks for the size first, and does not retry the parts of an object
        options = {"max_concurrency": 1} if "s3" in fs.protocol else {}
        data: bytes = with_retries(fs, lambda: fs.cat_file(path, start=start, end=end, **options))
    if ref.size is not None and len(data) != ref.size:
        raise StoreError(f"{ref.url} gave {len(data):,} bytes where {ref.size:,} were asked for")
    return data


def tries_itself(fs: Any) -> bool:
    """Say whether the store's library retries by itself, as s3fs, gcsfs (attribute `retries`) and adlfs do."""
    return hasattr(fs, "retries") or "abfs" in fs.protocol


def with_retries(fs: Any, read: Callable[[], T]) -> T:
    """Read from a store and retry on errors that may pass, unless the store's library does that itself."""
    for tries in range(0 if tries_itself(fs) else STORE_RETRIES):
        try:
            return read()
        except FINAL_ERRORS:
            raise
        except Exception:  # stores raise errors of their own types  # noqa: BLE001
            time.sleep(FIRST_PAUSE * 2**tries)
    return read()


@contextmanager
def store_errors(url: str) -> Iterator[None]:
    """Turn errors of a store's library, such as botocore's, into an OSError that names the url."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] in OWN_MODULES:
            raise  # an error of Python or of ours, from the code inside the with block
        raise StoreError(f"{url} cannot be read or written: {first_line(error)}") from error


def may_pass(error: BaseException) -> bool:
    """Say whether a later try may succeed: the error is from the system or a store, not from damaged bytes."""
    is_system = isinstance(error, OSError) and error.errno is not None
    return is_system or isinstance(error, LostError | StoreError | TimeoutError | ConnectionError)


def skip(file: IO[bytes], count: int) -> None:
    """Move forward, by reading if the file cannot seek."""
    if file.seekable():
        file.seek(count)
        return
    while count > 0:
        got = len(file.read(min(count, SKIP_BYTES)))
        if not got:
            return
        count -= got


@contextmanager
def open_pipe(command: str) -> Iterator[IO[bytes]]:
    """Read the output of a shell command; raises OSError if it failed, after all output was read.

    webdataset's own pipe looks at the exit code after each read, and loses what is still buffered then.
    """
    with subprocess.Popen(command, shell=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield process.stdout
    if process.returncode not in (0, *STOPPED_EARLY):
        raise OSError(f"the command ended with code {process.returncode}")


@contextmanager
def open_url(url: str) -> Iterator[IO[bytes]]:
    """Open a url for reading, decompressed if it is gzip, bzip2, xz or zstandard."""
    if is_pipe(url):
        with open_pipe(url.removeprefix(PIPE)) as stream:
            yield stream
        return
    with store_errors(url), open_raw(url) as file, compression.decompressed(file) as plain:
        yield plain


def is_plain(url: str, file: IO[bytes]) -> bool:
    """Say whether a file from `open_url` is local and not compressed, so that offsets into it are valid."""
    return local_path(url) is not None and isinstance(getattr(file, "raw", None), io.FileIO)


@contextmanager
def open_raw(url: str) -> Iterator[IO[bytes]]:
    """Open a file without decompressing it; raises LostError if it is a named pipe or a device."""
    path = local_path(url)
    if path is not None:
        check_regular(path)
        with path.open("rb") as file:
            yield file
        return
    fs, name = open_store(url)  # fs must stay referenced: files inside archives close with it
    with with_retries(fs, lambda: fs.open(name, "rb")) as file:
        yield file


def fetch_to_cache(url: str, cache_path: str) -> str:
    """Copy a file, decompressed, into the cache folder unless it is there; return the path of the copy."""
    folder = Path(cache_path)
    folder.mkdir(parents=True, exist_ok=True)
    name = Path(without_query(url)).name[-80:].replace(" ", "_")
    target = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}"
    if not target.exists():
        partial = target.with_name(f"{target.name}.{uuid4().hex[:8]}.partial")
        try:
            with open_url(url) as source, partial.open("wb") as copy:
                shutil.copyfileobj(source, copy, SKIP_BYTES)
            partial.replace(target)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            raise StorageError(f"cannot write to {cache_path}: {os.strerror(error.errno)}; make room there") from error
        finally:
            partial.unlink(missing_ok=True)
    return str(target)
