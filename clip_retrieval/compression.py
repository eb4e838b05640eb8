"""Compressed files, recognized by their first bytes, not by their names: gzip, bzip2, xz and zstandard."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable
from typing import IO, Any, cast

SUFFIXES = (".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".tzst")
MAGIC_BYTES = 10
DAMAGE = (zlib.error, lzma.LZMAError, gzip.BadGzipFile)  # what decompressors raise: damaged bytes, which stay so
BZIP2 = re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)")  # a first block, or the end of an empty file


class ZstdReader(io.RawIOBase):
    """Decompresses zstandard with pyarrow, since Python has no zstandard before 3.14."""

    def __init__(self, file: IO[bytes]) -> None:
        import pyarrow as pa

        self.stream: Any = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self.stream.read(len(buffer))
        except OSError as error:
            if "Truncated" not in str(error):
                raise
            raise EOFError("Compressed file ended before the end-of-stream marker was reached") from error
        buffer[: len(data)] = data
        return len(data)


def opener_of(magic: bytes) -> Callable[[IO[bytes]], Any] | None:
    """Return the opener that decompresses a file with these first bytes; None if it is not compressed."""
    if magic.startswith(b"\x1f\x8b\x08"):
        return gzip.open
    if BZIP2.match(magic):
        return bz2.open
    if magic.startswith(b"\xfd7zXZ\x00"):
        return lzma.open
    return (lambda file: io.BufferedReader(ZstdReader(file))) if magic.startswith(b"\x28\xb5\x2f\xfd") else None


def decompressed(file: IO[bytes]) -> IO[bytes]:
    """Return a reader of the plain bytes of a file that can seek: the file itself if it is not compressed."""
    opener = opener_of(file.read(MAGIC_BYTES))
    file.seek(0)
    return file if opener is None else cast("IO[bytes]", opener(file))
