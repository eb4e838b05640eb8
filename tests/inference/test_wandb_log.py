"""--enable_wandb: figures go there, and nothing that it does stops a run."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clip_retrieval import clip_inference
from clip_retrieval.errors import ConfigError
from clip_retrieval.inference.telemetry.wandb_log import WandbThread


@pytest.fixture
def embed(tmp_path: Path, write_pictures: Callable[[Path, int], Path]) -> Callable[[], int]:
    """Give a function that embeds ten pictures with wandb, and returns the rows."""
    write_pictures(tmp_path / "in", 10)

    def run() -> int:
        summary = clip_inference(
            str(tmp_path / "in"), str(tmp_path / "out"), clip_model="hash:8?size=32", num_prepro_workers=0,
            enable_wandb=True, wandb_project="pictures",
        )  # fmt: skip
        return summary.stats.sample_count

    return run


class FakeWandb(SimpleNamespace):
    """Keeps what it is told."""

    def __init__(self, init: Callable[..., Any] | None = None) -> None:
        super().__init__(Settings=dict, told=[], summary={}, init=init or self.start)

    def start(self, **about: Any) -> SimpleNamespace:
        self.project = about["project"]
        return SimpleNamespace(url="http://wandb/run", log=self.told.append, summary=self.summary, finish=lambda: None)


def test_rate_shares_and_the_summary_are_logged(embed: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)

    assert embed() == 10
    assert fake.project == "pictures"
    assert fake.told[-1]["rows"] == 10
    assert {"samples_per_second", "share/encode", "share/wait"} <= set(fake.told[-1])
    assert "total/inference_duration" in fake.summary


def test_without_wandb_the_sentence_says_how_to_get_it(
    embed: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)

    with pytest.raises(ConfigError, match=r"pip install 'clip-retrieval\[wandb\]'"):
        embed()


def test_what_wandb_raises_is_a_warning(
    embed: Callable[[], int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:

    def refuse(**_: object) -> None:
        raise PermissionError("No API key configured.")

    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(refuse))

    with caplog.at_level(logging.WARNING):
        assert embed() == 10
    assert caplog.messages == ["wandb: No API key configured; the run goes on without it"]


def test_a_wandb_that_never_answers_is_left_behind(
    embed: Callable[[], int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    forever = threading.Event()

    def fail_late(**_: object) -> None:
        forever.wait()
        raise ConnectionError("gone")

    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(fail_late))
    monkeypatch.setattr("clip_retrieval.inference.telemetry.wandb_log.SECONDS_TO_FINISH", 0.01)

    with caplog.at_level(logging.WARNING):
        assert embed() == 10
    forever.set()
    for thread in threading.enumerate():
        if isinstance(thread, WandbThread):
            thread.join()
    assert caplog.messages == ["wandb does not answer: it does not have all figures of this run"]


def test_the_real_one_writes_a_run_without_network(
    embed: Callable[[], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))

    assert embed() == 10
    assert list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
