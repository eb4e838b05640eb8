"""The plan in the output folder: every worker reads its own part of it, and none lists the input again."""

from __future__ import annotations

import dataclasses
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_retrieval.errors import ConfigError, StorageError
from clip_retrieval.inference import saved_plan
from clip_retrieval.inference.config import InferenceConfig, WorkerConfig
from clip_retrieval.inference.plan import Plan, open_output, open_plan, plan_run, publish_plan
from clip_retrieval.inference.run import plan_only, run_inference
from clip_retrieval.layout import EmbeddingsFolder
from clip_retrieval.options import build_config
from clip_retrieval.sources import open_source, saving
from clip_retrieval.sources.types import Inventory, Sample
from clip_retrieval.sources.urls import UrlSource

Snapshot = Callable[[Path], dict[str, bytes]]
FORMATS = ("files", "webdataset", "parquet", "datasets", "urls", "archive")


@pytest.fixture
def inputs(
    tmp_path: Path,
    make_sample: Callable[[int], list[tuple[str, bytes]]],
    write_pictures: Callable[[Path, int], Path],
    write_shards: Callable[[Path, int, int], Path],
) -> Path:
    """Write some samples in every format, with something that belongs to none."""
    root = tmp_path / "in"
    write_pictures(root / "files", 10)
    (root / "files" / "notes.doc").write_bytes(b"")
    (root / "files" / "b\udcff.jpg").write_bytes((root / "files" / "00001.jpg").read_bytes())
    write_shards(root / "webdataset", 4, 3)
    samples = [make_sample(number) for number in range(10)]
    table = pa.table({"image": [sample[0][1] for sample in samples], "caption": ["a dog"] * 10})
    (root / "parquet").mkdir()
    for name in "ab":
        pq.write_table(table, root / "parquet" / f"{name}.parquet", row_group_size=3)
    (root / "parquet" / "c.parquet").write_bytes(b"damaged")
    (root / "datasets").mkdir()
    with pa.ipc.new_stream(str(root / "datasets" / "a.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=4)
    (root / "datasets" / "state.json").write_text('{"_data_files": [{"filename": "a.arrow"}]}')
    (root / "urls").mkdir()
    (root / "urls" / "a.csv").write_text("url;caption\n" + "https://example.org/1.jpg;x\n" * 5)
    (root / "urls" / "b.jsonl").write_text('{"url": "https://example.org/2.jpg", "text": "y"}\n' * 3)
    (root / "archive").mkdir()
    for name in "ab":
        with zipfile.ZipFile(root / "archive" / f"{name}.zip", "w") as archive:
            for sample in samples[:5]:
                for member, data in sample:
                    archive.writestr(member, data)
            archive.writestr("notes.doc", b"")
    return root


def config_of(source: Path, output: Path, kind: str = "files", **options: object) -> InferenceConfig:
    fixed = {"clip_model": "hash:16?size=32", "output_partition_count": 4, "num_prepro_workers": 0}
    return build_config(InferenceConfig, fixed | options, [source, output, kind])


def fresh_plan(config: InferenceConfig) -> Plan:
    return plan_run(config, open_output(config), open_source(config.source, config.output_folder))


def items(plan: Plan) -> list[list[Any]]:
    """Return what the source yields of each partition; urls are not fetched."""
    source = plan.source.tables if isinstance(plan.source, UrlSource) else plan.source
    return [list(source.read(part.start, part.stop)) for part in plan.partitions]


@pytest.mark.parametrize("block", [1, 3, 1000])
@pytest.mark.parametrize("kind", FORMATS)
def test_a_saved_plan_reads_what_the_input_gives(
    kind: str, block: int, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "UNITS_PER_BLOCK", block)
    monkeypatch.setattr(saved_plan, "UNITS_PER_BLOCK", block)
    config = config_of(inputs / kind, tmp_path / "out", kind, enable_metadata=kind in ("parquet", "urls"))
    planned = plan_only(config)

    opened = open_plan(config, "r")

    assert items(opened) == items(planned)
    assert opened.source.config == planned.source.config
    assert list(opened.source.units) == list(planned.source.units)
    assert list(opened.partitions) == list(planned.partitions)
    assert opened.described == json.loads(json.dumps(planned.described))
    assert opened.source.samples_per_unit == planned.source.samples_per_unit
    assert opened.source.estimate_total() == planned.source.estimate_total()
    for item in (item for part in items(planned) for item in part if isinstance(item, Sample)):
        if isinstance(planned.source, Inventory):
            assert isinstance(opened.source, Inventory)
            assert opened.source.files_of(item.key) == planned.source.files_of(item.key)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_saved_subset_is_the_same_subset(kind: str, inputs: Path, tmp_path: Path) -> None:
    config = config_of(inputs / kind, tmp_path / "out", kind, subset_size=4, output_partition_count=None)
    planned = plan_only(config)

    opened = open_plan(config)

    assert len(opened.partitions) == len(planned.partitions)
    if kind != "urls":  # a subset of urls would be fetched
        assert items(opened) == items(planned)


def test_a_worker_of_a_saved_plan_does_not_list_the_input(inputs: Path, tmp_path: Path, snapshot: Snapshot) -> None:
    run_inference(config_of(inputs / "files", tmp_path / "one"))
    config = config_of(inputs / "files", tmp_path / "two")
    plan_only(config)
    shutil.copy(inputs / "files" / "00001.jpg", inputs / "files" / "0000new.jpg")

    for task in (2, 0, 1):
        run_inference(config, [task])
    last = run_inference(dataclasses.replace(config, output_partition_count=None), [3])

    assert last.partition_count == 1
    assert snapshot(tmp_path / "two") == snapshot(tmp_path / "one")


def test_a_worker_reads_the_blocks_of_its_own_partitions_alone(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "UNITS_PER_BLOCK", 2)
    monkeypatch.setattr(saved_plan, "UNITS_PER_BLOCK", 2)
    config = config_of(inputs / "files", tmp_path / "out", enable_text=False)
    plan_only(config)
    blocks = sorted((tmp_path / "out" / "_plan").glob("*/units_*.json.gz"))
    for block in blocks[1:3]:
        block.unlink()

    plan = open_plan(config)
    last = plan.partitions[3]

    assert len(blocks) == 6
    assert len(list(plan.source.read(last.start, last.stop))) == last.stop - last.start
    with pytest.raises(StorageError, match=r"units_1\.json\.gz is missing; plan again"):
        list(plan.source.read(0, last.start))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"clip_model": "hash:32?size=32"}, r"clip_model hash:16\?size=32 -> hash:32\?size=32"),
        ({"output_partition_count": 5}, "output_partition_count 4 -> 5"),
        ({"enable_text": False}, "enable_text True -> False"),
    ],
)
def test_a_plan_of_other_options_is_refused(changed: dict[str, Any], said: str, inputs: Path, tmp_path: Path) -> None:
    plan_only(config_of(inputs / "files", tmp_path / "out"))

    with pytest.raises(ConfigError, match=rf"plan\.json was made with other options \({said}\); give the same ones"):
        open_plan(config_of(inputs / "files", tmp_path / "out", **changed))


def test_options_that_change_no_byte_fit_a_plan(inputs: Path, tmp_path: Path) -> None:
    plan_only(config_of(inputs / "files", tmp_path / "out"))

    plan = open_plan(config_of(inputs / "files", tmp_path / "out", batch_size=3, output_partition_count=None))

    assert (plan.config.batch_size, plan.config.output_partition_count) == (3, 4)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not valid JSON"),
        (b"[]", "cannot be used: expected `object`, got `array`"),
        (b"{}", "cannot be used"),
        (b'{"format_version": 99}', "was written by a newer clip-retrieval"),
    ],
)
def test_a_plan_that_cannot_be_read_is_refused_in_a_sentence(
    content: bytes, said: str, inputs: Path, tmp_path: Path
) -> None:
    config = config_of(inputs / "files", tmp_path / "out")
    plan_only(config)
    (tmp_path / "out" / "_plan" / "plan.json").write_bytes(content)

    with pytest.raises(StorageError, match=rf"plan\.json {said}") as caught:
        open_plan(config)

    assert "\n" not in str(caught.value)


def test_a_damaged_block_is_refused_in_a_sentence(inputs: Path, tmp_path: Path) -> None:
    config = config_of(inputs / "files", tmp_path / "out")
    plan_only(config)
    [block] = (tmp_path / "out" / "_plan").glob("*/units_0.json.gz")
    for content in (b"", b"no gzip", block.read_bytes()[:-9]):
        block.write_bytes(content)
        with pytest.raises(StorageError, match=r"is damaged .*; plan again with"):
            list(open_plan(config).source.read(0, 1))


def test_the_plan_of_a_finished_run_is_removed(inputs: Path, tmp_path: Path) -> None:
    config = config_of(inputs / "files", tmp_path / "out")
    plan_only(config)

    run_inference(config)

    assert not (tmp_path / "out" / "_plan").exists()


def test_a_plan_of_another_input_takes_the_place_of_the_old_one(inputs: Path, tmp_path: Path) -> None:
    publish_plan(fresh_plan(config_of(inputs / "files", tmp_path / "out")))  # type: ignore[arg-type]  # a PlannedRun
    (inputs / "files" / "00003.jpg").unlink()

    plan_only(config_of(inputs / "files", tmp_path / "out"))

    assert len(EmbeddingsFolder(str(tmp_path / "out")).subfolders("_plan")) == 1


def test_a_worker_without_a_plan_needs_the_number_of_partitions(inputs: Path, tmp_path: Path) -> None:
    config = config_of(inputs / "files", tmp_path / "out", output_partition_count=None)

    with pytest.raises(ConfigError, match=r"output_partition_count must be given: .* or save a plan first"):
        run_inference(config, [0])


def test_tasks_outside_of_the_saved_plan_are_refused(inputs: Path, tmp_path: Path) -> None:
    plan_only(config_of(inputs / "files", tmp_path / "out"))
    words = {"clip_model": "hash:16?size=32", "num_prepro_workers": 0}
    worker = build_config(WorkerConfig, words, ["[3,4]", inputs / "files", tmp_path / "out"])

    with pytest.raises(ConfigError, match=r"tasks \[4\] are outside of 0 to 3"):
        run_inference(worker.run, worker.tasks)
