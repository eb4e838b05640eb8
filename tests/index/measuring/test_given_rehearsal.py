"""Kinds that are named by a key of faiss: what is said of them before they are built comes true."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from clip_retrieval.cli import cli
from clip_retrieval.embeddings.vectors import Vectors, open_vectors
from clip_retrieval.errors import IndexBuildError
from clip_retrieval.index.engines.faiss import describe_problem, plan_index
from clip_retrieval.index.measuring import rehearsal as measuring
from clip_retrieval.index.measuring.given_rehearsal import count_bytes, measure_given
from clip_retrieval.index.measuring.rehearsal import rehearse
from clip_retrieval.index.planning.bounds import Bounds
from clip_retrieval.index.planning.plan import given_plan
from clip_retrieval.index.planning.shapes import Plan
from clip_retrieval.storage import Folder

Rows = Callable[..., NDArray[np.float32]]
WriteRun = Callable[..., Path]
COUNT, DIM = 6_000, 16
KEYS = (
    *("Flat", "SQ8", "HNSW16", "IVF64,SQ8", "IVF64,Flat", "IVF256_HNSW16,SQ4", "IVF64,PQ8x4fs,Refine(SQ8)"),
    *("PCA8,IVF16,SQ8", "IVF16,PQ4x4"),
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def vectors(tmp_path: Path, unit_rows: Rows, write_run: WriteRun) -> Vectors:
    opened = open_vectors(Folder(str(write_run(tmp_path / "emb", [unit_rows(COUNT, DIM)]))), "img_emb")
    assert opened is not None
    return opened


def bounds_of(key: str, max_index_bytes: int = 10**9) -> Bounds:
    return Bounds(max_index_bytes=max_index_bytes, available_bytes=10**10, cores=1, index_key=key, plan_sample=2_000)


def measured(vectors: Vectors, key: str) -> Plan:
    problem = describe_problem(vectors, bounds_of(key))
    rehearsal = rehearse(vectors, problem, least=1)
    assert rehearsal is not None
    return measure_given(rehearsal, given_plan(problem, key))


@pytest.mark.parametrize("key", KEYS)
def test_an_index_has_about_the_size_that_was_expected(vectors: Vectors, unit_rows: Rows, key: str) -> None:
    plan = measured(vectors, key)
    index = faiss.index_factory(DIM, key, faiss.METRIC_INNER_PRODUCT)
    index.train(unit_rows(COUNT, DIM))
    index.add(unit_rows(COUNT, DIM))
    assert plan.index_bytes == pytest.approx(count_bytes(index), rel=0.06)
    assert plan.peak_bytes > plan.index_bytes / 2
    assert 0 < plan.recall <= 1
    assert plan.seconds > 0
    assert plan.query_ms > 0


def test_codes_that_tell_less_find_less(vectors: Vectors) -> None:
    exact, short = (measured(vectors, key).recall for key in ("Flat", "SQ4"))
    assert exact == 1
    assert short < exact


def test_what_cannot_fit_is_refused_before_it_is_built(vectors: Vectors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "ROWS_TO_CHECK", COUNT)
    assert plan_index(vectors, bounds_of("Flat", 390_000)).index_bytes > 384_000
    with pytest.raises(IndexBuildError, match=r"Flat of 6,000 x 16 vectors would take about 384.* kB, above max"):
        plan_index(vectors, bounds_of("Flat", 300_000))


def test_a_dry_run_shows_the_named_kind_beside_what_would_be_chosen(vectors: Vectors, tmp_path: Path) -> None:
    options = ["index", vectors.folder.url, str(tmp_path / "ix"), "--dry_run", "--index_key", "IVF32,SQ6"]
    told = CliRunner().invoke(cli, options, terminal_width=200)
    assert told.exit_code == 0, told.output
    assert "-> IVF32,SQ6" in " ".join(told.stdout.replace("│", "").split())
    shown = json.loads(CliRunner().invoke(cli, [*options, "--json", "--plan_sample", "2000"]).stdout)["image"]
    assert shown["chosen"]["index_key"] == "IVF32,SQ6"
    assert (shown["chosen"]["measured_on_rows"], shown["refusal"]) == (2_000, None)
    refused = CliRunner().invoke(cli, [*options, "--max_index_memory_usage", "20KB"], terminal_width=200)
    assert refused.exit_code == 1
    assert "above max_index_memory_usage, 20.0 kB; raise the bound to" in refused.stdout
    unknown = CliRunner().invoke(cli, [*options[:-1], "NOSUCHKIND"])
    assert unknown.exit_code == 1
    assert "faiss cannot make an index NOSUCHKIND of 16 dimensions" in unknown.output


def test_few_rows_are_not_tried(tmp_path: Path, unit_rows: Rows, write_run: WriteRun) -> None:
    emb = write_run(tmp_path / "emb", [unit_rows(100, DIM)])
    options = ["index", str(emb), str(tmp_path / "ix"), "--dry_run", "--index_key", "SQ8"]
    told = CliRunner().invoke(cli, options, terminal_width=200)
    assert told.exit_code == 0, told.output
    assert "not tried" in told.stdout
    shown = json.loads(CliRunner().invoke(cli, [*options, "--json"]).stdout)["image"]["chosen"]
    assert shown["expected_recall@10"] is None
