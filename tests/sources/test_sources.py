"""Where inputs come from: folders, tars, patterns, lists, pipes, stores; and what is refused in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from clip_retrieval import clip_inference
from clip_retrieval.errors import ClipRetrievalError, ConfigError, SourceError, StorageError
from clip_retrieval.inference.summary import RunSummary
from clip_retrieval.sources.tar import Damage, read_members
from clip_retrieval.sources.tar_members import Member

MODEL = "hash:16?size=32"
Read = Callable[[Path, str], pd.DataFrame]
ReadEmbeddings = Callable[[Path, str], NDArray[np.float16]]
WriteTar = Callable[[Path, Iterable[tuple[str, bytes]]], Path]


def embed(source: object, output: object, kind: str = "files", **options: object) -> RunSummary:
    return clip_inference(source, output, kind, clip_model=MODEL, **{"num_prepro_workers": 0, **options})


@pytest.fixture
def pictures(tmp_path: Path, write_pictures: Callable[[Path, int], Path]) -> Path:
    return write_pictures(tmp_path / "pictures", 4)


@pytest.fixture
def shards(tmp_path: Path, write_shards: Callable[[Path, int, int], Path]) -> Path:
    return write_shards(tmp_path / "shards", 4, 2)


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    store = fsspec.filesystem("memory")
    yield store
    store.store.clear()
    store.pseudo_dirs[:] = [""]


def numbers(table: pd.DataFrame) -> list[int]:
    return [int(caption.rpartition(" ")[2]) for caption in table["caption"]]


# folders


def test_pictures_captions_and_json_are_joined_by_path(pictures: Path, tmp_path: Path, read_table: Read) -> None:
    embed(pictures, tmp_path / "output", enable_metadata=True)

    table = read_table(tmp_path / "output", "metadata")
    assert list(table.columns) == ["image_path", "caption", "key", "width", "source.site"]
    assert list(table["image_path"]) == [f"{pictures}/{i:05d}.jpg" for i in range(4)]
    assert numbers(table) == [0, 1, 2, 3]
    assert list(table["key"]) == [f"{i:05d}" for i in range(4)]


def test_pictures_without_captions_are_embedded_alone(pictures: Path, tmp_path: Path, read_table: Read) -> None:
    for path in [*pictures.glob("*.txt"), *pictures.glob("*.json")]:
        path.unlink()

    summary = embed(pictures, tmp_path / "output")

    assert not (tmp_path / "output" / "text_emb").exists()
    assert list(read_table(tmp_path / "output", "metadata").columns) == ["image_path"]
    assert (summary.stats.image_count, summary.stats.text_count) == (4, 0)


def test_captions_without_pictures_are_embedded_alone(
    pictures: Path, tmp_path: Path, read_table: Read, read_embeddings: ReadEmbeddings
) -> None:
    for path in pictures.glob("*.jpg"):
        path.unlink()

    embed(pictures, tmp_path / "output")

    assert not (tmp_path / "output" / "img_emb").exists()
    assert read_embeddings(tmp_path / "output", "text_emb").shape == (4, 16)
    assert numbers(read_table(tmp_path / "output", "metadata")) == [0, 1, 2, 3]


@pytest.mark.parametrize("spelling", [False, "False", "no"])
def test_captions_that_are_not_wanted_are_left_out(
    pictures: Path, tmp_path: Path, read_table: Read, spelling: object
) -> None:
    embed(pictures, tmp_path / "output", enable_text=spelling)

    assert not (tmp_path / "output" / "text_emb").exists()
    assert list(read_table(tmp_path / "output", "metadata").columns) == ["image_path"]


def test_pictures_that_are_not_wanted_are_not_read(pictures: Path, tmp_path: Path) -> None:
    for path in pictures.glob("*.jpg"):
        path.write_bytes(b"broken")

    summary = embed(pictures, tmp_path / "output", enable_image=False)

    assert not (tmp_path / "output" / "img_emb").exists()
    assert summary.stats.sample_count == summary.stats.text_count == 4
    assert summary.stats.reasons == {}


def test_two_pictures_of_one_stem_share_the_caption(
    tmp_path: Path, make_jpeg: Callable[[int], bytes], read_table: Read
) -> None:
    (tmp_path / "in").mkdir()
    for name, payload in (("a.jpg", make_jpeg(0)), ("a.png", make_jpeg(1)), ("a.txt", b"number 7")):
        (tmp_path / "in" / name).write_bytes(payload)

    embed(tmp_path / "in", tmp_path / "output")

    assert numbers(read_table(tmp_path / "output", "metadata")) == [7, 7]


@pytest.mark.usefixtures("pictures")
def test_a_relative_folder_keeps_relative_paths(
    tmp_path: Path, read_table: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    embed("pictures", "output")

    assert read_table(tmp_path / "output", "metadata")["image_path"][0] == "pictures/00000.jpg"


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("source", ["~/pictures", "~/pictures/"])
def test_a_folder_below_home_is_found(
    tmp_path: Path, read_embeddings: ReadEmbeddings, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))

    embed(source, "~/output")

    assert read_embeddings(tmp_path / "output", "img_emb").any(axis=1).tolist() == [True] * 4


def test_linked_folders_are_followed_once(pictures: Path, tmp_path: Path, read_table: Read) -> None:
    (pictures / "again").symlink_to(pictures, target_is_directory=True)

    embed(pictures, tmp_path / "output")

    assert len(read_table(tmp_path / "output", "metadata")) in {4, 8}


def test_a_link_to_nothing_is_named(pictures: Path, tmp_path: Path, read_table: Read) -> None:
    (pictures / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")

    embed(pictures, tmp_path / "output")

    failures = read_table(tmp_path / "output", "failures")
    assert failures[["key", "reason", "row_kept"]].values.tolist() == [["gone.jpg", "unreadable", False]]


def test_an_output_below_the_input_is_no_input(pictures: Path, read_table: Read) -> None:
    embed(pictures, pictures / "output")

    again = embed(pictures, pictures / "output")

    assert again.already_done == 1
    assert numbers(read_table(pictures / "output", "metadata")) == [0, 1, 2, 3]
    assert read_table(pictures / "output", "failures").empty


# tars


@pytest.mark.parametrize("form", ["pattern", "list", "tuple", "glob", "folder", "python list"])
def test_tars_are_named_in_many_ways(shards: Path, tmp_path: Path, read_table: Read, form: str) -> None:
    names = [f"{shards}/{i:03d}.tar" for i in range(4)]
    sources: dict[str, object] = {
        "pattern": f"{shards}/{{000..003}}.tar",
        "list": str(names),
        "tuple": str(tuple(names)),
        "glob": f"{shards}/*.tar",
        "folder": shards,
        "python list": names,
    }

    embed(sources[form], tmp_path / "output", "webdataset")

    table = read_table(tmp_path / "output", "metadata")
    assert numbers(table) == list(range(8))
    assert list(table["shard"].unique()) == names


def test_patterns_inside_a_list_are_opened(shards: Path, tmp_path: Path, read_table: Read) -> None:
    embed(str([f"{shards}/{{002..003}}.tar", f"{shards}/000.tar"]), tmp_path / "output", "webdataset")

    assert numbers(read_table(tmp_path / "output", "metadata")) == [4, 5, 6, 7, 0, 1]


def test_a_tar_with_braces_in_its_name_is_found(shards: Path, tmp_path: Path) -> None:
    odd = shards / "{a,b}[0].tar"
    odd.write_bytes((shards / "000.tar").read_bytes())

    summary = embed(odd, tmp_path / "output", "webdataset")

    assert summary.stats.sample_count == 2


def test_a_pattern_with_one_tar_is_opened(shards: Path, tmp_path: Path) -> None:
    assert embed(f"{shards}/{{000..000}}.tar", tmp_path / "output", "webdataset").stats.sample_count == 2


@pytest.mark.parametrize("readers", [0, 1])
def test_a_pipe_is_read(shards: Path, tmp_path: Path, read_table: Read, readers: int) -> None:
    source = f"pipe:cat {shards}/{{000..002}}.tar"

    embed(source, tmp_path / "output", "webdataset", num_prepro_workers=readers)

    table = read_table(tmp_path / "output", "metadata")
    assert numbers(table) == list(range(6))
    assert table["shard"][0] == f"pipe:cat {shards}/000.tar"


def test_a_pipe_that_fails_is_named_and_the_others_go_on(shards: Path, tmp_path: Path, read_table: Read) -> None:
    source = str(["pipe:exit 3", f"pipe:cat {shards}/000.tar"])

    embed(source, tmp_path / "output", "webdataset")

    failures = read_table(tmp_path / "output", "failures")
    assert failures["shard"].tolist() == ["pipe:exit 3"]
    assert failures["reason"].tolist() == ["unreadable"]
    assert numbers(read_table(tmp_path / "output", "metadata")) == [0, 1]


def test_a_pipe_that_fails_at_its_end_gives_all_that_it_wrote_every_time(shards: Path) -> None:
    url = f"pipe:cat {shards}/000.tar; exit 3"

    runs = [list(read_members(url, lambda _: True)) for _ in range(10)]

    assert {sum(isinstance(item, Member) for item in items) for items in runs} == {6}
    assert {tuple(item.reason for item in items if isinstance(item, Damage)) for items in runs} == {("unreadable",)}


def test_a_pipe_is_not_blamed_for_what_is_not_read_to_its_end(shards: Path) -> None:
    url = f"pipe:cat {shards}/000.tar; head -c 1000000 /dev/zero"

    items = list(read_members(url, lambda _: True))

    assert [item for item in items if isinstance(item, Damage)] == []


def test_image_keys_choose_the_pictures(
    tmp_path: Path, write_tar: WriteTar, make_jpeg: Callable[[int], bytes], read_table: Read
) -> None:
    members = [(f"{i}.{kind}", make_jpeg(i)) for i, kind in enumerate(["jpg", "png", "webp", "img.jpg"])]
    tar = write_tar(tmp_path / "x.tar", members)

    embed(tar, tmp_path / "output", "webdataset", wds_image_key="png;webp", enable_text=False)

    assert list(read_table(tmp_path / "output", "metadata")["image_path"]) == ["1", "2"]


def test_the_caption_key_chooses_the_caption(
    tmp_path: Path, write_tar: WriteTar, make_jpeg: Callable[[int], bytes], read_table: Read
) -> None:
    tar = write_tar(tmp_path / "x.tar", [("0.jpg", make_jpeg(0)), ("0.txt", b"no"), ("0.caption", b"yes")])

    embed(tar, tmp_path / "output", "webdataset", wds_caption_key="caption")

    assert list(read_table(tmp_path / "output", "metadata")["caption"]) == ["yes"]


def test_columns_of_tars_are_in_the_order_of_the_contract(shards: Path, tmp_path: Path, read_table: Read) -> None:
    embed(shards, tmp_path / "output", "webdataset", enable_metadata=True)

    columns = list(read_table(tmp_path / "output", "metadata").columns)
    assert columns[:5] == ["image_path", "caption", "shard", "shard_offset", "shard_size"]
    assert columns[5:] == ["key", "width", "source.site"]


def test_a_cache_keeps_tars_and_changes_no_byte(
    shards: Path, tmp_path: Path, snapshot: Callable[[Path], dict[str, bytes]]
) -> None:
    cache = tmp_path / "new" / "cache"
    embed(shards, tmp_path / "a", "webdataset")

    embed(shards, tmp_path / "b", "webdataset", cache_path=str(cache))

    assert len(list(cache.iterdir())) == 4
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")


# stores


def test_a_store_is_read_and_written(
    shards: Path, pictures: Path, memory: fsspec.AbstractFileSystem, tmp_path: Path
) -> None:
    memory.put(f"{shards}/", "/tars/", recursive=True)
    memory.put(f"{pictures}/", "/pictures/", recursive=True)

    tars = embed("memory://tars/{000..003}.tar", "memory://from_tars", "webdataset")
    files = embed("memory://pictures", "memory://from_files")
    local = embed(shards, tmp_path / "local", "webdataset")

    assert (tars.stats.sample_count, files.stats.sample_count) == (8, 4)
    assert tars.stats.image_count == local.stats.image_count == 8
    written = (tmp_path / "local" / "img_emb" / "img_emb_0.npy").read_bytes()
    assert memory.cat("/from_tars/img_emb/img_emb_0.npy") == written
    assert json.loads(memory.cat("/from_files/manifest.json"))["partition_count"] == 1


def test_a_store_is_not_computed_again(shards: Path, memory: fsspec.AbstractFileSystem) -> None:
    embed(shards, "memory://output", "webdataset", output_partition_count=2)
    memory.rm("/output/metadata/metadata_1.parquet")

    again = embed(shards, "memory://output", "webdataset", output_partition_count=2)

    assert again.already_done == 1
    assert again.stats.sample_count == 8


def test_a_folder_of_tars_on_a_store_is_listed(shards: Path, memory: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    memory.put(f"{shards}/", "/tars/", recursive=True)

    folder = embed("memory://tars", tmp_path / "folder", "webdataset")
    glob = embed("memory://tars/*.tar", tmp_path / "glob", "webdataset")

    assert folder.stats.sample_count == glob.stats.sample_count == 8


def test_a_file_url_is_a_local_folder(pictures: Path, tmp_path: Path) -> None:
    assert embed(f"file://{pictures}", f"file://{tmp_path}/output").stats.image_count == 4
    assert (tmp_path / "output" / "img_emb" / "img_emb_0.npy").exists()


# refusals


def refusal(kind: type[ClipRetrievalError], source: object, output: object, *, form: str = "files") -> str:
    with pytest.raises(kind) as caught:
        embed(source, output, form)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    assert refusal(SourceError, tmp_path / "no", tmp_path / "out") == f"there is no folder {tmp_path}/no"


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    assert "holds no sample" in refusal(SourceError, tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_broken_pictures_is_refused_after_the_run(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(b"broken")

    message = refusal(SourceError, tmp_path / "in", tmp_path / "out")

    assert message == f"no sample of {tmp_path}/in could be embedded (1 image:decode); {tmp_path}/out/failures says why"
    assert (tmp_path / "out" / "failures" / "failures_0.parquet").exists()


def test_a_file_as_folder_is_refused_with_advice(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"")

    assert "--input_format webdataset" in refusal(SourceError, tmp_path / "x.tar", tmp_path / "out")


@pytest.mark.parametrize("pattern", ["no.tar", "{000..003}.tar", "*.tar", ""])
def test_tars_that_do_not_exist_are_refused(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "in").mkdir()

    message = refusal(SourceError, f"{tmp_path}/in/{pattern}", tmp_path / "out", form="webdataset")

    assert f"{tmp_path}/in/{pattern}" in message


@pytest.mark.parametrize("pattern", ["{000..003.tar", "['a.tar', ", "{{a}.tar"])
def test_patterns_that_mean_nothing_are_refused(tmp_path: Path, pattern: str) -> None:
    assert pattern in refusal(SourceError, pattern, tmp_path / "out", form="webdataset")


@pytest.mark.parametrize("form", ["files", "webdataset"])
def test_an_unknown_store_is_refused(tmp_path: Path, form: str) -> None:
    assert "nonsense" in refusal(ClipRetrievalError, "nonsense://x", tmp_path / "out", form=form)


def test_an_unknown_format_is_refused_with_the_known_ones(pictures: Path, tmp_path: Path) -> None:
    message = refusal(ConfigError, pictures, tmp_path / "out", form="parquets")

    assert "input_format takes one of files, video, webdataset" in message
    assert "parquets" in message


@pytest.mark.parametrize("form", ["files", "webdataset"])
def test_an_output_that_cannot_be_written_is_refused(pictures: Path, shards: Path, tmp_path: Path, form: str) -> None:
    (tmp_path / "file").write_bytes(b"")

    message = refusal(StorageError, pictures if form == "files" else shards, tmp_path / "file" / "out", form=form)

    assert message.startswith(f"cannot write to {tmp_path}/file/out")


def test_an_output_that_is_a_file_is_refused(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    assert f"{tmp_path}/file" in refusal(StorageError, pictures, tmp_path / "file")


def test_nothing_to_embed_is_refused(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is nothing to embed"):
        embed(pictures, tmp_path / "out", enable_text=False, enable_image=False)


def test_too_many_left_out_fail_the_run_but_keep_it(pictures: Path, tmp_path: Path) -> None:
    (pictures / "00001.jpg").write_bytes(b"broken")
    options = {"enable_text": False, "clip_model": MODEL, "num_prepro_workers": 0}

    with pytest.raises(SourceError, match=r"1 samples were left out, a share of 0\.250, more than max_skipped 0\.2"):
        clip_inference(pictures, tmp_path / "output", max_skipped=0.2, **options)

    assert clip_inference(pictures, tmp_path / "output", max_skipped=0.25, **options).already_done == 1
