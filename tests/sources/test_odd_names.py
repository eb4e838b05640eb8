"""Folders whose names look like a command, a store or a home folder: they are read, and nothing is run."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_retrieval import clip_inference
from clip_retrieval.blobs import BlobRef, read_blob
from clip_retrieval.layout import EmbeddingsFolder
from clip_retrieval.query.pictures import find_local_file, find_picture
from clip_retrieval.sources import open_source
from clip_retrieval.sources.config import SHARD_FORMATS, SourceConfig
from clip_retrieval.sources.types import Sample

NAMES = ("pipe:touch ran;", "~", "~$x", "http:", "a::b", "data:x", "file:x")
PICTURE = b"picture " * 20


@pytest.fixture(params=NAMES)
def odd(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make an empty folder of such a name where the test runs; the home folder is elsewhere."""
    (tmp_path / str(request.param)).mkdir()
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return str(request.param)


def write_tar(path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("1.jpg")
        info.size = len(PICTURE)
        tar.addfile(info, io.BytesIO(PICTURE))


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("./x::y.jpg", PICTURE)


def write_paths(path: Path) -> None:
    path.with_name("1.jpg").write_bytes(PICTURE)
    pq.write_table(pa.table({"image_path": ["1.jpg"]}), path.absolute())  # pyarrow takes pipe:x for a url


def write_arrow(path: Path) -> None:
    batch = pa.RecordBatch.from_pydict({"image": [PICTURE]})
    with path.absolute().open("wb") as file, pa.ipc.new_stream(file, batch.schema) as writer:
        writer.write_batch(batch)
    path.with_name("state.json").write_text(f'{{"_data_files": [{{"filename": "{path.name}"}}]}}')


WRITERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "files": ("a::1.jpg", lambda path: path.write_bytes(PICTURE)),
    "webdataset": ("1.tar", write_tar),
    "archive": ("1.zip", write_zip),
    "parquet": ("1.parquet", write_paths),
    "datasets": ("1.arrow", write_arrow),
}


@pytest.mark.parametrize("kind", list(WRITERS))
def test_pictures_are_read_and_found_again(odd: str, kind: str) -> None:
    file, write = WRITERS[kind]
    write(Path(odd, file))

    source = open_source(SourceConfig(input_dataset=odd, input_format=kind, enable_text=False), "out")  # type: ignore[arg-type]
    [sample] = [item for item in source.read(0, len(source.units)) if isinstance(item, Sample)]
    hit: dict[str, object] = {"image_path": sample.image_path}
    if kind in SHARD_FORMATS and sample.origin is not None:
        hit |= {"shard": sample.origin.shard, "shard_offset": sample.origin.offset, "shard_size": sample.origin.size}

    assert isinstance(sample.image, bytes | BlobRef)
    assert read_blob(sample.image) == find_picture(hit).data == PICTURE
    assert not Path("ran").exists()


@pytest.mark.parametrize("spelling", ["{}/[12].tar", "{}/{{1,2}}.tar", "['{}/1.tar']", "{}/1.tar"])
def test_patterns_and_lists_below_them_name_files(odd: str, spelling: str) -> None:
    write_tar(Path(odd, "1.tar"))
    write_tar(Path(odd, "2.tar"))

    config = SourceConfig(input_dataset=spelling.format(odd), input_format="webdataset", enable_text=False)
    units = open_source(config, "out").units

    assert [Path(unit).name for unit in units] == ["1.tar", "2.tar"][: len(units)]
    assert all(Path(unit).samefile(Path(odd, Path(unit).name)) for unit in units)


def test_a_run_writes_below_them(
    odd: str, write_pictures: Callable[[Path, int], Path], read_table: Callable[[Path, str], pd.DataFrame]
) -> None:
    write_pictures(Path(odd), 2)
    made = "./~/made" if odd == "~" else f"{odd}/made"  # what is not there yet, as ~/made, is below the home folder

    for _ in range(2):
        summary = clip_inference(odd, made, clip_model="hash:16?size=32", num_prepro_workers=1)

    assert summary.stats.image_count == 2
    assert EmbeddingsFolder(f"{odd}/made").has_partitions()
    paths = read_table(Path.cwd() / odd / "made", "metadata")["image_path"]
    assert [find_local_file({"image_path": path}) for path in paths] == [
        Path.cwd() / odd / f"0000{number}.jpg" for number in range(2)
    ]
    assert sorted(path.name for path in Path.cwd().iterdir()) == sorted([odd, "home"])


def test_a_picture_that_is_gone_is_no_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_pictures: Callable[[Path, int], Path]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write_pictures(tmp_path / "pipe:touch ran;", 2)
    source = open_source(SourceConfig(input_dataset=folder.name), "out")
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()

    for sample in source.read(0, 2):
        assert isinstance(sample, Sample)
        assert isinstance(sample.image, BlobRef)
        with pytest.raises(FileNotFoundError):
            read_blob(sample.image)
        assert find_picture({"image_path": sample.image_path}).problem is not None
    assert not (tmp_path / "ran").exists()


def test_without_such_a_folder_the_home_folder_and_commands_are_what_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_pictures: Callable[[Path, int], Path]
) -> None:
    monkeypatch.setenv("HOME", str(write_pictures(tmp_path / "home", 1)))
    write_tar(tmp_path / "1.tar")

    assert len(open_source(SourceConfig(input_dataset="~"), "out").units) == 1
    command = SourceConfig(input_dataset=f"pipe:cat {tmp_path}/1.tar", input_format="webdataset", enable_text=False)
    assert len([*open_source(command, "out").read(0, 1)]) == 1
