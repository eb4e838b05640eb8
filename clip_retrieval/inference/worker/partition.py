"""One partition from source to sink: reads like the diagram."""

from __future__ import annotations

from dataclasses import dataclass

from clip_retrieval.encoder.base import Encoder
from clip_retrieval.inference.output.columns import own_columns
from clip_retrieval.inference.output.sink import open_sink
from clip_retrieval.inference.readers.loader import Loader
from clip_retrieval.inference.telemetry.live import Report
from clip_retrieval.inference.telemetry.stats import Stats
from clip_retrieval.inference.telemetry.wip import followed
from clip_retrieval.inference.worker.pipeline import Pipeline
from clip_retrieval.layout import EmbeddingsFolder, Modality, Partition
from clip_retrieval.sources import Source
from clip_retrieval.sources.config import SHARD_FORMATS
from clip_retrieval.sources.types import Inventory


@dataclass(frozen=True)
class Runner:
    """What a worker needs to make partitions, opened once."""

    source: Source
    loader: Loader
    encoder: Encoder
    folder: EmbeddingsFolder

    def run(self, partition: Partition, report: Report) -> Stats:
        """Make one partition; its files appear when it is whole."""
        config, stats = self.source.config, Stats(reader_count=max(1, len(self.loader.readers.all)))
        wanted: dict[Modality, bool] = {"image": config.enable_image, "text": config.enable_text}
        dims = {modality: self.encoder.info.dimension for modality, is_wanted in wanted.items() if is_wanted}
        columns = own_columns(
            image=config.enable_image,
            text=config.enable_text,
            shards=config.input_format in SHARD_FORMATS and config.enable_image,
        )
        samples = stats.sourcing(self.source.read(partition.start, partition.stop))
        inventory = self.source if isinstance(self.source, Inventory) else None
        with (
            followed(stats, partition, self.folder, report),
            open_sink(self.folder, partition, dims, columns, inventory) as sink,
        ):
            with Pipeline(self.encoder, sink, stats, report.advance) as pipeline:
                for batch in self.loader.batches(samples):
                    pipeline.add(batch)
            stats.finish()
            self.folder.write_json(self.folder.stats_name(partition), stats.to_json())
        return stats
