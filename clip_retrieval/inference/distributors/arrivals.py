"""What workers elsewhere have made, as it appears in the output folder."""

from __future__ import annotations

from collections.abc import Sequence

from clip_retrieval.inference.missing import needs_work
from clip_retrieval.inference.plan import PlannedRun
from clip_retrieval.inference.telemetry.live import Live, News
from clip_retrieval.layout import METADATA_FOLDER, Partition


class Arrivals:
    """The partitions of a run that are not there yet; tells `live` of those that appear. One listing for each look."""

    def __init__(self, run: PlannedRun, live: Live) -> None:
        self.run, self.live = run, live
        there = set(run.folder.names(METADATA_FOLDER, ".parquet"))
        names = {run.folder.metadata_name(partition).rpartition("/")[2]: partition for partition in run.missing}
        self.absent = {name: partition for name, partition in names.items() if name not in there}
        # Partitions that are there and are made anew: a listing cannot tell whether they were.
        self.renewed = [partition for name, partition in names.items() if name in there]
        live.hear(0, News(total=run.estimate_samples(run.missing)))

    @property
    def are_missing(self) -> bool:
        """Whether any partition is, as far as the last look shows."""
        return bool(self.absent or self.renewed)

    def look(self) -> int:
        """Return how many partitions have appeared since the last look."""
        appeared = self.absent.keys() & set(self.run.folder.names(METADATA_FOLDER, ".parquet"))
        for name in sorted(appeared):
            self.tell(self.absent.pop(name))
        return len(appeared)

    def missing(self) -> Sequence[Partition]:
        """Return what is not whole yet, also what was to be made anew and was not: a read for each of those."""
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
