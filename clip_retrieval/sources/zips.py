"""The members of a zip: their offsets, checksums and links, and why one cannot be read."""

from __future__ import annotations

import lzma
import posixpath
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator

from clip_retrieval.blobs import LARGEST_BLOB, Blob, BlobRef, Lost, Stamp, open_raw
from clip_retrieval.errors import first_line
from clip_retrieval.paths import local_path
from clip_retrieval.sources.links import Entries, Entry
from clip_retrieval.sources.tar import Damage
from clip_retrieval.sources.zip_headers import LOCAL_HEADER, LOCAL_MAGIC, length_of_fields

ENCRYPTED = 0x1
DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError, OSError)
LONGEST_TARGET = 4096  # bytes of the path that a link holds


def list_zip(url: str) -> Iterator[tuple[str, zipfile.ZipInfo | Lost | Damage]]:
    """Yield the name of each file in a zip with its member; for a symbolic link, the member it leads to, or Lost.

    A Damage comes first if zips were joined: the list of members at the end is that of the last one.
    """
    with open_raw(url) as file, zipfile.ZipFile(file) as zipped:
        yield from find_joined(zipped)
        infos = [info for info in zipped.infolist() if not info.is_dir()]
        targets = {info.filename: target_of(info, zipped) for info in infos if is_link(info)}
        links = {name: target for name, target in targets.items() if target is not None}
        entries = Entries(is_whole=True)
        for info in infos if links else ():
            if info.filename in links:
                entries.add(Entry(name=info.filename, kind="symbolic", target=links[info.filename]))
            else:
                entries.add(Entry(name=info.filename, kind="file", blob=b""))
        for info in infos:
            member: zipfile.ZipInfo | Lost = info
            if info.filename in links:
                found = entries.follow(Entry(name=info.filename, kind="symbolic", target=links[info.filename]))
                member = found if isinstance(found, Lost) else zipped.getinfo(found.name)
            yield info.filename, member


def find_joined(zipped: zipfile.ZipFile) -> Iterator[tuple[str, Damage]]:
    """Yield a Damage if another zip comes before this one; other bytes before it are a program that unpacks it."""
    start = min((info.header_offset for info in zipped.infolist()), default=0)
    file = zipped.fp
    assert file is not None
    file.seek(0)
    if start and file.read(len(LOCAL_MAGIC)) == LOCAL_MAGIC:
        detail = f"its first {start:,} bytes are another zip, whose members are left out; give each zip a file"
        yield "", Damage("corrupt", detail)


def is_link(info: zipfile.ZipInfo) -> bool:
    return stat.S_ISLNK(info.external_attr >> 16) and info.file_size <= LONGEST_TARGET


def target_of(info: zipfile.ZipInfo, zipped: zipfile.ZipFile) -> str | None:
    """Return what a link holds; None for a damaged one, whose reader treats it as a file and says what is wrong."""
    try:
        return zipped.read(info).decode("utf-8", "surrogateescape")
    except DAMAGE:
        return None


def read_member(info: zipfile.ZipInfo, url: str, zipped: zipfile.ZipFile, stamp: Stamp | None = None) -> Blob:
    """Return a member's bytes, a reference to them if the zip is local, or Lost if they cannot be read."""
    name = info.filename
    if info.flag_bits & ENCRYPTED:
        return Lost("encrypted", f"{name} is encrypted; unpack the archive with its password first")
    if info.file_size > LARGEST_BLOB:
        return Lost("too_large", f"{name} unpacks to {info.file_size:,} bytes, more than {LARGEST_BLOB:,}")
    try:
        if is_stored(info) and local_path(url) is not None:
            return BlobRef(url, place_of(info, zipped), info.file_size, crc=info.CRC, stamp=stamp)
        return zipped.read(info)
    except DAMAGE as error:
        known = ((NotImplementedError, "compression"), (OSError, "unreadable"))
        reason = next((word for kind, word in known if isinstance(error, kind)), "corrupt")
        return Lost(reason, f"{name}: {first_line(error)}")


def find_member(name: str, url: str) -> Blob:
    """Return the bytes of a zip's member, or a reference to them; `name` is as in metadata. Raises OSError.

    Of several members with one name it is the first, as in metadata; zipfile itself takes the last.
    """
    wanted = plain_name(name)
    with open_raw(url) as file, zipfile.ZipFile(file) as zipped:
        info = next((info for info in zipped.infolist() if plain_name(info.filename) == wanted), None)
        if info is None:
            raise FileNotFoundError(f"{url} has no {name} any more")
        return read_member(info, url, zipped)


def plain_name(name: str) -> str:
    """Return the name of a member without parts that change nothing, such as a/b.jpg for ./a//b.jpg."""
    return posixpath.normpath(name).lstrip("/")


def is_stored(info: zipfile.ZipInfo) -> bool:
    return info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & ENCRYPTED


def place_of(info: zipfile.ZipInfo, zipped: zipfile.ZipFile) -> int:
    """Return the offset of a stored member's bytes: after its local header, whose length only that header says."""
    file = zipped.fp
    assert file is not None
    file.seek(info.header_offset)
    header = file.read(LOCAL_HEADER)
    if len(header) < LOCAL_HEADER or not header.startswith(LOCAL_MAGIC):
        raise zipfile.BadZipFile("no member begins where the list of members says so")
    return info.header_offset + LOCAL_HEADER + length_of_fields(header)


def is_zip(url: str) -> bool:
    """Say whether a file is a zip, or a program that unpacks itself: a zip with something before it.

    A tar whose last member is a zip is not a zip.
    """
    with open_raw(url) as file:
        first = file.read(tarfile.BLOCKSIZE)
        return first.startswith(b"PK") or (not begins_a_tar(first) and zipfile.is_zipfile(file))


def begins_a_tar(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, tarfile.ENCODING, "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True
