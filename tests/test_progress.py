"""Progress without a terminal: a line now and then, by the share of the work that is done."""

from __future__ import annotations

import logging

import pytest

from clip_retrieval import progress
from clip_retrieval.progress import show_progress, watch_rows


def test_lines_tell_of_rows_that_passed_and_a_short_run_has_none(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    with show_progress("adding vectors", 4_000) as advance:
        advance(1)
    assert caplog.messages == []
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with show_progress("adding vectors", 4_000) as advance:
        passed = list(watch_rows(advance)(([0] * 1_500, [0] * 500), 0.5))
    assert [len(rows) for rows in passed] == [1_500, 500]
    assert caplog.messages == ["adding vectors: 750 of 4,000", "adding vectors: 1,000 of 4,000"]
