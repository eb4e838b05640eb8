"""Headers of regular files are read by a shorter way than tarfile's: it must say the same."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from clip_retrieval.sources.tar_headers import BLOCK, Tar, Window, read_regular


def header_bytes(
    name: str, size: int, form: Literal[0, 1, 2] = tarfile.USTAR_FORMAT, kind: bytes = tarfile.REGTYPE
) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.mtime, info.uname = size, kind, 1_700_000_000, "someone"
    return info.tobuf(form, "utf-8", "surrogateescape")[-tarfile.BLOCKSIZE :]


def with_checksum(header: bytes) -> bytes:
    blank = header[:148] + b" " * 8 + header[156:]
    return blank[:148] + b"%06o\0 " % sum(blank) + blank[156:]


SOUND = [
    *(header_bytes(name, size) for name in ("a.jpg", "d/é.jpg", "x" * 100) for size in (0, 1, 8**11 - 1)),
    header_bytes("a.jpg", 5, tarfile.GNU_FORMAT),
    with_checksum(header_bytes("a.jpg", 5).replace(b"00000000005\0", b"          5\0")),
    with_checksum(header_bytes("a.jpg", 5).replace(b"00000000005\0", b"\0" * 12)),
    with_checksum(header_bytes("a.jpg", 5).replace(b"00000000005\0", b"00000_00005\0")),  # tarfile takes it, too
]
LEFT_TO_TARFILE = [
    header_bytes("a.jpg", 8**11, tarfile.GNU_FORMAT),  # a size in binary
    header_bytes("a.jpg", 5, kind=tarfile.AREGTYPE),
    header_bytes("folder/" * 20 + "a.jpg", 5),  # the path has a part of its own
    header_bytes("a", 0, kind=tarfile.SYMTYPE),
    with_checksum(header_bytes("a.jpg", 5).replace(b"00000000005\0", b"-0000000005\0")),
    with_checksum(header_bytes("a.jpg", 5).replace(b"00000000005\0", b"000000000x5\0")),
    header_bytes("a.jpg", 5)[:-1],
    b"",
    bytes(BLOCK),
]


@pytest.mark.parametrize("header", SOUND)
def test_a_header_says_what_tarfile_reads_in_it(header: bytes) -> None:
    expected = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    got = read_regular(header, "utf-8", "surrogateescape")
    assert got is not None
    assert (got.name, got.size, got.type, got.chksum) == (
        expected.name, expected.size, expected.type, expected.chksum,
    )  # fmt: skip
    assert got.isfile()


@pytest.mark.parametrize("header", LEFT_TO_TARFILE)
def test_other_headers_are_left_to_tarfile(header: bytes) -> None:
    assert read_regular(header, "utf-8", "surrogateescape") is None


@pytest.mark.parametrize("place", [0, 50, 124, 150, 156, 260, 344, 400, 511])
def test_a_damaged_header_is_left_to_tarfile(place: int) -> None:
    header = bytearray(header_bytes("a.jpg", 5))
    header[place] ^= 1
    assert read_regular(bytes(header), "utf-8", "surrogateescape") is None


def test_members_are_the_same_wherever_they_lie(tmp_path: Path, write_tar: Callable[..., Path]) -> None:
    """Members near each other, far from each other, long names and pax headers in between."""
    sizes = [0, 1, 511, 512, 513, 5_000, 300_000, 3, 1_000_000, 7, 200_000] * 3
    names = [f"{i}{'x' * (150 if i % 7 == 3 else 1)}{'é' if i % 5 == 2 else ''}.jpg" for i in range(len(sizes))]
    path = write_tar(tmp_path / "a.tar", [(name, b"a" * size) for name, size in zip(names, sizes, strict=True)])
    with tarfile.open(path) as tar:
        expected = [(info.name, info.size, info.offset, info.offset_data) for info in tar]
    with path.open("rb") as file, Tar.open(fileobj=file, mode="r:") as quick:
        quick.window = Window(file)
        got = []
        for info in quick:
            got.append((info.name, info.size, info.offset, info.offset_data))
            quick.members = []  # type: ignore[attr-defined]
    assert got == expected
    assert [name for name, *_ in got] == names
