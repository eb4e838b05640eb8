"""The whole of `export`: blocks of rows into an engine, its approximate index, and a check of rows and index."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.errors import SourceError
from clip_retrieval.export.check import (
    Finding,
    Sample,
    Scan,
    ask_all,
    compare_answers,
    compare_rows,
    draw_sample,
    measure_recall,
)
from clip_retrieval.export.config import Engine, ExportConfig
from clip_retrieval.export.opening import open_source
from clip_retrieval.export.source import READ_ROWS, Block, Kind, Source
from clip_retrieval.export.target import Target, open_target
from clip_retrieval.progress import Advance, show_progress
from clip_retrieval.words import counted


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What was exported, and whether the check found it right."""

    to: Engine
    target: str
    folder: str
    vectors: Kind
    rows: int  # of the folder
    exported: int  # rows in the engine
    empty: int  # rows without an embedding, left out
    unmet: int  # rows that do not meet the condition, left out
    done_before: int  # rows of the folder that earlier runs had done
    index: str | None  # the engine's approximate index
    seconds: dict[str, float]
    findings: list[Finding]
    notes: list[str] = field(default_factory=list)

    @property
    def is_right(self) -> bool:
        return all(finding.is_right is not False for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        own = {name: value for name, value in vars(self).items() if name != "findings"}
        return {**own, "is_right": self.is_right, "findings": [finding.to_json() for finding in self.findings]}


def run_export(config: ExportConfig) -> ExportResult:
    """Export a folder, or go on with an export that was stopped, and check it. Raises ClipRetrievalError."""
    with open_source(config) as source, closing(open_target(config, source)) as target:
        return export(config, source, target)


def export(config: ExportConfig, source: Source, target: Target) -> ExportResult:
    start = time.perf_counter()
    if not source.has_rows():
        raise SourceError(f"no row of {source.url} has an embedding and meets the condition: nothing was exported")
    done = target.begin()
    sample = draw_sample(source, config.check, target.dtype)
    scan = Scan(sample, config.check.num_results, target.dtype)
    with show_progress("exporting rows", source.row_count) as advance:
        empty = load(source, target, scan, Steps(config.batch_rows, done, advance))
    target.finish()
    loaded = time.perf_counter()
    findings = [*compare_rows(source, target, sample, scan)]
    if len(sample.queries) and target.offers_exact():
        findings.append(ask_exactly(source, target, sample, scan))
    checked = time.perf_counter()
    index = target.build_index()
    built = time.perf_counter()
    if len(sample.queries):
        findings += [*ask_indices(config, source, target, Asked(sample, scan, index))]
    seconds = {"load": loaded - start, "index": built - checked}
    seconds["check"] = time.perf_counter() - start - sum(seconds.values())
    return ExportResult(
        to=config.to,
        target=target.name,
        folder=config.folder,
        vectors=source.kind,
        rows=source.row_count,
        exported=scan.seen.count,
        empty=empty,
        unmet=source.row_count - scan.seen.count - empty,
        done_before=done,
        index=index,
        seconds={name: round(value, 3) for name, value in seconds.items()},
        findings=findings,
        notes=[*source.notes, *(f"{counted(count, 'value')}: {what}" for what, count in source.odd.items())],
    )


@dataclass(frozen=True)
class Steps:
    """How the rows are cut: `size` at a time; rows before `done` are only looked at."""

    size: int
    done: int
    advance: Advance

    @property
    def read_size(self) -> int:
        """Rows in memory at once: a multiple of the step."""
        return self.size * max(1, READ_ROWS // self.size)

    def cut(self, block: Block) -> Iterator[Block]:
        """Yield the parts of a block, at multiples of the step."""
        start = block.start
        while start < block.stop:
            stop = min((start // self.size + 1) * self.size, block.stop)
            yield block.part(start, stop)
            start = stop


def load(source: Source, target: Target, scan: Scan, steps: Steps) -> int:
    """Write all missing rows, and look at the others; return how many have no embedding."""
    empty = 0
    for block in source.blocks(0, steps.read_size, stop=steps.done, with_metadata=False):
        scan.add(block)
        empty += block.empty
        steps.advance(block.stop - block.start)
    for block in source.blocks(steps.done, steps.read_size, stop=source.row_count):
        for part in steps.cut(block):
            target.write(part)
            steps.advance(part.stop - part.start)
        scan.add(block)
        empty += block.empty
    return empty


def ask_exactly(source: Source, target: Target, sample: Sample, scan: Scan) -> Finding:
    k = scan.nearest.ids.shape[1]
    answers = ask_all(
        lambda queries: target.search(queries, k, exact=True), sample.queries, at_once=target.answers_at_once
    )
    return compare_answers(source, scan, sample, answers)


@dataclass(frozen=True, eq=False)
class Asked:
    """The queries for approximate indices, and the name of the engine's own index."""

    sample: Sample
    scan: Scan
    index: str | None


def ask_indices(config: ExportConfig, source: Source, target: Target, asked: Asked) -> Iterator[Finding]:
    """Report what the engine's approximate index finds, and for comparison what ours finds."""
    sample, scan = asked.sample, asked.scan
    k = scan.nearest.ids.shape[1]

    def judge(what: str, search: Any, least: float | None) -> Finding:
        answers = ask_all(search, sample.queries)
        recall = measure_recall(source, scan, sample, answers.found)
        is_right = None if least is None else recall >= least
        there = f"recall@{k} {recall:.4f}"
        return Finding(what, f"{len(answers.found):,} queries", there, is_right, answers.figures(recall))

    if asked.index is not None:
        yield judge(
            f"its index: {asked.index}",
            lambda queries: target.search(queries, k, exact=False),
            config.check.least_recall,
        )
    index = source.index
    if index is not None and source.met is None:

        def search(queries: NDArray[np.float32]) -> list[Any]:
            return [hits.ids for hits in index.search_many(queries, k)]

        yield judge("our own index", search, None)
