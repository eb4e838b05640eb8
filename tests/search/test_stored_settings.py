"""Settings inside faiss files: plain faiss takes them, and no other byte changes."""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
import pytest

from clip_retrieval.search import stored_settings
from clip_retrieval.search.settings import parse_settings, settings_of
from clip_retrieval.search.stored_settings import set_settings, store_settings

KEYS = {
    "Flat": "",
    "PCA8,Flat": "",
    "HNSW16": "efSearch=77",
    "HNSW16,SQfp16": "efSearch=77",
    "IDMap,HNSW8": "efSearch=31",
    "IVF16,SQ8": "nprobe=5",
    "IVF16,RaBitQ": "nprobe=3",
    "SQ4,Refine(Flat)": "k_factor_rf=3.5",
    "PCA8,HNSW8,Refine(Flat)": "efSearch=33,k_factor_rf=3",
    "RR8,IVF16_HNSW8,PQ4x4np": "nprobe=3,quantizer_efSearch=99",
    "RR8,IVF16,PQ4x4fs,Refine(SQfp16)": "k_factor_rf=7,nprobe=3",
}

pytestmark = pytest.mark.usefixtures("one_thread")


def write(path: Path, key: str) -> Path:
    rows = np.random.default_rng(0).standard_normal((700, 16)).astype(np.float32)
    index = faiss.index_factory(16, key, faiss.METRIC_INNER_PRODUCT)
    index.train(rows)
    index.add_with_ids(rows, np.arange(700)) if "IDMap" in key else index.add(rows)
    faiss.write_index(index, str(path))
    return path


@pytest.mark.parametrize("key", KEYS)
def test_a_file_is_what_faiss_would_have_written_with_these_settings(tmp_path: Path, key: str) -> None:
    path, settings = write(tmp_path / "a.index", key), parse_settings(KEYS[key])
    index = faiss.read_index(str(path))
    set_settings(index, settings)
    faiss.write_index(index, str(tmp_path / "b.index"))
    store_settings(path, settings)
    assert path.read_bytes() == (tmp_path / "b.index").read_bytes()
    found = settings_of(faiss.read_index(str(path)))
    assert {name: found[name] for name in settings} == dict(settings)


def test_a_layout_that_is_not_known_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "a.index", "IVF16,SQ8")
    before = path.read_bytes()
    monkeypatch.setattr(stored_settings, "HEADER_BYTES", stored_settings.HEADER_BYTES + 1)
    store_settings(path, parse_settings("nprobe=5"))
    assert path.read_bytes() == before
    assert "they are only in its json file" in caplog.text
