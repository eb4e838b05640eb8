"""Python's tarfile, told to read on after an end mark, and to say why the headers ended."""

from __future__ import annotations

import tarfile
from typing import Self


class Header(tarfile.TarInfo):
    """One header; why there are no more of them is noted on the Tar."""

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
