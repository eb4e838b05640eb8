"""Extrapolates a run's needs from the measured sample: plain arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from clip_retrieval.inference.dry_run.sampling import Certainty
from clip_retrieval.words import in_bytes

SMALL_SHARE = 0.9  # warn if a run needs more than this share of the memory or disk


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Measurements of the sample. Seconds are per sample, on one source, reader or device."""

    samples: int
    rows: int
    reasons: Mapping[str, int]  # part:reason -> how often
    load_seconds: float
    source_seconds: float
    read_seconds: float
    decode_seconds: float
    encode_seconds: float
    write_seconds: float
    embedding_bytes: float  # bytes for one row
    other_bytes: float  # bytes for one row of metadata, ledger and the rest
    partition_bytes: float  # bytes of a partition without rows
    base_bytes: int | None  # memory of a worker before it opened the encoder
    encoder_bytes: int | None  # memory that opening the encoder added
    batch_bytes: int | None  # memory that encoding batches added
    reader_bytes: int | None  # memory of one reader process


@dataclass(frozen=True, kw_only=True)
class Task:
    """The work of a run, and the hardware for it."""

    samples: int
    certainty: Certainty
    partition_count: int  # requested partitions
    missing_share: float  # share of the input that is not done yet
    missing_count: int  # partitions that are not done yet
    devices: Sequence[str]
    readers: int  # reader processes for each device; 0: the worker prepares by itself
    cores: int
    memory_limit: int | None
    disk_free: int | None
    output_folder: str


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Samples a second that each part could do if it were alone, on all devices or readers."""

    source: float
    read: float
    decode: float
    encode: float
    write: float

    @property
    def limit(self) -> str:
        rates = asdict(self)
        return min(rates, key=lambda name: rates[name])


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Estimated needs of a run, in bytes and seconds."""

    task: Task
    measured: Measured

    @property
    def samples(self) -> int:
        """Number of samples that are not done yet."""
        return round(self.task.samples * self.task.missing_share)

    @property
    def rows(self) -> int:
        return round(self.samples * self.measured.rows / self.measured.samples)

    @property
    def rates(self) -> Rates:
        measured, workers = self.measured, len(self.task.devices)
        readers = max(1, self.task.readers) * workers
        decoding = min(readers, self.task.cores)  # more readers than cores only hide the delay of reading
        return Rates(
            source=workers / max(measured.source_seconds, 1e-9),
            read=readers / max(measured.read_seconds, 1e-9),
            decode=decoding / max(measured.decode_seconds, 1e-9),
            encode=workers / max(measured.encode_seconds, 1e-9),
            write=workers / max(measured.write_seconds, 1e-9),
        )

    @property
    def samples_per_second(self) -> float:
        """Rate of all parts together: readers read or decode in turn, and on CPUs decoding and encoding share cores."""
        rates = self.rates
        prepare = 1 / (1 / rates.read + 1 / rates.decode)
        if any(not device.startswith("cuda") for device in self.task.devices):
            return min(rates.source, prepare, 1 / (1 / rates.decode + 1 / rates.encode), rates.write)
        return min(rates.source, prepare, rates.encode, rates.write)

    @property
    def seconds(self) -> float:
        return self.measured.load_seconds + self.samples / self.samples_per_second if self.samples else 0.0

    @property
    def memory(self) -> dict[str, int] | None:
        """Return the bytes of each part, of all workers together; None if this system does not say."""
        measured, workers = self.measured, len(self.task.devices)
        parts = measured.base_bytes, measured.encoder_bytes, measured.batch_bytes, measured.reader_bytes
        if None in parts:
            return None
        base, encoder, batches, reader = (part or 0 for part in parts)
        readers = reader * self.task.readers
        named = {"python": base, "encoder": encoder, "batches": batches, "readers": readers}
        return {name: count * workers for name, count in named.items()}

    @property
    def disk(self) -> dict[str, int]:
        """Return the bytes of embeddings, and of all other files."""
        embeddings = round(self.rows * self.measured.embedding_bytes)
        fixed = self.task.missing_count * self.measured.partition_bytes
        return {"embeddings": embeddings, "metadata": round(self.rows * self.measured.other_bytes + fixed)}

    @property
    def warnings(self) -> list[str]:
        found, task = [], self.task
        disk = sum(self.disk.values())
        if task.disk_free is not None and disk > task.disk_free:
            there = f"{in_bytes(task.disk_free)} are free for {task.output_folder}"
            found.append(f"does not fit: it writes {in_bytes(disk)}, {there}")
        memory = sum((self.memory or {}).values())
        if task.memory_limit is not None and memory > SMALL_SHARE * task.memory_limit:
            advice = "a smaller --batch_size or fewer --num_prepro_workers need less"
            found.append(f"memory is short: {in_bytes(memory)} of {in_bytes(task.memory_limit)}; {advice}")
        if task.certainty == "assumed":
            found.append("the samples of the tars could not be counted: their number is what the options assume")
        return found

    def to_json(self) -> dict[str, Any]:
        task, measured = self.task, self.measured
        return {
            "samples": task.samples,
            "certainty": task.certainty,
            "samples_to_do": self.samples,
            "rows_to_write": self.rows,
            "partition_count": task.partition_count,
            "partitions_to_do": task.missing_count,
            "seconds": round(self.seconds, 1),
            "samples_per_second": round(self.samples_per_second, 3),
            "rates": {name: round(rate, 3) for name, rate in asdict(self.rates).items()},
            "limit": self.rates.limit,
            "memory_bytes": None if self.memory is None else {**self.memory, "total": sum(self.memory.values())},
            "memory_limit_bytes": task.memory_limit,
            "disk_bytes": {**self.disk, "total": sum(self.disk.values())},
            "disk_free_bytes": task.disk_free,
            "sample": {"samples": measured.samples, "rows": measured.rows, "reasons": dict(measured.reasons)},
            "warnings": self.warnings,
        }
