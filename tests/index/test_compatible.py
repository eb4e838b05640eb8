"""Folders of clip-retrieval 2 open here, and indices of ours in faiss: the same hits."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from clip_retrieval import clip_index
from clip_retrieval.layout import IndexFolder
from clip_retrieval.search.index import open_index

Rows = Callable[..., NDArray[np.float32]]
WriteRun = Callable[..., Path]
COUNT, DIM = 3000, 64
KINDS = {
    "Flat": "",
    "HNSW15": "efSearch=40",
    "HNSW32": "efSearch=40",
    "OPQ16_64,IVF64_HNSW32,PQ16x8": "nprobe=4,quantizer_efSearch=16,ht=2048",
}
BUILD = """
import json, sys
from autofaiss import build_index
rows, folder, kinds = json.loads(sys.argv[1])
for number, (key, parameters) in enumerate(kinds.items()):
    index, _ = build_index(
        rows, f"{folder}/{number}/image.index", f"{folder}/{number}/image.json", metric_type="ip", index_key=key,
        index_param=parameters or None, max_index_memory_usage="1G", current_memory_available="4G", nb_cores=1,
    )
    assert index is not None, key
"""

pytestmark = pytest.mark.skipif(sys.version_info >= (3, 13), reason="autofaiss has no release for this Python")


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory, unit_rows: Rows) -> Path:
    """Give a folder with an index folder of each kind, as autofaiss writes them: no manifest, no empty rows."""
    folder = tmp_path_factory.mktemp("upstream")
    (folder / "rows").mkdir()
    np.save(folder / "rows" / "0.npy", unit_rows(COUNT, DIM).astype(np.float16))
    for number in range(len(KINDS)):
        (folder / str(number)).mkdir()
    task = json.dumps([str(folder / "rows"), str(folder), KINDS])
    subprocess.run([sys.executable, "-c", BUILD, task], check=True, capture_output=True)
    return folder


@pytest.mark.parametrize("key", KINDS)
def test_an_index_of_autofaiss_gives_the_hits_that_faiss_gives(upstream: Path, unit_rows: Rows, key: str) -> None:
    folder = upstream / str(list(KINDS).index(key))
    plain = faiss.read_index(str(folder / "image.index"))
    ours = open_index(IndexFolder(str(folder)), "image")
    assert json.loads((folder / "image.json").read_text())["index_key"] == key
    for query in unit_rows(20, DIM, seed=5):
        scores, ids = plain.search(query[None], 10)
        found = ours.search(query, 10)
        np.testing.assert_allclose(found.scores, scores[0], atol=1e-5)
        assert set(found.ids.tolist()) == set(ids[0].tolist()) - {-1}


@pytest.mark.parametrize(("bound", "kind"), [("900KB", "Flat"), ("300KB", "")])
def test_an_index_of_ours_gives_its_hits_in_faiss(
    tmp_path: Path, unit_rows: Rows, write_run: WriteRun, bound: str, kind: str
) -> None:
    rows = unit_rows(COUNT, DIM)
    emb = write_run(tmp_path / "emb", [rows])
    built = clip_index(str(emb), str(tmp_path / "ix"), max_index_memory_usage=bound, engine="faiss", nb_cores=1)
    assert kind in built.infos["image"]["index_key"]
    plain, ours = (
        faiss.read_index(str(tmp_path / "ix" / "image.index")),
        open_index(IndexFolder(str(tmp_path / "ix")), "image"),
    )
    faiss.ParameterSpace().set_index_parameters(plain, built.infos["image"]["index_param"])
    assert plain.d == DIM
    for query in rows[:20]:
        np.testing.assert_allclose(plain.search(query[None], 10)[0][0], ours.search(query, 10).scores, atol=1e-5)
    assert (plain.search(rows[:50], 1)[1][:, 0] == np.arange(50)).mean() > 0.9
