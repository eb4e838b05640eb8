"""Pictures of hits: in answers and by themselves, and only pictures of the index's input."""

from __future__ import annotations

import base64
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from clip_retrieval import clip_index, clip_inference
from clip_retrieval.query.pictures import Roots
from clip_retrieval.sources.roots import list_roots

MODEL = "hash:16?size=32"
ASK = {"text": "x", "modality": "image", "num_images": 10, "indice_name": None}


def build(folder: Path, source: Path, **options: Any) -> Path:
    clip_inference(str(source), str(folder / "embeddings"), clip_model=MODEL, device="cpu", **options)
    clip_index(str(folder / "embeddings"), str(folder / "index"))
    return folder / "index"


def picture_in(row: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(row["image"])))


@pytest.fixture(scope="module")
def loose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the index of a folder of pictures, one of them large, one with alpha, one that is no longer a picture."""
    folder = tmp_path_factory.mktemp("pictures")
    source = folder / "photos"
    source.mkdir()
    for number in range(3):
        Image.new("RGB", (24, 20), (number * 80, 100, 50)).save(source / f"0000{number}.jpg")
    Image.new("RGBA", (900, 300), (200, 0, 0, 128)).save(source / "alpha.png")
    Image.new("I;16", (50, 50), 30_000).save(source / "deep.png")
    (source / "gone.jpg").write_bytes((source / "00000.jpg").read_bytes())
    index = build(folder, source)
    (source / "gone.jpg").write_bytes(b"no picture")
    return index


def test_answers_hold_small_pictures_and_a_bad_one_fails_nothing(loose: Path, serve: Any) -> None:
    client = serve(loose)
    hits = {Path(hit["image_path"]).name: hit for hit in client.post("/knn-service", ASK).json()}
    assert len(hits) == 6
    assert picture_in(hits["alpha.png"]).size == (256, 85)
    assert picture_in(hits["deep.png"]).format == "JPEG"
    assert "image" not in hits["gone.jpg"]
    rows = client.post("/metadata", {"ids": [hits["alpha.png"]["id"]]}).json()
    assert rows[0]["metadata"]["image"] == hits["alpha.png"]["image"]
    assert all("image" not in hit for hit in serve(loose, thumbnail_size=0).post("/knn-service", ASK).json())


def test_many_rows_get_the_pictures_of_the_first(loose: Path, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clip_retrieval.server.asking.MOST_THUMBNAILS", 9)
    client = serve(loose)
    row = next(hit["id"] for hit in client.post("/knn-service", ASK).json() if "image" in hit)
    rows = client.post("/metadata", {"ids": [row], "columns": ["image_path"]}).json()
    assert "image" not in rows[0]["metadata"]
    rows = client.post("/metadata", {"ids": [row], "columns": ["image_path", "image"]}).json()
    assert {*rows[0]["metadata"]} == {"image_path", "image"}
    rows = client.post("/metadata", {"ids": [row] * 20}).json()
    assert ["image" in one["metadata"] for one in rows] == [True] * 9 + [False] * 11


def test_a_picture_is_served_small_or_as_it_is(loose: Path, serve: Any) -> None:
    client = serve(loose)
    names = [
        Path(hit["image_path"]).name for hit in sorted(client.post("/knn-service", ASK).json(), key=lambda h: h["id"])
    ]
    row = names.index("alpha.png")
    small = client.get(f"/v1/pictures/index/{row}?size=90")
    assert (small.headers["content-type"], Image.open(io.BytesIO(small.content)).size) == ("image/jpeg", (90, 30))
    whole = client.get(f"/v1/pictures/index/{row}?original=1")
    assert whole.headers["content-type"] == "image/png"
    assert whole.content == (loose.parent / "photos/alpha.png").read_bytes()
    gone = names.index("gone.jpg")
    for query in ("", "?original=1"):  # a file that is not a picture is never served
        assert client.get(f"/v1/pictures/index/{gone}{query}").status_code == 404


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("index/6", 404), ("index/-1", 400), ("index/x", 400), ("index/", 400), ("other/0", 404), ("0", 404),
        ("index/0?size=0", 400), ("index/0?size=5000", 400), ("index/0?size=x", 400), ("index/0?generation=old", 409),
        ("index/999999999999999999", 404), ("index/9999999999999999999999", 404), ("..%2f..%2fetc/0", 404),
        ("index/%2e%2e", 400), ("index/..%2f0", 404), ("index/1%00", 400), ("index/\u0661", 400),
    ],
)  # fmt: skip
def test_what_is_no_row_of_an_index_is_told(loose: Path, serve: Any, path: str, status: int) -> None:
    answer = serve(loose).get(f"/v1/pictures/{path}")
    assert (answer.status_code, "message" in answer.json()) == (status, True)


def test_pictures_in_tars_zips_and_tables_are_found(
    tmp_path: Path,
    write_tar: Callable[..., Path],
    make_sample: Any,
    make_jpeg: Any,
    serve: Any,
    write_index: Callable[..., Path],
) -> None:
    tar, packed, table = tmp_path / "0.tar", tmp_path / "loose.zip", tmp_path / "0.parquet"
    write_tar(tar, make_sample(1))
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/1.jpg", make_jpeg(1))
    pd.DataFrame({"image": [make_jpeg(1)]}).to_parquet(table)
    rows: list[dict[str, Any]] = [
        {"image_path": "00001", "shard": str(tar), "shard_offset": 512, "shard_size": len(make_jpeg(1))},
        {"image_path": "a/1.jpg", "shard": str(packed)},
        {"image_path": f"{table}#image/0"},
    ]
    folder = write_index(tmp_path / "ix", pd.DataFrame([row | {"caption": str(row)} for row in rows]))
    client = serve(folder, pictures_below=[str(tmp_path)])
    hits = client.post("/knn-service", ASK).json()
    assert [picture_in(hit).size for hit in hits] == [(24, 20)] * 3
    for row in range(3):
        assert client.get(f"/v1/pictures/ix/{row}?original=1").content == make_jpeg(1)


def test_pictures_outside_of_the_input_are_not_served(
    tmp_path: Path, write_index: Callable[..., Path], make_jpeg: Any, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, outside = tmp_path / "in", tmp_path / "in-outside"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "a.jpg").write_bytes(make_jpeg(1))
    (inside / "link.jpg").symlink_to(outside / "a.jpg")
    (outside / "deep").mkdir()
    (inside / "deep").symlink_to(outside / "deep")
    paths = [
        str(inside / "a.jpg"), str(outside / "a.jpg"), f"{inside}/../in-outside/a.jpg", str(inside / "link.jpg"),
        f"{inside}/deep/../a.jpg",
        f"file://{outside}/a.jpg", "pipe:cat /etc/passwd", "http://127.0.0.1:1/a.jpg", "memory://a.jpg",
        f"simplecache::file://{inside}/a.jpg", f"{inside}/\0", "a" * 5000, "", "s3://bucket/a.jpg",
    ]  # fmt: skip
    table = pd.DataFrame({"caption": [str(place) for place in range(len(paths))], "image_path": paths})
    folder = write_index(tmp_path / "ix", table)
    ask = ASK | {"num_images": 50}
    assert not any("image" in hit for hit in serve(folder).post("/knn-service", ask).json())
    client = serve(folder, pictures_below=[str(inside)])
    assert [hit["id"] for hit in client.post("/knn-service", ask).json() if "image" in hit] == [0]
    found = [client.get(f"/v1/pictures/ix/{row}?original=1").status_code for row in range(len(paths))]
    assert found == [200] + [404] * (len(paths) - 1)
    monkeypatch.chdir(tmp_path)
    assert Roots.of(["in"]).allow({"image_path": "in/a.jpg"})


@pytest.mark.parametrize(
    ("source", "roots"),
    [
        ({"input_dataset": "photos", "input_format": "files"}, ["photos"]),
        ({"input_dataset": "/d/{000..999}.tar", "input_format": "webdataset"}, ["/d"]),
        ({"input_dataset": "['/a/0.tar', '/b/*.tar']", "input_format": "webdataset"}, ["/a/0.tar", "/b"]),
        ({"input_dataset": "pipe:cat x.tar", "input_format": "webdataset"}, []),
        ({"input_dataset": "t/x.parquet", "input_format": "parquet", "paths_below": "/p"}, ["t", "/p"]),
        ({"input_dataset": "x.parquet", "input_format": "parquet"}, ["."]),
        ({"input_dataset": "list.csv", "input_format": "urls"}, []),
        ({}, []),
    ],
)
def test_the_input_says_where_its_pictures_lie(source: dict[str, Any], roots: list[str]) -> None:
    assert list_roots(source) == roots
