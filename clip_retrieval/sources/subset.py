"""The first samples of an input, for a try: `--subset_size`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, cast

from clip_retrieval.sources.config import SourceConfig
from clip_retrieval.sources.files import FilesSource
from clip_retrieval.sources.protocol import Source
from clip_retrieval.sources.types import Failure, Sample


def take_first(source: Source, size: int) -> Source:
    """Return the source of the first samples alone."""
    return source.first(size) if isinstance(source, FilesSource) else Subset(source, size)


@dataclass(frozen=True)
class Subset:
    """A source of one unit: tars and tables hold unknown numbers of samples, so only one reader can count them."""

    whole: Source
    size: int

    @property
    def config(self) -> SourceConfig:
        return self.whole.config

    @property
    def units(self) -> Sequence[str]:
        return (f"the first {self.size} samples",)

    @property
    def samples_per_unit(self) -> int:
        return self.size

    def read(self, start: int, stop: int) -> Iterator[Sample | Failure]:
        """Yield samples until there are enough, with what is left out before the last one of them."""
        left = self.size if start == 0 < stop else 0
        if not left:
            return
        with closing(cast("Any", self.whole.read(0, len(self.whole.units)))) as items:
            for item in items:
                yield item
                left -= isinstance(item, Sample)
                if not left:
                    return

    def estimate_total(self) -> int:
        total = self.whole.estimate_total()
        return self.size if total is None else min(self.size, total)
