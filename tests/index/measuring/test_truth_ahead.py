"""Truth that is found while indices are built: what it would be otherwise, and never in the way of an end."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path
from threading import Event
from threading import enumerate as running_threads
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from clip_retrieval.cli import cli
from clip_retrieval.embeddings.rows import read_rows
from clip_retrieval.embeddings.vectors import Vectors, open_vectors
from clip_retrieval.index.engines.faiss import FaissEngine
from clip_retrieval.index.measuring import queries, truth
from clip_retrieval.index.measuring.evaluate import find_truths
from clip_retrieval.index.measuring.truth_ahead import TruthsAhead
from clip_retrieval.layout import EmbeddingsFolder, Modality

Rows = NDArray[np.float32]
Found = dict[Modality, Vectors]


@pytest.fixture
def found(tmp_path: Path, write_run: Callable[..., Path], unit_rows: Callable[..., Rows]) -> Found:
    write_run(tmp_path / "emb", [unit_rows(400)], [unit_rows(400, seed=1)])
    folder = EmbeddingsFolder(str(tmp_path / "emb"))
    opened: dict[Modality, Vectors | None] = {
        "image": open_vectors(folder, "img_emb"),
        "text": open_vectors(folder, "text_emb"),
    }
    return {modality: vectors for modality, vectors in opened.items() if vectors is not None}


def test_truths_are_those_that_are_found_afterwards(
    found: Found, monkeypatch: pytest.MonkeyPatch, same_hits: Callable[..., None]
) -> None:
    monkeypatch.setattr(truth, "TRUTH_BLOCK_BYTES", 4 * 16 * 30)  # 30 rows
    with TruthsAhead(found, ["image", "text"], cores=4) as ahead:
        truths = ahead.of(["image", "text"])
    monkeypatch.undo()
    assert list(truths) == ["image", "text"]
    for modality, by_queries in truths.items():
        for asked, later in find_truths(modality, found).items():
            now = by_queries[asked]
            same_hits((now.scores, now.ids), (later.scores, later.ids))


def slow_blocks(blocks: Any, begun: Event, ran_out: Event) -> Any:
    """Blocks that come again and again, for a minute."""

    def read(vectors: Vectors) -> Any:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            for block in blocks(vectors):
                begun.set()
                time.sleep(0.01)
                yield block
        ran_out.set()

    return read


def test_one_core_looks_for_truth_when_the_indices_are_there(found: Found) -> None:
    with TruthsAhead(found, ["image", "text"], cores=1) as ahead:
        assert not ahead.coming
        assert len(ahead.of(["text"])["text"]) == 2


def test_leaving_ends_it_at_once(found: Found, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = Event()
    monkeypatch.setattr(truth, "read_blocks", slow_blocks(truth.read_blocks, begun, Event()))
    ahead = TruthsAhead(found, ["image", "text"], cores=2)
    with ahead:
        assert begun.wait(120)
    for future in ahead.coming.values():
        with pytest.raises(CancelledError):
            future.result(timeout=0)


def test_a_build_that_fails_says_why_and_leaves_no_thread(
    tmp_path: Path, write_run: Callable[..., Path], unit_rows: Callable[..., Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no room")

    write_run(tmp_path / "emb", [unit_rows(400)])
    before, ran_out = set(running_threads()), Event()
    monkeypatch.setattr(truth, "read_blocks", slow_blocks(truth.read_blocks, Event(), ran_out))
    monkeypatch.setattr(FaissEngine, "__call__", fail)
    result = CliRunner().invoke(cli, ["index", str(tmp_path / "emb"), str(tmp_path / "index")])
    assert isinstance(result.exception, OSError | SystemExit)
    assert "no room" in str(result.exception) + result.output
    assert set(running_threads()) <= before
    assert not ran_out.is_set()


def test_leaving_ends_it_while_queries_are_drawn(found: Found, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, ran_out = Event(), Event()
    monkeypatch.setattr(Vectors, "parts", slow_blocks(Vectors.parts, begun, ran_out))
    monkeypatch.setattr(queries, "are_usable", lambda rows: np.zeros(len(rows), np.bool_))  # none is found
    monkeypatch.setattr(queries, "TRIED_MORE", 1)
    monkeypatch.setattr(queries, "MOST_TRIED", 0)
    ahead = TruthsAhead(found, ["image"], cores=4)
    with ahead:
        assert begun.wait(120)
    with pytest.raises(CancelledError):
        ahead.coming["image"].result(timeout=0)
    assert not ran_out.is_set()


@pytest.mark.parametrize("draw", [read_rows, queries.find_usable])
def test_rows_that_are_looked_up_are_no_longer_wanted(found: Found, draw: Callable[..., object]) -> None:
    stop = Event()
    draw(found["image"], np.arange(5), stop)
    stop.set()
    with pytest.raises(CancelledError):
        draw(found["image"], np.arange(5), stop)


def test_so_few_queries_are_drawn_as_are_wanted(found: Found) -> None:
    for cores in (1, 4):
        with TruthsAhead(found, ["image", "text"], cores=cores, most_queries=5) as ahead:
            truths = ahead.of(["image", "text"])
            assert [len(truth.queries) for by_modality in truths.values() for truth in by_modality.values()] == [5] * 4
