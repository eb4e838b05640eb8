"""Draws a small sample spread over an input, and estimates how many samples the input has: for --dry_run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal, cast

from clip_retrieval.blobs import open_store
from clip_retrieval.paths import is_pipe, local_path, without_query
from clip_retrieval.sources.config import SourceConfig
from clip_retrieval.sources.protocol import Source
from clip_retrieval.sources.types import Failure, FileState, Inventory, Part, Sample

MOST_SAMPLES = 64
MOST_SHARDS = 4
KEPT_OF_SHARD = MOST_SAMPLES // MOST_SHARDS
SECONDS_TO_COUNT = 2.0  # counting time for each shard; the rest of it is estimated from its bytes
PLAIN_SUFFIX = ".tar"  # in compressed tars an offset does not say how many bytes of the file were read

Certainty = Literal["exact", "estimated", "assumed"]
Item = Sample | Failure


class SampledSource:
    """Some items of a source, as a source whose units are these items."""

    samples_per_unit = 1

    def __init__(self, source: Source, items: Sequence[Item]) -> None:
        self.source, self.items = source, items

    @property
    def config(self) -> SourceConfig:
        return self.source.config

    @property
    def units(self) -> Sequence[str]:
        return [item.key for item in self.items]

    def read(self, start: int, stop: int) -> Iterator[Item]:
        yield from self.items[start:stop]

    def estimate_total(self) -> int:
        return len(self.items)


class SampledInventory(SampledSource):
    """A SampledSource over a source whose samples are files that can change."""

    def files_of(self, key: str) -> Mapping[Part, FileState]:
        assert isinstance(self.source, Inventory)
        return self.source.files_of(key)


@dataclass(frozen=True, kw_only=True)
class Look:
    """The first items of one unit, and its estimated size."""

    items: list[Item]
    seen: int  # samples that were read, to be counted
    seconds: float  # time that reading them took
    sample_count: int | None  # samples of the whole unit, about; None if unknown
    is_exact: bool


@dataclass(frozen=True)
class Sampling:
    """Some samples from all over an input, and what is known about all of them."""

    source: SampledSource
    total: int
    certainty: Certainty
    seconds: float  # time of the source for one sample


def take_sample(source: Source, assumed_per_shard: int) -> Sampling:
    """Take some samples from all over the input, and estimate how many there are."""
    known = source.estimate_total()
    if known == len(source.units):
        looks = [look_into(source, place, 1) for place in spread(len(source.units), MOST_SAMPLES)]
    else:
        most = None if known is None else MOST_SAMPLES
        looks = [look_into(source, place, most) for place in spread(len(source.units), MOST_SHARDS)]
    items: list[Item] = [item for look in looks for item in look.items]
    sampled = (SampledInventory if isinstance(source, Inventory) else SampledSource)(source, items)
    seconds = sum(look.seconds for look in looks) / max(1, sum(look.seen for look in looks))
    total, certainty = count_all(looks, len(source.units), assumed_per_shard)
    return Sampling(sampled, total, certainty, seconds) if known is None else Sampling(sampled, known, "exact", seconds)


def spread(count: int, most: int) -> list[int]:
    """Return up to `most` places of `count`, evenly apart."""
    taken = min(count, most)
    return [(2 * i + 1) * count // (2 * taken) for i in range(taken)]


def look_into(source: Source, place: int, most: int | None) -> Look:
    """Read the beginning of a unit: some samples to keep, and others to count, for a while or up to `most`.

    The number of samples that were not read is estimated by their bytes.
    """
    items: list[Item] = []
    start, count, end = time.monotonic(), 0, 0
    with closing(cast("Any", source.read(place, place + 1))) as reading:
        for item in reading:
            if len(items) < KEPT_OF_SHARD:
                items.append(item)
            count, end = count + isinstance(item, Sample), end_of(item) or end
            seconds = time.monotonic() - start
            if count == most or (seconds > SECONDS_TO_COUNT and len(items) == KEPT_OF_SHARD):
                size = size_of(source.units[place])
                return Look(
                    items=items,
                    seen=count,
                    seconds=seconds,
                    sample_count=round(count * size / end) if size and end else None,
                    is_exact=False,
                )
    return Look(items=items, seen=count, seconds=time.monotonic() - start, sample_count=count, is_exact=True)


def end_of(item: Item) -> int:
    """Return the offset where an item ends in its shard; 0 if unknown."""
    if isinstance(item, Failure) or item.origin is None or item.origin.offset is None:
        return 0
    return item.origin.offset + (item.origin.size or 0)


def size_of(url: str) -> int | None:
    """Return the bytes of a plain tar; None if unknown, or if the tar is compressed."""
    if is_pipe(url) or not without_query(url).endswith(PLAIN_SUFFIX):
        return None
    try:
        path = local_path(url)
        if path is not None:
            return path.stat().st_size
        store, place = open_store(url)
        return cast("int | None", store.size(place))
    except (OSError, ValueError, ImportError):
        return None


def count_all(looks: Sequence[Look], unit_count: int, assumed_per_shard: int) -> tuple[int, Certainty]:
    """Return how many samples all units have, from those that were looked into."""
    counts = [look.sample_count for look in looks if look.sample_count is not None]
    if len(looks) == unit_count and all(look.is_exact for look in looks):
        return sum(counts), "exact"
    if not counts:
        return unit_count * assumed_per_shard, "assumed"
    return round(unit_count * sum(counts) / len(counts)), "estimated"
