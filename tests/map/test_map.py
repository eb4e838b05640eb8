"""A map: rows to places, pictures, colors and one page; wrong input is one sentence."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

from clip_retrieval.cli import cli
from clip_retrieval.errors import ClipRetrievalError, ConfigError, QueryError
from clip_retrieval.map.atlas import TILE_SIDE
from clip_retrieval.map.coloring import classify, scale
from clip_retrieval.map.config import MapConfig
from clip_retrieval.map.layout import find_neighbors, spread_out, to_square
from clip_retrieval.map.run import run_map

WriteIndex = Callable[..., Path]
HOSTILE = "</script><script>alert(1)</script><!-- @captions@"
ROWS, DIM = 60, 8


def two_groups(count: int = ROWS) -> NDArray[np.float32]:
    """Return unit rows: every other one is near the first axis, the others near the second."""
    rows = np.random.default_rng(0).normal(scale=0.05, size=(count, DIM))
    rows[np.arange(count), np.arange(count) % 2] += 1
    unit: NDArray[np.float32] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit


@pytest.fixture
def index(tmp_path: Path, write_index: WriteIndex) -> Path:
    for name, color in (("even", (200, 40, 40)), ("odd", (40, 40, 200))):
        Image.new("RGB", (80, 120), color).save(tmp_path / f"{name}.png")
    metadata = pd.DataFrame(
        {
            "caption": [HOSTILE, *(f"picture {row}" for row in range(1, ROWS))],
            "image_path": [str(tmp_path / ("odd.png" if row % 2 else "even.png")) for row in range(ROWS)],
            "group": ["odd" if row % 2 else "even" for row in range(ROWS)],
            "width": range(ROWS),
        }
    )
    return write_index(tmp_path / "ix", metadata, rows=two_groups())


def draw(folder: Path, output: Path, **options: Any) -> dict[str, Any]:
    """Return what is in the page."""
    run_map(MapConfig(folder=str(folder), output=str(output), **{"layout": "pca", **options}))
    page = output.read_text(encoding="utf-8")
    assert page.count("<script") == 2
    data = page[page.index('id="data">') + len('id="data">') :]
    found: dict[str, Any] = json.loads(data[: data.index("</script>")])
    return found


def numbers(text: str, kind: str) -> NDArray[Any]:
    return np.frombuffer(base64.b64decode(text), kind)


def places(data: dict[str, Any]) -> NDArray[np.float64]:
    return numbers(data["places"], "<u2").reshape(-1, 2) / 65535


def test_what_is_alike_lies_together(index: Path, tmp_path: Path) -> None:
    data = draw(index, tmp_path / "map.html", color="group")
    x = places(data)[:, 0]
    assert max(np.ptp(x[0::2]), np.ptp(x[1::2])) < abs(x[0::2].mean() - x[1::2].mean())
    assert data["captions"] == [HOSTILE, *(f"picture {row}" for row in range(1, ROWS))]
    assert data["color"] == {"column": "group", "missing": 0, "names": ["even", "odd"], "counts": [30, 30]}
    assert numbers(data["codes"], "u1").tolist() == [0, 1] * 30


def test_thumbnails_are_those_of_their_points(index: Path, tmp_path: Path) -> None:
    data = draw(index, tmp_path / "map.html", thumbnails=33)
    tiles = numbers(data["tiles"], "<u4")
    assert len(set(tiles)) == 33
    (sheet,) = [Image.open(io.BytesIO(base64.b64decode(one))) for one in data["sheets"]]
    assert sheet.size == (TILE_SIDE * 32, TILE_SIDE * 2)
    for tile, point in enumerate(tiles.tolist()):
        row, column = divmod(tile, 32)
        pixel = sheet.getpixel((column * TILE_SIDE + 32, row * TILE_SIDE + 32))
        assert isinstance(pixel, tuple)
        assert (pixel[2] > pixel[0]) == bool(point % 2)


def test_the_same_rows_give_the_same_bytes(index: Path, tmp_path: Path) -> None:
    draw(index, tmp_path / "a.html", points=20)
    draw(index, tmp_path / "b.html", points=30)
    draw(index, tmp_path / "b.html", points=20)  # a map is replaced
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_of_more_rows_than_points_some_are_drawn_with_their_ids(index: Path, tmp_path: Path) -> None:
    data = draw(index, tmp_path / "map.html", points=20)
    ids = numbers(data["ids"], "<u4")
    assert (len(ids), data["rows"]) == (20, ROWS)
    assert all(np.diff(ids.astype(int)) > 0)
    assert data["captions"] == [HOSTILE if row == 0 else f"picture {row}" for row in ids]


def write_embeddings(folder: Path, rows: NDArray[np.float32]) -> Path:
    (folder / "img_emb").mkdir(parents=True)
    np.save(folder / "img_emb" / "img_emb_0.npy", rows[:25])
    np.save(folder / "img_emb" / "img_emb_1.npy", rows[25:])
    return folder


def test_an_embeddings_folder_is_drawn_as_its_index_is(index: Path, tmp_path: Path) -> None:
    folder = write_embeddings(tmp_path / "emb", two_groups())
    (index / "metadata").rename(folder / "metadata")
    of_rows, of_index = draw(folder, tmp_path / "a.html"), draw(index, tmp_path / "b.html")
    assert np.abs(places(of_rows) - places(of_index)).max() < 1e-3
    assert of_rows["captions"][1] == "picture 1"
    assert (of_index["captions"][1], of_index["sheets"]) == ("", [])  # its metadata are gone


def test_rows_without_an_embedding_are_left_out_and_told(tmp_path: Path) -> None:
    rows = two_groups(30)
    rows[[3, 7]] = 0
    folder = write_embeddings(tmp_path / "emb", rows)
    result = run_map(MapConfig(folder=str(folder), output=str(tmp_path / "map.html"), layout="pca"))
    assert result.points == 28
    assert "2 rows without an embedding left out" in result.notes


def test_pictures_that_are_gone_or_on_the_web_are_counted_by_their_reason(
    tmp_path: Path, write_index: WriteIndex
) -> None:
    paths = ["https://example.org/a.jpg", "https://example.org/b.jpg", str(tmp_path / "gone.jpg")]
    metadata = pd.DataFrame({"caption": ["a", "b", "c"], "image_path": paths})
    index = write_index(tmp_path / "ix", metadata, rows=two_groups(3))
    result = run_map(MapConfig(folder=str(index), output=str(tmp_path / "map.html"), layout="pca"))
    assert result.thumbnails == 0
    assert result.notes[0].startswith("2 thumbnails missing: it is on the web")
    assert "gone.jpg" in result.notes[1]


def test_nothing_to_draw_is_told(tmp_path: Path) -> None:
    folder = write_embeddings(tmp_path / "emb", np.zeros((30, DIM), np.float32))
    with pytest.raises(QueryError, match=r"no row of .* has an embedding"):
        draw(folder, tmp_path / "map.html")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_few_rows_are_a_map(tmp_path: Path, count: int) -> None:
    folder = tmp_path / "emb"
    (folder / "img_emb").mkdir(parents=True)
    np.save(folder / "img_emb" / "img_emb_0.npy", two_groups(count))
    assert places(draw(folder, tmp_path / "map.html")).shape == (count, 2)


WRONG = [
    ({"color": "colour"}, ConfigError, "no column colour to color by; it has caption, group, image_path, width"),
    ({"modality": "text"}, QueryError, "neither an index nor embeddings of the modality text"),
    ({"folder": "gone"}, QueryError, "there is no folder"),
    ({"output": "map.png"}, ConfigError, "ends in .html"),
    ({"output": "folder.html"}, ClipRetrievalError, "is a folder; name a file"),
    ({"output": "mine.html"}, ClipRetrievalError, "mine.html exists and is not a map; name another file"),
    ({"points": 10_000_000}, ConfigError, "points may be at most 200,000"),
]


@pytest.mark.parametrize(("options", "kind", "message"), WRONG, ids=lambda value: str(value)[:30])
def test_wrong_input_is_one_sentence(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], kind: type, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "mine.html").write_text("<p>my page</p>")
    given = {"folder": str(index), "output": "map.html", "layout": "pca"} | options
    with pytest.raises(kind, match=message):
        run_map(MapConfig(**given))
    assert not (tmp_path / "map.html").exists()
    assert (tmp_path / "mine.html").read_text() == "<p>my page</p>"


def test_the_command_prints_its_outcome(index: Path, tmp_path: Path) -> None:
    words = ["map", str(index), str(tmp_path / "map.html"), "--layout", "pca", "--json"]
    answer = CliRunner().invoke(cli, words)
    assert answer.exit_code == 0, answer.exception
    told = json.loads(answer.stdout)
    assert (told["points"], told["layout"], told["thumbnails"]) == (ROWS, "pca", ROWS)
    assert Path(told["output"]).is_file()


def test_rows_that_are_not_finite_are_named(tmp_path: Path) -> None:
    rows = two_groups(30)
    rows[26, 1] = np.nan
    with pytest.raises(QueryError, match=r"row 26 of .* is not finite"):
        draw(write_embeddings(tmp_path / "emb", rows), tmp_path / "map.html")


def test_frequent_values_have_colors_of_their_own() -> None:
    values = [str(number) for number in range(15) for _ in range(20 - number)] + [None]
    coloring = classify("n", values)
    assert coloring.names == [*map(str, range(11)), "4 others"]
    assert coloring.legend()["counts"] == [*range(20, 9, -1), 9 + 8 + 7 + 6]
    assert coloring.codes[-1] == 255


def test_numbers_are_a_scale_on_which_outliers_do_not_count() -> None:
    coloring = scale("n", [*map(float, range(1, 1000)), 1e9, None, float("inf")])
    assert coloring.codes[0] == 0
    assert coloring.codes[999] == 254
    assert coloring.codes[1000:].tolist() == [255, 255]
    assert 120 < coloring.codes[500] < 135


def test_the_first_thumbnails_lie_far_apart() -> None:
    flat = np.random.default_rng(1).random((5000, 2)).astype(np.float32)
    flat[:4000] *= 0.05  # a crowd in a corner
    chosen = spread_out(to_square(flat), 16, seed=0)
    assert len(set(chosen.tolist())) == 16
    assert (chosen >= 4000).sum() >= 12


def test_points_on_one_another_all_get_their_turn() -> None:
    same = np.zeros((50, 2), np.uint16)
    assert sorted(spread_out(same, 100, seed=0).tolist()) == list(range(50))


def test_every_row_is_its_own_first_neighbor_even_among_duplicates() -> None:
    rows = np.concatenate([np.zeros((40, 4)), np.eye(4)]).astype(np.float32)
    neighbors, distances = find_neighbors(rows, 5)
    assert neighbors[:, 0].tolist() == list(range(44))
    assert not distances[:, 0].any()
    assert all(len(set(row)) == 5 for row in neighbors.tolist())


def test_umap_that_is_not_installed_is_told(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'clip-retrieval\[map\]'"):
        draw(index, tmp_path / "map.html", layout="umap")


@pytest.mark.clusters
def test_umap_sets_groups_apart_and_twice_the_same(index: Path, tmp_path: Path) -> None:
    pytest.importorskip("umap", reason="umap-learn is not installed: pip install 'clip-retrieval[map]'")
    data = draw(index, tmp_path / "a.html", layout="umap")
    at = places(data)
    inside = max(
        np.linalg.norm(at[part] - at[part].mean(axis=0), axis=1).mean()
        for part in (slice(0, None, 2), slice(1, None, 2))
    )
    assert inside < np.linalg.norm(at[0::2].mean(axis=0) - at[1::2].mean(axis=0))
    draw(index, tmp_path / "b.html", layout="umap")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
