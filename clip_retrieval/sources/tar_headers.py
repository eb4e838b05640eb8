"""Python's tarfile, changed to read on after an end mark, to say why the headers ended, and to be fast."""

from __future__ import annotations

import os
import tarfile
from typing import IO, Self

BLOCK = tarfile.BLOCKSIZE
SIZE, CHECKSUM, TYPE, LAST = slice(124, 136), slice(148, 156), slice(156, 157), 345  # fields of a header (POSIX ustar)
NO_PREFIX = bytes(BLOCK - LAST)
NEAR_BYTES, WINDOW_BYTES, FAR_BYTES = 1 << 17, 1 << 18, 1 << 12  # read ahead if the next header is near, or is not


class Header(tarfile.TarInfo):
    """One header; why there are no more headers is noted on the Tar."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        assert isinstance(tar, Tar)
        tar.depth += 1
        try:
            while True:
                try:
                    header = super().fromtarfile(tar)
                except tarfile.HeaderError as error:
                    tar.end = type(error).__name__  # tarfile does not export these classes
                    # A zero block right after a long name or pax header is damage: the next member is not theirs.
                    if tar.end != "EOFHeaderError" or tar.depth > 1:
                        raise
                    tar.has_end_mark = True
                else:
                    tar.has_end_mark = False
                    return header
        finally:
            tar.depth -= 1


class Tar(tarfile.TarFile):
    """A TarFile that goes on after end marks: tars are joined with `cat`, and damaged disks leave blocks of zeros."""

    tarinfo = Header
    depth = 0
    has_end_mark = False
    end = ""  # class of the error that ended the headers; tarfile itself takes damage for a proper end
    firstmember: tarfile.TarInfo | None  # tarfile's own: read when the tar was opened
    window: Window | None = None  # set: headers of regular files are read there, and all others by tarfile

    def next(self) -> tarfile.TarInfo | None:
        if self.window is not None and self.firstmember is None and not self.pax_headers:
            header = read_regular(self.window.block(self.offset), self.encoding or "utf-8", self.errors or "strict")
            if header is not None:
                header.offset, header.offset_data = self.offset, self.offset + BLOCK
                self.offset = header.offset_data + -(-header.size // BLOCK) * BLOCK
                self.has_end_mark = False
                return header
        return super().next()


class Window:
    """Blocks of a local file, many of them in one read: each read lets other threads run first."""

    def __init__(self, file: IO[bytes]) -> None:
        self.descriptor = file.fileno()
        self.start, self.data = 0, b""

    def block(self, offset: int) -> bytes:
        """Return the 512 bytes there, or fewer at the end."""
        place = offset - self.start
        if not 0 <= place <= len(self.data) - BLOCK:
            is_near = 0 <= place - len(self.data) < NEAR_BYTES
            self.start, self.data = offset, os.pread(self.descriptor, WINDOW_BYTES if is_near else FAR_BYTES, offset)
            place = 0
        return self.data[place : place + BLOCK]


def read_regular(block: bytes, encoding: str, errors: str) -> Header | None:
    """Return the header of a regular file; None for what tarfile is to read: other kinds, sizes and damage."""
    if block[TYPE] != tarfile.REGTYPE or block[LAST:] != NO_PREFIX:
        return None
    try:
        size, checksum = as_octal(block[SIZE]), as_octal(block[CHECKSUM])
        name = block[:100].partition(b"\0")[0].decode(encoding, errors)
    except ValueError:
        return None
    if size < 0 or checksum != sum(block[:LAST]) - sum(block[CHECKSUM]) + 8 * ord(" "):
        return None
    header = Header(name)
    header.size, header.chksum = size, checksum
    return header


def as_octal(field: bytes) -> int:
    return int(field.partition(b"\0")[0].strip() or b"0", 8)
