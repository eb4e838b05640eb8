"""The figures of a partition while it is made: for the report, and in stats/wip_{p}.json for watchers of the folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from clip_retrieval.errors import ClipRetrievalError
from clip_retrieval.inference.telemetry.live import Report, repeating
from clip_retrieval.inference.telemetry.stats import Stats
from clip_retrieval.layout import FEW, STATS_FOLDER, EmbeddingsFolder, Partition

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_WRITES = 5.0
SECONDS_BETWEEN_UPLOADS = 30.0


@contextmanager
def followed(stats: Stats, partition: Partition, folder: EmbeddingsFolder, report: Report) -> Iterator[None]:
    """Follow a partition through the block, which publishes it; its wip file is always removed at the end."""
    name = folder.wip_stats_name(partition)

    def write() -> None:
        try:
            folder.write_json(name, stats.so_far())
        except (ClipRetrievalError, OSError) as error:  # it is only for watching: real problems fail elsewhere
            logger.debug("%s cannot be written: %s", name, error)

    report.begin(stats)
    try:
        with repeating(SECONDS_BETWEEN_WRITES if folder.is_local else SECONDS_BETWEEN_UPLOADS, write):
            yield
    finally:
        with folder.answering(), suppress(FileNotFoundError):
            folder.fs.rm_file(folder.path(name))  # one request; `remove` first asks whether it exists
    report.end()


def remove_wip(folder: EmbeddingsFolder, done: Sequence[Partition]) -> None:
    """Remove what a killed run left of partitions that are now whole."""
    if len(done) <= FEW:
        for partition in done:
            folder.remove(folder.wip_stats_name(partition))
        return
    there = set(folder.names(STATS_FOLDER, ".json"))
    for name in map(folder.wip_stats_name, done):
        if name.rpartition("/")[2] in there:
            folder.remove(name)
