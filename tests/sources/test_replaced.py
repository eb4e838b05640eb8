"""Files that are replaced while they are read: no row is made of two of them, and what is lost is read again."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pyarrow as pa
import pytest

from clip_retrieval import clip_inference
from clip_retrieval.blobs import Lost
from clip_retrieval.inference.readers.loader import CHUNK_SIZE
from clip_retrieval.sources import open_source, stamps, webdataset
from clip_retrieval.sources.archive import ArchiveSource
from clip_retrieval.sources.config import SourceConfig
from clip_retrieval.sources.tables import TableSource
from clip_retrieval.sources.tar import read_members
from clip_retrieval.sources.types import Failure
from clip_retrieval.sources.urls import UrlSource

COUNT = 40
REPLACED_AT = CHUNK_SIZE + 4  # samples that are listed before: one chunk is read by then
Read = Callable[[Path, str], pd.DataFrame]
Members = list[tuple[str, bytes]]
WriteTar = Callable[[Path, Iterable[tuple[str, bytes]]], Path]


@pytest.fixture
def members(make_jpeg: Callable[[int], bytes]) -> Members:
    """Samples of equal sizes: in reverse order, other samples begin at the same places."""
    picture = make_jpeg(0)
    return [
        member
        for number in range(COUNT)
        for member in ((f"{number:05d}.jpg", picture), (f"{number:05d}.txt", f"text {number:05d}".encode()))
    ]


def embed(source: Path, output: Path, form: str, **options: Any) -> Any:
    return clip_inference(source, output, form, clip_model="hash:16?size=32", num_prepro_workers=0, **options)


def backwards(members: Members) -> Members:
    return [member for pair in zip(members[::-2], members[-2::-2], strict=True) for member in reversed(pair)]


def call_after(items: Iterable[Any], count: int, act: Callable[[], object]) -> Iterator[Any]:
    for number, item in enumerate(items):
        if number == count:
            act()
        yield item


def captions_fit(table: pd.DataFrame, suffix: str) -> bool:
    return list(table["caption"]) == [f"text {path.removesuffix(suffix)}" for path in table["image_path"]]


def check_and_retry(source: Path, output: Path, form: str, read_table: Read, suffix: str = "") -> None:
    rows, failures = read_table(output, "metadata"), read_table(output, "failures")
    assert len(rows) == CHUNK_SIZE
    assert captions_fit(rows, suffix)
    assert set(failures["part"] + ":" + failures["reason"]) == {"image:replaced", "text:replaced"}
    assert set(failures["key"]) == {f"{number:05d}{suffix}" for number in range(CHUNK_SIZE, COUNT)}
    assert f"{source} was replaced or changed while it was read" in failures["detail"][0]

    embed(source, output, form, retry_failed=True)

    rows = read_table(output, "metadata")
    assert sorted(rows["image_path"]) == [f"{number:05d}{suffix}" for number in range(COUNT)]
    assert captions_fit(rows, suffix)
    assert read_table(output, "failures").empty


def test_rows_of_a_tar_that_is_replaced_are_of_one_tar(
    tmp_path: Path, members: Members, write_tar: WriteTar, read_table: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar, other = write_tar(tmp_path / "a.tar", members), write_tar(tmp_path / "b.tar", backwards(members))
    monkeypatch.setattr(
        webdataset,
        "read_members",
        lambda url, wanted: call_after(read_members(url, wanted), 2 * REPLACED_AT, lambda: other.replace(tar)),
    )

    embed(tar, tmp_path / "out", "webdataset")

    monkeypatch.undo()
    check_and_retry(tar, tmp_path / "out", "webdataset", read_table)


def test_the_next_run_makes_the_partition_of_a_replaced_tar_anew(
    tmp_path: Path, members: Members, write_tar: WriteTar, read_table: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar, output = write_tar(tmp_path / "a.tar", members), tmp_path / "out"
    monkeypatch.setattr(
        webdataset,
        "read_members",
        lambda url, wanted: call_after(
            read_members(url, wanted), 2 * REPLACED_AT, lambda: tar.write_bytes(tar.read_bytes())
        ),
    )
    embed(tar, output, "webdataset")
    monkeypatch.undo()
    assert len(read_table(output, "metadata")) == CHUNK_SIZE

    embed(tar, output, "webdataset")

    assert list(read_table(output, "metadata")["image_path"]) == [f"{number:05d}" for number in range(COUNT)]
    assert read_table(output, "failures").empty


@pytest.mark.parametrize("form", ["tar", "stored", "deflated"])
def test_rows_of_an_archive_that_is_replaced_are_of_one_archive(
    form: str,
    tmp_path: Path,
    members: Members,
    write_tar: WriteTar,
    read_table: Read,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def write(path: Path, members: Members) -> Path:
        if form == "tar":
            return write_tar(path.with_suffix(".tar"), members)
        kind = zipfile.ZIP_STORED if form == "stored" else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(path.with_suffix(".zip"), "w", kind) as zipped:
            for name, data in members:
                zipped.writestr(name, data)
        return path.with_suffix(".zip")

    archive, other = write(tmp_path / "a", members), write(tmp_path / "b", backwards(members))
    real = ArchiveSource.read
    if form == "deflated":  # it is opened once, and the feeder itself reads it
        monkeypatch.setattr(ArchiveSource, "read", in_two(other.replace, archive))
    else:
        monkeypatch.setattr(
            ArchiveSource,
            "read",
            lambda source, start, stop: call_after(
                real(source, start, stop), REPLACED_AT, lambda: other.replace(archive)
            ),
        )

    embed(archive, tmp_path / "out", "archive")

    monkeypatch.undo()
    check_and_retry(archive, tmp_path / "out", "archive", read_table, ".jpg")


def in_two(replace: Callable[[Path], object], target: Path) -> Callable[[ArchiveSource, int, int], Iterator[Any]]:
    """Return a `read` that opens the archive twice, and another one the second time."""
    real = ArchiveSource.read

    def read(source: ArchiveSource, start: int, stop: int) -> Iterator[Any]:
        yield from real(source, start, CHUNK_SIZE)
        replace(target)
        yield from real(source, CHUNK_SIZE, stop)

    return read


def test_an_archive_of_other_names_by_now_lacks_samples_and_ends_no_run(
    tmp_path: Path, members: Members, write_tar: WriteTar, read_table: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, output = write_tar(tmp_path / "a.tar", members), tmp_path / "out"
    real = ArchiveSource.read

    def read(source: ArchiveSource, start: int, stop: int) -> Iterator[Any]:
        for found, name in source.samples[:2]:  # as a worker has it that lists the archive later
            del found.samples[name]
        return real(source, start, stop)

    monkeypatch.setattr(ArchiveSource, "read", read)

    embed(archive, output, "archive")

    assert len(read_table(output, "metadata")) == COUNT - 2
    assert set(read_table(output, "failures")["key"]) == {"00000.jpg", "00001.jpg"}


def write_table(path: Path, word: str) -> Path:
    table = pd.DataFrame({"caption": [f"{word} {number}" for number in range(COUNT)]})
    if path.suffix == ".parquet":
        table.to_parquet(path, row_group_size=10)
    elif path.suffix == ".arrow":
        made = pa.Table.from_pandas(table)
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, made.schema) as stream:
            stream.write_table(made, 10)
    return path


def test_a_table_that_is_replaced_gives_rows_of_one_version(
    tmp_path: Path, read_table: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, other = write_table(tmp_path / "a.parquet", "old"), write_table(tmp_path / "b.parquet", "newer")
    real, output = TableSource.read, tmp_path / "out"

    def read(source: TableSource, start: int, stop: int) -> Iterator[Any]:
        items = real(source, start, stop)
        yield next(items)  # it is open, so the rest of this partition is of the old file
        if start == 1:
            other.replace(table)
        yield from items

    monkeypatch.setattr(TableSource, "read", read)
    options = {"enable_image": False, "output_partition_count": 4}
    embed(table, output, "parquet", **options)
    monkeypatch.undo()

    for _ in range(2):  # a second run does not mix them either
        assert list(read_table(output, "metadata")["caption"]) == [f"old {number}" for number in range(20)]
        failures = read_table(output, "failures")
        assert list(failures["part"] + ":" + failures["reason"]) == ["shard:replaced"] * 2
        assert "rows 30 to 39 are left out: the file was replaced" in failures["detail"][1]
        embed(table, output, "parquet", **options)
        embed(table, output, "parquet", retry_failed=True, **options)


@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.jsonl"])
def test_tables_of_all_kinds_are_compared(tmp_path: Path, name: str) -> None:
    table = tmp_path / name
    if name == "a.parquet":
        pd.DataFrame({"url": ["x", "y"]}).to_parquet(table)
    else:
        table.write_text("url\nx\ny\n" if name == "a.csv" else '{"url": "x"}\n{"url": "y"}\n')
    source = open_source(SourceConfig(input_dataset=str(table), input_format="urls", enable_text=False), "")
    assert isinstance(source, UrlSource)
    tables = source.tables
    assert [item.key for item in tables.read(0, 1)] == ["0", "1"]
    table.write_bytes(table.read_bytes() + b" ")
    (failure,) = tables.read(0, 1)
    assert isinstance(failure, Failure)
    assert failure.reason == "replaced"


def test_arrow_files_are_compared(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "a.arrow"}]}')
    table = write_table(tmp_path / "a.arrow", "old")
    source = open_source(SourceConfig(input_dataset=str(tmp_path), input_format="datasets", enable_image=False), "")
    assert len(list(source.read(0, 1))) == COUNT
    write_table(tmp_path / "b.arrow", "newer").replace(table)
    assert [item.reason for item in source.read(0, 1) if isinstance(item, Failure)] == ["replaced"]


@pytest.fixture
def store() -> Iterator[str]:
    """Give an empty folder of a store that says when a file was made."""
    fs = fsspec.filesystem("memory")
    fs.mkdirs("/replaced", exist_ok=True)
    yield "memory://replaced"
    fs.rm("/replaced", recursive=True)


def put(data: bytes, url: str) -> None:
    fsspec.filesystem("memory").pipe_file(url.removeprefix("memory:/"), data)


def test_tables_on_a_store_are_compared_with_one_request_for_each_reading(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, url = write_table(tmp_path / "a.parquet", "old").read_bytes(), f"{store}/a.parquet"
    put(data, url)
    source = open_source(SourceConfig(input_dataset=url, input_format="parquet", enable_image=False), "")
    asked: list[str] = []
    real = stamps.version_on_store

    def ask(url: str) -> str:
        asked.append(url)
        return real(url)

    monkeypatch.setattr(stamps, "version_on_store", ask)
    assert len([item for item in source.read(0, 1) if not isinstance(item, Failure)]) == 10
    assert asked == [url]
    put(data, url)
    assert [item.reason for item in source.read(1, 2) if isinstance(item, Failure)] == ["replaced"]


def test_zips_on_a_store_are_compared(tmp_path: Path, store: str, members: Members) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        for name, content in members:
            zipped.writestr(name, content)
    data, url = (tmp_path / "a.zip").read_bytes(), f"{store}/a.zip"
    put(data, url)
    source = open_source(SourceConfig(input_dataset=url, input_format="archive"), "")
    assert all(isinstance(item.image, bytes) for item in source.read(0, 3) if not isinstance(item, Failure))
    put(data, url)
    (sample,) = source.read(3, 4)
    assert not isinstance(sample, Failure)
    lost = Lost("replaced", f"{url} was replaced or changed while it was read; read it again")
    assert sample.image == sample.text == lost
