"""Per-call parameters: they mean what faiss's own strings mean, keep what they point to alive, and change no index."""

from __future__ import annotations

import gc
import pickle
from typing import Any

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from clip_retrieval.errors import ConfigError, QueryError
from clip_retrieval.search.settings import (
    Settings,
    format_settings,
    parse_settings,
    search_parameters,
    set_up,
    settings_of,
    takes_selector,
)

COUNT, DIM = 2000, 16
EMPTY = np.arange(0, COUNT, 3, dtype=np.int64)
KEYS = {  # index, and settings that differ from its own
    "Flat": "",
    "SQ8": "",
    "PQ8x4np": "",
    "PQ8x4fs": "",
    "RaBitQ": "",
    "RaBitQfs": "",
    "HNSW8": "efSearch=40",
    "HNSW8,SQ8": "efSearch=40",
    "IDMap,HNSW8": "efSearch=40",
    "IDMap2,IVF16,Flat": "nprobe=3",
    "IDMap,RR16,IVF16,SQ8": "nprobe=3",
    "IVF16,Flat": "nprobe=3",
    "IVF16,SQ8": "nprobe=3,max_codes=200",
    "IVF16,PQ8x4np": "nprobe=5",
    "IVF16,PQ8x4fs": "nprobe=3",
    "IVF16,RaBitQ": "nprobe=3",
    "IVF16,RaBitQfs": "nprobe=3",
    "IVF16_HNSW4,Flat": "nprobe=3,quantizer_efSearch=4",
    "IVF16_HNSW4,PQ8x4np": "nprobe=3,efSearch=4",
    "IVF16,SQ4,Refine(SQ8)": "nprobe=5,k_factor_rf=3",
    "RR16,IVF16_HNSW4,PQ8x4fs,RFlat": "nprobe=4,quantizer_efSearch=6,k_factor_rf=2",
    "PQ8x4fs,RFlat": "k_factor_rf=5",
}
REFUSE = {"PQ8x4np", "PQ8x4fs", "RaBitQfs", "IVF16,RaBitQfs", "PQ8x4fs,RFlat", "IDMap,RR16,IVF16,SQ8"}


def build(key: str) -> Any:
    rows = np.random.default_rng(0).standard_normal((COUNT, DIM)).astype(np.float32)
    index = faiss.index_factory(DIM, key, faiss.METRIC_INNER_PRODUCT)
    hurry(index)
    index.train(rows)
    index.add_with_ids(rows, np.arange(COUNT)) if key.startswith("IDMap") else index.add(rows)
    return index


def hurry(index: Any) -> None:
    """Let training take few iterations."""
    index = faiss.downcast_index(index)
    for part in ("index", "base_index"):
        if hasattr(index, part):
            hurry(getattr(index, part))
    if isinstance(index, faiss.IndexIVF):
        index.cp.niter = 2
    if hasattr(index, "pq"):
        index.pq.cp.niter = 2


def copy_of(index: Any) -> Any:
    return faiss.deserialize_index(faiss.serialize_index(index))  # RaBitQ cannot be cloned


@pytest.fixture(scope="module")
def indices() -> dict[str, Any]:
    return {key: build(key) for key in KEYS}


@pytest.fixture(scope="module")
def queries() -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((20, DIM)).astype(np.float32)


@pytest.mark.parametrize("key", KEYS)
def test_parameters_find_what_an_index_set_to_them_finds(
    indices: dict[str, Any], queries: NDArray[np.float32], key: str
) -> None:
    index, text = copy_of(indices[key]), KEYS[key]
    before = settings_of(index)
    parameters = search_parameters(index, parse_settings(text))
    gc.collect()  # they must keep alive what they point to
    scores, ids = index.search(queries, 10, params=parameters)
    assert settings_of(index) == before
    if text:
        faiss.ParameterSpace().set_index_parameters(index, text)
        assert settings_of(index) != before
    wanted_scores, wanted_ids = index.search(queries, 10)
    assert ids.tolist() == wanted_ids.tolist()
    np.testing.assert_array_equal(scores, wanted_scores)


@pytest.mark.parametrize("key", KEYS)
def test_without_settings_a_search_does_what_the_index_is_tuned_to(
    indices: dict[str, Any], queries: NDArray[np.float32], key: str
) -> None:
    index = copy_of(indices[key])
    if KEYS[key]:
        faiss.ParameterSpace().set_index_parameters(index, KEYS[key])
    _, ids = index.search(queries, 10, params=search_parameters(index, Settings()))
    assert ids.tolist() == index.search(queries, 10)[1].tolist()


@pytest.mark.parametrize("key", sorted(set(KEYS) - REFUSE))
def test_a_selector_leaves_rows_out_and_nothing_else(
    indices: dict[str, Any], queries: NDArray[np.float32], key: str
) -> None:
    index = indices[key]
    assert takes_selector(index)
    everything = Settings({"nprobe": 16, "efSearch": COUNT, "k_factor_rf": 200})
    selector = faiss.IDSelectorNot(faiss.IDSelectorBatch(EMPTY))
    parameters = search_parameters(index, everything, selector)
    del selector
    gc.collect()
    scores, ids = index.search(queries, 10, params=parameters)
    all_scores, all_ids = index.search(queries, COUNT, params=search_parameters(index, everything))
    assert ids.min() >= 0
    assert not np.isin(ids, EMPTY).any()
    for row in range(len(queries)):
        wanted = all_scores[row][(all_ids[row] >= 0) & ~np.isin(all_ids[row], EMPTY)][:10]
        np.testing.assert_allclose(scores[row], wanted, rtol=0.02 if "fs" in key else 1e-5)


@pytest.mark.parametrize("key", sorted(REFUSE))
def test_where_faiss_takes_no_selector_none_is_handed_over(
    indices: dict[str, Any], queries: NDArray[np.float32], key: str
) -> None:
    index = indices[key]
    selector = faiss.IDSelectorNot(faiss.IDSelectorBatch(EMPTY))
    assert not takes_selector(index)
    _, ids = index.search(queries, 10, params=search_parameters(index, Settings(), selector))
    assert ids.tolist() == index.search(queries, 10)[1].tolist()


def test_more_lists_than_there_are_mean_all(indices: dict[str, Any], queries: NDArray[np.float32]) -> None:
    index = indices["IVF16,Flat"]
    found = [index.search(queries, 5, params=search_parameters(index, Settings({"nprobe": n}))) for n in (16, 4096)]
    assert found[0][1].tolist() == found[1][1].tolist()


def test_strings_of_autofaiss_are_read_and_written() -> None:
    settings = parse_settings("nprobe=64, quantizer_efSearch=128,ht=2048,k_factor_rf=2.5")
    assert settings == {"nprobe": 64, "quantizer_efSearch": 128, "ht": 2048, "k_factor_rf": 2.5}
    assert format_settings(settings) == "ht=2048,k_factor_rf=2.5,nprobe=64,quantizer_efSearch=128"
    assert parse_settings(format_settings(settings)) == settings
    assert parse_settings("") == Settings()


def test_settings_are_values() -> None:
    settings = parse_settings("nprobe=8,efSearch=2")
    assert hash(settings) == hash(parse_settings("efSearch=2,nprobe=8"))
    assert settings | {"nprobe": 9} == {"nprobe": 9, "efSearch": 2}
    assert settings["nprobe"] == 8
    assert pickle.loads(pickle.dumps(settings)) == settings
    with pytest.raises(TypeError):
        settings["nprobe"] = 3  # type: ignore[index]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nprobe", "write nprobe=64"),
        ("nprobe=many", "write nprobe=64"),
        ("nprobe=0", "nprobe takes a whole number from 1 on"),
        ("nprobe=1.5", "nprobe takes a whole number"),
        ("nprobe=inf", "nprobe takes a whole number"),
        ("k_factor_rf=nan", "k_factor_rf takes a number"),
        ("quantizer_nprob=3", "'quantizer_nprob' is not a search setting"),
    ],
)
def test_a_wrong_setting_is_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_settings(text)


def test_the_polysemous_filter_is_the_index_own(queries: NDArray[np.float32]) -> None:
    index = build("IVF16,PQ4x8np")
    set_up(index, parse_settings("nprobe=5,ht=12"))
    assert settings_of(index)["ht"] == 12
    assert settings_of(index)["nprobe"] == 1  # which searches choose
    wanted = copy_of(index)
    faiss.ParameterSpace().set_index_parameters(wanted, "nprobe=5,ht=12")
    _, ids = index.search(queries, 10, params=search_parameters(index, parse_settings("nprobe=5")))
    assert ids.tolist() == wanted.search(queries, 10)[1].tolist()
    with pytest.raises(QueryError, match="ht=30 cannot be chosen for one search: the index is set to ht=12"):
        search_parameters(index, Settings({"ht": 30}))
    search_parameters(index, Settings({"ht": 12}))
