"""One partition from source to sink: reads like the diagram."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.encoder.base import Embeddings, Encoder
from clip_retrieval.inference.columns import own_columns
from clip_retrieval.inference.config import SHARD_FORMATS
from clip_retrieval.inference.loader import Loader
from clip_retrieval.inference.progress import Report
from clip_retrieval.inference.sink import open_sink
from clip_retrieval.inference.sources import Source
from clip_retrieval.inference.stats import Stats
from clip_retrieval.inference.types import Batch, EncodedBatch
from clip_retrieval.layout import EmbeddingsFolder, Modality, Partition


@dataclass(frozen=True)
class Runner:
    """What a worker needs to make partitions, opened once."""

    source: Source
    loader: Loader
    encoder: Encoder
    folder: EmbeddingsFolder

    def run(self, partition: Partition, report: Report) -> Stats:
        """Make one partition; its files appear when it is whole."""
        config, stats = self.source.config, Stats()
        wanted: dict[Modality, bool] = {"image": config.enable_image, "text": config.enable_text}
        dims = {modality: self.encoder.info.dimension for modality, is_wanted in wanted.items() if is_wanted}
        columns = own_columns(
            image=config.enable_image,
            text=config.enable_text,
            shards=config.input_format in SHARD_FORMATS and config.enable_image,
        )
        truncated_before = self.encoder.truncated_texts
        samples = self.source.read(partition.start, partition.stop)
        with open_sink(self.folder, partition, dims, columns) as sink:
            for batch in stats.waiting(self.loader.batches(samples)):
                with stats.timing("inference_duration"):
                    encoded = encode(self.encoder, batch, wanted)
                with stats.timing("write_duration"):
                    sink.add(encoded)
                    sink.add_failures(batch.failures)
                stats.count_batch(batch)
                report.advance(len(batch.rows), batch.dropped_count)
            stats.truncated_captions = self.encoder.truncated_texts - truncated_before
            stats.finish()
            self.folder.write_json(self.folder.stats_name(partition), stats.to_json())
        return stats


def encode(encoder: Encoder, batch: Batch, wanted: dict[Modality, bool]) -> EncodedBatch:
    """Encode what each row has; a part that a row lacks becomes a zero row."""
    image = text = None
    if wanted["image"] and batch.pixels is not None:
        image = spread(len(batch.rows), batch.image_rows, encoder.info.dimension)
        if len(batch.pixels):
            image[batch.image_rows] = encoder.encode_images(batch.pixels)
    if wanted["text"]:
        text = spread(len(batch.rows), batch.text_rows, encoder.info.dimension)
        captions = [row.caption for row in batch.rows if row.caption is not None]
        if captions:
            text[batch.text_rows] = encoder.encode_texts(captions)
    return EncodedBatch(batch.rows, image, text)


def spread(row_count: int, present: NDArray[np.int64], dim: int) -> Embeddings:
    """Return room for the embeddings of a batch; only rows that lack the part need their zeros."""
    return (
        np.empty((row_count, dim), np.float32) if len(present) == row_count else np.zeros((row_count, dim), np.float32)
    )
