"""What every source of samples offers."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from typing import Protocol, runtime_checkable

from clip_retrieval.sources.config import SourceConfig
from clip_retrieval.sources.types import Failure, Sample


class Source(Protocol):
    """An ordered input, divided into units; a partition is a range of them."""

    @property
    def config(self) -> SourceConfig:
        """The options; enable_text or enable_image is off if the input has no such part."""
        ...

    @property
    def units(self) -> Sequence[str]:
        """The names of the units, in order: samples of a folder, tars, or ranges of table rows."""
        ...

    @property
    def samples_per_unit(self) -> int | None:
        """The approximate number of samples per unit; None if unknown before reading."""
        ...

    def read(self, start: int, stop: int) -> Iterator[Sample | Failure]:
        """Yield the samples of units [start, stop) in input order, and a Failure for everything that is left out."""
        ...

    def estimate_total(self) -> int | None:
        """Return the approximate number of samples, as known so far."""
        ...


@runtime_checkable
class Selective(Protocol):
    """A source that can read chosen samples without reading or fetching their neighbors."""

    def read_only(self, names: Container[tuple[str, str]]) -> Iterator[Sample | Failure]:
        """Yield the samples with these pairs of shard and key, in input order."""
        ...


@runtime_checkable
class Sharded(Protocol):
    """A source of shards, each of which holds many samples."""

    @property
    def shards(self) -> Sequence[str]:
        """The urls of the shards, in input order."""
        ...

    def read_shard(self, url: str) -> Iterator[Sample | Failure]:
        """Yield all that one shard holds."""
        ...
