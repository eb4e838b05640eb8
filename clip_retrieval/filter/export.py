"""Hits to files: the pictures themselves, a table for machines, a sheet for eyes."""

from __future__ import annotations

import base64
import html
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import PurePosixPath
from string import Template
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from clip_retrieval.blobs import PIPE, BlobRef, read_blob
from clip_retrieval.encoder.images import decode_image
from clip_retrieval.errors import ImageError, StorageError
from clip_retrieval.filter.query import Query
from clip_retrieval.layout import CAPTION, IMAGE_PATH, SHARD, SHARD_OFFSET, SHARD_SIZE
from clip_retrieval.storage import Folder

IMAGES_FOLDER = "images"
RESULTS = "results.json"
OWN_PICTURE = re.compile(r"images/\d{5,}_[^/]*")
THUMBNAIL_SIDE = 224
MOST_NAME_BYTES = 200  # file systems allow 255 for a whole name
MOST_THUMBNAILS = 1000  # a page with more would take hundreds of megabytes
SUFFIX_OF_FORMAT = {"JPEG": ".jpg", "TIFF": ".tif", "PPM": ".ppm"}


@dataclass(frozen=True)
class Picture:
    """A hit's picture: its bytes, or why they could not be read."""

    data: bytes | None
    problem: str | None = None


def find_picture(hit: dict[str, Any]) -> Picture:
    """Read the picture of a hit: the file, or its place in a tar."""
    path, shard = hit.get(IMAGE_PATH), hit.get(SHARD)
    if path is None:
        return Picture(None, "the hit has no picture")
    if str(path if shard is None else shard).startswith(PIPE):
        return Picture(None, "it came through a pipe: command, which only you should run again")
    if shard is not None and hit.get(SHARD_OFFSET) is not None:
        blob = BlobRef(shard, int(hit[SHARD_OFFSET]), int(hit[SHARD_SIZE]))
    else:
        blob = BlobRef(path)
    try:
        data = read_blob(blob)
    except Exception as error:  # any store may fail in any way; the hit itself stands  # noqa: BLE001
        return Picture(None, " ".join(str(error).split())[:200] or type(error).__name__)
    if blob.size is not None and len(data) != blob.size:
        return Picture(None, f"{shard} has changed since it was embedded")
    return Picture(data)


def picture_name(rank: int, hit: dict[str, Any], data: bytes) -> str:
    """Return a name that no other hit has: the rank first, then the picture's own name."""
    own = PurePosixPath(str(hit[IMAGE_PATH]))
    suffix = own.suffix if hit.get(SHARD) is None else ""
    suffix = suffix or suffix_of(data)
    stem = own.name.removesuffix(suffix).encode("utf-8", "replace")[: MOST_NAME_BYTES - len(suffix)]
    return f"{rank:05d}_{stem.decode('utf-8', 'ignore')}{suffix}"


def suffix_of(data: bytes) -> str:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return SUFFIX_OF_FORMAT.get(image.format or "", f".{(image.format or 'bin').lower()}")
    except Exception:  # it was a picture when it was embedded; export it whatever it is now  # noqa: BLE001
        return ".bin"


def write_pictures(folder: Folder, hits: Sequence[dict[str, Any]], pictures: Sequence[Picture]) -> list[str | None]:
    """Write each picture under its own name; return the names, None for those that could not be read."""
    remove_earlier_pictures(folder)
    names: list[str | None] = []
    for rank, (hit, picture) in enumerate(zip(hits, pictures, strict=True), start=1):
        if picture.data is None:
            names.append(None)
            continue
        name = f"{IMAGES_FOLDER}/{picture_name(rank, hit, picture.data)}"
        with folder.staged(name) as staged:
            staged.write_bytes(picture.data)
        names.append(name)
    return names


def remove_earlier_pictures(folder: Folder) -> None:
    """Remove what an earlier query wrote into this folder, going by its results.json, and nothing else."""
    if not folder.exists(RESULTS):
        return
    try:
        earlier = [hit.get("picture") for hit in folder.read_json(RESULTS)["results"]]
    except (StorageError, KeyError, TypeError, AttributeError):
        return  # no file of ours
    for name in earlier:
        if isinstance(name, str) and OWN_PICTURE.fullmatch(name):
            folder.remove(name)


def write_tables(folder: Folder, table: pa.Table, query: Query) -> None:
    """Write results.parquet and results.json: rank, id, similarity and every metadata column."""
    with folder.staged("results.parquet") as staged:
        pq.write_table(table, staged)
    folder.write_json(RESULTS, {"query": query.text, "kind": query.kind, "results": json_rows(table)})


def json_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Return rows of plain json values; what json has no form for becomes text."""
    return [{name: plain(value) for name, value in row.items()} for row in table.to_pylist()]


def plain(value: Any) -> Any:
    """Return a value that json has a form for: NaN and infinity become null, dates and bytes text."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def write_sheet(folder: Folder, query: Query, hits: Sequence[dict[str, Any]], pictures: Sequence[Picture]) -> None:
    """Write index.html: every hit with a thumbnail inside the file, its score, caption and metadata."""
    template = Template(files("clip_retrieval.filter").joinpath("sheet.html").read_text(encoding="utf-8"))
    cards = "\n".join(card(hit, picture) for hit, picture in zip(hits[:MOST_THUMBNAILS], pictures, strict=False))
    note = f"{len(hits)} hits" if hits else "No hit."
    if len(hits) > MOST_THUMBNAILS:
        note += f", the first {MOST_THUMBNAILS} are shown"
    page = template.substitute(query=html.escape(query.text), kind=query.kind, note=note, cards=cards)
    with folder.staged("index.html") as staged:
        staged.write_text(page, encoding="utf-8")


def card(hit: dict[str, Any], picture: Picture) -> str:
    caption = hit.get(CAPTION) or hit.get(IMAGE_PATH) or ""
    details = "\n".join(f"{name}: {value}" for name, value in hit.items() if value is not None)
    words = f"<b>{hit['rank']}</b> <span>{hit['similarity']:.3f}</span> {html.escape(str(caption))}"
    return f'<figure title="{html.escape(details)}">{thumbnail(picture)}<figcaption>{words}</figcaption></figure>'


def thumbnail(picture: Picture) -> str:
    if picture.data is None:
        return f'<div class="missing">{html.escape(picture.problem or "")}</div>'
    try:
        image = decode_image(picture.data)
    except ImageError as error:
        return f'<div class="missing">{html.escape(str(error))}</div>'
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=85)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
