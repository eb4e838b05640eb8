"""`index info`: what an index is, as a table and as json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from click.testing import CliRunner

from clip_retrieval.cli import cli


def test_info_says_kind_rows_settings_and_model(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((900, 16)).astype(np.float32)
    index = faiss.index_factory(16, "IVF16,SQ8", faiss.METRIC_INNER_PRODUCT)
    index.train(rows)
    index.add(rows)
    faiss.write_index(index, str(tmp_path / "image.index"))
    (tmp_path / "image.json").write_text(json.dumps({"index_key": "IVF16,SQ8", "index_param": "nprobe=7"}))
    (tmp_path / "manifest.json").write_text(json.dumps({"format_version": 1, "encoder": {"clip_model": "hash:16"}}))
    result = CliRunner().invoke(cli, ["index", "info", str(tmp_path), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)["indices"]["image"]
    assert (found["kind"], found["rows"], found["dimension"]) == ("IVF16,SQ8", 900, 16)
    assert found["settings"] == "max_codes=0,nprobe=7"
    assert found["bytes"] == (tmp_path / "image.index").stat().st_size
    shown = CliRunner().invoke(cli, ["index", "info", str(tmp_path)]).output
    assert "IVF16,SQ8" in shown
    assert "hash:16" in shown


def test_info_names_all_kinds_and_settings_of_a_folder_of_several_kinds(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((900, 16)).astype(np.float32)
    (tmp_path / "image.index").mkdir()
    for i, key in enumerate(("Flat", "HNSW8", "IVF16,PQ8x4fs", "Flat")):
        index = faiss.index_factory(16, key, faiss.METRIC_INNER_PRODUCT)
        index.train(rows)
        index.add(rows)
        faiss.write_index(index, str(tmp_path / "image.index" / f"{i}.index"))
    (tmp_path / "image.json").write_text(json.dumps({"index_param": "nprobe=7"}))
    result = CliRunner().invoke(cli, ["index", "info", str(tmp_path), "--json"])
    found = json.loads(result.output)["indices"]["image"]
    assert found["kind"] == found["tree"] == "IndexFlatIP, IndexHNSWFlat, IndexIVFPQFastScan"
    assert found["settings"] == "efSearch=16,nprobe=7"
    assert found["memory_map"] == "all but the lists"


@pytest.mark.parametrize(
    ("manifest", "model"),
    [
        (None, "unknown: the folder has no manifest.json"),
        ({"made_by": "clip-retrieval 3", "encoder": None}, "unknown: the embeddings had no manifest.json"),
        ({"encoder": {"clip_model": "hash:16"}}, "hash:16"),
    ],
)
def test_info_says_why_a_model_is_not_known(tmp_path: Path, manifest: dict[str, Any] | None, model: str) -> None:
    index = faiss.IndexFlatIP(4)
    index.add(np.eye(4, dtype=np.float32))
    faiss.write_index(index, str(tmp_path / "image.index"))
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    shown = CliRunner().invoke(cli, ["index", "info", str(tmp_path)], env={"COLUMNS": "200"}).output
    assert model in shown
    assert f"{(tmp_path / 'image.index').stat().st_size} bytes" in shown


def test_a_folder_without_an_index_is_a_sentence(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["index", "info", str(tmp_path)])
    assert result.exit_code == 1
    assert "neither image.index nor text.index; `clip-retrieval index` makes one" in result.output


def test_what_index_combiner_wrote_is_told_where_to_go(tmp_path: Path) -> None:
    for name in ("merged_index.ivfdata", "populated.index"):
        (tmp_path / name).touch()
    result = CliRunner().invoke(cli, ["index", "info", str(tmp_path)])
    assert result.exit_code == 1
    assert "move both into a folder image.index" in result.output


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("image.json", '{"index_param": ["a"]}', "image.json cannot be used: index_param: expected"),
        ("image.json", '{"quality": 3}', "image.json cannot be used: quality: expected"),
        ("image.json", '{"parts": [{"file": 1, "first_row": 0}]}', "image.json cannot be used: parts"),
        ("image.json", "[" * 100_000, "image.json is not valid JSON"),
        ("manifest.json", '{"indices": []}', "manifest.json cannot be used: indices: expected"),
        ("manifest.json", '{"indices": {"image": {"sums": {"a": 7}}}}', "manifest.json cannot be used: indices"),
        ("manifest.json", '{"options": "no"}', "manifest.json cannot be used: options: expected"),
        ("manifest.json", '{"format_version": "1"}', "manifest.json cannot be used: format_version: expected"),
    ],
)  # fmt: skip
def test_json_of_another_shape_is_a_sentence(tmp_path: Path, name: str, text: str, said: str) -> None:
    faiss.write_index(faiss.IndexFlatIP(4), str(tmp_path / "image.index"))
    (tmp_path / name).write_text(text)
    for command in (["index", "info", str(tmp_path)], ["index", "score", str(tmp_path), str(tmp_path)]):
        result = CliRunner().invoke(cli, command)
        assert result.exit_code == 1
        assert said in result.output or command[1] == "score"
        assert isinstance(result.exception, SystemExit)
