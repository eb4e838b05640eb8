"""Bytes where they lie: whole files and parts of them, behind any url that fsspec or `pipe:` can open."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, cast
from uuid import uuid4

import fsspec

PIPE = "pipe:"
DECOMPRESSORS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}
SKIP_BYTES = 1 << 20
STOPPED_EARLY = (-13, 141)  # SIGPIPE, or the shell's word for it: the rest was not wanted


class BlobRef(NamedTuple):
    """Bytes that are still where they were found; who needs them reads them."""

    url: str
    offset: int = 0
    size: int | None = None  # None: to the end of the file


Blob = bytes | BlobRef


def read_blob(blob: Blob) -> bytes:
    """Return the bytes; raises OSError where they cannot be read."""
    if isinstance(blob, bytes):
        return blob
    with open_url(blob.url) as file:
        skip(file, blob.offset)
        return file.read(-1 if blob.size is None else blob.size)


def skip(file: IO[bytes], count: int) -> None:
    """Move forward, by reading where the file cannot seek."""
    if file.seekable():
        file.seek(count)
        return
    while count > 0:
        got = len(file.read(min(count, SKIP_BYTES)))
        if not got:
            return
        count -= got


def local_path(url: str) -> Path | None:
    """Return the path of a url on this machine's file system, else None."""
    if url.startswith("file://"):
        return Path(url.removeprefix("file://"))
    if url.startswith("/"):
        return Path(url)
    return None if url.startswith(PIPE) or "://" in url or "::" in url else Path(url).expanduser()


@contextmanager
def open_pipe(command: str) -> Iterator[IO[bytes]]:
    """Read what a shell command writes; raises OSError at the end, after all of it, where the command failed.

    webdataset's own pipe looks at the exit code after each read, and loses what is still buffered then.
    """
    with subprocess.Popen(command, shell=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield process.stdout
    if process.returncode not in (0, *STOPPED_EARLY):
        raise OSError(f"the command ended with code {process.returncode}")


@contextmanager
def open_url(url: str) -> Iterator[IO[bytes]]:
    """Open a url for reading, decompressed where it is gzip, bzip2 or xz."""
    if url.startswith(PIPE):
        with open_pipe(url.removeprefix(PIPE)) as stream:
            yield stream
        return
    path = local_path(url)
    with path.open("rb") if path else fsspec.open(url, "rb").open() as file:
        magic = file.read(2)
        file.seek(0)
        if magic in DECOMPRESSORS and url.endswith((".gz", ".tgz", ".bz2", ".xz")):
            with DECOMPRESSORS[magic](file) as plain:
                yield cast("IO[bytes]", plain)
        else:
            yield cast("IO[bytes]", file)


def fetch_to_cache(url: str, cache_path: str) -> str:
    """Copy what a url gives into the cache folder, once; return the path of the copy."""
    folder = Path(cache_path)
    folder.mkdir(parents=True, exist_ok=True)
    name = Path(url.split("?")[0]).name[-80:].replace(" ", "_")
    target = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}"
    if not target.exists():
        partial = target.with_name(f"{target.name}.{uuid4().hex[:8]}.partial")
        try:
            with open_url(url) as source, partial.open("wb") as copy:
                shutil.copyfileobj(source, copy, SKIP_BYTES)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    return str(target)
