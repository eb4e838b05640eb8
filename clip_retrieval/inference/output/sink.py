"""Encoded batches to the files of one partition: streamed to a scratch folder, published when whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from clip_retrieval.embeddings.npy_writer import NpyWriter
from clip_retrieval.embeddings.row_sums import CHECKSUMS
from clip_retrieval.encoder.base import Embeddings
from clip_retrieval.inference.output.columns import Columns, MetadataWriter
from clip_retrieval.inference.output.failures import FailureWriter, describe_failure
from clip_retrieval.inference.output.ledger import LedgerWriter
from clip_retrieval.inference.types import Row
from clip_retrieval.layout import EmbeddingsFolder, Modality, Partition
from clip_retrieval.sources.types import Failure, Inventory
from clip_retrieval.words import json_text


class Sink:
    """Writes one partition. Rows are appended in input order, failures as soon as they are known."""

    def __init__(
        self, scratch: Path, writers: dict[Modality, NpyWriter], metadata: MetadataWriter, ledger: LedgerWriter
    ) -> None:
        self.scratch = scratch
        self.writers = writers
        self.metadata = metadata
        self.ledger = ledger
        self.failures = FailureWriter(scratch / "failures")
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
    """Yield a sink; if the block succeeds, publish its files.

    The file that decides whether the partition is whole comes last: metadata or, if it is made again for its failures,
    the stats, which report them.
    """
    with folder.staging() as scratch:
        with ExitStack() as stack:
            writers = {
                modality: stack.enter_context(NpyWriter(scratch / modality, dim, np.dtype(np.float16)))
                for modality, dim in dims.items()
            }
            metadata = MetadataWriter(scratch / "metadata", columns)
            sink = Sink(scratch, writers, metadata, LedgerWriter(scratch / "ledger", inventory))
            stack.callback(sink.close)
            yield sink
            sink.finish()
        last = {"stats": folder.stats_name(partition), "metadata": folder.metadata_name(partition)}
        files = {
            **{modality: folder.embedding_name(modality, partition) for modality in dims if sink.row_count},
            "failures": folder.failures_name(partition),
            "ledger": folder.ledger_name(partition),
            **(dict(reversed(last.items())) if folder.is_done(partition) else last),
        }
        for staged, name in files.items():
            folder.publish(scratch / staged, name)
