"""--dry_run: a small part of the input through the real pipeline, into a scratch folder that is removed.

Nothing is written where the run would write.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clip_retrieval.errors import ConfigError, SourceError
from clip_retrieval.inference.config import InferenceConfig
from clip_retrieval.inference.dry_run.estimate import Estimate, Measured, Task
from clip_retrieval.inference.dry_run.sampling import SampledSource, Sampling, take_sample
from clip_retrieval.inference.plan import open_output, plan_run
from clip_retrieval.inference.resume import settled_precision
from clip_retrieval.inference.telemetry.live import Teller
from clip_retrieval.inference.telemetry.stats import Stats
from clip_retrieval.inference.worker.equipment import Equipment, count_readers, open_equipment
from clip_retrieval.inference.worker.partition import make_partition
from clip_retrieval.layout import EMBEDDING_FOLDERS, EmbeddingsFolder, Partition
from clip_retrieval.options import build_config
from clip_retrieval.process.resources import children, count_cores, memory_limit, memory_now, memory_peak
from clip_retrieval.sources import open_source

SECONDS_TO_MEASURE = 10.0  # longest pass with batches of the full size
FULL_BATCHES = 2


@dataclass(frozen=True)
class Pass:
    """Figures and bytes of some samples that went through the pipeline."""

    stats: Stats
    embedding_bytes: int
    other_bytes: int

    @property
    def samples(self) -> int:
        return self.stats.sample_count + self.stats.skipped_count


def estimate_inference(*arguments: object, **options: object) -> Estimate:
    """Estimate a run; takes what `clip_inference` takes, and raises what it raises before it starts."""
    return estimate_run(build_config(InferenceConfig, options, arguments))


def estimate_run(config: InferenceConfig, tasks: Sequence[int] | None = None) -> Estimate:
    """Estimate all partitions, or those of `tasks`, that are not done yet."""
    folder = open_output(config)
    if config.update or config.retry_failed:
        raise ConfigError("dry_run estimates whole runs; what update and retry_failed find is not known in advance")
    source = open_source(dataclasses.replace(config.source, cache_path=None), config.output_folder)
    run = plan_run(config, folder, source, tasks)
    sampling = take_sample(source, config.wds_number_file_per_input_file)
    task = Task(
        samples=sampling.total,
        certainty=sampling.certainty,
        partition_count=len(run.chosen),
        missing_share=run.share_of(run.missing),
        missing_count=len(run.missing),
        devices=run.devices[: max(1, len(run.missing))],
        readers=count_readers(run.config),
        cores=count_cores(),
        memory_limit=memory_limit(),
        disk_free=free_bytes(folder),
        output_folder=config.output_folder,
    )
    return Estimate(task=task, measured=measure(run.config, sampling, run.devices[0], settled_precision(folder)))


def free_bytes(folder: EmbeddingsFolder) -> int | None:
    """Return the free bytes of the output's file system; None if it is not local."""
    if not folder.is_local:
        return None
    place = Path(folder.root).absolute()
    return shutil.disk_usage(next(parent for parent in (place, *place.parents) if parent.exists())).free


def measure(config: InferenceConfig, sampling: Sampling, device: str, settled: str | None) -> Measured:
    """Run half the sample through the pipeline as warm-up, then all of it, then full batches as time allows."""
    sampled, base, start = sampling.source, memory_now(), time.perf_counter()
    with open_equipment(config, device, sampled, settled) as equipment:
        load_seconds, loaded = time.perf_counter() - start, memory_now()
        half = embed(sampled, len(sampled.items) // 2, equipment)
        whole = embed(sampled, len(sampled.items), equipment)
        if not whole.samples:
            reasons = ", ".join(f"{count} {reason}" for reason, count in whole.stats.reasons.most_common())
            raise SourceError(f"no sample of {config.source.input_dataset} was found ({reasons or 'it holds none'})")
        full = full_batches(sampled, whole, equipment.loader.batch_size)
        timed = whole if full is None else embed(full, len(full.items), equipment)
        peak = memory_peak()
        reader = max((memory_peak(pid) or 0 for pid in children("inference.readers.process")), default=0)
    per_row = slope(half, whole)
    return Measured(
        samples=whole.samples,
        rows=whole.stats.sample_count,
        reasons=Counter(whole.stats.reasons),
        load_seconds=load_seconds,
        source_seconds=sampling.seconds,
        read_seconds=whole.stats.reader_read_duration / whole.samples,
        decode_seconds=timed.stats.reader_decode_duration / timed.samples,
        encode_seconds=timed.stats.inference_duration / timed.samples,
        write_seconds=timed.stats.write_duration / timed.samples,
        embedding_bytes=per_row.embedding_bytes,
        other_bytes=per_row.other_bytes,
        partition_bytes=max(0.0, whole.other_bytes - whole.stats.sample_count * per_row.other_bytes),
        base_bytes=base,
        encoder_bytes=None if base is None or loaded is None else max(0, loaded - base),
        batch_bytes=None if peak is None or loaded is None else max(0, peak - loaded),
        reader_bytes=None if peak is None else reader,
    )


def full_batches(sampled: SampledSource, whole: Pass, batch_size: int) -> SampledSource | None:
    """Return the sample repeated to fill batches; None if it fills them already, or if that would take too long."""
    seconds = whole.stats.total_duration / whole.samples
    wanted = min(FULL_BATCHES * batch_size, int(SECONDS_TO_MEASURE / max(seconds, 1e-9)))
    count = len(sampled.items)
    if wanted <= count:
        return None
    items = [sampled.items[i % count] for i in range(wanted)]
    return type(sampled)(sampled.source, items)


def embed(sampled: SampledSource, count: int, equipment: Equipment) -> Pass:
    """Make a partition of the first `count` items in a scratch folder, and measure its size."""
    with tempfile.TemporaryDirectory(prefix="clip-retrieval-dry-run-") as scratch:
        unheard = Teller(lambda _news: None)
        stats = make_partition(equipment, sampled, EmbeddingsFolder(scratch), Partition(0, 1, 0, count), unheard)
        sizes: Counter[bool] = Counter()
        for path in Path(scratch).rglob("*"):
            if path.is_file():
                sizes[path.parent.name in EMBEDDING_FOLDERS.values()] += path.stat().st_size
    return Pass(stats, sizes[True], sizes[False])


@dataclass(frozen=True)
class Slope:
    """Bytes that one more row takes."""

    embedding_bytes: float
    other_bytes: float


def slope(half: Pass, whole: Pass) -> Slope:
    """Return the bytes of a row, without those of a partition, from two partitions of different size."""
    more = whole.stats.sample_count - half.stats.sample_count
    if more <= 0:
        rows = max(1, whole.stats.sample_count)
        return Slope(whole.embedding_bytes / rows, whole.other_bytes / rows)
    embedding, other = whole.embedding_bytes - half.embedding_bytes, whole.other_bytes - half.other_bytes
    return Slope(embedding / more, max(0, other) / more)
