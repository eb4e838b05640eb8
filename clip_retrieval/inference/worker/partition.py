"""One partition from source to sink: reads like the diagram."""

from __future__ import annotations

from clip_retrieval.inference.output.columns import Columns, own_columns
from clip_retrieval.inference.output.sink import open_sink
from clip_retrieval.inference.telemetry.live import Report
from clip_retrieval.inference.telemetry.stats import Stats
from clip_retrieval.inference.telemetry.wip import followed
from clip_retrieval.inference.worker.equipment import Equipment
from clip_retrieval.inference.worker.pipeline import Pipeline
from clip_retrieval.layout import FRAME, PAGE, TIME, VIDEO, EmbeddingsFolder, Modality, Partition
from clip_retrieval.sources.config import SHARD_FORMATS
from clip_retrieval.sources.protocol import Source
from clip_retrieval.sources.types import Inventory


def make_partition(
    equipment: Equipment, source: Source, folder: EmbeddingsFolder, partition: Partition, report: Report
) -> Stats:
    """Make one partition; its files appear when it is whole."""
    config, encoder, loader = source.config, equipment.encoder, equipment.loader
    stats = Stats(reader_count=max(1, len(loader.readers.all)))
    wanted: dict[Modality, bool] = {"image": config.enable_image, "text": config.enable_text}
    dims = {modality: encoder.info.dimension for modality, is_wanted in wanted.items() if is_wanted}
    own = own_columns(
        image=config.enable_image,
        text=config.enable_text,
        shards=config.input_format in SHARD_FORMATS and config.enable_image,
        places=[*([PAGE] if config.takes_pages else []), *([VIDEO, TIME, FRAME] if config.takes_videos else [])],
    )
    columns = Columns(own, has_fields=config.enable_metadata)
    samples = stats.sourcing(source.read(partition.start, partition.stop))
    inventory = source if isinstance(source, Inventory) else None
    with (
        followed(stats, partition, folder, report),
        open_sink(folder, partition, dims, columns, inventory) as sink,
    ):
        with Pipeline(encoder, sink, stats, report.advance) as pipeline:
            for batch in loader.batches(samples):
                pipeline.add(batch)
        stats.finish()
        sink.add_stats(stats.to_json())
    return stats
