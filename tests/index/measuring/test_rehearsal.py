"""Kinds that are tried on a sample: of random vectors they find what they do, not what CLIP embeddings promise."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from clip_retrieval.embeddings.vectors import Vectors, open_vectors
from clip_retrieval.index.engines.faiss import describe_problem, plan_index, say_plan
from clip_retrieval.index.measuring import rehearsal as measuring
from clip_retrieval.index.measuring.rehearsal import HELD_OUT, Rehearsal, rehearse
from clip_retrieval.index.planning.bounds import Bounds
from clip_retrieval.index.planning.plan import list_plans, make_plan
from clip_retrieval.storage import Folder

Rows = NDArray[np.float32]
WriteRun = Callable[..., Path]
DIM, COUNT = 32, 6_000

pytestmark = pytest.mark.usefixtures("one_thread")


def make_rows(*, clusters: int | None, seed: int = 0) -> Rows:
    """Return unit rows around some centers, or in all directions alike."""
    random = np.random.default_rng(seed)
    rows = random.standard_normal((COUNT, DIM), dtype=np.float32)
    if clusters is not None:
        scale = np.arange(1, DIM + 1, dtype=np.float32) ** -2
        centers = np.random.default_rng(99).standard_normal((clusters, DIM), dtype=np.float32)
        rows = (centers[random.integers(0, clusters, COUNT)] + 0.5 * rows) * scale
    unit: Rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


@pytest.fixture
def open_rows(tmp_path: Path, write_run: WriteRun) -> Callable[..., Vectors]:
    def open_as(name: str, *columns: Rows) -> Vectors:
        vectors = open_vectors(Folder(str(write_run(tmp_path / name, *([rows] for rows in columns)))), "img_emb")
        assert vectors is not None
        return vectors

    return open_as


def bounds_of(**options: object) -> Bounds:
    given = {"max_index_bytes": 160_000, "available_bytes": 10**10, "cores": 1, "plan_sample": 4_000, **options}
    return Bounds(**given)  # type: ignore[arg-type]


def rehearsal_of(vectors: Vectors, **options: object) -> Rehearsal:
    made = rehearse(vectors, describe_problem(vectors, bounds_of(**options)), least=5_001)
    assert made is not None
    return made


def test_what_is_asked_for_is_not_what_is_indexed(open_rows: Callable[..., Vectors]) -> None:
    rows = make_rows(clusters=None)
    made = rehearsal_of(open_rows("a", rows))
    indexed, asked = ({row.tobytes() for row in some} for some in (made.rows, made.queries))
    assert (len(indexed), len(asked)) == (4_000, HELD_OUT)
    assert not indexed & asked
    assert indexed | asked <= {row.tobytes() for row in rows}
    again = rehearsal_of(open_rows("a", rows))
    assert np.array_equal(again.rows, made.rows)
    assert np.array_equal(again.queries, made.queries)


def test_rows_of_the_other_modality_are_asked_for_too(tmp_path: Path, write_run: WriteRun) -> None:
    pictures, texts = make_rows(clusters=None), make_rows(clusters=None, seed=1)
    folder = Folder(str(write_run(tmp_path / "emb", [pictures], [texts])))
    opened = [open_vectors(folder, name) for name in ("img_emb", "text_emb")]
    assert opened[0] is not None
    made = rehearsal_of(opened[0], asked=tuple(opened))
    of_texts = {row.tobytes() for row in texts}
    assert sum(row.tobytes() in of_texts for row in made.queries) == HELD_OUT
    assert sum(row.tobytes() in of_texts for row in made.asked) == len(made.asked) / 2


def test_random_vectors_are_found_far_less_often_than_promised(open_rows: Callable[..., Vectors]) -> None:
    """Eight bytes a row tell rows near few directions apart, and random ones hardly."""
    random, near = (rehearsal_of(open_rows(str(number), make_rows(clusters=number))) for number in (None, 40))
    [plan] = {make_plan(made.problem).key: make_plan(made.problem) for made in (random, near)}.values()
    hard, easy = random.measure(plan), near.measure(plan)
    assert hard.promised == easy.promised == plan.recall
    assert hard.recall < plan.recall - 0.2
    assert easy.recall > hard.recall + 0.2


def test_every_kind_can_be_tried(open_rows: Callable[..., Vectors]) -> None:
    made = rehearsal_of(open_rows("a", make_rows(clusters=40)), plan_sample=1_500)
    plans = {plan.kind: plan for plan in list_plans(made.problem)}
    assert plans.keys() == {"exact", "graph", "refined", "listed", "coded"}
    found = {kind: made.measure(plan).recall for kind, plan in plans.items()}
    assert all(0 < recall <= 1 for recall in found.values())
    assert found["listed"] > found["exact"]  # SQ4


def test_a_graph_is_tried_on_fewer_rows_and_not_where_they_tell_nothing(
    open_rows: Callable[..., Vectors], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "GRAPH_SAMPLE", 400)
    made = rehearsal_of(open_rows("a", make_rows(clusters=40)), plan_sample=1_500)
    graph = next(plan for plan in list_plans(made.problem) if plan.kind == "graph")
    assert made.measure(graph).measured_on == 400
    quick = rehearsal_of(open_rows("b", make_rows(clusters=40)), plan_sample=1_500, max_query_ms=0.2)
    assert quick.measure(graph).measured_on == 1_500
    monkeypatch.setattr(measuring, "HITS", 1_000)  # of which no search of such a graph finds all
    untried = rehearsal_of(open_rows("c", make_rows(clusters=40)), plan_sample=1_500)
    assert untried.measure(graph) == graph


def test_nothing_is_tried_that_is_quick_to_build_or_where_that_is_off(open_rows: Callable[..., Vectors]) -> None:
    vectors = open_rows("a", make_rows(clusters=None))
    problem = describe_problem(vectors, bounds_of())
    assert rehearse(vectors, problem) is None  # 6,000 rows
    assert rehearse(vectors, problem.within(plan_sample=0), least=5_001) is None
    assert rehearse(vectors, problem.within(available_bytes=10**5), least=5_001) is None
    assert rehearse(vectors, replace(problem, rows=5_000), least=5_001) is None


def test_a_build_says_before_it_begins_what_will_be_found(
    open_rows: Callable[..., Vectors], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(measuring, "ROWS_TO_CHECK", COUNT)
    plan = plan_index(open_rows("a", make_rows(clusters=None)), bounds_of())
    assert plan.promised is not None
    assert plan.to_json()["of_clip_embeddings@10"] == round(plan.promised, 3)
    with caplog.at_level(logging.INFO):
        say_plan(replace(plan, recall=0.2, promised=0.8))
    said, warned = caplog.messages
    assert "expected recall@10, from trying it on 4,000 of these rows: 0.20 in" in said
    assert "is expected to find 0.20 of the ten nearest rows, for CLIP embeddings 0.80" in warned
    caplog.clear()
    say_plan(replace(plan, recall=0.78, promised=0.8))
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
