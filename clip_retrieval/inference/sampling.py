"""A small part of an input, taken from all over it, and how many samples the whole has: for --dry_run."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal, cast

import fsspec

from clip_retrieval.blobs import PIPE, local_path
from clip_retrieval.inference.config import SourceConfig
from clip_retrieval.inference.ledger import FileState, Inventory
from clip_retrieval.inference.sources import Source
from clip_retrieval.inference.types import Failure, Part, Sample

MOST_SAMPLES = 64
MOST_SHARDS = 4
SECONDS_TO_COUNT = 2.0  # for each shard; what is beyond is estimated from its bytes
PLAIN_SUFFIX = ".tar"  # of others, the place in the shard does not say how much of its bytes was read

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
    """The same of a source whose samples are files that can change."""

    def files_of(self, key: str) -> Mapping[Part, FileState]:
        assert isinstance(self.source, Inventory)
        return self.source.files_of(key)


@dataclass(frozen=True)
class Look:
    """The first items of one unit, and what is known of its size."""

    items: list[Item]
    sample_count: int | None  # of the whole unit, about; None where that cannot be told
    is_exact: bool


def take_sample(source: Source, assumed_per_shard: int) -> tuple[SampledSource, int, Certainty]:
    """Return some samples from all over the input, and how many there are in all."""
    known = source.estimate_total()
    if known == len(source.units):
        places = spread(len(source.units), MOST_SAMPLES)
        looks = [Look([*source.read(place, place + 1)], 1, is_exact=True) for place in places]
    else:
        looks = [look_into(source, place, known is None) for place in spread(len(source.units), MOST_SHARDS)]
    items: list[Item] = [item for look in looks for item in look.items]
    sampled = (SampledInventory if isinstance(source, Inventory) else SampledSource)(source, items)
    if known is not None:
        return sampled, known, "exact"
    return sampled, *count_all(looks, len(source.units), assumed_per_shard)


def spread(count: int, most: int) -> list[int]:
    """Return up to `most` places of `count`, evenly apart."""
    taken = min(count, most)
    return [(2 * i + 1) * count // (2 * taken) for i in range(taken)]


def look_into(source: Source, place: int, is_to_be_counted: bool) -> Look:  # noqa: FBT001 -- a fact of the source
    """Read the beginning of a shard; count its samples for a while, and estimate the rest by its bytes."""
    deadline = time.monotonic() + SECONDS_TO_COUNT
    with closing(cast("Any", source.read(place, place + 1))) as reading:
        items: list[Item] = [*itertools.islice(reading, MOST_SAMPLES // MOST_SHARDS)]
        count, end = tally(items)
        if not is_to_be_counted:
            return Look(items, None, is_exact=False)
        for item in reading:
            count, end = count + isinstance(item, Sample), end_of(item) or end
            if time.monotonic() > deadline:
                size = size_of(source.units[place])
                return Look(items, round(count * size / end) if size and end else None, is_exact=False)
    return Look(items, count, is_exact=True)


def tally(items: Sequence[Item]) -> tuple[int, int]:
    """Return the samples among the items, and where in the shard the last of them ends."""
    ends = [end_of(item) for item in items]
    return sum(isinstance(item, Sample) for item in items), max(ends, default=0)


def end_of(item: Item) -> int:
    if isinstance(item, Failure) or item.origin is None or item.origin.offset is None:
        return 0
    return item.origin.offset + (item.origin.size or 0)


def size_of(url: str) -> int | None:
    """Return the bytes of a plain tar; None where they cannot be told, or do not count what is in it."""
    if url.startswith(PIPE) or not url.partition("?")[0].endswith(PLAIN_SUFFIX):
        return None
    try:
        path = local_path(url)
        if path is not None:
            return path.stat().st_size
        store, place = fsspec.core.url_to_fs(url)
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
