"""A worker: one encoder on one device, some partitions. Every distributor ends here."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

from clip_retrieval.encoder.base import Encoder
from clip_retrieval.encoder.load import best_batch_size
from clip_retrieval.inference.config import InferenceConfig
from clip_retrieval.inference.manifest import (
    check_folder,
    claim_folder,
    describe_options,
    describe_run,
    settled_precision,
)
from clip_retrieval.inference.plan import count_partitions, plan_partitions
from clip_retrieval.inference.readers.loader import Loader
from clip_retrieval.inference.readers.prepare import Wanted
from clip_retrieval.inference.telemetry.live import Report
from clip_retrieval.inference.telemetry.stats import Stats
from clip_retrieval.inference.worker.number_format import Check, candidates, load, settle
from clip_retrieval.inference.worker.partition import Runner
from clip_retrieval.layout import EmbeddingsFolder, Partition
from clip_retrieval.process.resources import count_cores
from clip_retrieval.sources import Source, open_source
from clip_retrieval.sources.types import Inventory

# Reasons that a later run may not meet: a tar that was not there, a store that did not answer, a plug-in.
PASSING_REASONS = (
    "shard:missing", "shard:unreadable", "image:unreadable", "image:needs_plugin", "text:unreadable",
    "metadata:unreadable",
)  # fmt: skip


def make_plan(config: InferenceConfig, source: Source) -> list[Partition]:
    """Return the partitions of a run: a function of the options and the input alone."""
    per_unit = source.samples_per_unit or config.wds_number_file_per_input_file
    count = config.output_partition_count or count_partitions(len(source.units), per_unit, config.write_batch_size)
    return plan_partitions(len(source.units), count)


def run_worker(
    config: InferenceConfig, partition_ids: Iterable[int], device: str, report: Report, source: Source | None = None
) -> list[Stats]:
    """Make these partitions on one device, those that are not done yet; return their figures.

    Partitions may come one by one: the next is asked for when the one before it is whole. The source may be handed
    over where it is open already.
    """
    source = source or open_source(config.source, config.output_folder)
    folder = EmbeddingsFolder(config.output_folder)
    plan = make_plan(config, source)
    check_folder(folder, describe_options(config, source, plan))
    missing = (plan[i] for i in partition_ids if needs_work(folder, plan[i]))
    first = next(missing, None)
    if first is None:
        return []
    with open_parts(config, device, source, settled_precision(folder)) as parts:
        claim_folder(folder, describe_run(config, source, parts.encoder.info, plan, parts.check))
        runner = Runner(source, parts.loader, parts.encoder, folder)
        return [runner.run(partition, report) for partition in chain([first], missing)]


@dataclass(frozen=True)
class Parts:
    """What a worker needs beside a source: the encoder, how its format was checked, and readers for it."""

    encoder: Encoder
    check: Check | None
    loader: Loader


@contextmanager
def open_parts(config: InferenceConfig, device: str, source: Source, settled: str | None) -> Iterator[Parts]:
    """Open the encoder, in the format that was settled already or else is found out, and start reader processes."""
    encoder_config = dataclasses.replace(config.encoder, device=device)
    formats = candidates(encoder_config, settled)
    encoder = load(encoder_config, formats[0])
    wanted = wanted_parts(source, encoder)
    size = config.batch_size or best_batch_size(encoder)
    loader = Loader(wanted, size, count_readers(config), config.reader_timeout, device)
    try:
        encoder, check = settle(encoder_config, encoder, loader, source, formats)
        yield Parts(encoder, check, loader)
    finally:
        loader.close()


def needs_work(folder: EmbeddingsFolder, partition: Partition) -> bool:
    """Say whether a partition is to be made: it is not there, or what it lacks may be there by now."""
    if not folder.is_done(partition):
        return True
    stats = folder.read_json(folder.stats_name(partition))
    return not stats["sample_count"] or any(reason in stats["reasons"] for reason in PASSING_REASONS)


def wanted_parts(source: Source, encoder: Encoder) -> Wanted:
    config = source.config
    return Wanted(
        image=config.enable_image,
        text=config.enable_text,
        metadata=config.enable_metadata,
        all_parts=config.require_all,
        preprocess=encoder.info.preprocess,
        pictures=config.pictures,
        digests=isinstance(source, Inventory),
    )


def count_readers(config: InferenceConfig) -> int:
    return count_cores() if config.num_prepro_workers is None else config.num_prepro_workers
