"""Kinds that somebody names: faiss trains them on enough rows, and what it lacks is told once, by us."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from clip_retrieval.errors import ConfigError
from clip_retrieval.index.build import clip_index
from clip_retrieval.index.building.named_kinds import (
    list_polysemous,
    make_given,
    polysemous_seconds,
    train_given,
    train_quickly,
)
from clip_retrieval.index.planning.bounds import Bounds
from clip_retrieval.index.planning.plan import count_centroids, given_plan
from clip_retrieval.index.planning.shapes import Plan, Problem

GIGABYTE = 10**9
pytestmark = pytest.mark.usefixtures("one_thread")


def plan_of(key: str, rows: int, sample_rows: int | None = None) -> Plan:
    return Plan("given", rows, 16, given_key=key, sample_rows=rows if sample_rows is None else sample_rows)


@pytest.mark.parametrize(
    ("key", "count"),
    [
        ("Flat", 1), ("HNSW32", 1), ("PCA32,SQ8", 1), ("IVF4096,Flat", 4096), ("OPQ16_64,IVF1024,PQ16", 1024),
        ("IVF65536_HNSW32,PQ8x4fs", 65536), ("IVF1024(IVF16,Flat),SQ8", 1024), ("PQ16x10", 1024), ("PQ8x4fsr", 16),
        ("OPQ4,PQ4x4", 256), ("IMI2x6,Flat", 64), ("RQ3x5", 32), ("IVF16,PQ4+8", 256), ("IVF4,PQ16np", 256),
    ],
)  # fmt: skip
def test_the_largest_k_means_of_a_key_is_known(key: str, count: int) -> None:
    assert count_centroids(key) == count


@pytest.mark.parametrize(
    ("key", "seconds"),
    [("IVF16,PQ4", 14), ("OPQ4,IVF16,PQ4x6,RFlat", 3.5), ("PQ2", 7), ("IVF16,PQ4np", 0), ("PQ4x4fs", 0), ("Flat", 0)],
)
def test_a_kind_that_is_only_tried_is_not_made_polysemous(
    unit_rows: Callable[..., NDArray[np.float32]], key: str, seconds: float
) -> None:
    plan = plan_of(key, 300)
    assert polysemous_seconds(plan) == seconds
    assert list(list_polysemous(train_quickly(plan, unit_rows(300)))) == []


def test_the_sample_is_what_the_lists_need_as_far_as_rows_and_memory_go() -> None:
    def sample(rows: int, available: int) -> int:
        bounds = Bounds(max_index_bytes=GIGABYTE, available_bytes=available, cores=1)
        return given_plan(Problem(rows=rows, dim=512, bounds=bounds), "IVF65536,SQ8").sample_rows

    assert sample(10**8, 64 * GIGABYTE) == 39 * 65_536
    assert sample(10**6, 64 * GIGABYTE) == 10**6
    assert 4 * 512 * sample(10**8, 4 * GIGABYTE) < GIGABYTE


@pytest.mark.parametrize(
    "key",
    ["OPQ1_4,IVF16,Flat", "IVF16,PQ4x4fs,RFlat", "IVF16(IVF4,Flat),Flat", "HNSW8_PQ4x4", "RQ2x4", "IVF16,RQ2x4"],
)
def test_too_few_rows_are_told_once_and_not_by_faiss(
    unit_rows: Callable[..., NDArray[np.float32]], key: str, capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.INFO)
    index = train_given(plan_of(key, 300), unit_rows(300))
    assert index.is_trained
    assert "WARNING" not in "".join(capfd.readouterr())
    told = [record.getMessage() for record in caplog.records]
    assert told[0].startswith(f"training {key} on 300 rows")
    assert [line for line in told[1:] if "to train on, and has 300" in line] == told[1:]
    assert len(told) == (1 if count_centroids(key) * 39 <= 300 else 2)


def test_faiss_would_have_warned(
    unit_rows: Callable[..., NDArray[np.float32]], capfd: pytest.CaptureFixture[str]
) -> None:
    make_given(plan_of("IVF16,Flat", 300)).train(unit_rows(300))
    assert "WARNING clustering 300 points to 16 centroids" in "".join(capfd.readouterr())


def test_a_rotation_is_what_faiss_makes_of_it(unit_rows: Callable[..., NDArray[np.float32]]) -> None:
    rows = unit_rows(300)
    ours, plain = train_given(plan_of("OPQ1_4,PQ4x4", 300), rows), make_given(plan_of("OPQ1_4,PQ4x4", 300))
    plain.train(rows)
    np.testing.assert_array_equal(*(faiss.serialize_index(index) for index in (ours, plain)))


def test_more_memory_is_advised_only_where_there_are_more_rows(
    unit_rows: Callable[..., NDArray[np.float32]], caplog: pytest.LogCaptureFixture
) -> None:
    for rows, sample_rows, advised in ((300, 300, False), (3000, 300, True), (400, 400, False), (3000, 400, False)):
        caplog.clear()  # the last two have empty rows: 300 were all that was found
        train_given(plan_of("IVF16,Flat", rows, sample_rows), unit_rows(300))
        assert ("raise --current_memory_available" in caplog.text) is advised


def test_what_needs_no_training_is_not_told_of(
    unit_rows: Callable[..., NDArray[np.float32]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert train_given(plan_of("HNSW8", 30), unit_rows(30)).is_trained
    assert not caplog.records


def test_a_kind_that_takes_no_rows_bit_by_bit_is_refused(
    tmp_path: Path, unit_rows: Callable[..., NDArray[np.float32]], write_run: Callable[..., Path]
) -> None:
    emb = write_run(tmp_path / "emb", [unit_rows(300), unit_rows(300)])
    with pytest.raises(ConfigError, match=r"faiss cannot make an index NSG8 of 16 dimensions: NSG does not support"):
        clip_index(str(emb), str(tmp_path / "ix"), index_key="NSG8")
    assert not (tmp_path / "ix").exists()
