"""How a run is cut into partitions: a pure function of sizes, saved in the manifest."""

from __future__ import annotations

from clip_retrieval.layout import Partition


def plan_partitions(unit_count: int, partition_count: int) -> list[Partition]:
    """Cut `unit_count` units into contiguous partitions whose sizes differ by at most one."""
    bounds = [unit_count * i // partition_count for i in range(partition_count + 1)]
    return [Partition(i, partition_count, bounds[i], bounds[i + 1]) for i in range(partition_count)]


def count_partitions(unit_count: int, samples_per_unit: int, samples_per_partition: int) -> int:
    """Return how many partitions hold about `samples_per_partition` samples each, at least one."""
    return max(1, -(-unit_count * samples_per_unit // samples_per_partition))
