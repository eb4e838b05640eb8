"""What a run will need, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clip_retrieval.commands.reports.console import make_table, open_console
from clip_retrieval.words import counted, in_bytes, in_words

if TYPE_CHECKING:
    from clip_retrieval.inference.dry_run.estimate import Estimate

SLOW_SOURCE = 10  # a source slower than this many times the run's rate is named as a cost


def print_estimate(estimate: Estimate) -> None:
    """Print samples, time, memory and disk, what limits them, and what does not fit."""
    console = open_console()
    title = f"estimated from {estimate.measured.samples} samples; nothing was written"
    table = make_table(["what", "estimate", "from"], title=title, numbers=("estimate",))
    for row in rows_of(estimate):
        table.add_row(*row)
    console.print(table)
    for reason, count in sorted(estimate.measured.reasons.items()):
        console.print(f"  {count} of the sample: {reason.replace(':', ' ')}")
    for warning in estimate.warnings:
        console.print(f"  {warning}")


def rows_of(estimate: Estimate) -> list[tuple[str, str, str]]:
    task, measured, rates = estimate.task, estimate.measured, estimate.rates
    about = "" if task.certainty == "exact" else "about "
    readers = counted(task.readers, "reader") if task.readers else "no readers"
    device = measured.encode_seconds and f"{1 / measured.encode_seconds:,.1f}/s on {', '.join(task.devices)}"
    core = 1 / max(measured.read_seconds + measured.decode_seconds, 1e-9)
    speeds = f"encode {device}; read and decode {core:,.1f}/s per core; {readers}, {task.cores} cores"
    if rates.source < SLOW_SOURCE * estimate.samples_per_second:
        speeds = f"list and stream {rates.source:,.1f}/s; {speeds}"
    disk = f"per row {in_bytes(measured.embedding_bytes)} of embeddings, {in_bytes(measured.other_bytes)} of the rest"
    return [
        ("samples", f"{about}{task.samples:,}", task.certainty),
        ("to do", f"{about}{estimate.samples:,}", f"{task.missing_count} of {task.partition_count} partitions"),
        ("time", in_words(estimate.seconds), f"{estimate.samples_per_second:,.1f} samples/s; the limit: {rates.limit}"),
        ("", "", speeds),
        ("memory", memory_of(estimate), parts_of(estimate)),
        ("disk", in_bytes(sum(estimate.disk.values())), f"{disk}; {free_of(estimate)}"),
    ]


def memory_of(estimate: Estimate) -> str:
    return "unknown" if estimate.memory is None else in_bytes(sum(estimate.memory.values()))


def parts_of(estimate: Estimate) -> str:
    parts = ", ".join(f"{name} {in_bytes(count)}" for name, count in (estimate.memory or {}).items())
    limit = estimate.task.memory_limit
    return parts + ("" if limit is None else f"; there are {in_bytes(limit)}")


def free_of(estimate: Estimate) -> str:
    free = estimate.task.disk_free
    return "free space unknown" if free is None else f"{in_bytes(free)} free"
