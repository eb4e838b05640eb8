"""Checksums of files in an index folder, kept in its manifest: damage gives wrong answers without an error.

`index info --check` compares all files. Every opening compares sizes and, on this machine, the content of small files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO, Any

import xxhash

from clip_retrieval.errors import StorageError
from clip_retrieval.layout import IndexFolder, Modality, read_manifest
from clip_retrieval.storage import Folder

BYTES_AT_ONCE = 1 << 20
CHECKED_BYTES = 32_000_000  # largest file whose content is compared at every opening, in 3 to 16 ms

FileSums = dict[str, dict[str, Any]]  # key: name below the index folder; value: bytes and xxh3_64


def list_files(folder: Folder, name: str) -> list[str]:
    """Return the files of an index: the file itself, or the files in a folder of its name."""
    return [f"{name}/{file}" for file in folder.names(name, "")] if folder.is_folder(name) else [name]


def sum_files(folder: Folder, name: str) -> FileSums:
    """Return the checksums of all files of an index."""
    return {
        file: {"bytes": int(folder.fs.size(folder.path(file))), "xxh3_64": sum_file(folder, file)}
        for file in list_files(folder, name)
    }


def sum_file(folder: Folder, name: str) -> str:
    """Return the checksum of a file, in hexadecimal digits."""
    with folder.answering(), folder.open(name) as file:
        return sum_stream(file)


def sum_stream(file: IO[bytes]) -> str:
    """Return the checksum of what is left of an open file."""
    digest = xxhash.xxh3_64()
    while piece := file.read(BYTES_AT_ONCE):
        digest.update(piece)
    return digest.hexdigest()


def find_damage(folder: Folder, sums: Mapping[str, Any], most_bytes: float = float("inf")) -> StorageError | None:
    """Return what is wrong with these files; of files above `most_bytes` only the size is checked."""
    for name, said in sums.items():
        path = folder.path(name)
        with folder.answering():
            if not folder.fs.isfile(path):  # a device or a pipe, which a stranger's manifest may name, has no end
                return StorageError(f"{path} is missing or is not a file", advice="build the index again")
            size = int(folder.fs.size(path))
        if size != said["bytes"]:
            return StorageError(
                f"{path} has {size:,} bytes and had {said['bytes']:,} when it was written",
                advice="build the index again",
            )
        if size <= most_bytes and sum_file(folder, name) != said["xxh3_64"]:
            return StorageError(
                f"{path} is damaged: its bytes differ from what was written", advice="build the index again"
            )
    return None


def find_damage_beside(folder: Folder, most_bytes: float = float("inf")) -> StorageError | None:
    """Return what is wrong with the files next to the indices, by their checksums in the manifest."""
    return find_damage(folder, (read_manifest(folder) or {}).get("sums") or {}, most_bytes)


def checked_at_opening(folder: Folder) -> int:
    """Return the size of the largest file whose content is compared at every opening; 0 on a store."""
    return CHECKED_BYTES if folder.is_local else 0


def fingerprint_index(folder: IndexFolder, modality: Modality, about: Mapping[str, Any]) -> str:
    """Return a digest that tells one index from another, made of the checksums in the manifest.

    Without checksums, as in folders of clip-retrieval 2, it is made of the size and both ends of each file.
    """
    digest = xxhash.xxh3_64()
    sums: Mapping[str, Any] = about.get("sums") or {}
    for name in sorted(sums):
        digest.update(f"{name} {sums[name]['bytes']} {sums[name]['xxh3_64']}\n".encode())
    for name in [] if sums else list_files(folder, folder.index_name(modality)):
        with folder.answering(), folder.open(name) as file:
            size = file.seek(0, 2)
            for start in (0, max(0, size - BYTES_AT_ONCE)):
                file.seek(start)
                digest.update(file.read(BYTES_AT_ONCE))
            digest.update(str(size).encode())
    return digest.hexdigest()
