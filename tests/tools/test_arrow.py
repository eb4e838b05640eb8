"""parquet_to_arrow: one Arrow file that ours opens by id, and that reads as clip-retrieval 2 reads its own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from clip_retrieval.cli import cli
from clip_retrieval.metadata import open_metadata
from clip_retrieval.storage import Folder


@pytest.fixture
def parquet_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "old" / "metadata"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"url": ["a", "b"], "width": [1, 2], "other": [0, 0]}), folder / "metadata_0.parquet")
    pq.write_table(pa.table({"caption": ["c"], "width": [0.5]}), folder / "metadata_1.parquet")
    return folder


def run(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli, ["parquet_to_arrow", *words])
    return done.exit_code, done.output


@pytest.mark.parametrize("columns", ["url,caption,width", '["url", "caption", "width"]', "['url','caption','width']"])
def test_the_file_has_the_rows_of_all_files_and_the_columns_named(
    parquet_folder: Path, tmp_path: Path, columns: str
) -> None:
    code, output = run(str(parquet_folder), str(tmp_path / "new" / "metadata"), columns, "--json")
    assert code == 0, output
    said = json.loads(output)
    assert (said["rows"], said["columns"]) == (3, ["url", "caption", "width"])
    assert [path.name for path in (tmp_path / "new" / "metadata").iterdir()] == ["0.arrow"]
    assert said["path"] == str(tmp_path / "new" / "metadata" / "0.arrow")
    with pa.memory_map(said["path"]) as file:
        table = pa.ipc.RecordBatchFileReader(file).read_all()
        assert table.to_pylist() == [
            {"url": "a", "caption": None, "width": 1.0},
            {"url": "b", "caption": None, "width": 2.0},
            {"url": None, "caption": "c", "width": 0.5},
        ]


def test_an_index_folder_of_only_arrow_files_has_metadata(parquet_folder: Path, tmp_path: Path) -> None:
    assert run(str(parquet_folder), str(tmp_path / "new" / "metadata"), "url")[0] == 0
    metadata = open_metadata(Folder(str(tmp_path / "new")))
    assert metadata is not None
    assert metadata.rows(np.array([2, 0])).to_pylist() == [{"url": None}, {"url": "a"}]


def test_several_arrow_files_of_clip_retrieval_2_follow_each_other(tmp_path: Path) -> None:
    (tmp_path / "metadata").mkdir()
    for i, urls in enumerate((["a", "b"], ["c"])):
        table = pa.table({"url": urls})
        with pa.ipc.new_file(str(tmp_path / "metadata" / f"{i}.arrow"), table.schema) as writer:
            writer.write_table(table)
    metadata = open_metadata(Folder(str(tmp_path)))
    assert metadata is not None
    assert metadata.rows(np.array([2, 1, 2]))["url"].to_pylist() == ["c", "b", "c"]


def test_people_get_a_table_with_the_whole_path_however_long(parquet_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / ("a-long-name-" * 8) / "new"
    code, output = run(str(parquet_folder), str(target), "url,caption")
    assert code == 0
    assert "url, caption" in output
    assert str(target / "0.arrow") in "".join(output.split())


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [("url,nsfw", "has a column nsfw; there are: url, width, other, caption"), ("[]", "columns_to_return is empty")],
)
def test_wrong_columns_are_one_sentence(parquet_folder: Path, tmp_path: Path, columns: str, sentence: str) -> None:
    code, output = run(str(parquet_folder), str(tmp_path / "new"), columns)
    assert code == 1
    assert sentence in " ".join(output.split())
    assert not list(tmp_path.glob("new/*"))


def test_a_folder_without_parquet_files_is_one_sentence(tmp_path: Path) -> None:
    code, output = run(str(tmp_path), str(tmp_path / "new"), "url")
    assert code == 1
    assert "there is no parquet file in" in output


def test_other_arrow_files_in_the_way_are_one_sentence(parquet_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "1.arrow").write_bytes(b"")
    code, output = run(str(parquet_folder), str(tmp_path / "new"), "url")
    assert code == 1
    assert "has 1.arrow, whose rows would join these" in " ".join(output.split())


def test_the_command_may_be_spelled_with_hyphens(parquet_folder: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["parquet-to-arrow", str(parquet_folder), str(tmp_path / "new"), "url"])
    assert done.exit_code == 0, done.output
