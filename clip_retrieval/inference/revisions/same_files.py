"""Whether a tar or zip that is read again holds the pictures of the existing rows: another file may have its name."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from clip_retrieval.blobs import BlobRef
from clip_retrieval.inference.revisions.failed_samples import Failed
from clip_retrieval.sources.archive import Archive, ArchiveSource, Held
from clip_retrieval.sources.types import Failure
from clip_retrieval.sources.zips import is_stored
from clip_retrieval.words import clean, counted

logger = logging.getLogger(__name__)


@dataclass
class Pictures:
    """The pictures of one shard as they are now."""

    sizes: dict[str, set[int | None]] = field(default_factory=dict)  # key: image_path; None: the size is not known
    damage: list[Failure] = field(default_factory=list)

    def add(self, path: str, size: int | None) -> None:
        self.sizes.setdefault(clean(path), set()).add(size)

    def has(self, path: str, size: int | None) -> bool:
        """Say whether a picture is there; in a damaged shard it may be in the unreadable part."""
        sizes = self.sizes.get(path)
        return bool(self.damage) if sizes is None else size in sizes or size is None or None in sizes


def pictures_of(archive: Archive, source: ArchiveSource) -> Pictures:
    """Return the pictures of an archive by its list of members; none is read."""
    pictures = Pictures(damage=[failure for failure in archive.ignored if failure.part == "shard"])
    for name, joined in archive.samples.items():
        if joined.image is not None:
            pictures.add(source.path_of(archive, name), size_of(archive.members[joined.image]))
    return pictures


def size_of(member: Held) -> int | None:
    """Return the shard_size of a member, as in the metadata of its row."""
    if isinstance(member, zipfile.ZipInfo):
        return member.file_size if is_stored(member) else None
    return member.size if isinstance(member, BlobRef) and member.extents is None else None


def find_replaced(failed: Failed, shards: Mapping[str, Pictures]) -> dict[str, str]:
    """Return, by shard, a sentence on the shards that lack pictures of existing rows."""
    lacking: dict[str, list[str]] = {}
    for shard, path, size in failed.pictures:
        if shard in shards and not shards[shard].has(path, size):
            lacking.setdefault(shard, []).append(path)
    return {shard: say_replaced(shard, sorted(paths)) for shard, paths in lacking.items()}


def say_replaced(shard: str, paths: Sequence[str]) -> str:
    are = "is missing from it, or has another size" if len(paths) == 1 else "are missing from it, or have other sizes"
    return (
        f"{shard} is not the file that was embedded: {counted(len(paths), 'picture')} with a row {are}, such as "
        f"{paths[0]}; nothing of it is tried again, embed it into a new folder"
    )


def tell_of_unlisted(failed: Failed) -> None:
    """Warn that missing parts of shards are not searched if rows do not name their shard."""
    if failed.unlisted:
        others = f" (and {counted(len(failed.unlisted) - 1, 'other file')})" if len(failed.unlisted) > 1 else ""
        logger.warning(
            "what could not be read of %s%s is not looked for again, since these rows do not name their file; embed "
            "it into a new folder once it is whole",
            failed.unlisted[0], others,
        )  # fmt: skip
