"""The options of a build, which an update and tuning take where they are not given."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from clip_retrieval import clip_index
from clip_retrieval.cli import cli
from clip_retrieval.errors import ConfigError
from clip_retrieval.index.folder.build_options import read_index_config, read_score_config
from clip_retrieval.index.score import score_index

MakeRows = Callable[..., NDArray[np.float32]]
WriteRun = Callable[..., Path]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folders(tmp_path: Path, unit_rows: MakeRows, write_run: WriteRun) -> tuple[str, str]:
    """Give an embeddings folder, and the place of its index."""
    return str(write_run(tmp_path / "emb", [unit_rows(300, 32)])), str(tmp_path / "ix")


def kept(index: str) -> Any:
    return json.loads((Path(index) / "manifest.json").read_text())["options"]


def build(folders: tuple[str, str], **options: Any) -> Any:
    return clip_index(*folders, nb_cores=1, **options).infos["image"]


def test_an_update_keeps_to_the_bounds_of_the_build(
    folders: tuple[str, str], unit_rows: MakeRows, write_run: WriteRun
) -> None:
    assert build(folders, max_index_memory_usage="20KB", current_memory_available="2G")["size in bytes"] <= 20_000
    write_run(Path(folders[0]), [unit_rows(300, 32), unit_rows(100, 32, 1)])
    assert build(folders, update=True)["size in bytes"] <= 20_000
    assert (kept(folders[1])["max_index_memory_usage"], kept(folders[1])["current_memory_available"]) == ("20KB", "2G")


def test_what_is_given_overrules_and_is_kept_from_then_on(folders: tuple[str, str]) -> None:
    build(folders, max_index_memory_usage="20KB", max_index_query_time_ms=3)
    build(folders, update=True, max_index_memory_usage="1G", wanted_recall=0.9)
    assert kept(folders[1])["max_index_memory_usage"] == "1G"
    assert (kept(folders[1])["wanted_recall"], kept(folders[1])["max_index_query_time_ms"]) == (0.9, 3)
    assert read_index_config({"update": True}, folders).tuning.wanted_recall == 0.9
    assert read_index_config({"update": True, "wanted_recall": None}, folders).tuning.wanted_recall is None


def test_what_is_the_default_overrules_too_where_it_is_given(folders: tuple[str, str]) -> None:
    build(folders, max_index_memory_usage="20KB")
    told = CliRunner().invoke(cli, ["index", *folders, "--update", "--max_index_memory_usage", "4G", "--json"])
    assert told.exit_code == 0, told.output
    assert kept(folders[1])["max_index_memory_usage"] == "4G"


def test_a_bound_that_the_index_is_above_is_kept_to_though_no_row_changed(folders: tuple[str, str]) -> None:
    assert build(folders)["size in bytes"] > 38_000
    told = CliRunner().invoke(cli, ["index", *folders, "--update", "--max_index_memory_usage", "20KB"]).output
    assert (Path(folders[1]) / "image.index").stat().st_size <= 20_000
    assert "image: 0 rows added, 0 emptied, 0 filled" in told
    assert "nothing to update" not in told
    assert "from scratch: it has 38," in told


def test_a_build_takes_the_defaults_again(folders: tuple[str, str]) -> None:
    build(folders, max_index_memory_usage="20KB")
    assert build(folders)["index_key"] == "Flat"
    assert kept(folders[1])["max_index_memory_usage"] == "4G"


def test_an_index_without_that_record_takes_the_defaults(folders: tuple[str, str]) -> None:
    build(folders, max_index_memory_usage="20KB")
    path = Path(folders[1]) / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["options"]
    path.write_text(json.dumps(manifest))
    assert read_index_config({"update": True}, folders).max_index_memory_usage == "4G"


def test_a_record_that_is_no_option_is_refused_by_name(folders: tuple[str, str]) -> None:
    build(folders)
    path = Path(folders[1]) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"options": {"wanted_recall": "much", "other": 1}}))
    with pytest.raises(ConfigError, match=r"manifest\.json, options: wanted_recall takes a number"):
        build(folders, update=True)


def test_the_kind_that_was_asked_for_stays_what_is_built(
    folders: tuple[str, str], unit_rows: MakeRows, write_run: WriteRun
) -> None:
    build(folders, index_key="IVF4,Flat")
    write_run(Path(folders[0]), [unit_rows(300, 32), unit_rows(600, 32, 1)])
    assert build(folders, update=True)["index_key"] == "IVF4,Flat"  # of more than twice the rows: built again
    assert read_index_config({"update": True, "engine": "autofaiss"}, folders).index_key is None
    assert read_index_config({"update": True, "index_key": "HNSW8"}, folders).index_key == "HNSW8"


def test_metadata_that_was_left_out_stays_out(folders: tuple[str, str]) -> None:
    build(folders, copy_metadata=False)
    build(folders, update=True)
    assert sorted(path.name for path in Path(folders[1]).glob("meta*")) == []


def test_a_bound_is_compared_with_the_memory_that_is_kept(folders: tuple[str, str]) -> None:
    build(folders, max_index_memory_usage="20KB", current_memory_available="64G")
    assert read_index_config({"update": True, "max_index_memory_usage": "20G"}, folders)
    with pytest.raises(ConfigError, match="max_index_memory_usage 20KB is more than current_memory_available 10KB"):
        read_index_config({"update": True, "engine": "autofaiss", "current_memory_available": "10KB"}, folders)


def test_tuning_takes_the_target_of_the_index_and_sets_it(folders: tuple[str, str]) -> None:
    build(folders, max_index_query_time_ms=7)
    turned = (folders[1], folders[0])
    assert read_score_config({"tune": True}, turned).tuning.max_index_query_time_ms == 7
    score_index(*turned, tune=True, wanted_recall=0.8)
    assert (kept(folders[1])["wanted_recall"], kept(folders[1])["max_index_query_time_ms"]) == (0.8, 7)
    assert read_score_config({}, turned).tuning.max_index_query_time_ms == 10


def test_a_target_that_changes_nothing_yet_is_told_of(
    folders: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    build(folders)
    build(folders, update=True, wanted_recall=0.5)
    assert "`index score --tune True` chooses them for the new target" in caplog.text


def test_options_of_the_index_are_told_of(folders: tuple[str, str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    build(folders, max_index_memory_usage="20KB")
    build(folders, update=True)
    assert "as the index was built: --max_index_memory_usage 20KB" in caplog.text


def test_info_tells_what_an_update_will_take(folders: tuple[str, str]) -> None:
    build(folders, max_index_memory_usage="20KB")
    told = CliRunner().invoke(cli, ["index", "info", folders[1]], env={"COLUMNS": "40"}).output
    assert "\nbuilt with --max_index_memory_usage 20KB --current_memory_available 16G " in told
    shown = json.loads(CliRunner().invoke(cli, ["index", "info", folders[1], "--json"]).output)
    assert shown["options"] == kept(folders[1])


def test_a_dry_run_of_an_update_shows_what_fits_the_bounds_of_the_index(folders: tuple[str, str]) -> None:
    build(folders, index_key="IVF4,Flat", max_index_memory_usage="150KB")
    told = CliRunner().invoke(cli, ["index", *folders, "--update", "--dry_run"])
    assert told.exit_code == 0, told.output
    assert "--update keeps to IVF4,Flat" in told.output
