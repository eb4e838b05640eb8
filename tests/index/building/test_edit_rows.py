"""Rows of faiss indices, changed in place: the same answers as adding the rows as they are to the same empty index."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from clip_retrieval.index.building.edit_rows import (
    CannotChangeError,
    check_rows,
    is_trained_on_rows,
    put_rows,
    remove_rows,
)
from clip_retrieval.index.building.parts import add_rows
from clip_retrieval.search.tree import has_graph

DIM, KNOWN, ALL = 32, 600, 900
# np: without faiss's annealing of the codebooks, which takes seconds and decides no answer
LISTS = ["IVF4,Flat", "IVF4,SQ8", "IVF4,PQ16x4np", "IVF4,PQ16x4fs", "IVF4,PQ16x4fsr", "IVF4,RaBitQ", "IVF4_HNSW8,SQ8"]
CODES = ["Flat", "SQ8", "SQfp16", "PQ16x4np"]
TREES = ["refine:IVF4,PQ16x4fs|SQ8", "refine:IVF4,PQ16x4fs|PQ16x4np", "refine:IVF4,PQ8x4np|Flat"]
TREES += ["refine:rotated:IVF4,PQ16x4fs|rotated:PQ16x4np"]  # as our engine builds them


def make_empty(key: str, rows: NDArray[np.float32]) -> Any:
    """Return a trained index without rows."""
    kind, _, rest = key.partition(":")
    if kind == "rotated":
        rotation = faiss.RandomRotationMatrix(DIM, DIM)
        rotation.init(5)
        return faiss.IndexPreTransform(rotation, make_empty(rest, rotation.apply(rows)))
    if kind == "refine":
        first, _, second = rest.partition("|")
        return faiss.IndexRefine(make_empty(first, rows), make_empty(second, rows))
    index = faiss.index_factory(DIM, key, faiss.METRIC_INNER_PRODUCT)
    index.train(rows)
    if hasattr(index, "nprobe"):
        index.nprobe = 4
    return index


def append(index: Any, rows: NDArray[np.float32], first_id: int) -> None:
    add_rows(index, np.ascontiguousarray(rows), first_id, np.flatnonzero(rows.any(axis=1)))


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def states(unit_rows: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Give the rows that an index knows, and those of later: some are new, emptied, filled, or stay empty."""
    rows = unit_rows(ALL, DIM)
    before, after = rows[:KNOWN].copy(), rows.copy()
    before[5::50] = before[9::200] = 0
    after[7::30] = after[9:KNOWN:200] = after[KNOWN + 3 : KNOWN + 40] = 0
    return before, after


def change(index: Any, before: NDArray[np.float32], after: NDArray[np.float32]) -> None:
    was, now = before.any(axis=1), after[:KNOWN].any(axis=1)
    check_rows(index, KNOWN)
    remove_rows(index, np.flatnonzero(was & ~now))
    filled = np.flatnonzero(~was & now)
    put_rows(index, filled, after[filled])
    append(index, after[KNOWN:700], KNOWN)
    append(index, after[700:], 700)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("key", [*LISTS, *CODES, *TREES, *(f"rotated:{key}" for key in ("Flat", LISTS[3], TREES[0]))])
def test_changing_rows_gives_the_answers_of_adding_them(
    states: tuple[NDArray[np.float32], NDArray[np.float32]], unit_rows: Any, key: str
) -> None:
    before, after = states
    training, queries = unit_rows(1000, DIM, 7), unit_rows(60, DIM, 8)
    fresh = make_empty(key, training)
    changed = faiss.deserialize_index(faiss.serialize_index(fresh))  # RaBitQ cannot be cloned
    append(changed, before, 0)
    append(fresh, after, 0)

    change(changed, before, after)

    assert changed.ntotal == fresh.ntotal
    reread = faiss.deserialize_index(faiss.serialize_index(changed))
    expected, _ = fresh.search(queries, 30)
    for index in (changed, reread):
        found, _ = index.search(queries, 30)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    _, ids = changed.search(after[after.any(axis=1)], 1)
    if "PQ" not in key and "RaBitQ" not in key:
        assert ids[:, 0].tolist() == np.flatnonzero(after.any(axis=1)).tolist()


def test_rows_that_autofaiss_put_into_lists_as_zero_are_filled_once(unit_rows: Any) -> None:
    rows = unit_rows(200, DIM)
    index = make_empty("IVF4,Flat", rows)
    index.add(np.where(np.arange(200)[:, None] == 5, 0, rows).astype(np.float32))
    put_rows(index, np.array([5]), rows[5:6])
    assert index.ntotal == 200
    assert index.search(rows[5:6], 2)[1][0].tolist().count(5) == 1


@pytest.mark.parametrize(
    ("key", "is_graph"), [("HNSW8", True), ("Flat", False), ("IVF4,Flat", False), (TREES[0], False)]
)
def test_graphs_are_known_as_such(unit_rows: Any, key: str, is_graph: bool) -> None:
    assert has_graph(make_empty(key, unit_rows(200, DIM))) is is_graph


@pytest.mark.parametrize(
    ("key", "trained"),
    [
        ("HNSW8", False), ("HNSW8,SQ8", True), ("HNSW8,SQfp16", False), ("Flat", False), ("SQ8", True),
        ("SQfp16", False), ("SQbf16", False), ("IVF4,Flat", True), ("IVF4,SQfp16", True),
    ],
)  # fmt: skip
def test_only_what_learned_from_its_rows_ages(unit_rows: Any, key: str, trained: bool) -> None:
    assert is_trained_on_rows(make_empty(key, unit_rows(200, DIM))) is trained


def test_an_index_of_other_rows_is_refused(unit_rows: Any) -> None:
    with pytest.raises(CannotChangeError, match="it holds 0 rows, not 3"):
        check_rows(make_empty("Flat", unit_rows(20, DIM)), 3)


def test_kinds_that_are_not_known_to_change_are_refused(unit_rows: Any) -> None:
    index = faiss.IndexIDMap(make_empty("Flat", unit_rows(20, DIM)))
    with pytest.raises(CannotChangeError, match="faiss' IndexIDMap does not change"):
        check_rows(index, 0)
