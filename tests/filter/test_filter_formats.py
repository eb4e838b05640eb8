"""The forms of exported hits: links, lists, a webdataset; what cannot be exported is listed."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import webdataset
from PIL import Image

from clip_retrieval import clip_filter, clip_index, clip_inference
from clip_retrieval.errors import ConfigError, QueryError
from clip_retrieval.filter import hits as filter_hits
from clip_retrieval.filter import pictures, tables, tars
from clip_retrieval.query.pictures import Picture, find_picture

MODEL = "hash:16?size=32"
WriteIndex = Callable[..., Path]
WriteTar = Callable[..., Path]
leaves_files_open = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset's reader


def png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def index(tmp_path: Path, write_index: WriteIndex) -> Path:
    """An index of four pictures in files; the last file is gone."""
    paths = [tmp_path / "in" / f"{i}.png" for i in range(4)]
    paths[0].parent.mkdir()
    for i, path in enumerate(paths[:3]):
        path.write_bytes(png(i))
    uids = [f"{i:x}" * 32 for i in (3, 15, 1)] + ["none"]
    metadata = pd.DataFrame({"caption": ["cat", "dog", "sun", "sea"], "image_path": list(map(str, paths)), "uid": uids})
    metadata["tags"] = pd.Series([["a", "b"], [], None, ["c"]])
    return write_index(tmp_path / "ix", metadata)


@pytest.mark.parametrize("export", ["hardlink", "symlink"])
def test_pictures_can_be_linked(tmp_path: Path, index: Path, export: str) -> None:
    hits = clip_filter("cat", str(tmp_path / "out"), str(index), export=export)
    for row in hits[hits.picture.notna()].itertuples():
        link = tmp_path / "out" / str(row.picture)
        assert link.samefile(str(row.image_path))
        assert link.is_symlink() == (export == "symlink")
    assert hits.picture.notna().sum() == 3
    again = clip_filter("cat", str(tmp_path / "out"), str(index), export="copy")
    copies = again[again.picture.notna()]
    for name, path in zip(copies.picture, copies.image_path, strict=True):
        assert not (tmp_path / "out" / name).samefile(path)
    assert Path(hits.image_path[0]).read_bytes() == png(int(hits.id[0]))


def test_a_hit_that_cannot_be_exported_is_listed_with_its_problem(tmp_path: Path, index: Path) -> None:
    hits = clip_filter("cat", str(tmp_path / "out"), str(index))
    (lost,) = hits[hits.problem.notna()].itertuples()
    assert (lost.caption, lost.picture) == ("sea", None)
    assert "No such file" in str(lost.problem)
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert [row["problem"] for row in rows] == [None if row["caption"] != "sea" else lost.problem for row in rows]


def test_a_copy_that_was_stopped_goes_on(tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = clip_filter("cat", str(tmp_path / "out"), str(index), num_results=3, write="parquet", where="uid != 'none'")
    files = {name: (tmp_path / "out" / name) for name in whole.picture}
    first, cut, gone = files.values()
    times = {path: path.stat().st_mtime_ns for path in files.values()}
    cut.write_bytes(b"half")
    gone.unlink()
    read: list[str] = []

    def find(hit: dict[str, Any]) -> Picture:
        read.append(hit["image_path"])
        return find_picture(hit)

    monkeypatch.setattr(pictures, "find_picture", find)
    again = clip_filter("cat", str(tmp_path / "out"), str(index), num_results=3, write="parquet", where="uid != 'none'")
    assert read == whole.image_path[1:].tolist()
    assert again.picture.tolist() == whole.picture.tolist()
    assert [(tmp_path / "out" / name).read_bytes() for name in again.picture] == [png(i) for i in again.id]
    assert first.stat().st_mtime_ns == times[first]


def test_a_picture_that_changed_since_is_copied_again(tmp_path: Path, index: Path) -> None:
    hits = clip_filter("cat", str(tmp_path / "out"), str(index), num_results=1)
    Path(hits.image_path[0]).write_bytes(png(99))
    clip_filter("cat", str(tmp_path / "out"), str(index), num_results=1)
    assert (tmp_path / "out" / hits.picture[0]).read_bytes() == png(99)


def test_every_list_holds_the_hits(tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filter_hits, "BLOCK_ROWS", 3)
    out = tmp_path / "out"
    hits = clip_filter("cat", str(out), str(index), export="none", write="parquet,jsonl,csv,ids,datacomp")
    assert {path.name for path in out.iterdir()} == {
        ".clip-retrieval-results", "recipe.json", "results.parquet", "results.jsonl", "results.csv", "ids.txt",
        "uids.npy",
    }  # fmt: skip
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    with (out / "results.csv").open(newline="") as file:
        cells = list(csv.DictReader(file))
    for rows in (lines, cells):
        assert [int(row["rank"]) for row in rows] == [1, 2, 3, 4]
        assert [row["caption"] for row in rows] == hits.caption.tolist()
    assert [row["tags"] for row in cells] == ["" if row["tags"] is None else json.dumps(row["tags"]) for row in lines]
    assert [int(line) for line in (out / "ids.txt").read_text().split()] == hits.id.tolist()
    uids = np.load(out / "uids.npy")
    assert uids.dtype == np.dtype("u8,u8")
    assert uids.tolist() == [(int(digit * 16, 16), int(digit * 16, 16)) for digit in "13f"]


@pytest.mark.parametrize("name", ["text", 'a "quoted" name', "two\nlines", "", "é"])
def test_a_line_of_json_is_a_hit_whatever_its_columns_are_called(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(tables, "JSON_ROWS", 2)
    values = ["one\ntwo", None, 'x"y', ", ", "é\u2028"]
    shares = [0.5, float("nan"), None, float("-inf"), 1.0]
    table = pa.table({name: values, "rank": [1, 2, 3, 4, 5], "share": shares, "list": [[1], None, [], [2], [3]]})
    lines = b"".join(tables.json_lines(table)).decode().removesuffix("\n").split("\n")
    assert [json.loads(line) for line in lines] == [
        {name: value, "rank": rank, "share": share, "list": some}
        for value, rank, share, some in zip(
            values, range(1, 6), [0.5, None, None, None, 1.0], [[1], None, [], [2], [3]], strict=True
        )
    ]


def test_lists_of_an_earlier_query_go(tmp_path: Path, index: Path) -> None:
    clip_filter("cat", str(tmp_path / "out"), str(index), write="ids,csv")
    clip_filter("dog", str(tmp_path / "out"), str(index), write="jsonl")
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {".clip-retrieval-results", "images", "recipe.json", "results.jsonl"}


def test_a_list_of_uids_needs_their_column(tmp_path: Path, write_index: WriteIndex) -> None:
    index = write_index(tmp_path / "ix", pd.DataFrame({"caption": ["cat"]}))
    with pytest.raises(QueryError, match="has no column uid in its metadata"):
        clip_filter("cat", str(tmp_path / "out"), str(index), write="datacomp")
    assert not (tmp_path / "out").exists()


def test_hits_go_to_any_store_and_links_do_not(tmp_path: Path, index: Path) -> None:
    url = f"memory://{tmp_path.name}"
    clip_filter("cat", url, str(index), write="csv,ids")
    store = fsspec.filesystem("memory")
    assert {Path(name).name for name in store.ls(url, detail=False)} >= {
        "results.csv",
        "ids.txt",
        "images",
        "recipe.json",
    }
    assert len(store.ls(f"{url}/images")) == 3
    with pytest.raises(ConfigError, match="can hold no links"):
        clip_filter("cat", url, str(index), export="symlink")


def members_of(number: int) -> list[tuple[str, bytes]]:
    about = json.dumps({"n": number}).encode()
    return [
        (f"d/{number}.json", about),
        (f"d/{number}.png", png(number)),
        (f"d/{number}.txt", f"picture {number}".encode()),
    ]


@leaves_files_open
def test_a_webdataset_of_the_hits_has_their_members_untouched(
    tmp_path: Path, write_tar: WriteTar, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tars, "SAMPLES_PER_TAR", 2)
    for shard in range(2):
        write_tar(
            tmp_path / "in" / f"{shard}.tar", [part for number in range(4) for part in members_of(number + shard)]
        )
    clip_inference(
        str(tmp_path / "in" / "{0..1}.tar"), str(tmp_path / "emb"), input_format="webdataset", clip_model=MODEL,
        num_prepro_workers=0,
    )  # fmt: skip
    clip_index(str(tmp_path / "emb"), str(tmp_path / "ix"), engine="faiss")
    hits = clip_filter("cat", str(tmp_path / "out"), str(tmp_path / "ix"), num_results=5, write="webdataset,ids")
    written = sorted((tmp_path / "out" / "webdataset").iterdir())
    assert [path.name for path in written] == ["00000.tar", "00001.tar", "00002.tar"]
    samples = list(webdataset.WebDataset([str(path) for path in written], shardshuffle=False))
    assert len({sample["__key__"] for sample in samples}) == 5
    found = sorted((sample["json"], sample["png"], sample["txt"]) for sample in samples)
    numbers = [row % 4 + row // 4 for row in hits.id]
    assert found == sorted(tuple(data for _, data in members_of(number)) for number in numbers)


@leaves_files_open
@pytest.mark.parametrize("prefix", ["./", "/", "d//", "../../"])
def test_a_webdataset_of_the_hits_has_loose_pictures_of_a_tar_whatever_it_calls_them(
    tmp_path: Path, write_tar: WriteTar, prefix: str
) -> None:
    write_tar(tmp_path / "in.tar", [(f"{prefix}a.png", png(0)), (f"{prefix}b.v1.png", png(1))])
    clip_inference(
        str(tmp_path / "in.tar"), str(tmp_path / "emb"), input_format="archive", clip_model=MODEL, num_prepro_workers=0
    )
    clip_index(str(tmp_path / "emb"), str(tmp_path / "ix"), engine="faiss")

    clip_filter("cat", str(tmp_path / "out"), str(tmp_path / "ix"), write="webdataset")

    samples = list(webdataset.WebDataset(str(tmp_path / "out" / "webdataset" / "00000.tar"), shardshuffle=False))
    assert sorted(sample.get("png", sample.get("v1.png")) for sample in samples) == sorted([png(0), png(1)])
    assert {sample["__key__"] for sample in samples} <= {"a", "b", "d/a", "d/b"}


@leaves_files_open
def test_a_webdataset_of_files_holds_picture_caption_and_metadata_and_lists_what_is_gone(
    tmp_path: Path, index: Path
) -> None:
    hits = clip_filter("cat", str(tmp_path / "out"), str(index), export="none", write="webdataset,parquet")
    samples = list(webdataset.WebDataset(str(tmp_path / "out" / "webdataset" / "00000.tar"), shardshuffle=False))
    kept = hits[hits.problem.isna()]
    assert [sample["txt"].decode() for sample in samples] == kept.caption.tolist()
    assert [sample["png"] for sample in samples] == [png(i) for i in kept.id]
    assert [json.loads(sample["json"])["uid"] for sample in samples] == kept.uid.tolist()
    assert hits[hits.problem.notna()].caption.tolist() == ["sea"]


@leaves_files_open
def test_a_tar_that_moved_is_listed_for_each_of_its_hits(tmp_path: Path, write_tar: WriteTar) -> None:
    for shard in range(2):
        write_tar(tmp_path / "in" / f"{shard}.tar", [part for number in range(2) for part in members_of(number)])
    clip_inference(
        str(tmp_path / "in" / "{0..1}.tar"), str(tmp_path / "emb"), input_format="webdataset", clip_model=MODEL,
        num_prepro_workers=0,
    )  # fmt: skip
    clip_index(str(tmp_path / "emb"), str(tmp_path / "ix"), engine="faiss")
    (tmp_path / "in" / "1.tar").rename(tmp_path / "moved.tar")
    hits = clip_filter("cat", str(tmp_path / "out"), str(tmp_path / "ix"), write="webdataset,parquet")
    assert (hits.problem.notna() == hits.shard.str.endswith("1.tar")).all()
    assert (hits.picture.isna() == hits.problem.notna()).all()
    assert len(list(webdataset.WebDataset(str(tmp_path / "out/webdataset/00000.tar"), shardshuffle=False))) == 2
