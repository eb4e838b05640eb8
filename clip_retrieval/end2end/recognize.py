"""What an input is, by the names and columns of its files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from clip_retrieval.encoder.picture_suffixes import has_image_suffix
from clip_retrieval.errors import ConfigError
from clip_retrieval.media.places import is_document, is_video
from clip_retrieval.sources.config import InputFormat

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
PARQUET = ".parquet"
TABLES = (PARQUET, ".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".csv.gz", ".tsv.gz", ".txt.gz", ".jsonl.gz")
LOOKED_AT = 100_000  # most files of a folder that are looked at to find a picture


def recognize(place: str) -> InputFormat:
    """Return the format of an input. Raises ConfigError if its names do not show it."""
    path = Path(place).expanduser()
    if "://" not in place and path.is_dir():
        if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
            return "datasets"
        names = list(islice(files_below(path), LOOKED_AT))
        if not names:
            raise ConfigError(f"{place} has no files that are not hidden; name a folder of pictures, tars or a table")
        if any(has_image_suffix(name) or is_document(name.name) for name in names):
            return "files"
        if any(is_video(name.name) for name in names):
            return "video"
        kinds = [(kind, name) for name in names if (kind := by_suffix(name.name)) is not None]
    else:
        name = place.partition("?")[0].rstrip("/}]'")
        kinds = [(kind, path) for kind in [by_suffix(name)] if kind is not None]
    if not kinds:
        raise ConfigError(
            f"the name of {place} does not show its format; give --input_format (files, video, webdataset, "
            "parquet, archive, datasets or urls)"
        )
    kind, first = kinds[0]
    return "parquet" if kind == "urls" and has_pictures(first) else kind


def files_below(folder: Path) -> Iterator[Path]:
    """Yield the files in and below a folder that are not hidden."""
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(here, name) for name in sorted(names) if not name.startswith("."))


def by_suffix(name: str) -> InputFormat | None:
    lower = name.lower()
    if lower.endswith(TARS):
        return "webdataset"
    if lower.endswith(".zip"):
        return "archive"
    return "urls" if lower.endswith(TABLES) else None


def has_pictures(path: Path) -> bool:
    """Say whether a table contains pictures: whether it is a parquet file with a column of bytes."""
    if path.suffix.lower() != PARQUET or not path.is_file():
        return False
    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowInvalid):  # inference reports what is wrong with it
        return False
    return any(
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_struct(kind) for kind in schema.types
    )
