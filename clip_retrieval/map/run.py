"""The whole of `map`: rows to places, places to a page."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.errors import QueryError, StorageError
from clip_retrieval.layout import CAPTION, IMAGE_PATH
from clip_retrieval.map.atlas import COLUMNS, TILE_SIDE, Atlas, make_atlas
from clip_retrieval.map.coloring import Coloring, read_coloring
from clip_retrieval.map.config import Layout, MapConfig
from clip_retrieval.map.layout import UMAP_DIM, choose_layout, place_points, spread_out
from clip_retrieval.map.reduce import reduce_rows
from clip_retrieval.map.rows import BLOCK_ROWS, Rows, choose_ids, open_rows
from clip_retrieval.progress import show_progress
from clip_retrieval.storage import Folder, check_writable
from clip_retrieval.version import __version__
from clip_retrieval.web_pages import HEAD_BYTES, fill_page, is_page, script_json
from clip_retrieval.words import counted, shorten

MOST_LETTERS = 160  # of a caption on the page


@dataclass(frozen=True, kw_only=True)
class MapResult:
    """What the page shows, and what it leaves out."""

    output: str
    rows: int
    points: int
    layout: Layout
    thumbnails: int
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {
            "output": self.output,
            "rows": self.rows,
            "points": self.points,
            "layout": self.layout,
            "thumbnails": self.thumbnails,
            "notes": self.notes,
        }


def run_map(config: MapConfig) -> MapResult:
    """Write the map of a folder. Raises ClipRetrievalError."""
    layout = choose_layout(config.layout)
    target, name = split_output(config.output)
    rows = open_rows(config)
    ids = choose_ids(rows.row_count, config.points, config.seed)
    coloring = None if config.color is None else read_coloring(rows, ids, config.color)
    with show_progress("reading rows", 2 * len(ids)) as advance:
        points, is_there = reduce_rows(rows, ids, 2 if layout == "pca" else UMAP_DIM, advance)
    if not is_there.any():
        raise QueryError(f"no row of {rows.url} has an embedding of the modality {config.modality}")
    kept = np.flatnonzero(is_there)
    places = place_points(points[kept], layout, config.seed)
    shown = spread_out(places, config.thumbnails if rows.metadata is not None else 0, config.seed)
    with show_progress("reading pictures", len(shown)) as advance:
        atlas = make_atlas(rows, ids[kept], shown, advance)
    page = MapPage(rows=rows, ids=ids[kept], places=places, layout=layout, atlas=atlas)
    codes = None if coloring is None else coloring.codes[kept]
    check_writable(target)
    with target.staged(name) as staged, staged.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(fill_page("map", page.title, page.plain, page.data(coloring, codes)))
    return MapResult(
        output=target.path(name),
        rows=rows.row_count,
        points=len(kept),
        layout=layout,
        thumbnails=len(atlas.tiles),
        notes=tell(config, rows, layout, len(ids) - len(kept), atlas),
    )


def split_output(output: str) -> tuple[Folder, str]:
    """Return the folder and the name of the page. Raises StorageError if it is a folder, or a file that is no map."""
    folder, _, name = output.rpartition("/")
    target = Folder(folder or ("/" if output.startswith("/") else "."))
    if target.is_folder(name):
        raise StorageError(f"{output} is a folder; name a file for the map")
    if target.exists(name) and not is_page("map", target.read_bytes(name, HEAD_BYTES)):
        raise StorageError(f"{output} exists and is not a map; name another file")
    return target, name


def tell(config: MapConfig, rows: Rows, layout: Layout, empty: int, atlas: Atlas) -> list[str]:
    """Return sentences on what the map does not show, or could show better."""
    notes = []
    if rows.row_count > config.points:
        notes.append(f"{config.points:,} of {rows.row_count:,} rows are drawn, evenly (--points)")
    if empty:
        notes.append(f"{counted(empty, 'row')} without an embedding left out")
    if layout == "pca" and config.layout == "auto":
        notes.append(
            "laid out by PCA; pip install 'clip-retrieval[map]' for UMAP, which places similar points together"
        )
    for problem, count in Counter(atlas.problems).most_common(3):
        notes.append(f"{counted(count, 'thumbnail')} missing: {problem}")
    return notes


@dataclass(frozen=True, kw_only=True, eq=False)
class MapPage:
    """The data of the page; front/src/map/points.ts reads it."""

    rows: Rows
    ids: NDArray[np.int64]
    places: NDArray[np.uint16]
    layout: Layout
    atlas: Atlas

    @property
    def name(self) -> str:
        """The last two parts of the folder's path: most are called index or embeddings."""
        return "/".join(self.rows.url.rstrip("/").split("/")[-2:])

    @property
    def title(self) -> str:
        return f"{self.name}: a map of {counted(len(self.ids), 'row')}"

    @property
    def plain(self) -> str:
        return "<p>This map needs JavaScript. Nothing in it is fetched from anywhere.</p>"

    def data(self, coloring: Coloring | None, codes: NDArray[np.uint8] | None) -> Iterator[str]:
        """Yield the JSON, captions block by block."""
        is_all = len(self.ids) == self.rows.row_count
        about = {
            "title": self.name,
            "version": __version__,
            "layout": self.layout,
            "rows": self.rows.row_count,
            "places": encode(self.places.astype("<u2")),
            "ids": None if is_all else encode(self.ids.astype("<u4")),
            "color": None if coloring is None else coloring.legend(),
            "codes": None if codes is None else encode(codes),
            "tileSide": TILE_SIDE,
            "tileColumns": COLUMNS,
            "tiles": encode(np.array(self.atlas.tiles, "<u4")),
            "sheets": self.atlas.sheets,
        }
        yield f'{script_json(about)[:-1]},"captions":['
        for start in range(0, len(self.ids), BLOCK_ROWS):
            captions = read_captions(self.rows, self.ids[start : start + BLOCK_ROWS])
            yield ("," if start else "") + script_json(captions)[1:-1]
        yield "]}"


def read_captions(rows: Rows, ids: NDArray[np.int64]) -> list[str]:
    """Return the points' names: their caption, else their path, else empty."""
    if rows.metadata is None:
        return [""] * len(ids)
    found = rows.metadata.rows(ids, [CAPTION, IMAGE_PATH]).to_pylist()
    return [shorten(str(row.get(CAPTION) or row.get(IMAGE_PATH) or ""), MOST_LETTERS) for row in found]


def encode(numbers: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(numbers).tobytes()).decode()
