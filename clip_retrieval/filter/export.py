"""Hits to files: the pictures themselves, a table for machines, a sheet for eyes."""

from __future__ import annotations

import base64
import errno
import html
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import PurePosixPath
from string import Template
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from clip_retrieval.encoder.images import decode_image
from clip_retrieval.encoder.picture_warnings import counting_warnings
from clip_retrieval.errors import ImageError, QueryError, StorageError
from clip_retrieval.layout import CAPTION, IMAGE_PATH, SHARD
from clip_retrieval.query.embed import Query
from clip_retrieval.query.hits import json_rows, rows_of
from clip_retrieval.query.pictures import WEB, Picture, find_picture
from clip_retrieval.storage import Folder
from clip_retrieval.words import UNPRINTED

IMAGES_FOLDER = "images"
SHEET, RESULTS, TABLE = "index.html", "results.json", "results.parquet"
MARKER = ".clip-retrieval-results"
OWN_PICTURE = re.compile(r"\d{5,}_.*", re.DOTALL)
THUMBNAIL_SIDE = 224
MOST_NAME_BYTES = 200  # file systems allow 255 for a whole name
MOST_THUMBNAILS = 1000  # a page with more would take hundreds of megabytes
PLAIN_SUFFIX = re.compile(r"\.\w{1,10}", re.ASCII)
REFUSED = re.compile(r'[/\\:*?"<>|\t\n]')  # by Windows, in names of files
NAME_ERRORS = (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)
SUFFIX_OF_FORMAT = {"JPEG": ".jpg", "TIFF": ".tif", "PPM": ".ppm"}


def picture_name(rank: int, hit: dict[str, Any], data: bytes) -> str:
    """Return a file name that every system takes and no other hit has: the rank, then the picture's own name.

    The rank keeps apart what is called alike, and is what makes `..` and Windows' CON plain names.
    """
    path = str(hit[IMAGE_PATH])
    own = PurePosixPath(path.partition("?")[0] if path.startswith(WEB) else path)
    suffix = own.suffix if hit.get(SHARD) is None and PLAIN_SUFFIX.fullmatch(own.suffix) else ""
    stem = portable(own.name.removesuffix(suffix))
    suffix = suffix or suffix_of(data)
    short = stem.encode("utf-8", "replace")[: MOST_NAME_BYTES - len(suffix)].decode("utf-8", "ignore")
    return f"{rank:05d}_{short}{suffix}"


def portable(name: str) -> str:
    """Return a name with _ for each character that a file system refuses or a terminal obeys."""
    return REFUSED.sub("_", UNPRINTED.sub("_", name)).rstrip(". ")


def suffix_of(data: bytes) -> str:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return SUFFIX_OF_FORMAT.get(image.format or "", f".{(image.format or 'bin').lower()}")
    except Exception:  # it was a picture when it was embedded; export it whatever it is now  # noqa: BLE001
        return ".bin"


@dataclass(frozen=True)
class ExportedHits:
    """The exported picture of each hit (None where there is none), cards for the sheet, and how many failed."""

    names: list[str | None]
    cards: list[str]
    unreadable: int


def export_hits(folder: Folder, table: pa.Table, *, copy_images: bool) -> ExportedHits:
    """Copy the pictures and make the cards of the sheet, one hit at a time: memory holds one picture."""
    exported, unreadable = ExportedHits([], [], 0), 0
    for rank, hit in enumerate(rows_of(table if copy_images else table.slice(0, MOST_THUMBNAILS)), start=1):
        is_shown = rank <= MOST_THUMBNAILS
        picture = find_picture(hit) if copy_images or is_shown else Picture(None)
        unreadable += picture.problem is not None
        exported.names.append(write_picture(folder, rank, hit, picture.data) if copy_images and picture.data else None)
        if is_shown:
            exported.cards.append(card(hit, picture))
    exported.names.extend([None] * (len(table) - len(exported.names)))
    return replace(exported, unreadable=unreadable)


def write_picture(folder: Folder, rank: int, hit: dict[str, Any], data: bytes) -> str:
    """Write a hit's picture, and return its name; by its rank alone where the store refuses its own name."""
    name = picture_name(rank, hit, data)
    try:
        return write_bytes(folder, f"{IMAGES_FOLDER}/{name}", data)
    except StorageError as error:
        if not isinstance(error.__cause__, OSError) or error.__cause__.errno not in NAME_ERRORS:
            raise
        return write_bytes(folder, f"{IMAGES_FOLDER}/{rank:05d}_{suffix_of(data)}", data)


def write_bytes(folder: Folder, name: str, data: bytes) -> str:
    with folder.staged(name) as staged:
        staged.write_bytes(data)
    return name


def claim_output(folder: Folder) -> None:
    """Mark the folder as one of ours, and remove the pictures of an earlier query, finished or not.

    Raises QueryError where files of the names that we write are there, and are not ours.
    """
    if not folder.exists(MARKER):
        foreign = [name for name in (SHEET, RESULTS, TABLE) if folder.exists(name)]
        if foreign:
            raise QueryError(f"{folder.url} has {foreign[0]}, which no query wrote; name another output folder")
        with folder.staged(MARKER) as staged:
            staged.write_text("clip-retrieval filter writes here, and replaces what it wrote before\n")
        return
    for name in folder.names(IMAGES_FOLDER, ""):
        if OWN_PICTURE.fullmatch(name):
            folder.remove(f"{IMAGES_FOLDER}/{name}")


def write_tables(folder: Folder, table: pa.Table, query: Query) -> None:
    """Write results.parquet and results.json: rank, id, similarity and every metadata column."""
    with folder.staged(TABLE) as staged:
        pq.write_table(table, staged)
    about = json.dumps({"query": query.text, "kind": query.kind}, ensure_ascii=False)
    with folder.staged(RESULTS) as staged, staged.open("w", encoding="utf-8") as file:
        file.write(f'{about.removesuffix("}")}, "results": [')
        for number, row in enumerate(json_rows(table)):
            file.write((",\n" if number else "\n") + json.dumps(row, ensure_ascii=False))
        file.write("\n]}\n")


def write_sheet(folder: Folder, query: Query, hit_count: int, cards: Sequence[str]) -> None:
    """Write index.html: hits with a thumbnail inside the file, score, caption and metadata."""
    template = Template(files("clip_retrieval.filter").joinpath("sheet.html").read_text(encoding="utf-8"))
    note = f"{hit_count} {'hit' if hit_count == 1 else 'hits'}" if hit_count else "No hit."
    if hit_count > len(cards):
        note += f", the first {len(cards)} are shown"
    page = template.substitute(query=html.escape(query.text), kind=query.kind, note=note, cards="\n".join(cards))
    with folder.staged(SHEET) as staged:
        staged.write_text(page, encoding="utf-8")


def card(hit: dict[str, Any], picture: Picture) -> str:
    caption = hit.get(CAPTION) or hit.get(IMAGE_PATH) or ""
    details = "\n".join(f"{name}: {value}" for name, value in hit.items() if value is not None)
    words = f"<b>{hit['rank']}</b> <span>{hit['similarity']:.3f}</span> {html.escape(str(caption))}"
    return f'<figure title="{html.escape(details)}">{thumbnail(picture)}<figcaption>{words}</figcaption></figure>'


def thumbnail(picture: Picture) -> str:
    if picture.data is None:
        return f'<div class="missing">{html.escape(picture.problem or "no picture")}</div>'
    try:
        with counting_warnings():
            image = decode_image(picture.data)
    except ImageError as error:
        return f'<div class="missing">{html.escape(str(error))}</div>'
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=85)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
