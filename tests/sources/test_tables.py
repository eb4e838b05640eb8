"""Parquet, datasets folders and csv as inputs: the same pictures give the same embeddings as loose files."""

from __future__ import annotations

import datetime
import decimal
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from clip_retrieval import clip_filter, clip_index, clip_inference
from clip_retrieval.errors import ConfigError, SourceError
from clip_retrieval.inference.summary import RunSummary
from clip_retrieval.query.pictures import find_picture
from clip_retrieval.sources import open_source
from clip_retrieval.sources.config import SourceConfig
from clip_retrieval.sources.parquet import parts_of
from clip_retrieval.sources.types import Failure, Sample

MODEL = "hash:64?size=32"
Read = Callable[[Path, str], pd.DataFrame]
ReadEmbeddings = Callable[[Path, str], NDArray[np.float16]]
Snapshot = Callable[[Path], dict[str, bytes]]
MakeJpeg = Callable[[int], bytes]


def embed(source: object, output: object, kind: str, **options: object) -> RunSummary:
    return clip_inference(source, output, kind, clip_model=MODEL, **{"num_prepro_workers": 0, **options})


def write_rows(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return path


def write_datasets(folder: Path, batches: list[pa.RecordBatch]) -> Path:
    """Write what datasets' save_to_disk writes: a stream of batches in each file, and two descriptions."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05d}-of-{len(batches):05d}.arrow" for i in range(len(batches))]
    for name, batch in zip(names, batches, strict=True):
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, batch.schema) as writer:
            writer.write_batch(batch)
    count = sum(batch.num_rows for batch in batches)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": n} for n in names], "_split": "train"}))
    (folder / "dataset_info.json").write_text(json.dumps({"splits": {"train": {"num_examples": count}}}))
    return folder


@pytest.fixture
def pictures(make_jpeg: MakeJpeg) -> list[bytes]:
    return [make_jpeg(number) for number in range(7)]


@pytest.fixture
def captions() -> list[str]:
    return [f"picture number {number}" for number in range(7)]


@pytest.fixture
def loose(tmp_path: Path, write_pictures: Callable[[Path, int], Path]) -> Path:
    return write_pictures(tmp_path / "loose", 7)


def structs(pictures: list[bytes]) -> list[dict[str, object]]:
    return [{"bytes": picture, "path": f"{number}.jpg"} for number, picture in enumerate(pictures)]


@pytest.mark.parametrize("form", ["bytes", "struct", "paths", "datasets", "splits", "file format"])
def test_tables_give_the_embeddings_of_loose_files(
    form: str, tmp_path: Path, loose: Path, pictures: list[bytes], captions: list[str], read_embeddings: ReadEmbeddings
) -> None:
    kind = "datasets" if form in ("datasets", "splits", "file format") else "parquet"
    table = {"image": structs(pictures), "text": captions}
    source = tmp_path / "table" / "a.parquet"
    if form == "bytes":
        write_rows(source, {"caption": captions, "jpg": pictures}, row_group_size=2)
    elif form == "struct":
        write_rows(source, table)
    elif form == "paths":
        paths = [f"../loose/{i:05d}.jpg" if i % 2 else f"{loose}/{i:05d}.jpg" for i in range(7)]
        write_rows(source, {"file_name": paths, "TEXT": captions})
    elif form == "datasets":
        source = write_datasets(tmp_path / "saved", [pa.RecordBatch.from_pydict(table).slice(i, 3) for i in (0, 3, 6)])
    elif form == "splits":
        source = tmp_path / "saved"
        for name, start, count in (("train", 0, 4), ("test", 4, 3)):
            write_datasets(source / name, [pa.RecordBatch.from_pydict(table).slice(start, count)])
        (source / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    else:
        source = write_datasets(tmp_path / "saved", [pa.RecordBatch.from_pydict(table)])
        with pa.ipc.new_file(str(source / "data-00000-of-00001.arrow"), pa.table(table).schema) as writer:
            writer.write_table(pa.table(table))

    embed(loose, tmp_path / "files", "files")
    embed(source, tmp_path / "output", kind)

    for folder in ("img_emb", "text_emb"):
        expected = read_embeddings(tmp_path / "files", folder)
        assert expected.any(axis=1).all()
        np.testing.assert_array_equal(read_embeddings(tmp_path / "output", folder), expected)


def test_reader_processes_and_partitions_change_no_byte(
    tmp_path: Path, pictures: list[bytes], captions: list[str], read_embeddings: ReadEmbeddings, snapshot: Snapshot
) -> None:
    source = write_rows(tmp_path / "a.parquet", {"image": pictures, "text": captions}, row_group_size=2)

    embed(source, tmp_path / "one", "parquet")
    embed(source, tmp_path / "three", "parquet", output_partition_count=3)
    embed(source, tmp_path / "processes", "parquet", output_partition_count=3, num_prepro_workers=2)

    assert snapshot(tmp_path / "three") == snapshot(tmp_path / "processes")
    assert len(list((tmp_path / "three" / "img_emb").iterdir())) == 3
    # Batches of another size may take another BLAS kernel, so the last bit of fp16 may differ.
    np.testing.assert_allclose(
        read_embeddings(tmp_path / "one", "img_emb"), read_embeddings(tmp_path / "three", "img_emb"), atol=1e-3
    )


def test_a_run_over_tables_goes_on_where_it_was(
    tmp_path: Path, pictures: list[bytes], captions: list[str], snapshot: Snapshot
) -> None:
    source = write_rows(tmp_path / "a.parquet", {"image": pictures, "text": captions}, row_group_size=2)
    embed(source, tmp_path / "output", "parquet", output_partition_count=4)
    whole = snapshot(tmp_path / "output")
    for name in ("metadata/metadata_2.parquet", "img_emb/img_emb_2.npy"):
        (tmp_path / "output" / name).unlink()

    again = embed(source, tmp_path / "output", "parquet", output_partition_count=4)

    assert again.already_done == 3
    assert snapshot(tmp_path / "output") == whole


def read_samples(source: Path, kind: str, start: int, stop: int, **options: Any) -> list[Sample]:
    config = SourceConfig(input_dataset=str(source), input_format=kind, **options)  # type: ignore[arg-type]
    items = open_source(config, "nowhere").read(start, stop)
    return [item for item in items if isinstance(item, Sample)]


def test_large_row_groups_are_cut_into_units(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "a.parquet", {"caption": [f"row {i}" for i in range(25_000)]})

    config = SourceConfig(input_dataset=str(source), input_format="parquet", enable_image=False)
    opened = open_source(config, "nowhere")

    assert list(opened.units) == ["a.parquet:0-10000", "a.parquet:10000-20000", "a.parquet:20000-25000"]
    assert [sample.text for sample in read_samples(source, "parquet", 1, 2, enable_image=False)] == [
        f"row {i}".encode() for i in range(10_000, 20_000)
    ]


def test_only_the_row_groups_of_a_partition_are_read(tmp_path: Path, pictures: list[bytes]) -> None:
    source = write_rows(tmp_path / "a.parquet", {"image": pictures}, row_group_size=1)
    about = pq.ParquetFile(source).metadata
    data = bytearray(source.read_bytes())
    for group in range(4):
        column = about.row_group(group).column(0)
        place = column.dictionary_page_offset or column.data_page_offset
        data[place : place + column.total_compressed_size] = bytes(column.total_compressed_size)
    source.write_bytes(bytes(data))

    assert [sample.image for sample in read_samples(source, "parquet", 4, 7)] == pictures[4:]


def test_a_damaged_row_group_costs_its_rows_and_is_named(
    tmp_path: Path, pictures: list[bytes], read_table: Read
) -> None:
    source = write_rows(tmp_path / "a.parquet", {"image": pictures}, row_group_size=3)
    column = pq.ParquetFile(source).metadata.row_group(1).column(0)
    place = column.dictionary_page_offset or column.data_page_offset
    data = bytearray(source.read_bytes())
    data[place : place + 40] = bytes(40)
    source.write_bytes(bytes(data))

    summary = embed(source, tmp_path / "output", "parquet")

    failures = read_table(tmp_path / "output", "failures")
    assert summary.stats.sample_count == 4
    assert failures[["shard", "part", "reason"]].values.tolist() == [[str(source), "shard", "corrupt"]]
    assert failures["detail"][0].startswith("rows 3 to 5 cannot be read")


def test_each_partition_tells_of_its_own_lost_rows(tmp_path: Path) -> None:
    noise = [np.random.default_rng(number).bytes(300_000) for number in range(7)]
    source = write_rows(
        tmp_path / "a.parquet", {"image": noise}, data_page_size=1000, use_dictionary=False, write_batch_size=1
    )
    data = bytearray(source.read_bytes())
    place = data.index(noise[4][:100])
    data[place - 100 : place - 4] = bytes(96)  # the header of the page of row 4
    source.write_bytes(bytes(data))
    table = parts_of(str(source))[0][0].table
    assert table is not None

    before, across, behind = (list(table.rows(start, stop, ["image"])) for start, stop in ((0, 4), (3, 6), (5, 7)))

    assert [item[0] for item in before if not isinstance(item, Failure)] == [0, 1, 2, 3]
    assert len(before) == 4
    assert [item.detail[:15] if isinstance(item, Failure) else item[0] for item in across] == [3, "rows 4 to 5 can"]
    assert [item.detail[:15] if isinstance(item, Failure) else item[0] for item in behind] == ["rows 5 to 6 can"]


def test_a_table_that_is_gone_by_its_turn_is_named(tmp_path: Path, pictures: list[bytes]) -> None:
    source = write_rows(tmp_path / "a.parquet", {"image": pictures})
    opened = open_source(SourceConfig(input_dataset=str(source), input_format="parquet"), "nowhere")
    source.unlink()

    items = list(opened.read(0, 1))

    assert [(item.part, item.reason) for item in items if isinstance(item, Failure)] == [("shard", "unreadable")]
    assert len(items) == 1


def test_a_cut_arrow_file_keeps_what_came_before(tmp_path: Path, pictures: list[bytes], read_table: Read) -> None:
    batch = pa.RecordBatch.from_pydict({"image": structs(pictures)})
    source = write_datasets(tmp_path / "saved", [batch.slice(0, 3), batch.slice(3, 4)])
    cut = source / "data-00001-of-00002.arrow"
    cut.write_bytes(cut.read_bytes()[:-2000])

    summary = embed(source, tmp_path / "output", "datasets")

    failures = read_table(tmp_path / "output", "failures")
    assert summary.stats.sample_count == 3
    assert failures[["shard", "part", "reason"]].values.tolist() == [[str(cut), "shard", "corrupt"]]


def test_nulls_and_broken_cells_keep_their_rows(
    tmp_path: Path, pictures: list[bytes], read_table: Read, read_embeddings: ReadEmbeddings
) -> None:
    source = write_rows(
        tmp_path / "a.parquet",
        {"image": [pictures[0], None, b"broken", b"", pictures[4]], "caption": ["a", "b", "c", "", None]},
    )

    summary = embed(source, tmp_path / "output", "parquet")

    table = read_table(tmp_path / "output", "metadata")
    assert table["caption"].fillna("-").tolist() == ["a", "b", "c", "-"]
    assert table["image_path"].fillna("-").tolist() == [
        f"{source}#image/0",
        "-",
        f"{source}#image/2",
        f"{source}#image/4",
    ]
    assert read_embeddings(tmp_path / "output", "img_emb").any(axis=1).tolist() == [True, False, False, True]
    assert summary.stats.reasons == {"image:no_image": 1, "image:decode": 1, "image:empty": 1, "text:empty": 1}
    failures = read_table(tmp_path / "output", "failures")
    assert failures[["key", "reason"]].values.tolist()[0] == ["1", "no_image"]
    assert set(failures["shard"]) == {str(source)}


def test_columns_of_every_type_become_metadata(tmp_path: Path, pictures: list[bytes], read_table: Read) -> None:
    noon = datetime.datetime(2024, 5, 6, 12, 0, 0)
    columns = {
        "image": structs(pictures[:2]),
        "caption": ["a", "b"],
        "when": pa.array([noon, None], pa.timestamp("ns", "UTC")),
        "day": pa.array([noon.date(), noon.date()]),
        "took": pa.array([datetime.timedelta(seconds=3), None]),
        "price": pa.array([decimal.Decimal("1.50"), decimal.Decimal("2.25")]),
        "raw": pa.array([b"\xff\x00", b"text"]),
        "nested": pa.array([{"a": {"b": 1}, "c": [1, 2]}, {"a": {"b": 2}, "c": []}]),
        "map": pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int64())),
        "words": [["x", "y"], ["z"]],
        "label": pa.array(["p", "q"]).dictionary_encode(),
        "score": pa.array([float("nan"), 1.5]),
        "big": pa.array([2**64 - 1, 1], pa.uint64()),
    }
    source = write_rows(tmp_path / "a.parquet", columns)

    summary = embed(source, tmp_path / "output", "parquet", enable_metadata=True)

    table = read_table(tmp_path / "output", "metadata")
    assert summary.stats.reasons == {}
    row = table.iloc[0]
    assert (row["image.path"], row["when"], row["day"]) == ("0.jpg", "2024-05-06T12:00:00+00:00", "2024-05-06")
    assert (row["price"], row["raw"], row["nested.a.b"], row["label"]) == ("1.50", "/wA=", 1, "p")
    assert table["raw"][1] == "text"
    assert list(row["words"]) == ["x", "y"]
    assert table["score"][1] == 1.5
    assert table["took"][0] == "0:00:03"


def test_text_that_is_not_utf8_costs_its_part_alone(tmp_path: Path, pictures: list[bytes]) -> None:
    bad = pa.array([b"good", b"\xff\xfe"], pa.binary()).view(pa.string())
    source = write_rows(tmp_path / "a.parquet", {"image": pictures[:2], "caption": bad, "other": bad})

    summary = embed(source, tmp_path / "output", "parquet", enable_metadata=True)

    assert (summary.stats.image_count, summary.stats.text_count) == (2, 1)
    assert summary.stats.reasons == {"text:encoding": 1, "metadata:encoding": 1}


def test_files_may_name_their_columns_differently(
    tmp_path: Path, pictures: list[bytes], read_table: Read, read_embeddings: ReadEmbeddings
) -> None:
    write_rows(tmp_path / "in" / "a.parquet", {"jpg": pictures[:2], "caption": ["a", "b"], "x": [1, 2]})
    write_rows(tmp_path / "in" / "b.parquet", {"TEXT": ["c"], "image": structs(pictures[2:3]), "y": ["z"]})
    write_rows(tmp_path / "in" / "c.parquet", {"text": ["d"]})
    write_rows(tmp_path / "in" / "d.parquet", {"jpg": pa.array([], pa.binary()), "text": pa.array([], pa.string())})

    summary = embed(tmp_path / "in", tmp_path / "output", "parquet", enable_metadata=True)

    table = read_table(tmp_path / "output", "metadata")
    assert table["caption"].tolist() == ["a", "b", "c", "d"]
    assert table["x"].fillna(0).tolist() == [1, 2, 0, 0]
    assert read_embeddings(tmp_path / "output", "img_emb").any(axis=1).tolist() == [True, True, True, False]
    assert summary.stats.reasons == {"image:no_image": 1}


def test_a_list_of_captions_gives_its_first(tmp_path: Path, pictures: list[bytes], read_table: Read) -> None:
    source = write_rows(tmp_path / "a.parquet", {"image": pictures[:2], "captions": [["a", "b"], []]})

    embed(source, tmp_path / "output", "parquet")

    assert read_table(tmp_path / "output", "metadata")["caption"].fillna("-").tolist() == ["a", "-"]


def test_columns_are_named_by_options(tmp_path: Path, pictures: list[bytes]) -> None:
    rows = {"image": pictures[:1], "mine": pictures[1:2], "caption": ["no"], "says": ["yes"]}
    source = write_rows(tmp_path / "a.parquet", rows)

    samples = read_samples(source, "parquet", 0, 1, image_column="mine", caption_column="says")

    assert [(sample.image, sample.text) for sample in samples] == [(pictures[1], b"yes")]


@pytest.mark.parametrize("path", ["pipe:touch {}", "http://127.0.0.1/{}", "ssh://host/{}", "zip://x::{}"])
def test_a_path_of_a_table_never_runs_or_fetches_anything(tmp_path: Path, path: str) -> None:
    mark = tmp_path / "mark"
    source = write_rows(tmp_path / "a.parquet", {"path": [path.format(mark)], "text": ["a"]})

    summary = embed(source, tmp_path / "output", "parquet")

    assert not mark.exists()
    assert set(summary.stats.reasons) <= {"image:forbidden_path", "image:unreadable"}
    assert summary.stats.text_count == 1


@pytest.mark.parametrize("kind", ["parquet", "datasets"])
def test_filter_finds_the_pictures_again(kind: str, tmp_path: Path, pictures: list[bytes], captions: list[str]) -> None:
    batch = pa.RecordBatch.from_pydict({"image": structs(pictures), "text": captions})
    if kind == "datasets":
        source = write_datasets(tmp_path / "saved", [batch.slice(0, 3), batch.slice(3)])
    else:
        source = write_rows(tmp_path / "a.parquet", {"jpg/x": pictures, "text": captions}, row_group_size=2)
    options = {"image_column": "jpg/x"} if kind == "parquet" else {}
    embed(source, tmp_path / "output", kind, **options)
    clip_index(tmp_path / "output", tmp_path / "index", engine="faiss")

    clip_filter("picture number 2", tmp_path / "hits", tmp_path / "index", num_results=7)

    exported = sorted((tmp_path / "hits" / "images").iterdir())
    assert {path.read_bytes() for path in exported} == set(pictures)
    assert {path.suffix for path in exported} == {".jpg"}


def test_tables_in_folders_of_a_folder_are_found(tmp_path: Path, pictures: list[bytes], read_table: Read) -> None:
    for number, name in enumerate(["train/0.parquet", "test/0.parquet", ".cache/0.parquet"]):
        write_rows(tmp_path / "in" / name, {"image": pictures[:1], "caption": [name], "n": [number]})

    embed(tmp_path / "in", tmp_path / "output", "parquet")

    assert read_table(tmp_path / "output", "metadata")["caption"].tolist() == ["test/0.parquet", "train/0.parquet"]


def test_names_with_dots_are_columns_of_their_own(tmp_path: Path, pictures: list[bytes], read_table: Read) -> None:
    columns = {"image": pictures[:1], "a": [1], "a.b": [2], "c": [{"d": 3}], "image.x": ["y"]}
    source = write_rows(tmp_path / "a.parquet", columns)

    embed(source, tmp_path / "output", "parquet", enable_metadata=True)

    row = read_table(tmp_path / "output", "metadata").iloc[0]
    assert (row["a"], row["a.b"], row["c.d"], row["image.x"]) == (1, 2, 3, "y")


# refusals


def refusal(source: object, output: Path, kind: str, **options: object) -> str:
    with pytest.raises(SourceError) as caught:
        embed(source, output, kind, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("option", ["image_column", "caption_column"])
def test_a_column_that_is_not_there_is_refused_with_those_that_are(
    tmp_path: Path, pictures: list[bytes], option: str
) -> None:
    source = write_rows(tmp_path / "a.parquet", {"image": pictures, "caption": ["a"] * 7})

    message = refusal(source, tmp_path / "out", "parquet", **{option: "nope"})

    assert "has the columns image (binary); caption (string)" in message
    assert f"--{option}" in message


def test_a_table_without_a_known_column_is_refused(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "a.parquet", {"x": [1], "y": ["b"]})

    assert "has the columns x (int64); y (string)" in refusal(source, tmp_path / "out", "parquet")


def test_a_table_of_urls_is_sent_to_its_format(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "a.parquet", {"url": ["http://x/a.jpg"], "caption": ["a"]})

    message = refusal(source, tmp_path / "out", "parquet")

    assert "--input_format urls" in message
    assert "--enable_image False" in message
    assert embed(source, tmp_path / "out", "parquet", enable_image=False).stats.text_count == 1


@pytest.mark.parametrize(("option", "name"), [("image_column", "number"), ("caption_column", "image")])
def test_a_column_of_another_type_is_refused(tmp_path: Path, pictures: list[bytes], option: str, name: str) -> None:
    source = write_rows(tmp_path / "a.parquet", {"image": pictures, "number": list(range(7)), "text": ["a"] * 7})

    assert f"column {name} of {source} holds" in refusal(source, tmp_path / "out", "parquet", **{option: name})


@pytest.mark.parametrize(
    ("kind", "option"), [("files", "image_column"), ("urls", "image_column"), ("parquet", "url_column")]
)
def test_an_option_of_another_format_is_refused(tmp_path: Path, kind: str, option: str) -> None:
    with pytest.raises(ConfigError, match=f"{option} is for input_format .*, not {kind}"):
        embed(tmp_path, tmp_path / "out", kind, **{option: "x"})


def test_two_columns_of_one_name_are_refused(tmp_path: Path, pictures: list[bytes]) -> None:
    table = pa.Table.from_arrays([pa.array(pictures), pa.array(pictures)], names=["image", "image"])
    pq.write_table(table, tmp_path / "a.parquet")

    assert "two columns of the name image" in refusal(tmp_path / "a.parquet", tmp_path / "out", "parquet")


@pytest.mark.parametrize(
    ("payload", "reason"),
    [(b"", "not_parquet"), (b"PAR1", "truncated"), (b"no table at all" * 10, "not_parquet")],
)
def test_a_file_that_is_no_table_is_named(
    tmp_path: Path, pictures: list[bytes], payload: bytes, reason: str, read_table: Read
) -> None:
    bad = tmp_path / "in" / "b.parquet"
    write_rows(tmp_path / "in" / "a.parquet", {"image": pictures})
    bad.write_bytes(payload)

    summary = embed(tmp_path / "in", tmp_path / "output", "parquet")

    assert summary.stats.sample_count == 7
    failures = read_table(tmp_path / "output", "failures")
    assert failures[["shard", "reason"]].values.tolist() == [[str(bad), reason]]
    assert "no readable table" in refusal(bad, tmp_path / "out", "parquet")


def test_a_table_of_no_rows_is_refused(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "a.parquet", {"image": pa.array([], pa.binary())})

    assert refusal(source, tmp_path / "out", "parquet") == f"{source} holds no row"


def test_a_folder_that_datasets_did_not_write_is_refused(tmp_path: Path, pictures: list[bytes]) -> None:
    (tmp_path / "in").mkdir()
    assert "neither state.json nor dataset_dict.json" in refusal(tmp_path / "in", tmp_path / "out", "datasets")
    saved = write_datasets(tmp_path / "saved", [pa.RecordBatch.from_pydict({"image": pictures})])
    (saved / "state.json").write_text('{"_data_files": [], "_indices_data_files": [{"filename": "i"}]}')
    assert "flatten_indices" in refusal(saved, tmp_path / "out", "datasets")
    (saved / "state.json").write_text("{")
    assert "not valid JSON" in refusal(saved, tmp_path / "out", "datasets")


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("a.parquet", "parquet"),
        ("a.zip", "archive"),
        ("a.csv", "urls"),
        ("a.tar", "webdataset"),
        ("a.arrow", "datasets"),
    ],
)
def test_files_says_which_format_something_else_wants(tmp_path: Path, name: str, form: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(b"")

    for source in (tmp_path / "in", tmp_path / "in" / name):
        assert f"--input_format {form}" in refusal(source, tmp_path / "out", "files")


def test_a_split_that_is_named_and_missing_is_told_of(tmp_path: Path, pictures: list[bytes], read_table: Read) -> None:
    batch = pa.RecordBatch.from_pydict({"image": pictures})
    write_datasets(tmp_path / "saved" / "train", [batch])
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["test", "train"]}')

    summary = embed(tmp_path / "saved", tmp_path / "output", "datasets")

    assert summary.stats.image_count == len(pictures)
    (row,) = read_table(tmp_path / "output", "failures").to_dict("records")
    assert (row["shard"], row["reason"]) == (str(tmp_path / "saved" / "test"), "missing")
    assert "names the split test" in row["detail"]


def test_paths_of_a_table_stay_below_the_folder_that_is_named(
    tmp_path: Path, make_jpeg: MakeJpeg, read_table: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("in/a.jpg", "out.jpg", "inside/b.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(make_jpeg(1))
    (tmp_path / "in" / "link.jpg").symlink_to("../out.jpg")
    names = [
        "a.jpg",
        "link.jpg",
        "../out.jpg",
        str(tmp_path / "out.jpg"),
        "../in/a.jpg",
        "../inside/b.jpg",
        "memory://x",
    ]
    source = write_rows(tmp_path / "in" / "t.parquet", {"path": names, "text": list("abcdefg")})
    monkeypatch.chdir(tmp_path)

    summary = embed(source, tmp_path / "output", "parquet", paths_below="in")

    assert summary.stats.image_count == 2
    assert summary.stats.reasons == {"image:forbidden_path": 5}
    paths = read_table(tmp_path / "output", "metadata")["image_path"]  # filter reads what stands there
    assert paths.dropna().tolist() == [str(tmp_path / "in" / "a.jpg"), str(tmp_path / "in" / ".." / "in" / "a.jpg")]


def test_a_device_in_a_table_is_no_picture(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "t.parquet", {"path": ["/dev/zero"], "text": ["a"]})

    assert embed(source, tmp_path / "output", "parquet").stats.reasons == {"image:not_a_file": 1}


@pytest.mark.parametrize("spelling", ["", "/**/*.parquet"])
def test_the_tables_that_a_run_wrote_are_no_input_of_the_next(
    tmp_path: Path, pictures: list[bytes], spelling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(tmp_path / "in" / "train" / "t.parquet", {"image": pictures})
    (tmp_path / "link").symlink_to("in")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        summary = embed(f"in{spelling}", "link/made", "parquet")

    assert summary.stats.image_count == len(pictures)
    assert summary.already_done == summary.partition_count


@pytest.mark.parametrize(
    ("name", "text", "key"),
    [
        ("dataset_dict.json", '{"splits": ["train", 5]}', "splits[1]"),
        ("dataset_dict.json", '{"splits": null}', "splits"),
        ("train/state.json", '{"_data_files": ["a.arrow"]}', "_data_files[0]"),
        ("train/state.json", '{"_split": ["x"]}', "_split"),
        ("train/dataset_info.json", '{"splits": {"train": 3}}', "splits[...]"),
        ("train/dataset_info.json", '{"splits": {"train": {"num_examples": "3"}}}', "splits[...].num_examples"),
    ],
)
def test_a_file_about_a_dataset_with_another_shape_is_named_with_its_key(
    tmp_path: Path, pictures: list[bytes], name: str, text: str, key: str
) -> None:
    write_datasets(tmp_path / "saved" / "train", [pa.RecordBatch.from_pydict({"image": pictures})])
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    (tmp_path / "saved" / name).write_text(text)

    message = refusal(tmp_path / "saved", tmp_path / "out", "datasets")

    assert message.startswith(f"{tmp_path}/saved/{name} cannot be used: {key}: expected ")


@pytest.mark.parametrize(
    ("name", "text", "place"),
    [
        ("dataset_dict.json", '{"splits": ["../train"]}', "../train"),
        ("dataset_dict.json", '{"splits": ["/train"]}', "/train"),
        ("train/state.json", '{"_data_files": [{"filename": "../../a.arrow"}]}', "train/../../a.arrow"),
    ],
)
def test_a_file_about_a_dataset_that_leads_out_of_it_is_refused(
    tmp_path: Path, pictures: list[bytes], name: str, text: str, place: str
) -> None:
    write_datasets(tmp_path / "saved" / "train", [pa.RecordBatch.from_pydict({"image": pictures})])
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    (tmp_path / "saved" / name).write_text(text)

    assert refusal(tmp_path / "saved", tmp_path / "out", "datasets") == (
        f"{tmp_path}/saved/{name} names '{place}', which is not in its folder; remove or fix that file"
    )


def test_what_comes_after_the_end_of_an_arrow_stream_is_told_of(
    tmp_path: Path, pictures: list[bytes], read_table: Read
) -> None:
    batch = pa.RecordBatch.from_pydict({"image": pictures})
    for name in ("saved", "second"):
        write_datasets(tmp_path / name, [batch])
    file, second = (tmp_path / name / "data-00000-of-00001.arrow" for name in ("saved", "second"))
    with file.open("ab") as joined:
        joined.write(second.read_bytes())

    summary = embed(tmp_path / "saved", tmp_path / "out", "datasets")

    assert summary.stats.image_count == len(pictures)
    [failure] = read_table(tmp_path / "out", "failures").to_dict("records")
    assert (failure["shard"], failure["part"], failure["reason"]) == (str(file), "shard", "corrupt")
    assert f"{second.stat().st_size:,} bytes come after the end" in failure["detail"]


def test_an_arrow_stream_that_was_cut_between_two_batches_is_told_of(
    tmp_path: Path, pictures: list[bytes], read_table: Read
) -> None:
    whole = write_datasets(tmp_path / "whole", [pa.RecordBatch.from_pydict({"image": pictures})])
    cut = Path(shutil.copytree(whole, tmp_path / "cut")) / "data-00000-of-00001.arrow"
    cut.write_bytes(cut.read_bytes()[:-8])  # a batch, then no mark of the end

    for name, reasons in (("whole", []), ("cut", ["truncated"])):
        summary = embed(tmp_path / name, tmp_path / f"out-{name}", "datasets")
        assert summary.stats.image_count == len(pictures)
        assert read_table(tmp_path / f"out-{name}", "failures")["reason"].tolist() == reasons


def test_a_table_of_which_nothing_can_be_read_says_so(tmp_path: Path, pictures: list[bytes], read_table: Read) -> None:
    batch = pa.RecordBatch.from_pydict({"image": pictures})
    write_datasets(tmp_path / "saved" / "good", [batch])
    cut = write_datasets(tmp_path / "saved" / "cut", [batch]) / "data-00000-of-00001.arrow"
    cut.write_bytes(cut.read_bytes()[:-1000])
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["good", "cut"]}')

    embed(tmp_path / "saved", tmp_path / "output", "datasets")

    (detail,) = read_table(tmp_path / "output", "failures")["detail"]
    assert detail.startswith("no row can be read: ")


@pytest.mark.parametrize("name", ["x.parquet", "x.arrow"])
def test_a_picture_of_a_table_on_the_web_is_not_taken_for_the_table(name: str) -> None:
    picture = find_picture({"image_path": f"https://example.invalid/{name}#image/3"})

    assert (picture.data, picture.problem) == (
        None,
        "it is in a table on the web; download that table, and embed the copy",
    )


@pytest.mark.parametrize(("lost", "reason", "words"), [(100, "truncated", "footer"), (0, "corrupt", "is damaged")])
def test_a_parquet_file_without_its_end_is_called_cut_off(
    tmp_path: Path, pictures: list[bytes], lost: int, reason: str, words: str
) -> None:
    source = write_rows(tmp_path / "a.parquet", {"image": pictures})
    write_rows(tmp_path / "b.parquet", {"image": pictures})
    data = source.read_bytes()
    footer = int.from_bytes(data[-8:-4], "little")
    source.write_bytes(data[:-lost] if lost else data[: -8 - footer] + b"\xff" * footer + data[-8:])

    opened = open_source(SourceConfig(input_dataset=str(tmp_path), input_format="parquet"), "nowhere")
    items = list(opened.read(0, len(opened.units)))

    (failure,) = [item for item in items if isinstance(item, Failure)]
    assert (failure.part, failure.reason) == ("shard", reason)
    assert words in failure.detail
    assert "--input_format" not in failure.detail
