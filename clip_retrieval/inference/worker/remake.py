"""Encoder, readers and progress for samples that are embedded again or later, opened once and only if needed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from clip_retrieval.encoder.base import Encoder
from clip_retrieval.encoder.devices import list_devices
from clip_retrieval.encoder.load import best_batch_size
from clip_retrieval.errors import ConfigError
from clip_retrieval.inference.config import InferenceConfig
from clip_retrieval.inference.manifest import compare, describe_encoder, settled_precision
from clip_retrieval.inference.readers.loader import Loader
from clip_retrieval.inference.telemetry.live import Live, Report
from clip_retrieval.inference.telemetry.stats import Stats
from clip_retrieval.inference.telemetry.watch import watching
from clip_retrieval.inference.worker.number_format import candidates, load
from clip_retrieval.inference.worker.partition import Runner
from clip_retrieval.inference.worker.worker import count_readers, wanted_parts
from clip_retrieval.layout import EmbeddingsFolder, Partition, read_manifest
from clip_retrieval.sources import Source


@dataclass(frozen=True)
class Workshop:
    """What embeds picked samples; without an encoder where nothing is to be embedded."""

    loader: Loader | None = None
    encoder: Encoder | None = None
    report: Report | None = None

    def run(self, source: Source, folder: EmbeddingsFolder, partition: Partition) -> Stats:
        """Make a partition of all that the source has."""
        assert self.loader is not None
        assert self.encoder is not None
        assert self.report is not None
        self.report.estimate_total = source.estimate_total
        return Runner(source, self.loader, self.encoder, folder).run(partition, self.report)


@contextmanager
def open_workshop(
    config: InferenceConfig, source: Source, folder: EmbeddingsFolder, partition_count: int
) -> Iterator[Workshop]:
    """Load the folder's model on the first device; raises ConfigError where it is another one."""
    if not partition_count:
        yield Workshop()
        return
    device = list_devices(config.encoder)[0]
    encoder_config = dataclasses.replace(config.encoder, device=device)
    encoder = load(encoder_config, candidates(encoder_config, settled_precision(folder))[0])
    check_encoder(folder, encoder)
    with ExitStack() as stack:
        live = Live(partition_count)
        stack.enter_context(watching(config, live))
        size = config.batch_size or best_batch_size(encoder)
        loader = Loader(wanted_parts(source, encoder), size, count_readers(config), config.reader_timeout, device)
        stack.callback(loader.close)
        yield Workshop(loader, encoder, live.teller())


def check_encoder(folder: EmbeddingsFolder, encoder: Encoder) -> None:
    then, now = (read_manifest(folder) or {}).get("encoder", {}), describe_encoder(encoder.info)
    differences = list(compare({name: then.get(name) for name in now}, now))
    if differences:
        raise ConfigError(
            f"{folder.url} holds the embeddings of another model ({'; '.join(differences)}); use a new folder"
        )
