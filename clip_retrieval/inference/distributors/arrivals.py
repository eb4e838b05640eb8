"""What workers elsewhere have made, as it appears in the output folder."""

from __future__ import annotations

from collections.abc import Sequence

from clip_retrieval.inference.missing import needs_work
from clip_retrieval.inference.plan import PlannedRun
from clip_retrieval.inference.telemetry.live import Live, News
from clip_retrieval.layout import METADATA_FOLDER, Partition


class Arrivals:
    """The missing partitions of a run; reports those that appear to `live`. One listing for each look."""

    def __init__(self, run: PlannedRun, live: Live) -> None:
        self.run, self.live = run, live
        there = set(run.folder.names(METADATA_FOLDER, ".parquet"))
        names = {run.folder.metadata_name(partition).rpartition("/")[2]: partition for partition in run.missing}
        self.absent = {name: partition for name, partition in names.items() if name not in there}
        # Finished partitions that are made again: a listing does not show whether they were.
        self.renewed = [partition for name, partition in names.items() if name in there]
        live.hear(0, News(total=run.estimate_samples(run.missing)))

    @property
    def are_missing(self) -> bool:
        """Whether any partition is missing, by the last look."""
        return bool(self.absent or self.renewed)

    def look(self) -> int:
        """Return how many partitions have appeared since the last look."""
        appeared = self.absent.keys() & set(self.run.folder.names(METADATA_FOLDER, ".parquet"))
        for name in sorted(appeared):
            self.tell(self.absent.pop(name))
        return len(appeared)

    def missing(self) -> Sequence[Partition]:
        """Return what is not whole yet, and what was to be made again and was not; the latter takes a read each."""
        self.look()
        for partition in [*self.renewed]:
            if not needs_work(self.run.folder, partition, self.run.run):
                self.renewed.remove(partition)
                self.tell(partition)
        return [*self.absent.values(), *self.renewed]

    def tell(self, partition: Partition) -> None:
        stats = self.run.folder.read_json(self.run.folder.stats_name(partition))
        rows, dropped = stats["sample_count"], stats["skipped_count"]
        self.live.hear(partition.id, News(rows=rows, dropped=dropped, part=stats, is_end=True))
