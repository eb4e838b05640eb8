"""A worker: one encoder on one device, some partitions. Every distributor ends here."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

from clip_retrieval.errors import ClipRetrievalError, ConfigError, EncoderError, StorageError, WorkerError, one_line
from clip_retrieval.inference.attempts import attempting, is_given_up
from clip_retrieval.inference.missing import needs_work
from clip_retrieval.inference.plan import Plan
from clip_retrieval.inference.telemetry.live import Report
from clip_retrieval.inference.telemetry.stats import Stats
from clip_retrieval.inference.worker.kept import borrowed_equipment
from clip_retrieval.inference.worker.partition import make_partition
from clip_retrieval.layout import Partition

logger = logging.getLogger(__name__)

# Errors that this worker would meet in other partitions too: a full disk, a broken device, a wrong option.
GENERAL_ERRORS = (StorageError, EncoderError, WorkerError, ConfigError)
MOST_FAILURES_IN_A_ROW = 2  # then the worker is to blame, rather than the partitions


class FailedPartitionsError(WorkerError):
    """Some partitions failed, and the worker made its others; `errors` has their ids."""

    def __init__(self, errors: dict[int, Exception]) -> None:
        said = "; ".join(f"partition {number} failed: {describe(error)}" for number, error in errors.items())
        super().__init__(f"{said}; what is finished is kept, run the same command to try again")
        self.errors = errors


def run_worker(plan: Plan, partition_ids: Iterable[int], device: str, report: Report) -> list[Stats]:
    """Make these partitions on one device, those that are not done yet; return their figures.

    Partitions may come one by one: the next is requested when the one before it is over. If one fails, the others are
    made first, then this raises FailedPartitionsError. Errors that other partitions would also meet are raised at once.
    """
    made: list[Stats] = []
    errors: dict[int, Exception] = {}
    failures_in_a_row = 0
    with borrowed_equipment(plan, device) as equipment:
        for partition in wanted(plan, partition_ids):
            opened = equipment.open()
            try:
                with attempting(plan.folder, partition, plan.run, device, report) as marked:
                    made.append(make_partition(opened, plan.source, plan.folder, partition, marked))
                failures_in_a_row = 0
            except GENERAL_ERRORS:
                raise
            except Exception as error:
                logger.debug("partition %s failed", partition.id, exc_info=True)
                errors[partition.id], failures_in_a_row = error, failures_in_a_row + 1
                equipment.put_away()  # its readers may be in the middle of a chunk
                if failures_in_a_row == MOST_FAILURES_IN_A_ROW:
                    break
    if errors:
        raise FailedPartitionsError(errors) from next(iter(errors.values()))
    return made


def wanted(plan: Plan, partition_ids: Iterable[int]) -> Iterator[Partition]:
    """Yield the partitions that are not done and not given up, each on demand."""
    for partition in (plan.partitions[i] for i in partition_ids):
        if needs_work(plan.folder, partition, plan.run) and not is_given_up(plan.folder, partition, plan.run):
            yield partition


def describe(error: Exception) -> str:
    said = one_line(error)
    return said if isinstance(error, ClipRetrievalError) else f"{type(error).__name__}: {said}"
