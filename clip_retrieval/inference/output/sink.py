"""Encoded batches to the files of one partition: streamed to a scratch folder, published when whole."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from clip_retrieval.embeddings.npy_writer import NpyWriter
from clip_retrieval.embeddings.row_sums import CHECKSUMS
from clip_retrieval.encoder.base import Embeddings
from clip_retrieval.inference.missing import needs_work
from clip_retrieval.inference.output.columns import Columns, MetadataWriter
from clip_retrieval.inference.output.failures import FailureWriter, describe_failure
from clip_retrieval.inference.output.ledger import LedgerWriter
from clip_retrieval.inference.types import Row
from clip_retrieval.layout import EmbeddingsFolder, Modality, Partition
from clip_retrieval.sources.types import Failure, Inventory
from clip_retrieval.words import json_text

logger = logging.getLogger(__name__)


class Sink:
    """Writes one partition. Rows are appended in input order, failures as soon as they are known."""

    def __init__(
        self,
        scratch: Path,
        writers: dict[Modality, NpyWriter],
        metadata: MetadataWriter,
        ledger: LedgerWriter,
        failures: FailureWriter,
    ) -> None:
        self.scratch = scratch
        self.writers = writers
        self.metadata = metadata
        self.ledger = ledger
        self.failures = failures
        self.row_count = 0

    def add_embeddings(self, modality: Modality, rows: Embeddings) -> None:
        self.writers[modality].append(rows)

    def add_rows(self, rows: Sequence[Row]) -> None:
        self.metadata.append(rows)
        self.ledger.add_rows(rows, self.row_count)
        self.row_count += len(rows)

    def add_failures(self, failures: Sequence[Failure]) -> None:
        self.failures.add(map(describe_failure, failures))
        self.ledger.add_left_out(failures)

    def add_stats(self, figures: Mapping[str, Any]) -> None:
        """Take the figures of the partition, once all its rows are written; with their checksums they become stats."""
        checksums = {modality: writer.checksum for modality, writer in self.writers.items() if self.row_count}
        (self.scratch / "stats").write_text(json_text({**figures, CHECKSUMS: checksums}) + "\n", encoding="utf-8")

    def finish(self) -> None:
        """Complete the files in the scratch folder."""
        self.failures.finish()
        self.ledger.finish()
        self.metadata.finish()

    def close(self) -> None:
        """Close the scratch files, complete or not."""
        self.failures.close()
        self.ledger.close()
        self.metadata.close()


@contextmanager
def open_sink(
    folder: EmbeddingsFolder,
    partition: Partition,
    dims: dict[Modality, int],
    columns: Columns,
    inventory: Inventory | None = None,
) -> Iterator[Sink]:
    """Yield a sink; if the block succeeds, publish its files, unless another worker made the partition meanwhile.

    The file that decides whether the partition is whole comes last: metadata or, if it is made again for its failures,
    the stats, which report them. Its failures are marked then: a run of many partitions reads the stats only of those
    whose failures do not look empty, and a kill before the stats must not hide the partition.
    """
    before = stats_of_whole(folder, partition)
    if before is not None and not needs_work(folder, partition):
        before = None  # another worker has just made it
    with folder.staging() as scratch:
        with ExitStack() as stack:
            writers = {
                modality: stack.enter_context(NpyWriter(scratch / modality, dim, np.dtype(np.float16)))
                for modality, dim in dims.items()
            }
            metadata = MetadataWriter(scratch / "metadata", columns)
            failures = FailureWriter(scratch / "failures", is_retry=before is not None)
            sink = Sink(scratch, writers, metadata, LedgerWriter(scratch / "ledger", inventory), failures)
            stack.callback(sink.close)
            yield sink
            sink.finish()
        now = stats_of_whole(folder, partition)
        if now is not None and now != before:  # the other worker's rows may differ by rounding: keep all of its files
            logger.debug("partition %s was made by another worker meanwhile; its files are kept", partition.id)
            return
        last = {"stats": folder.stats_name(partition), "metadata": folder.metadata_name(partition)}
        if not sink.row_count:  # an earlier attempt may have had rows
            for modality in dims:
                folder.remove(folder.embedding_name(modality, partition))
        files = {
            **{modality: folder.embedding_name(modality, partition) for modality in dims if sink.row_count},
            "failures": folder.failures_name(partition),
            "ledger": folder.ledger_name(partition),
            **(last if now is None else dict(reversed(last.items()))),
        }
        for staged, name in files.items():
            folder.publish(scratch / staged, name)


def stats_of_whole(folder: EmbeddingsFolder, partition: Partition) -> bytes | None:
    """Return the stats of a partition, which differ each time it is made; None if it is not whole."""
    if not folder.is_done(partition):
        return None
    try:
        return folder.read_bytes(folder.stats_name(partition))
    except FileNotFoundError:
        return b""
