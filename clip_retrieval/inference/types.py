"""What flows through inference: Sample, prepared Row, Batch, and Failure for what falls out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.blobs import Blob
from clip_retrieval.encoder.base import Pixels

Part = Literal["image", "text", "metadata", "shard", "other"]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where in a shard the picture's bytes are, so that they can be found again."""

    shard: str
    offset: int | None
    size: int | None


@dataclass(frozen=True, slots=True)
class Sample:
    """One input row as the source found it; parts that are not wanted or not there are None."""

    key: str
    image_path: str | None
    image: Blob | None
    text: Blob | None
    metadata: Blob | None
    origin: Origin | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Something of the input that was left out, and why; `reason` is one word, to count by."""

    key: str
    shard: str
    part: Part
    reason: str
    detail: str
    row_kept: bool = False


@dataclass(slots=True)
class Row:
    """One sample after preparation; a dropped one will be no row, its failures say why."""

    key: str
    image_path: str | None
    caption: str | None
    metadata: dict[str, object] | None
    origin: Origin | None
    has_image: bool
    failures: list[Failure] = field(default_factory=list)
    is_dropped: bool = False
    digests: dict[Part, bytes] = field(default_factory=dict)  # of the parts' bytes, where the run keeps them


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows in input order, and what fell out since the batch before; the last one may have no rows."""

    rows: Sequence[Row]
    pixels: Pixels | None  # [rows with a picture, s, s, 3]; None where pictures are not wanted
    failures: Sequence[Failure]
    dropped_count: int  # samples that are no rows
    read_seconds: float = 0.0  # reader-seconds spent on the chunks that begin in it: reading bytes
    decode_seconds: float = 0.0  # decoding, resizing

    @property
    def image_rows(self) -> NDArray[np.int64]:
        return np.array([i for i, row in enumerate(self.rows) if row.has_image], dtype=np.int64)
