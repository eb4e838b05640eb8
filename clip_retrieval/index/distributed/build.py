"""The whole of `index --distributed pyspark` for one index: train here, add and merge on executors, fetch the result.

The work folder outlives a run that fails or is killed: the next one of the same embeddings goes on with its parts.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import faiss

from clip_retrieval import __version__
from clip_retrieval.errors import IndexBuildError
from clip_retrieval.index.config import IndexConfig
from clip_retrieval.index.distributed.cluster import open_cluster
from clip_retrieval.index.distributed.parts import can_be_merged
from clip_retrieval.index.distributed.plan import MergedPart, RowRange, group_parts, part_name, split_rows
from clip_retrieval.index.distributed.tasks import SHARE_IT, Job, Shared, add_part, merge_group
from clip_retrieval.index.engines import Bounds, Engine
from clip_retrieval.index.engines.faiss import TRAINING_ROWS_PER_LIST, choose_key, training_rows
from clip_retrieval.index.vectors import Vectors
from clip_retrieval.layout import IndexFolder
from clip_retrieval.storage import Folder

logger = logging.getLogger(__name__)

WORK_FOLDER = "_distributed"
TRAINED = "trained.index"


class Tasks(Protocol):
    """What runs tasks somewhere: a Cluster."""

    @property
    def cores_of_task(self) -> int: ...

    def share(self, value: bytes) -> Shared: ...

    def run(self, title: str, function: Callable[[Any], None], tasks: Sequence[Any]) -> None: ...


@dataclass(frozen=True)
class DistributedEngine:
    """Builds like any engine; writes one file to the path, or a folder of several files with that name."""

    cluster: Tasks
    place: Folder  # of the work folders
    index_count: int
    finished: list[Folder] = field(default_factory=list)  # work folders that nobody needs any more

    def __call__(self, vectors: Vectors, bounds: Bounds, path: Path) -> dict[str, Any]:
        bounds = leave_room(vectors, bounds, self.index_count)
        work = Folder(f"{self.place.url}/{path.stem}-{fingerprint(vectors, bounds)}")
        key, trained = take_trained(work, vectors, bounds)
        ranges = split_rows(vectors.row_count, self.index_count)
        groups = group_parts(ranges, self.index_count)
        job = Job(vectors, work, f"merged_{len(groups)}", bounds.cores or self.cluster.cores_of_task)
        self.add(job, trained, ranges)
        self.merge(job, groups)
        parts = fetch(job, groups, path)
        self.finished.append(work)
        size = sum(file.stat().st_size for file in ([path] if path.is_file() else path.iterdir()))
        return {
            "index_key": key,
            "size in bytes": size,
            "nb vectors": vectors.row_count,
            "vectors dimension": vectors.dim,
            "compression ratio": round(4 * vectors.row_count * vectors.dim / size, 3),
            **({"parts": parts} if len(parts) > 1 else {}),
        }

    def add(self, job: Job, trained: bytes, ranges: list[RowRange]) -> None:
        there = set(job.work.names("", ".index"))
        missing = [rows for rows in ranges if part_name(rows) not in there]
        if missing:
            logger.info("%d of %d parts are to be made", len(missing), len(ranges))
            self.cluster.run("adding vectors", partial(add_part, job, self.cluster.share(trained)), missing)
        lost = {part_name(rows) for rows in ranges} - set(job.work.names("", ".index"))
        if lost:
            raise IndexBuildError(f"executors wrote {min(lost)}, but it is not in {job.work.url} here; {SHARE_IT}")

    def merge(self, job: Job, groups: list[MergedPart]) -> None:
        self.cluster.run("merging parts", partial(merge_group, job), groups)


@contextmanager
def distributed_engine(config: IndexConfig, target: IndexFolder) -> Iterator[Engine]:
    """Give an engine that works on a Spark cluster, for as long as the block lasts."""
    options = config.spark
    place = Folder(options.temporary_indices_folder or f"{target.url}/{WORK_FOLDER}")
    with open_cluster(options.spark_master) as cluster:
        engine = DistributedEngine(cluster, place, options.nb_indices_to_keep)
        yield engine
    for work in engine.finished:
        work.remove("")
    if options.temporary_indices_folder is None:
        place.remove("")  # what is left are the parts of other embeddings, or of other bounds


def leave_room(vectors: Vectors, bounds: Bounds, file_count: int) -> Bounds:
    """Return the bounds without what several files take more than one: each has the centroids of its own."""
    key = choose_key(vectors.row_count, vectors.dim, bounds)
    lists = getattr(faiss.index_factory(vectors.dim, key), "nlist", 0)
    room = bounds.max_index_bytes - (file_count - 1) * lists * vectors.dim * 4
    return replace(bounds, max_index_bytes=max(room, 0))


def fingerprint(vectors: Vectors, bounds: Bounds) -> str:
    """Return what the parts of an index depend on, in a few letters."""
    files = [(file.name, file.row_count, file.dim, changed(vectors, file.name)) for file in vectors.files]
    about = [__version__, faiss.__version__, vectors.path(vectors.files[0]), bounds.max_index_bytes, files]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]


def changed(vectors: Vectors, name: str) -> str:
    """Return the store's mark of a file's last change."""
    info = vectors.folder.fs.info(vectors.folder.path(f"{vectors.subfolder}/{name}"))
    return str(info.get("mtime") or info.get("ETag") or info.get("etag") or info.get("LastModified"))


def take_trained(work: Folder, vectors: Vectors, bounds: Bounds) -> tuple[str, bytes]:
    """Return key and bytes of the empty index: an earlier run's, or one that is trained on a sample here."""
    key = choose_key(vectors.row_count, vectors.dim, bounds)
    if not work.exists(TRAINED):
        if bounds.cores is not None:
            faiss.omp_set_num_threads(bounds.cores)
        index = faiss.index_factory(vectors.dim, key, faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            index.train(training_rows(vectors, index.nlist * TRAINING_ROWS_PER_LIST))
            index.nprobe = min(32, index.nlist)
        if not can_be_merged(index):
            raise IndexBuildError(f"an index of kind {key} cannot be built in parts; leave --distributed out")
        with work.staged(TRAINED) as staged:
            faiss.write_index(index, str(staged))
    return key, work.read_bytes(TRAINED)


def fetch(job: Job, groups: list[MergedPart], path: Path) -> list[dict[str, Any]]:
    """Move the finished files to this machine: to the path, or into a folder of that name; return what they hold."""
    if len(groups) == 1:
        fetch_file(job, groups[0], path)
    else:
        path.mkdir()
        for group in groups:
            fetch_file(job, group, path / group.name)
    return [{"file": group.name, "first_row": group.rows.start, "rows": group.rows.row_count} for group in groups]


def fetch_file(job: Job, group: MergedPart, path: Path) -> None:
    name = job.merged_name(group)
    if job.work.is_local:
        shutil.move(job.work.path(name), path)
    else:
        job.work.fs.get_file(job.work.path(name), str(path))
