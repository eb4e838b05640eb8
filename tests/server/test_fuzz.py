"""No body and no path makes a server fail: benchmarks/server_fuzz.py, a few of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from clip_retrieval.query.searcher import Searcher

SCRIPT = Path(__file__).parents[2] / "benchmarks/server_fuzz.py"
COUNT = 600


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    spec = importlib.util.spec_from_file_location("server_fuzz", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_body_and_no_path_makes_a_server_fail(index: Path, serve: Callable[..., Any], fuzz: ModuleType) -> None:
    client = serve(index)
    statuses, failed = client.run(fuzz.attack(client.served.app, fuzz.make_attacks(COUNT, seed=1)))
    assert not failed
    assert statuses["200"] > COUNT / 10
    assert client.get("/readyz").status_code == 200


def test_a_server_that_fails_is_found_out(
    index: Path, serve: Callable[..., Any], fuzz: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise KeyError("a bug")

    monkeypatch.setattr(Searcher, "embed_vector", fail)
    client = serve(index)
    _, failed = client.run(fuzz.attack(client.served.app, fuzz.make_attacks(150, seed=1)))
    assert failed
