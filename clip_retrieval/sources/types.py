"""What sources yield: samples, failures, and states of files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from clip_retrieval.blobs import Blob, may_pass
from clip_retrieval.errors import first_line
from clip_retrieval.media.places import PlaceRef

SAMPLE_PARTS: tuple[Part, ...] = ("image", "text", "metadata")

Part = Literal["image", "text", "metadata", "shard", "other"]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the bytes of a picture are in its shard, so that `filter` can read them again."""

    shard: str
    offset: int | None
    size: int | None

    def __reduce__(self) -> tuple[type[Origin], tuple[object, ...]]:
        """Pickle as a call: frozen classes with slots otherwise take three times as long."""
        return Origin, (self.shard, self.offset, self.size)


@dataclass(frozen=True, slots=True)
class Sample:
    """One input sample; parts that are missing or not wanted are None."""

    key: str
    image_path: str | None
    image: Blob | PlaceRef | None
    text: Blob | PlaceRef | None
    metadata: Blob | None
    origin: Origin | None = None

    def __reduce__(self) -> tuple[type[Sample], tuple[object, ...]]:
        """Pickle as a call, as Origin does."""
        return Sample, (self.key, self.image_path, self.image, self.text, self.metadata, self.origin)


@dataclass(frozen=True, slots=True)
class Failure:
    """Something in the input that was left out, and why; `reason` is one word, used for counting."""

    key: str
    shard: str
    part: Part
    reason: str
    detail: str
    row_kept: bool = False

    @classmethod
    def of_shard(cls, url: str, reason: str, detail: str) -> Failure:
        """Return the failure of a whole tar, archive or table, or of the rest of one."""
        return cls("", url, "shard", reason, detail)

    @classmethod
    def of_rest(cls, url: str, row_count: int, error: Exception) -> Failure:
        """Return the failure of all rows of a table after the first `row_count`."""
        lost = f"what comes after row {row_count - 1}" if row_count else "no row"
        detail = f"{lost} {'cannot' if row_count else 'can'} be read: {first_line(error)}"
        return cls.of_shard(url, "unreadable" if may_pass(error) else "corrupt", detail)


class FileState(NamedTuple):
    """A file as its folder lists it; `stamp` (mtime or ETag) changes whenever the file does."""

    path: str
    size: int | None
    stamp: str


@runtime_checkable
class Inventory(Protocol):
    """A source whose samples are files that can change."""

    def files_of(self, key: str) -> Mapping[Part, FileState]:
        """Return the wanted files of the sample with this key."""
        ...
