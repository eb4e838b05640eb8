"""A Sample to a Row and its pixels; runs in reader processes and needs no model.

Any error in a part becomes a Failure of that part, with a reason of one word.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from PIL.Image import Image

from clip_retrieval.blobs import Blob, LostError, read_blob
from clip_retrieval.encoder.base import Pixels
from clip_retrieval.encoder.config import PictureConfig
from clip_retrieval.encoder.picture_warnings import counting_warnings
from clip_retrieval.encoder.pictures import fit_picture, read_pixels
from clip_retrieval.encoder.preprocess import Preprocess
from clip_retrieval.errors import ImageError, one_line
from clip_retrieval.inference.readers.last_file import LastFile
from clip_retrieval.inference.readers.media import Holder, Holders, digest_bytes, digest_place, is_subtitles
from clip_retrieval.inference.types import Row
from clip_retrieval.media.drawing import whole_size
from clip_retrieval.media.pdf import Document
from clip_retrieval.media.places import PlaceRef
from clip_retrieval.media.subtitles import Subtitles
from clip_retrieval.media.video import Video
from clip_retrieval.sources.types import Failure, Part, Sample
from clip_retrieval.words import with_article


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The parts that a run wants, and how pictures are prepared."""

    image: bool
    text: bool
    metadata: bool
    all_parts: bool
    preprocess: Preprocess
    pictures: PictureConfig = PictureConfig()
    digests: bool = False  # hash the bytes of each part, for the ledger


DEEPEST_JSON = 64
HOLDERS = Holders()


class PartError(Exception):
    """One part of one sample cannot be used."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class PreparedChunk(NamedTuple):
    """The rows of a chunk, the seconds of reading and of everything else, and the decoders' warnings."""

    rows: list[Row]
    read_seconds: float
    decode_seconds: float
    warnings: Counter[str]


class Reading:
    """Reads parts, and adds up the time."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.last = LastFile()

    @contextmanager
    def timed(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start

    def part(self, blob: Blob) -> bytes:
        with self.timed(), explaining_errors():
            return read_blob(blob, self.last.open)

    def holder(self, ref: PlaceRef, row: Row, part: Part, wanted: Wanted) -> Holder:
        """Return the opened file that holds a part, and note the part's digest in the row."""
        with self.timed(), explaining_errors():
            opened = HOLDERS.open(ref, wanted.pictures.max_pixels)
        if wanted.digests:
            is_whole = ref.place is None or isinstance(opened.file, Subtitles)
            row.digests[part] = opened.digest if is_whole else digest_place(opened.digest, ref.place or 0)
        if isinstance(opened.file, ImageError):
            raise PartError(opened.file.reason, str(opened.file))
        return opened.file


def prepare_chunk(samples: Iterable[Sample], wanted: Wanted, pixels: Pixels) -> PreparedChunk:
    """Prepare the samples; the k-th row with a picture has its pixels at pixels[k]."""
    rows, image_count = [], 0
    reading, start = Reading(), time.perf_counter()
    with counting_warnings() as warnings, closing(reading.last):
        for sample in samples:
            row = prepare_sample(sample, wanted, pixels[image_count : image_count + 1], reading)
            image_count += row.has_image
            rows.append(row)
    return PreparedChunk(rows, reading.seconds, time.perf_counter() - start - reading.seconds, warnings)


def prepare_sample(sample: Sample, wanted: Wanted, slot: Pixels, reading: Reading) -> Row:
    """Prepare one sample, its pixels into slot[0]; what is wrong with its parts is in the row's failures."""
    row = Row.of(sample)
    if wanted.image:
        with noting_failure(row, "image"):
            if sample.image is None:
                raise PartError("no_image", "the sample has no picture")
            if isinstance(sample.image, PlaceRef):
                holder = reading.holder(sample.image, row, "image", wanted)
                picture = draw(holder, sample.image.place, row, wanted)
                slot[0] = fit_picture(picture, wanted.preprocess, wanted.pictures)
            else:
                data = noted(row, "image", reading.part(sample.image), wanted)
                slot[0] = read_pixels(data, wanted.preprocess, wanted.pictures)
            row.has_image = True
    if wanted.text and sample.text is not None:
        with noting_failure(row, "text"):
            if isinstance(sample.text, PlaceRef):
                part: Part = "text" if is_subtitles(sample.text.url) else "image"  # its part in the ledger
                holder = reading.holder(sample.text, row, part, wanted)
                row.caption = text_in(holder, sample.text.place) or None
            else:
                row.caption = decode_caption(noted(row, "text", reading.part(sample.text), wanted))
    if wanted.metadata and sample.metadata is not None:
        with noting_failure(row, "metadata"):
            row.metadata = parse_metadata(noted(row, "metadata", reading.part(sample.metadata), wanted))
    return without_row(row, wanted) if lacks_too_much(row, wanted) else row


def draw(holder: Holder, place: int | None, row: Row, wanted: Wanted) -> Image:
    """Return a page or a frame as a picture in RGB; a frame's number is noted in the row."""
    if isinstance(holder, Document):
        return holder.render(place, wanted.preprocess.least_size)
    assert isinstance(holder, Video)
    is_exact = wanted.pictures.decode == "exact"
    picture, row.frame = holder.picture(place, whole_size if is_exact else wanted.preprocess.least_size)
    return picture


def text_in(holder: Holder, place: int | None) -> str:
    if isinstance(holder, Subtitles):
        return holder.at(place or 0)
    assert isinstance(holder, Document)
    return holder.text(place)


def noted(row: Row, part: Part, data: bytes, wanted: Wanted) -> bytes:
    """Return the bytes of a part; notes their digest in the row if digests are wanted."""
    if wanted.digests:
        row.digests[part] = digest_bytes(data)
    return data


@contextmanager
def noting_failure(row: Row, part: Part) -> Iterator[None]:
    """Turn an error in one part into a Failure of the row; other parts are not affected."""
    try:
        yield
    except (PartError, ImageError) as error:
        row.failures.append(Failure(row.key, shard_of(row), part, error.reason, str(error), row_kept=True))


def shard_of(row: Row) -> str:
    return row.origin.shard if row.origin else ""


def lacks_too_much(row: Row, wanted: Wanted) -> bool:
    """Say whether to drop the row: it has nothing to embed or, with all_parts, lacks a wanted part."""
    lacks_text = wanted.text and row.caption is None
    if not row.has_image and (lacks_text or not wanted.text):
        return True
    lacks = (wanted.image and not row.has_image) or lacks_text or (wanted.metadata and row.metadata is None)
    return wanted.all_parts and lacks


def without_row(row: Row, wanted: Wanted) -> Row:
    """Mark a row as left out: it keeps no part, and its failures say that no row was kept."""
    if not row.failures:
        part: Part = "text" if wanted.text and row.caption is None else "metadata"
        reason = {"text": "no_caption", "metadata": "no_metadata"}[part]
        row.failures.append(Failure(row.key, shard_of(row), part, reason, f"the sample has no {part}"))
    row.failures[:] = [Failure(f.key, f.shard, f.part, f.reason, f.detail, row_kept=False) for f in row.failures]
    row.has_image, row.caption, row.metadata, row.is_dropped = False, None, None, True
    return row


@contextmanager
def explaining_errors() -> Iterator[None]:
    """Turn an error of reading into one of the part."""
    try:
        yield
    except LostError as error:
        raise PartError(error.reason, str(error)) from error
    except (OSError, EOFError, ValueError) as error:
        raise PartError("unreadable", one_line(error)) from error


def decode_caption(data: bytes) -> str:
    """Return the caption: UTF-8, without byte order mark, NULs and white space around it."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PartError("encoding", f"the caption is not UTF-8: {error.reason} at byte {error.start}") from error
    text = text.replace("\0", "").strip()
    if not text:
        raise PartError("empty", "the caption has no text")
    return text


def parse_metadata(data: bytes) -> dict[str, object]:
    """Return the json object, nested objects flattened with dots."""
    try:
        value = json.loads(data)
    except RecursionError as error:
        raise PartError("json", "nested too deeply") from error
    except ValueError as error:
        raise PartError("json", one_line(error)) from error
    if not isinstance(value, dict):
        raise PartError("json", f"holds {with_article(type(value).__name__)} where an object is needed")
    if is_deeper(value, DEEPEST_JSON):
        raise PartError("json", f"nested deeper than {DEEPEST_JSON} levels")
    flat: dict[str, object] = {}
    flatten(value, "", flat)
    return flat


def is_deeper(value: object, levels: int) -> bool:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(is_deeper(item, levels - 1) for item in items)


def flatten(value: dict[str, object], prefix: str, flat: dict[str, object]) -> None:
    """Join nested names with dots; if two fields get one name, the later one gets `json.` before it."""
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, dict) and item:
            flatten(item, f"{name}.", flat)
            continue
        while name in flat:
            name = f"json.{name}"
        flat[name] = item
