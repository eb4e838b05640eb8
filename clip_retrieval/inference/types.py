"""Types that flow through inference: the prepared Row and Batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.encoder.base import Pixels
from clip_retrieval.sources.types import Failure, Origin, Part, Sample


@dataclass(slots=True, kw_only=True)
class Row:
    """One sample after preparation; a dropped sample has no row; its failures say why."""

    key: str
    image_path: str | None
    caption: str | None
    metadata: dict[str, object] | None
    origin: Origin | None
    has_image: bool
    frame: int | None = None  # number of a frame in its video, from 0
    failures: list[Failure] = field(default_factory=list)
    is_dropped: bool = False
    digests: dict[Part, bytes] = field(
        default_factory=dict
    )  # hashes of the parts' bytes, if the run keeps a ledger of them

    @classmethod
    def of(cls, sample: Sample) -> Self:
        """Return the row of a sample before any part of it is prepared."""
        return cls(
            key=sample.key,
            image_path=sample.image_path,
            caption=None,
            metadata=None,
            origin=sample.origin,
            has_image=False,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Rows in input order, and the failures since the previous batch; the last batch may have no rows."""

    rows: Sequence[Row]
    pixels: Pixels | None  # [rows with a picture, s, s, 3]; None if pictures are not wanted
    failures: Sequence[Failure]
    dropped_count: int  # samples without a row
    read_seconds: float = 0.0  # reader-seconds of reading bytes, for the chunks that begin in this batch
    decode_seconds: float = 0.0  # reader-seconds of decoding and resizing
    warnings: Mapping[str, int] = field(default_factory=dict)  # warnings of the picture decoders, by reason

    @property
    def image_rows(self) -> NDArray[np.int64]:
        return np.array([i for i, row in enumerate(self.rows) if row.has_image], dtype=np.int64)
