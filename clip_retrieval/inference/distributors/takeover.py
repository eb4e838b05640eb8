"""Which partitions one of several workers takes, without a queue: its own part, then what others leave."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from clip_retrieval.inference.attempts import Attempt, attempts_at
from clip_retrieval.inference.missing import ids_to_make
from clip_retrieval.inference.plan import Plan
from clip_retrieval.layout import ATTEMPTS_FOLDER, Partition

MOST_LOOKS = 32  # begun partitions of others that a worker looks at before it ends
BEATS_TO_WORRY = 1.5  # a worker that wrote nothing for so long may be lost


def share_of(count: int, rank: int, world: int) -> range:
    """Return the contiguous part of `count` partitions that worker `rank` of `world` begins with."""
    return range(count * rank // world, count * (rank + 1) // world)


@dataclass(kw_only=True)
class OwnAndOthers:
    """Yields the partitions that worker `rank` of `world` is to make, each on demand.

    First its own part, in order. Then partitions that no worker has begun, from the end of the others' parts, the next
    worker's first; fewer at a time as less is left. At last those that a lost worker had begun. The folder is listed
    once for each of these steps, not for each partition.
    """

    plan: Plan
    rank: int
    world: int
    taken: set[int] = field(default_factory=set)

    def __iter__(self) -> Iterator[int]:
        share = share_of(len(self.plan.partitions), self.rank, self.world)
        for number in ids_to_make(self.plan.folder, self.plan.partitions, share):
            if not self.others_at(self.plan.partitions[number]):
                self.taken.add(number)
                yield number
        while some := self.unbegun() or self.lost():
            for number in some:
                self.taken.add(number)
                yield number

    def unbegun(self) -> Sequence[int]:
        """Return partitions that are missing and not begun by any worker."""
        begun = set(self.plan.folder.subfolders(ATTEMPTS_FOLDER))
        free = [partition.id for partition in self.absent() if partition.name not in begun]
        free.sort(key=lambda number: (-self.distance(number), number), reverse=True)
        return free[: max(1, len(free) // (2 * self.world))]

    def lost(self) -> Sequence[int]:
        """Return one partition whose worker is lost; waits for the next heartbeats of those that may be."""
        begun = set(self.plan.folder.subfolders(ATTEMPTS_FOLDER))
        suspects = {
            partition: self.others_at(partition)
            for partition in sorted(self.absent(), key=lambda partition: self.distance(partition.id))[:MOST_LOOKS]
            if partition.name in begun
        }
        while suspects:
            for partition, before in suspects.items():
                if not before:
                    return [partition.id]
            suspects = {partition: before for partition, before in suspects.items() if any(map(is_late, before))}
            if suspects:
                time.sleep(min(attempt.beat_seconds for before in suspects.values() for attempt in before))
            done = self.plan.folder.done_among([*suspects])
            suspects = {partition: self.others_at(partition) for partition in suspects if partition.name not in done}
        return []

    def absent(self) -> list[Partition]:
        """Return the missing partitions, without those that this worker took already; one listing."""
        done = self.plan.folder.done_among(self.plan.partitions)
        return [
            partition
            for partition in self.plan.partitions
            if partition.name not in done and partition.id not in self.taken
        ]

    def others_at(self, partition: Partition) -> list[Attempt]:
        """Return the attempts at a partition that are under way, as far as can be known."""
        now = time.time()
        attempts = attempts_at(self.plan.folder, partition).values()
        return [one for one in attempts if one.end is None and not one.is_silent(now - one.told)]

    def distance(self, number: int) -> int:
        """Return how many workers after this one a partition's own worker is."""
        owner = (self.world * (number + 1) - 1) // len(self.plan.partitions)
        return (owner - self.rank) % self.world


def is_late(attempt: Attempt) -> bool:
    return time.time() - attempt.told > BEATS_TO_WORRY * attempt.beat_seconds
