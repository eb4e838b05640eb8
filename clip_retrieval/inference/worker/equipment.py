"""What makes partitions on one device: an encoder, and reader processes for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

from clip_retrieval.encoder.base import BOTH_TOWERS, Encoder, check_tower
from clip_retrieval.encoder.devices import list_devices
from clip_retrieval.encoder.load import best_batch_size, expect_batches
from clip_retrieval.inference.config import InferenceConfig
from clip_retrieval.inference.manifest import Check
from clip_retrieval.inference.readers.loader import Loader
from clip_retrieval.inference.readers.prepare import Wanted
from clip_retrieval.inference.resume import check_encoder, settled_precision
from clip_retrieval.inference.worker.number_format import candidates, load, settle
from clip_retrieval.layout import EmbeddingsFolder
from clip_retrieval.process.resources import count_cores
from clip_retrieval.sources.protocol import Source
from clip_retrieval.sources.types import Inventory, Sample

PEEKED_SAMPLES = 64  # of tars, which are not listed before they are read


@dataclass(frozen=True, kw_only=True)
class Equipment:
    """What a device needs to make partitions: opened once, used for one after the other."""

    encoder: Encoder
    check: Check | None  # how the encoder's number format was checked; None if there was no choice
    loader: Loader


@contextmanager
def open_equipment(config: InferenceConfig, device: str, source: Source, settled: str | None) -> Iterator[Equipment]:
    """Open the encoder and start reader processes; without a settled number format, the fastest exact one is found."""
    encoder_config = dataclasses.replace(config.encoder, device=device)
    formats = candidates(encoder_config, settled)
    encoder = load(encoder_config, formats[0])
    check_towers(source, encoder)
    wanted = wanted_parts(source, encoder)
    size = config.batch_size or best_batch_size(encoder.info.device)
    loader = Loader(wanted, size, count_readers(config), config.reader_timeout, device)
    try:
        encoder, check = settle(encoder_config, encoder, loader, source, formats)
        if wanted.image:
            expect_batches(encoder, size)
        yield Equipment(encoder=encoder, check=check, loader=loader)
    finally:
        loader.close()


@contextmanager
def reopen_equipment(config: InferenceConfig, source: Source, folder: EmbeddingsFolder) -> Iterator[Equipment]:
    """Open the model of a folder with embeddings, on the first device; ConfigError if it is another model."""
    device = list_devices(config.encoder)[0]
    with open_equipment(config, device, source, settled_precision(folder)) as equipment:
        check_encoder(folder, equipment.encoder)
        yield equipment


def check_towers(source: Source, encoder: Encoder) -> None:
    """Raise EncoderError before anything is embedded, if the input has a part that the model cannot encode."""
    config = source.config
    wanted = {"image": config.enable_image, "text": config.enable_text}
    for tower in BOTH_TOWERS:
        if wanted[tower] and tower not in encoder.info.towers and begins_with(source, tower):
            check_tower(encoder.info, tower)


def begins_with(source: Source, part: str) -> bool:
    """Return whether samples have this part; for tars, whether one of the first samples has."""
    if source.config.input_format != "webdataset":
        return True  # its source has switched off what the input lacks
    first = islice(source.read(0, len(source.units)), PEEKED_SAMPLES)
    return any(isinstance(item, Sample) and getattr(item, part) is not None for item in first)


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
