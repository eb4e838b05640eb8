"""Our engine: a planned index, trained on a random sample and filled part by part, here or on executors of a cluster.

If there are several parts, each is a file in a work folder, which outlives a build that fails or is killed: the next
build of the same embeddings, within the same bounds, goes on with the existing parts.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from clip_retrieval.clusters.base import Runner, Shared
from clip_retrieval.embeddings.vectors import Vectors
from clip_retrieval.errors import IndexBuildError
from clip_retrieval.index.building.bit_allocation import Floats
from clip_retrieval.index.building.named_kinds import make_given, telling_why
from clip_retrieval.index.building.on_disk import staged_on_disk
from clip_retrieval.index.building.parts import can_be_merged
from clip_retrieval.index.building.ranges import MergedPart, RowRange, group_parts, part_name, split_rows
from clip_retrieval.index.building.tasks import SHARE_IT, IndexJob, add_part, merge_group, write_whole
from clip_retrieval.index.building.training import train_index
from clip_retrieval.index.measuring.given_rehearsal import measure_given
from clip_retrieval.index.measuring.queries import draw_rows
from clip_retrieval.index.measuring.rehearsal import rehearse
from clip_retrieval.index.planning.bounds import Bounds
from clip_retrieval.index.planning.measured import AS_PROMISED, choose_measured
from clip_retrieval.index.planning.plan import given_plan, make_plan
from clip_retrieval.index.planning.shapes import Plan, Problem
from clip_retrieval.layout import INDEX_SUFFIX
from clip_retrieval.progress import show_progress, unwatched, watch_rows
from clip_retrieval.search.files import write_file
from clip_retrieval.storage import Folder, size_of
from clip_retrieval.version import __version__
from clip_retrieval.words import bound_above, in_bytes

logger = logging.getLogger(__name__)

TRAINED = "trained.index"
FORMAT_OF_PARTS = 2
WHAT_FINDS_MORE = "to find more: a larger --max_index_memory_usage, other kinds by --index_key, filter --refine_from"
SURELY = 1.05  # times the expected size, extrapolated from a small index of the kind
QUERY_ROWS = 8_192  # queries of each modality for whose directions codes are made exact


@dataclass(frozen=True)
class FaissEngine:
    """Builds like any engine; writes one file to the path, or a folder of several files with that name."""

    runner: Runner
    place: Folder  # parent of the work folders
    index_count: int = 1
    finished: list[Folder] = field(default_factory=list)  # work folders that are no longer needed

    def __call__(self, vectors: Vectors, bounds: Bounds, path: Path) -> dict[str, Any]:
        plan = plan_index(vectors, bounds, self.index_count)
        say_plan(plan)
        ranges = split(vectors, plan, self)
        groups = group_parts(ranges, self.index_count)
        work = Folder(f"{self.place.url}/{path.stem}-{fingerprint(vectors, plan)}", keeps=self.place.keeps)
        progress = show_progress("adding vectors", vectors.row_count) if self.runner.is_here else nullcontext(None)
        with telling_why(plan) if plan.kind == "given" else nullcontext(), progress as advance:
            watch = unwatched if advance is None else watch_rows(advance)
            job = IndexJob(
                vectors=vectors,
                work=work,
                merged_folder=f"merged_{len(groups)}",
                cores=self.runner.cores_of_task or bounds.cores,
                watch=watch,
            )
            if self.runner.is_here and len(ranges) == 1:
                trained = self.runner.share(bytes(faiss.serialize_index(train(plan, vectors, bounds))))
                self.runner.run("adding vectors", partial(write_whole, job, trained, path), ranges)
                return describe_built(plan, path, [])
            trained = self.runner.share(take_trained(work, plan, vectors, bounds))
            self.add(job, trained, ranges)
        self.runner.run("merging parts", partial(merge_group, job, trained), groups)
        parts = fetch_merged(job, groups, path)
        self.finished.append(work)
        return describe_built(plan, path, parts)

    def add(self, job: IndexJob, trained: Shared, ranges: Sequence[RowRange]) -> None:
        there = set(job.work.names("", INDEX_SUFFIX))
        missing = [rows for rows in ranges if part_name(rows) not in there]
        if missing:
            logger.info("%d of %d parts are to be made", len(missing), len(ranges))
            self.runner.run("adding vectors", partial(add_part, job, trained), missing)
        lost = {part_name(rows) for rows in ranges} - set(job.work.names("", INDEX_SUFFIX))
        if lost:
            raise IndexBuildError(f"executors wrote {min(lost)}, but it is not in {job.work.url} here; {SHARE_IT}")


def plan_index(vectors: Vectors, bounds: Bounds, file_count: int = 1) -> Plan:
    """Return the plan for some vectors; raises IndexBuildError that names the nearest bounds if nothing fits."""
    problem = describe_problem(vectors, bounds, file_count)
    rehearsal = rehearse(vectors, problem)
    if bounds.index_key:
        given = given_plan(problem, bounds.index_key)
        given = measure_given(rehearsal, given) if rehearsal else given
        check_expected_size(given, bounds)
        return given
    return choose_measured(problem, rehearsal.measure) if rehearsal else make_plan(problem)


def check_expected_size(plan: Plan, bounds: Bounds) -> None:
    """Raise IndexBuildError if an index of a given key is sure to become too large."""
    if plan.kind == "given" and plan.index_bytes > SURELY * bounds.max_index_bytes:
        raise IndexBuildError(
            f"an index {plan.key} of {plan.rows:,} x {plan.dim} vectors would take about {in_bytes(plan.index_bytes)}, "
            f"above max_index_memory_usage, {in_bytes(bounds.max_index_bytes)}; raise the bound to "
            f"{bound_above(int(SURELY * plan.index_bytes))}, or leave --index_key out: the planner keeps to it"
        )


def describe_problem(vectors: Vectors, bounds: Bounds, file_count: int = 1) -> Problem:
    return Problem(
        rows=vectors.row_count,
        dim=vectors.dim,
        bounds=replace(bounds, cores=bounds.cores or faiss.omp_get_max_threads()),
        files=file_count,
        empty_rows=vectors.empty_count,
        asks_across=len(bounds.asked) > 1,
    )


def split(vectors: Vectors, plan: Plan, engine: FaissEngine) -> list[RowRange]:
    """Split the rows into parts; one part for kinds that cannot be merged, such as graphs."""
    if plan.kind != "graph" and (plan.kind != "given" or can_be_merged(make_given(plan))):
        return split_rows(vectors.row_count, engine.index_count, engine.runner.rows_of_task)
    if not engine.runner.is_here:
        raise IndexBuildError(f"an index of kind {plan.given_key} cannot be built in parts; leave --distributed out")
    return [RowRange(0, vectors.row_count)]


def say_plan(plan: Plan) -> None:
    if plan.kind == "given" and not plan.measured_on:
        return
    costs = (plan.key, in_bytes(plan.index_bytes), in_bytes(plan.peak_bytes), plan.seconds)
    if not plan.measured_on:
        logger.info(
            "%s: about %s, %s of memory to build, %.0f s; for CLIP embeddings such indices find about %.2f (recall@10) "
            "in %.1f ms",
            *(*costs, plan.recall, plan.query_ms),
        )
        return
    logger.info(
        "%s: about %s, %s of memory to build, %.0f s; expected recall@10, from trying it on %s of these rows: %.2f in "
        "%.1f ms%s",
        *(*costs, f"{plan.measured_on:,}", plan.recall, plan.query_ms),
        "" if plan.promised is None else f"; for CLIP embeddings: {plan.promised:.2f}",
    )
    if plan.promised is not None and plan.recall < plan.promised - AS_PROMISED:
        logger.warning(
            "%s is expected to find %.2f of the ten nearest rows, for CLIP embeddings %.2f: these vectors are harder "
            "to distinguish; of the kinds tried within the bounds, it finds most for its time; %s",
            *(plan.key, plan.recall, plan.promised, WHAT_FINDS_MORE),
        )


def train(plan: Plan, vectors: Vectors, bounds: Bounds) -> Any:
    """Return the empty index, trained on random rows; the same folder gives the same."""
    _, sample = draw_rows(vectors, max(1, plan.sample_rows))
    asked = [other for other in bounds.asked or (vectors,) if other.dim == vectors.dim]
    return train_index(plan, sample, draw_queries(asked))


def draw_queries(asked: Sequence[Vectors]) -> Floats:
    """Return vectors [q, d] like those of future queries, with equal weight for each modality."""
    drawn = [rows for _, rows in (draw_rows(vectors, QUERY_ROWS) for vectors in asked) if len(rows)]
    fewest = min(len(rows) for rows in drawn)
    return np.concatenate([rows[:fewest] for rows in drawn])


def fingerprint(vectors: Vectors, plan: Plan) -> str:
    """Return a short hash of everything that the parts depend on, without cores and costs."""
    files = [(file.name, file.row_count, file.dim, changed(vectors, file.name)) for file in vectors.files]
    about = [
        FORMAT_OF_PARTS,
        __version__,
        faiss.__version__,
        vectors.path(vectors.files[0]),
        (plan.kind, plan.key, plan.rows, plan.dim, plan.sample_rows),
        files,
    ]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]


def changed(vectors: Vectors, name: str) -> str:
    """Return the time of a file's last change, or its ETag, depending on the store."""
    info = vectors.folder.fs.info(vectors.folder.path(f"{vectors.subfolder}/{name}"))
    return str(info.get("mtime") or info.get("ETag") or info.get("etag") or info.get("LastModified"))


def take_trained(work: Folder, plan: Plan, vectors: Vectors, bounds: Bounds) -> bytes:
    """Return the serialized empty index: an earlier run's, or one trained here."""
    if not work.exists(TRAINED):
        with staged_on_disk(work, TRAINED) as staged:
            write_file(train(plan, vectors, bounds), staged)
    return work.read_bytes(TRAINED)


def fetch_merged(job: IndexJob, groups: Sequence[MergedPart], path: Path) -> list[dict[str, Any]]:
    """Move the finished files to this machine: to the path, or into a folder of that name; return what they hold."""
    if len(groups) == 1:
        fetch_merged_file(job, groups[0], path)
        return []
    path.mkdir()
    for group in groups:
        fetch_merged_file(job, group, path / group.name)
    return [{"file": group.name, "first_row": group.rows.start, "rows": group.rows.row_count} for group in groups]


def fetch_merged_file(job: IndexJob, group: MergedPart, path: Path) -> None:
    name = job.merged_name(group)
    if job.work.is_local:
        shutil.move(job.work.path(name), path)
    else:
        job.work.fs.get_file(job.work.path(name), str(path))


def describe_built(plan: Plan, path: Path, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the content of image.json before measuring."""
    size = size_of(path)
    return {
        "index_key": plan.key,
        "size in bytes": size,
        "nb vectors": plan.rows,
        "vectors dimension": plan.dim,
        "compression ratio": round(4 * plan.rows * plan.dim / max(1, size), 3),
        **({"plan": plan.to_json()} if plan.kind != "given" or plan.measured_on else {}),
        **({"parts": list(parts)} if parts else {}),
    }
