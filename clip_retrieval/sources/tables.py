"""Rows of tables as samples: which columns are picture and caption, and what becomes of the others.

A table is one file of rows: parquet, arrow or csv. Its rows come as dictionaries of plain Python values.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from clip_retrieval.blobs import Blob, BlobRef, Lost
from clip_retrieval.errors import SourceError
from clip_retrieval.sources.config import SourceConfig
from clip_retrieval.sources.json_cells import plain
from clip_retrieval.sources.packed import Mapped, between
from clip_retrieval.sources.stamps import lost_rows, unless_replaced
from clip_retrieval.sources.types import Failure, Origin, Sample
from clip_retrieval.storage import Folder

logger = logging.getLogger(__name__)

# struct: {bytes, path}, as the datasets library stores pictures
Kind = Literal["bytes", "struct", "text", "texts", "other"]

BYTES_NAMES = "image img picture photo jpg jpeg png webp image_bytes img_bytes image_data bytes data content".split()
PATH_NAMES = "image_path img_path path file_name filename filepath file_path file image img picture".split()
URL_NAMES = "url image_url img_url imageurl image_link link src image".split()
CAPTION_NAMES = "caption text title txt captions texts alt alt_text description sentence sentences prompt".split()
# The only protocols that a path in a table may have.
STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf", "file", "memory")


@dataclass(frozen=True)
class Roles:
    """The columns of a table by their use; None if the table has no such column or it is not wanted."""

    image: str | None
    caption: str | None
    others: tuple[str, ...] = ()

    def columns(self) -> list[str]:
        return [*dict.fromkeys(name for name in (self.image, self.caption, *self.others) if name is not None)]


@dataclass(frozen=True)
class Table(ABC):
    """One file of rows."""

    url: str
    kinds: Mapping[str, Kind]  # key: column
    types: Mapping[str, str]  # key: column; for messages
    version: str = field(default="", kw_only=True)  # of a local file, as `version_at` gives it; empty: not known

    @abstractmethod
    def rows(
        self, start: int, stop: int | None, columns: Sequence[str]
    ) -> Iterator[tuple[int, Mapping[str, Any]] | Failure]:
        """Yield (row number, {column: value}) of rows [start, stop), and a Failure for rows that cannot be read.

        A single value that cannot be read is Lost.
        """


@dataclass(frozen=True)
class TablePart:
    """A unit of a TableSource: a range of rows, or a file that cannot be read, with the reason."""

    name: str
    table: Table | None
    start: int = 0
    stop: int | None = None
    damage: Failure | None = None

    def holds(self, names: Container[tuple[str, str]]) -> bool:
        """Say whether this unit may hold any of these (table url, row number) pairs; an open-ended one may."""
        if self.table is None or self.stop is None:
            return self.table is not None
        return any((self.table.url, str(number)) in names for number in range(self.start, self.stop))


@dataclass(frozen=True)
class TableSource:
    """Samples in the order of files and rows."""

    config: SourceConfig
    parts: Sequence[TablePart]
    row_count: int | None

    @property
    def units(self) -> Sequence[str]:
        return Mapped(self.parts, lambda part: part.name)

    @property
    def samples_per_unit(self) -> int | None:
        return None if self.row_count is None else max(1, -(-self.row_count // max(1, len(self.units))))

    def estimate_total(self) -> int | None:
        return self.row_count

    def read(self, start: int, stop: int) -> Iterator[Sample | Failure]:
        for part in merged(between(self.parts, start, stop)):
            if part.damage is not None:
                yield part.damage
            if part.table is None:
                continue
            roles = roles_of(part.table, self.config)
            rows = part.table.rows(part.start, part.stop, roles.columns())
            kept = unless_replaced(part.table.url, part.table.version, rows)
            if kept is None:
                yield lost_rows(part.table.url, part.start, part.stop)
            for item in kept or ():
                yield item if isinstance(item, Failure) else self.sample(part.table, roles, *item)

    def read_only(self, names: Container[tuple[str, str]]) -> Iterator[Sample]:
        """Yield the samples with these (table url, row number) pairs; units without any are not read."""
        for number, part in enumerate(self.parts):
            if part.table is None or not part.holds(names):
                continue
            for item in self.read(number, number + 1):
                if isinstance(item, Sample) and (part.table.url, item.key) in names:
                    yield item

    def sample(self, table: Table, roles: Roles, number: int, row: Mapping[str, Any]) -> Sample:
        image, path = None, None
        if self.config.enable_image and roles.image is not None:
            value = row[roles.image]
            has_urls = self.config.input_format == "urls"  # fetched later; image_path says from where
            image, path = (None, value) if has_urls else picture_of(value, table.url, f"{roles.image}/{number}")
            if isinstance(image, BlobRef) and not may_be_read(image.url, self.config.paths_below):
                lost = f"{path} is not below {self.config.paths_below} (paths_below)"
                image, path = Lost("forbidden_path", lost), None
        return Sample(
            key=str(number),
            image_path=path,
            image=image,
            text=caption_of(row[roles.caption]) if roles.caption is not None and self.config.enable_text else None,
            metadata=metadata_of(row, roles) if self.config.enable_metadata else None,
            origin=Origin(table.url, None, None),
        )


def merged(parts: Iterable[TablePart]) -> Iterator[TablePart]:
    """Merge consecutive ranges of one table, so that it is opened once."""
    last: TablePart | None = None
    for part in parts:
        if last is not None and part.table is not None and last.table is part.table and last.stop == part.start:
            last = dataclasses.replace(part, start=last.start)
            continue
        if last is not None:
            yield last
        last = part
    if last is not None:
        yield last


def open_tables(config: SourceConfig, parts: Sequence[TablePart], row_count: int | None) -> TableSource:
    """Choose the columns of every table; raises SourceError if a required column is in none of them."""
    tables = list({id(part.table): part.table for part in parts if part.table is not None}.values())
    if not tables and parts and parts[0].damage is not None:
        raise SourceError(f"{config.input_dataset} holds no readable table: {parts[0].damage.detail}")
    if not tables or row_count == 0:
        raise SourceError(f"{config.input_dataset} holds no row")
    roles = {table.url: roles_of(table, config) for table in tables}
    config = without_missing(config, tables, roles)
    return TableSource(config, parts, row_count)


def roles_of(table: Table, config: SourceConfig) -> Roles:
    image = image_column(table, config)
    caption = config.caption_column if config.caption_column in table.kinds else None
    if config.caption_column is None:
        caption = find_column(table, CAPTION_NAMES, ("text", "texts"))
    image = image if config.enable_image else None
    others = tuple(name for name in table.kinds if name not in (image, caption)) if config.enable_metadata else ()
    return Roles(image, caption if config.enable_text else None, others)


def image_column(table: Table, config: SourceConfig) -> str | None:
    """Return the column of urls or pictures: as the option says, else one with a usual name, else the only one."""
    has_urls = config.input_format == "urls"
    asked = config.url_column if has_urls else config.image_column
    if asked is not None:
        return asked if asked in table.kinds else None
    if has_urls:
        return find_column(table, URL_NAMES, ("text",))
    pictures = [name for name, held in table.kinds.items() if held in ("bytes", "struct")]
    named = find_column(table, BYTES_NAMES, ("bytes", "struct")) or find_column(table, PATH_NAMES, ("text",))
    return named or (pictures[0] if len(pictures) == 1 else None)


def find_column(table: Table, names: Sequence[str], kinds: Sequence[Kind]) -> str | None:
    """Return the column with the first matching name (ignoring case) whose values are of one of the kinds."""
    by_name = {name.lower(): name for name, kind in reversed(list(table.kinds.items())) if kind in kinds}
    return next((by_name[name] for name in names if name in by_name), None)


def without_missing(config: SourceConfig, tables: Sequence[Table], roles: Mapping[str, Roles]) -> SourceConfig:
    """Disable captions if no table has any; raises SourceError if pictures or a named column are missing."""
    names = "; ".join(dict.fromkeys(f"{name} ({held})" for name, held in tables[0].types.items()))
    there = f"{tables[0].url} has the columns {names}" if names else f"{tables[0].url} has no columns"
    kind = config.input_format
    option = "url_column" if kind == "urls" else "image_column"
    has_images = any(role.image for role in roles.values())
    has_texts = any(role.caption for role in roles.values())
    if config.enable_image and not has_images:
        raise SourceError(
            f"{there}; name the one of the pictures with --{option}{advice_for(tables[0], kind, has_texts=has_texts)}"
        )
    if config.enable_text and not has_texts and (config.caption_column or not config.enable_image):
        raise SourceError(f"{there}; name the one of the captions with --caption_column")
    check_kind(tables, roles, kind)
    if config.enable_text and not has_texts:
        logger.info("%s, none of them captions: embedding pictures only", there)
        return dataclasses.replace(config, enable_text=False)
    return config


def advice_for(table: Table, kind: str, *, has_texts: bool) -> str:
    has_urls = kind != "urls" and find_column(table, URL_NAMES, ("text",)) is not None
    urls = ", or fetch its urls with --input_format urls" if has_urls else ""
    return urls + (", or embed captions alone with --enable_image False" if has_texts else "")


def check_kind(tables: Sequence[Table], roles: Mapping[str, Roles], kind: str) -> None:
    """Raise SourceError if a chosen column holds values of another kind."""
    picture_kinds: tuple[Kind, ...] = ("text",) if kind == "urls" else ("bytes", "struct", "text")
    for table in tables:
        role = roles[table.url]
        for name, kinds, word in (
            (role.image, picture_kinds, "urls" if kind == "urls" else "bytes, {bytes, path} or paths of pictures"),
            (role.caption, ("text", "texts"), "captions"),
        ):
            if name is not None and table.kinds[name] not in kinds:
                raise SourceError(f"column {name} of {table.url} holds {table.types[name]}, not {word}")


def picture_of(value: Any, url: str, place: str) -> tuple[Blob | None, str | None]:
    """Return a picture's bytes or a reference to them, and its image_path."""
    name = f"{url}#{place}"
    if value is None or value == "":
        return None, None
    if isinstance(value, Lost):
        return value, name
    if isinstance(value, dict):
        if value.get("bytes") is None and value.get("path"):
            return picture_at(value["path"], url)
        value = value.get("bytes")
        return value, None if value is None else name
    return picture_at(value, url) if isinstance(value, str) else (value, name)


def picture_at(path: str, table_url: str) -> tuple[Blob, str | None]:
    """Resolve a path of a table, relative to the table's folder; commands, urls and unknown protocols are refused."""
    scheme, mark, _ = path.partition("://")
    if "::" in path or (mark and scheme not in STORES):
        return Lost("forbidden_path", f"{path[:200]} is no path of a store; for urls use --input_format urls"), None
    if mark or path.startswith("/"):
        return BlobRef(path), path
    whole = f"{table_url.rpartition('/')[0] or '.'}/{path}" if "/" in table_url else f"./{path}"
    return BlobRef(whole), whole.removeprefix("./")


def may_be_read(url: str, folder: str | None) -> bool:
    """Say whether a path is below a folder once symbolic links and `..` are resolved; always true without a folder."""
    return folder is None or Folder(url).place.startswith(Folder(folder).place.rstrip("/") + "/")


def caption_of(value: Any) -> Blob | None:
    """Return a caption's bytes; of a list of captions, those of the first."""
    if isinstance(value, list):
        value = next((item for item in value if item is not None), None)
    return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value


def metadata_of(row: Mapping[str, Any], roles: Roles) -> Blob:
    """Return the remaining columns as JSON: dates and decimals as text, bytes as text if UTF-8 and else base64."""
    fields = {name: row[name] for name in roles.others}
    lost = next((value for value in fields.values() if isinstance(value, Lost)), None)
    if lost is not None:
        return lost
    picture = row[roles.image] if roles.image is not None else None
    if isinstance(picture, dict) and picture.get("path") is not None:
        fields = {f"{roles.image}.path": picture["path"], **fields}
    return json.dumps(plain(fields)).encode()
