"""Trained indices: find more than faiss's own of equal size, are faiss's to read and to fill, and free their parts."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from clip_retrieval.index.building.parts import add_rows
from clip_retrieval.index.building.training import METRIC, train_index
from clip_retrieval.index.planning.bounds import Bounds
from clip_retrieval.index.planning.costs import with_cost
from clip_retrieval.index.planning.plan import list_plans
from clip_retrieval.index.planning.shapes import Kind, Plan, Problem, Store

Rows = NDArray[np.float32]
ROWS, DIM, K = 20_000, 64, 10
AMPLE = 10**12


def clip_like(count: int, seed: int, gap: float = 0.0) -> Rows:
    """Unit rows [count, DIM] of 60 topics in few directions; captions lie a gap off, and fewer directions matter."""
    shared = np.random.default_rng(9)
    topics, mean = shared.standard_normal((60, DIM)), shared.standard_normal(DIM)
    turn, _ = np.linalg.qr(shared.standard_normal((DIM, DIM)))
    rng = np.random.default_rng(seed)
    rows = topics[rng.integers(60, size=count)] + rng.standard_normal((count, DIM))
    rows = rows * np.arange(1, DIM + 1) ** (-1.0 if gap else -0.5)
    rows = rows @ turn + 0.3 * (mean + gap * turn[0])
    unit: Rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def rows() -> Rows:
    return clip_like(ROWS, 0)


@pytest.fixture(scope="module")
def asked() -> Rows:
    """Queries of both modalities, to train with."""
    return np.concatenate([clip_like(1_000, 1), clip_like(1_000, 2, gap=1)])


def plan_of(kind: Kind, store: Store | None = None, code_bytes: int = 8, bits: int = 8) -> Plan:
    problem = Problem(rows=ROWS, dim=DIM, bounds=Bounds(max_index_bytes=AMPLE, available_bytes=AMPLE, cores=1))
    plan = next(plan for plan in list_plans(problem) if (plan.kind, plan.store) == (kind, store))
    return plan if kind != "coded" else with_cost(replace(plan, code_bytes=code_bytes, bits=bits), problem)


CODED, SCANNED = plan_of("coded"), plan_of("coded", bits=4)
REFINED, REFINED_SHORTER = plan_of("refined", "fp16"), plan_of("refined", "SQ8")
RECODED, TURNED = plan_of("refined", "codes"), plan_of("refined", "PCA")
WHOLE = [plan_of(kind, store) for kind in ("graph", "listed") for store in ("fp32", "fp16")]
PLANS = [
    CODED,
    SCANNED,
    REFINED,
    REFINED_SHORTER,
    RECODED,
    TURNED,
    plan_of("exact", "SQ8"),
    plan_of("exact", "fp32"),
    *WHOLE,
]


def fill(index: Any, rows: Rows) -> Any:
    add_rows(index, rows, 0, np.arange(len(rows)))
    return index


def recall(index: Any, rows: Rows, queries: Rows) -> float:
    truth = faiss.knn(queries, rows, K, metric=METRIC)[1]
    found = index.search(queries, K)[1]
    return float(np.mean([len(set(hits) & set(best)) / K for hits, best in zip(found, truth, strict=True)]))


def look_everywhere(index: Any, k_factor: float = 1) -> Any:
    lists = faiss.extract_index_ivf(index)
    lists.nprobe = lists.nlist
    if isinstance(index, faiss.IndexRefine):
        index.k_factor = k_factor
    return index


@pytest.mark.parametrize(
    ("plan", "rival"),
    [(SCANNED, "PQ16x4fs"), (SCANNED, "OPQ16_64,PQ16x4fs"), (CODED, "PQ8x8np"), (CODED, "OPQ8_64,PQ8x8np")],
)
def test_codes_find_more_than_those_of_faiss_of_equal_size(plan: Plan, rival: str, rows: Rows, asked: Rows) -> None:
    sample = rows[:5_000]
    before, _, codes = rival.rpartition(",")
    theirs = faiss.index_factory(DIM, f"{before + ',' if before else ''}IVF{plan.lists},{codes}", METRIC)
    if before:
        faiss.downcast_VectorTransform(theirs.chain.at(0)).niter = 4
    theirs.train(sample)
    theirs.add(rows)
    ours = fill(train_index(plan, sample.copy(), asked), rows)

    assert len(faiss.serialize_index(ours)) < 1.05 * len(faiss.serialize_index(theirs))
    for queries in (clip_like(200, 3), clip_like(200, 4, gap=1)):
        found = [recall(look_everywhere(index), rows, queries) for index in (ours, theirs)]
        assert found[0] > found[1] + 0.05


@pytest.mark.parametrize(("plan", "least"), [(REFINED, 0.98), (REFINED_SHORTER, 0.95), (RECODED, 0.94), (TURNED, 0.8)])
def test_refined_rows_are_found_nearly_as_among_all(plan: Plan, least: float, rows: Rows, asked: Rows) -> None:
    index = look_everywhere(fill(train_index(plan, rows.copy(), asked), rows), k_factor=30)

    assert recall(index, rows, clip_like(200, 3)) > least
    assert recall(index, rows, clip_like(200, 4, gap=1)) > least - 0.03


@pytest.mark.parametrize("plan", WHOLE, ids=lambda plan: plan.key)
def test_whole_rows_are_found_nearly_as_among_all(plan: Plan, rows: Rows, asked: Rows) -> None:
    index = fill(train_index(plan, rows[:5_000].copy(), asked), rows[:5_000])
    if plan.kind == "listed":
        index.nprobe = index.nlist
    else:
        index.hnsw.efSearch = 64

    for queries in (clip_like(200, 3), clip_like(200, 4, gap=1)):
        assert recall(index, rows[:5_000], queries) > 0.99


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.key)
def test_faiss_adds_rows_as_we_do(plan: Plan, rows: Rows, asked: Rows) -> None:
    trained = train_index(plan, rows[:3_000].copy(), asked)
    theirs, ours = faiss.clone_index(trained), trained
    theirs.add(rows[:2_000])

    fill(ours, rows[:2_000])

    assert ours.ntotal == 2_000
    np.testing.assert_array_equal(faiss.serialize_index(theirs), faiss.serialize_index(ours))


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.key)
def test_the_same_sample_gives_the_same_bytes(plan: Plan, rows: Rows, asked: Rows) -> None:
    first, again = (faiss.serialize_index(train_index(plan, rows[:3_000].copy(), asked)) for _ in range(2))

    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.key)
def test_files_are_of_the_kind_that_the_key_names(
    plan: Plan, rows: Rows, asked: Rows, tmp_path: Path, same_hits: Callable[..., None]
) -> None:
    index = fill(train_index(plan, rows[:3_000].copy(), asked), rows[:2_000])
    faiss.write_index(index, str(tmp_path / "image.index"))

    read = faiss.read_index(str(tmp_path / "image.index"))

    assert describe(read) == describe(faiss.index_factory(DIM, plan.key, METRIC))
    assert (read.d, read.ntotal, read.metric_type, read.is_trained) == (DIM, 2_000, METRIC, True)
    same_hits(read.search(asked[:9], K), index.search(asked[:9], K))


def describe(index: Any) -> set[str]:
    """What an index is made of, whatever the order that transform and refinement are nested in."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        transform = faiss.downcast_VectorTransform(index.chain.at(0))
        assert isinstance(transform, faiss.LinearTransform)
        return {"transform", *describe(index.index)}
    if isinstance(index, faiss.IndexRefine):
        return {"refine", *describe(index.base_index), *describe(index.refine_index)}
    if isinstance(index, faiss.IndexIVF):
        return {f"{type(index).__name__} {index.nlist} {index.code_size}", *describe(index.quantizer)}
    if isinstance(index, faiss.IndexHNSW):
        return {f"{type(index).__name__} {index.hnsw.nb_neighbors(1)}", *describe(index.storage)}
    name = "IndexFlat" if isinstance(index, faiss.IndexFlat) else type(index).__name__  # IndexFlatIP is the same
    return {f"{name} {index.sa_code_size()}"}


def test_parts_are_freed_once() -> None:
    plan = Plan("refined", 400, 8, "fp16", 4, 4, 4, 200)
    few = np.random.default_rng(6).standard_normal((400, 8)).astype(np.float32)
    kept = fill(train_index(plan, few[:200].copy(), few[:50]), few)
    scores, ids = kept.search(few[:4], K)

    gc.freeze()  # or each collection looks through all that other tests left
    for _ in range(50):
        other = fill(train_index(plan, few[:200].copy(), few[:50]), few)
        other.search(few[:4], K)
        del other
        gc.collect()

    again_scores, again_ids = kept.search(few[:4], K)
    np.testing.assert_array_equal(again_ids, ids)
    np.testing.assert_array_equal(again_scores, scores)


def test_bits_go_where_the_queries_look() -> None:
    some = np.random.default_rng(5).standard_normal((4_000, 32)).astype(np.float32)
    some[:, :16] *= 2  # or every direction would be a principal one
    left, right = some[:500].copy(), some[500:1_000].copy()
    left[:, 16:] *= 0.1
    right[:, :16] *= 0.1
    plan = Plan("coded", len(some), 32, None, 4, 8, 8, len(some))

    error = {}
    for name, queries in (("left", left), ("right", right)):
        index = look_everywhere(fill(train_index(plan, some.copy(), queries), some))
        for other, searched in (("left", left), ("right", right)):
            scores, ids = index.search(searched[:20], len(some))
            exact = np.take_along_axis(searched[:20] @ some.T, ids, axis=1)
            error[name, other] = float(np.mean((scores - exact) ** 2))

    assert error["left", "left"] < 0.6 * error["right", "left"]
    assert error["right", "right"] < 0.6 * error["left", "right"]
