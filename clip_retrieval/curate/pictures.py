"""The pictures of rows, read by several threads: their bytes' digests, and perceptual hashes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clip_retrieval.curate.embedded import Embedded, Ids
from clip_retrieval.encoder.images import decode_image, open_image
from clip_retrieval.encoder.picture_warnings import counting_warnings
from clip_retrieval.errors import ImageError
from clip_retrieval.layout import CAPTION, IMAGE_PATH, SHARD_COLUMNS
from clip_retrieval.process.resources import count_cores
from clip_retrieval.progress import show_progress
from clip_retrieval.query.pictures import find_picture

PICTURE_COLUMNS = (IMAGE_PATH, *SHARD_COLUMNS)
DIGEST_COLUMNS = ("sha256", "md5")  # of img2dataset and datacomp
WIDTH, HEIGHT = "width", "height"  # columns of img2dataset
DIGITS = 16  # of 64 bits
ROWS_AT_ONCE = 2048
SIDE, KEPT = 32, 8  # pHash: a gray picture of 32 x 32, its 8 x 8 lowest frequencies
# DCT-II, as scipy.fftpack.dct has it
COSINES = 2 * np.cos(math.pi * np.arange(KEPT)[:, None] * (2 * np.arange(SIDE)[None, :] + 1) / (2 * SIDE))
BITS = np.uint64(1) << np.arange(KEPT * KEPT, dtype=np.uint64)

Found = Callable[[bytes], Any]


def read_pictures(embedded: Embedded, ids: Ids, find: Found, title: str) -> Iterator[tuple[int, Any]]:
    """Yield a row and what `find` makes of the bytes of its picture; rows without a readable one are left out."""
    if embedded.metadata is None or IMAGE_PATH not in embedded.column_names:
        return
    with show_progress(title, len(ids)) as advance, ThreadPoolExecutor(2 * count_cores()) as threads:
        for start in range(0, len(ids), ROWS_AT_ONCE):
            some = ids[start : start + ROWS_AT_ONCE]
            hits = embedded.metadata.rows(some, PICTURE_COLUMNS).to_pylist()
            with counting_warnings():
                made = list(threads.map(lambda hit: read_one(hit, find), hits))
            for row, value in zip(some.tolist(), made, strict=True):
                if value is not None:
                    yield row, value
            advance(len(some))


def read_one(hit: Mapping[str, Any], find: Found) -> Any:
    data = find_picture(dict(hit)).data
    try:
        return None if data is None else find(data)
    except ImageError:
        return None


def digest(data: bytes) -> int:
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big")


def digest_of_text(text: object) -> int:
    """Return the first 64 bits of a digest in hexadecimal digits; 0 if it is not one."""
    found = str(text).strip()[:DIGITS]
    try:
        return int(found, 16) if len(found) == DIGITS else 0
    except ValueError:
        return 0


def perceptual_hash(data: bytes) -> int:
    """Return the pHash of a picture, 64 bits: which of its lowest frequencies are above their median."""
    gray = decode_image(data).convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    low = COSINES @ np.asarray(gray, np.float64) @ COSINES.T
    return int(BITS[(low > np.median(low)).ravel()].sum())


def hash_pictures(embedded: Embedded, ids: Ids) -> NDArray[np.uint64]:
    """Return pHashes of these rows' pictures [n], and 0 if there is none; a hash of 0 does not occur."""
    found = np.zeros(embedded.row_count, np.uint64)
    for row, value in read_pictures(embedded, ids, perceptual_hash, "hashing pictures"):
        found[row] = max(1, value)
    return found[ids]


def has_sizes(embedded: Embedded) -> bool:
    return {WIDTH, HEIGHT} <= set(embedded.column_names)


def find_sizes(embedded: Embedded) -> NDArray[np.float64]:
    """Return the pixels of each row's picture [rows]: by columns, else by the files' headers; NaN if unknown."""
    if has_sizes(embedded):
        return embedded.numbers(WIDTH, "keep_by") * embedded.numbers(HEIGHT, "keep_by")
    found = np.full(embedded.row_count, np.nan)
    for row, value in read_pictures(embedded, np.arange(embedded.row_count), count_pixels, "measuring pictures"):
        found[row] = value
    return found


def count_pixels(data: bytes) -> int:
    width, height = open_image(data).size
    return width * height


def find_digests(embedded: Embedded, suspects: Ids) -> NDArray[np.uint64]:
    """Return digests of pictures' bytes [rows], 0 if unknown: from a column, else computed for `suspects` only."""
    found = np.zeros(embedded.row_count, np.uint64)
    name = next((name for name in DIGEST_COLUMNS if name in embedded.column_names), None)
    if name is not None:
        found[:] = [digest_of_text(value) for value in embedded.column(name).to_pylist()]
        return found
    for row, value in read_pictures(embedded, suspects, digest, "reading equal pictures"):
        found[row] = max(1, value)
    return found


def shown_columns(embedded: Embedded) -> list[str]:
    """Return the columns that a page needs of a row."""
    return [name for name in (*PICTURE_COLUMNS, CAPTION) if name in embedded.column_names]
