"""What the tasks of a distributed build do, without a cluster: rows to parts, parts to files, failures to sentences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from clip_retrieval.cli import cli
from clip_retrieval.embeddings.vectors import open_vectors
from clip_retrieval.errors import ConfigError, IndexBuildError
from clip_retrieval.index.building.parts import can_be_merged, read_range
from clip_retrieval.index.building.ranges import RowRange, codes_name, group_parts, part_name, split_rows
from clip_retrieval.index.building.tasks import IndexJob, add_part, merge_group, write_whole
from clip_retrieval.index.config import DistributionConfig
from clip_retrieval.index.engines.faiss import FaissEngine, fingerprint
from clip_retrieval.index.engines.local import LocalRunner
from clip_retrieval.index.planning.bounds import Bounds
from clip_retrieval.index.planning.shapes import Plan
from clip_retrieval.storage import Folder

Rows = Callable[..., NDArray[np.float32]]
WriteRun = Callable[..., Path]
KINDS = (
    *("Flat", "SQ8", "IVF4,SQ8", "OPQ4,IVF4,PQ4x4fs", "RR16,IVF4,PQ4x4fs,Refine(SQ8)", "IVF4,SQ4,Refine(SQfp16)"),
    *("RR16,IVF4,PQ4x4fs,Refine(RR16,PQ4x4np)", "IVF4,SQ8,Refine(RaBitQ)"),
)


@dataclass(frozen=True)
class Sent:
    """What a task reads of a broadcast."""

    value: bytes


def trained(rows: NDArray[np.float32], kind: str) -> bytes:
    index = faiss.index_factory(rows.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
    index.train(rows)
    return bytes(faiss.serialize_index(index))


@pytest.mark.parametrize(("rows", "least", "size"), [(1, 1, 10), (7, 3, 10), (100, 1, 10), (101, 4, 10), (2, 5, 1)])
def test_ranges_cover_every_row_once_and_in_order(rows: int, least: int, size: int) -> None:
    ranges = split_rows(rows, least, size)
    assert [row for part in ranges for row in range(part.start, part.stop)] == list(range(rows))
    assert len(ranges) >= min(least, rows)
    assert all(0 < part.row_count <= size for part in ranges)


def test_tasks_are_neither_tiny_nor_huge() -> None:
    assert len(split_rows(50_000, 1)) == 1
    assert len(split_rows(1_000_000, 1)) == 10
    assert len(split_rows(5_000_000_000, 1)) == 500


@pytest.mark.parametrize(("parts", "files"), [(1, 1), (7, 3), (3, 7), (250, 120)])
def test_files_hold_neighboring_parts_and_sort_by_name(parts: int, files: int) -> None:
    ranges = split_rows(parts * 10, parts, 10)
    groups = group_parts(ranges, files)
    assert [rows for group in groups for rows in group.parts] == ranges
    assert len(groups) == min(parts, files)
    assert [group.name for group in groups] == sorted(group.name for group in groups)
    assert [group.rows.start for group in groups[1:]] == [group.rows.stop for group in groups[:-1]]


def test_rows_are_read_over_the_borders_of_files(tmp_path: Path, unit_rows: Rows, write_run: WriteRun) -> None:
    rows = unit_rows(31)
    emb = write_run(tmp_path / "emb", np.split(rows, [10, 11, 20]))
    vectors = open_vectors(Folder(str(emb)), "img_emb")
    assert vectors is not None
    for start, stop in [(0, 31), (5, 12), (10, 11), (25, 31)]:
        assert np.array_equal(np.concatenate(list(read_range(vectors, RowRange(start, stop)))), rows[start:stop])


def make_job(folder: Path, write_run: WriteRun, rows: NDArray[np.float32]) -> IndexJob:
    vectors = open_vectors(Folder(str(write_run(folder / "emb", np.split(rows, [len(rows) // 2])))), "img_emb")
    assert vectors is not None
    return IndexJob(vectors=vectors, work=Folder(str(folder / "work")), merged_folder="merged_1", cores=1)


def merge(job: IndexJob, empty: bytes, *borders: int) -> Any:
    """Return an index of the rows between these borders, that was made in parts."""
    parts = [RowRange(start, stop) for start, stop in pairwise(borders)]
    for part in parts:
        add_part(job, Sent(empty), part)
    [merged] = group_parts(parts, 1)
    merge_group(job, Sent(empty), merged)
    return faiss.read_index(job.work.path(job.merged_name(merged)))


@pytest.mark.parametrize("kind", KINDS)
def test_merged_parts_answer_as_one_index_does(
    tmp_path: Path, unit_rows: Rows, write_run: WriteRun, same_hits: Callable[..., None], kind: str
) -> None:
    rows = unit_rows(300)
    job, empty = make_job(tmp_path, write_run, rows), trained(rows, kind)
    write_whole(job, Sent(empty), tmp_path / "whole.index", RowRange(0, 300))
    whole, merged = faiss.read_index(str(tmp_path / "whole.index")), merge(job, empty, 0, 100, 200, 300)
    plain = faiss.deserialize_index(np.frombuffer(empty, np.uint8))
    plain.add(rows)
    for index in (whole, merged):
        assert index.ntotal == 300
        same_hits(index.search(rows[:50], 10), plain.search(rows[:50], 10))


def test_rows_without_embedding_are_in_no_list_and_move_no_id(
    tmp_path: Path, unit_rows: Rows, write_run: WriteRun
) -> None:
    rows = unit_rows(200)
    rows[[0, 60, 199]] = 0
    empty = trained(unit_rows(200), "RR16,IVF4,SQ8,Refine(SQfp16)")
    merged = merge(make_job(tmp_path, write_run, rows), empty, 0, 100, 200)
    scores, ids = merged.search(rows, 200)
    filled = np.setdiff1d(np.arange(200), [0, 60, 199])
    assert not np.isin(ids, [0, 60, 199]).any()
    assert ids[filled, 0].tolist() == filled.tolist()
    assert np.allclose(scores[filled, 0], 1, atol=1e-2)


@pytest.mark.parametrize(("kind", "first"), [("IVF4,SQ8", 100), ("IVF4,SQ8,Refine(SQfp16)", 0), ("SQfp16", 0)])
def test_lists_of_a_later_file_hold_numbers_of_rows_and_places_count_from_its_first(
    tmp_path: Path, unit_rows: Rows, write_run: WriteRun, kind: str, first: int
) -> None:
    rows = unit_rows(300)
    merged = merge(make_job(tmp_path, write_run, rows), trained(rows, kind), 100, 200, 300)
    assert merged.search(rows[100:], 1)[1][:, 0].tolist() == list(range(first, first + 200))


@pytest.mark.parametrize("lost", [True, False])
def test_a_part_whose_codes_are_not_whole_is_made_again(job: IndexJob, unit_rows: Rows, lost: bool) -> None:
    empty = trained(unit_rows(300), "IVF4,SQ4,Refine(SQ8)")
    add_part(job, Sent(empty), RowRange(0, 100))
    codes = Path(job.work.path(codes_name(RowRange(0, 100))))
    if lost:
        codes.unlink()
    else:
        codes.write_bytes(codes.read_bytes()[:-1])
    with pytest.raises(IndexBuildError, match=r"part_.*index was damaged and is removed; run the same command again"):
        merge(job, empty, 0, 100, 200)
    assert merge(job, empty, 0, 100, 200).ntotal == 200


def test_graphs_are_not_built_in_parts() -> None:
    graph = faiss.index_factory(16, "HNSW16", faiss.METRIC_INNER_PRODUCT)
    assert not can_be_merged(graph)
    assert not can_be_merged(faiss.index_factory(16, "IVF4,RaBitQfs", faiss.METRIC_INNER_PRODUCT))
    assert can_be_merged(faiss.index_factory(16, "OPQ4,IVF4_HNSW8,PQ4,Refine(SQ8)", faiss.METRIC_INNER_PRODUCT))


@dataclass(frozen=True)
class HereAndNow:
    """A cluster without processes: does each task twice, as Spark may."""

    cores_of_task: int | None = 1
    rows_of_task: int | None = None
    is_here: bool = False

    def share(self, value: bytes) -> Sent:
        return Sent(value)

    def run(self, title: str, function: Callable[[Any], None], tasks: Sequence[Any]) -> None:  # noqa: ARG002
        for task in (*tasks, *tasks):
            function(task)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("on_store", [True, False])
def test_an_index_comes_out_of_parts_anywhere(
    tmp_path: Path, unit_rows: Rows, write_run: WriteRun, count: int, on_store: bool
) -> None:
    rows = unit_rows(300)
    emb = write_run(tmp_path / "emb", np.split(rows, [150]))
    vectors = open_vectors(Folder(str(emb)), "img_emb")
    assert vectors is not None
    place = Folder(f"memory://{tmp_path.name}" if on_store else str(tmp_path / "parts"))
    path = tmp_path / "image.index"
    infos = FaissEngine(HereAndNow(), place, count)(
        vectors, Bounds(max_index_bytes=10**6, available_bytes=10**9, cores=1), path
    )
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    assert [file.name for file in files] == [part["file"] for part in infos.get("parts", [{"file": "image.index"}])]
    assert [part["first_row"] for part in infos.get("parts", [])] == ([0, 100, 200] if count == 3 else [])
    assert infos["size in bytes"] == sum(file.stat().st_size for file in files)
    assert sum(faiss.read_index(str(file)).ntotal for file in files) == 300


@pytest.fixture
def job(tmp_path: Path, unit_rows: Rows, write_run: WriteRun) -> IndexJob:
    return make_job(tmp_path, write_run, unit_rows(300))


def test_a_task_that_is_done_is_not_done_again(job: IndexJob, unit_rows: Rows) -> None:
    rows = RowRange(100, 200)
    empty = trained(unit_rows(300), "IVF4,SQ8")
    add_part(job, Sent(empty), rows)
    add_part(job, Sent(b"no index: would raise"), rows)
    [merged] = group_parts([rows], 1)
    merge_group(job, Sent(empty), merged)
    job.work.remove(part_name(rows))
    merge_group(job, Sent(empty), merged)
    assert faiss.read_index(job.work.path("merged_1/00.index")).ntotal == 100


def test_tasks_leave_the_threads_of_their_process_as_they_were(job: IndexJob, unit_rows: Rows) -> None:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(2)
    try:
        merge(job, trained(unit_rows(300), "IVF4,SQ8"), 0, 100)  # with one core
        assert faiss.omp_get_max_threads() == 2
    finally:
        faiss.omp_set_num_threads(before)


def test_a_task_that_sees_no_folder_says_so(job: IndexJob, tmp_path: Path) -> None:
    (tmp_path / "emb").rename(tmp_path / "elsewhere")
    with pytest.raises(IndexBuildError, match=r"an executor sees no folder .*emb; share it"):
        add_part(job, Sent(b""), RowRange(0, 10))


def test_a_merge_that_does_not_see_a_part_says_so(job: IndexJob, unit_rows: Rows) -> None:
    [merged] = group_parts([RowRange(0, 10)], 1)
    with pytest.raises(IndexBuildError, match=r"does not see .*part_.*temporary_indices_folder"):
        merge_group(job, Sent(trained(unit_rows(300), "IVF4,SQ8")), merged)


def test_embeddings_that_change_meanwhile_are_an_error(job: IndexJob, tmp_path: Path, unit_rows: Rows) -> None:
    np.save(tmp_path / "emb" / "img_emb" / job.vectors.files[0].name, unit_rows(20))
    with pytest.raises(IndexBuildError, match="changed while the index was built"):
        list(read_range(job.vectors, RowRange(0, 10)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nb_indices_to_keep": 0}, "at least 1"),
        ({"nb_indices_to_keep": 4}, "is for --distributed pyspark or ray"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DistributionConfig(**options)


@pytest.mark.parametrize(("engine", "extra"), [("pyspark", "spark"), ("ray", "ray")])
def test_without_its_package_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, engine: str, extra: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    done = CliRunner().invoke(cli, ["index", "emb", "ix", "--distributed", engine])
    assert done.exit_code == 1
    assert done.output == f"Error: --distributed {engine} needs {engine}: pip install 'clip-retrieval[{extra}]'\n"


def test_parts_depend_on_the_kind_and_who_trains_it_not_on_cores(job: IndexJob) -> None:
    plan = Plan("exact", 300, 16, "SQ8", sample_rows=300)
    given = Plan("given", 300, 16, given_key="SQ8", sample_rows=300)
    more = [replace(plan, seconds=9.0, peak_bytes=7), replace(plan, sample_rows=200), replace(plan, store="SQ6"), given]
    same = [fingerprint(job.vectors, other) == fingerprint(job.vectors, plan) for other in more]
    assert same == [True, False, False, False]


class SmallParts(LocalRunner):
    """This machine, with parts of a few rows."""

    rows_of_task: int | None = 2000


def test_a_build_here_that_is_stopped_goes_on_with_its_parts(
    tmp_path: Path,
    unit_rows: Rows,
    write_run: WriteRun,
    monkeypatch: pytest.MonkeyPatch,
    same_hits: Callable[..., None],
) -> None:
    rows = unit_rows(8000, 32)
    vectors = open_vectors(Folder(str(write_run(tmp_path / "emb", np.split(rows, [3000])))), "img_emb")
    assert vectors is not None
    bounds, place = Bounds(max_index_bytes=255_000, available_bytes=10**9, cores=1), Folder(str(tmp_path / "work"))
    made: list[int] = []

    def stop_after(count: int) -> None:
        def add(job: IndexJob, trained: Any, part: RowRange) -> None:
            if len(made) == count:
                raise KeyboardInterrupt
            made.append(part.start)
            add_part(job, trained, part)

        monkeypatch.setattr("clip_retrieval.index.engines.faiss.add_part", add)

    stop_after(2)
    with pytest.raises(KeyboardInterrupt):
        FaissEngine(SmallParts(), place)(vectors, bounds, tmp_path / "image.index")
    assert not (tmp_path / "image.index").exists()
    stop_after(100)
    info = FaissEngine(SmallParts(), place)(vectors, replace(bounds, cores=2), tmp_path / "image.index")
    assert made == [0, 2000, 4000, 6000]
    FaissEngine(LocalRunner(), Folder(str(tmp_path / "other")))(vectors, bounds, tmp_path / "whole.index")
    resumed, whole = (faiss.read_index(str(tmp_path / f"{name}.index")) for name in ("image", "whole"))
    assert "IVF" in info["index_key"]
    same_hits(resumed.search(rows[:50], 10), whole.search(rows[:50], 10))


@pytest.mark.parametrize("stored", ["float16", "float32"])
def test_parts_hold_no_copy_of_embeddings_in_half_precision(
    tmp_path: Path, unit_rows: Rows, write_run: WriteRun, stored: str
) -> None:
    rows = unit_rows(300).astype(np.float16).astype(stored)
    job, empty = make_job(tmp_path, write_run, rows), trained(rows.astype(np.float32), "IVF4,SQ4,Refine(SQfp16)")
    merged = merge(job, empty, 0, 100, 300)
    written = sorted(path.name for path in Path(job.work.root).glob("*.codes"))
    assert len(written) == (0 if stored == "float16" else 2)
    store = faiss.downcast_index(merged.refine_index)
    assert np.array_equal(store.reconstruct_n(0, 300), rows.astype(np.float32))
