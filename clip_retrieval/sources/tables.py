"""Rows of tables as samples: which columns are picture and caption, and what becomes of the others.

A table is one file of rows: parquet, arrow or csv. Its rows come as dictionaries of plain Python values.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import logging
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from clip_retrieval.blobs import Blob, BlobRef, Lost
from clip_retrieval.errors import SourceError
from clip_retrieval.sources.config import SourceConfig
from clip_retrieval.sources.types import Failure, Origin, Sample
from clip_retrieval.storage import Folder

logger = logging.getLogger(__name__)

Kind = Literal["bytes", "struct", "text", "texts", "other"]  # struct: that of the datasets library, {bytes, path}

BYTES_NAMES = "image img picture photo jpg jpeg png webp image_bytes img_bytes image_data bytes data content".split()
PATH_NAMES = "image_path img_path path file_name filename filepath file_path file image img picture".split()
URL_NAMES = "url image_url img_url imageurl image_link link src image".split()
CAPTION_NAMES = "caption text title txt captions texts alt alt_text description sentence sentences prompt".split()
STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf", "file", "memory")  # a path column may name these


@dataclass(frozen=True)
class Roles:
    """Which column of a table is what; None where the table has none, or it is not wanted."""

    image: str | None
    caption: str | None
    others: tuple[str, ...] = ()

    def columns(self) -> list[str]:
        return [*dict.fromkeys(name for name in (self.image, self.caption, *self.others) if name is not None)]


class Table(Protocol):
    """One file of rows."""

    @property
    def url(self) -> str: ...

    @property
    def kinds(self) -> Mapping[str, Kind]:
        """What each column holds."""
        ...

    @property
    def types(self) -> Mapping[str, str]:
        """The type of each column, to be read by people."""
        ...

    def rows(self, start: int, stop: int | None, columns: Sequence[str]) -> Iterator[tuple[int, Any] | Failure]:
        """Yield (row number, {column: value, or Lost where it cannot be read}) of rows start..stop, then damage."""
        ...


@dataclass(frozen=True)
class Part:
    """A unit: some rows of a table, or a file that is no table, and why."""

    name: str
    table: Table | None
    start: int = 0
    stop: int | None = None
    damage: Failure | None = None

    def holds(self, names: Container[tuple[str, str]]) -> bool:
        """Say whether one of these pairs of table and row number is among the rows; a unit without end may hold any."""
        if self.table is None or self.stop is None:
            return self.table is not None
        return any((self.table.url, str(number)) in names for number in range(self.start, self.stop))


@dataclass(frozen=True)
class TableSource:
    """Samples in the order of files and rows."""

    config: SourceConfig
    parts: Sequence[Part]
    roles: Mapping[str, Roles]  # url of the table -> its columns
    row_count: int | None
    has_urls: bool = False  # then samples come without pictures, and image_path is the url
    units: Sequence[str] = field(default_factory=list)

    @property
    def samples_per_unit(self) -> int | None:
        return None if self.row_count is None else max(1, -(-self.row_count // max(1, len(self.units))))

    def estimate_total(self) -> int | None:
        return self.row_count

    def read(self, start: int, stop: int) -> Iterator[Sample | Failure]:
        for part in joined(self.parts[start:stop]):
            if part.damage is not None:
                yield part.damage
            if part.table is None:
                continue
            roles = self.roles[part.table.url]
            for item in part.table.rows(part.start, part.stop, roles.columns()):
                yield item if isinstance(item, Failure) else self.sample(part.table, roles, *item)

    def read_only(self, names: Container[tuple[str, str]]) -> Iterator[Sample]:
        """Yield the samples with these pairs of table and row number, reading no more units than it takes."""
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
            image, path = (None, value) if self.has_urls else picture_of(value, table.url, f"{roles.image}/{number}")
            if isinstance(image, BlobRef) and not may_be_read(image.url, self.config.paths_below):
                image, path = (
                    Lost("forbidden_path", f"{path} is not below {self.config.paths_below} (paths_below)"),
                    None,
                )
        return Sample(
            key=str(number),
            image_path=path,
            image=image,
            text=caption_of(row[roles.caption]) if roles.caption is not None and self.config.enable_text else None,
            metadata=metadata_of(row, roles) if self.config.enable_metadata else None,
            origin=Origin(table.url, None, None),
        )


def joined(parts: Sequence[Part]) -> Iterator[Part]:
    """Join parts that follow each other in one table, so that it is opened once."""
    last: Part | None = None
    for part in parts:
        if last is not None and part.table is not None and last.table is part.table and last.stop == part.start:
            last = dataclasses.replace(part, start=last.start)
            continue
        if last is not None:
            yield last
        last = part
    if last is not None:
        yield last


def open_tables(config: SourceConfig, parts: Sequence[Part], row_count: int | None, kind: str) -> TableSource:
    """Choose the columns of every table; raises SourceError where a wanted one is in none of them."""
    tables = list({id(part.table): part.table for part in parts if part.table is not None}.values())
    if not tables and parts and parts[0].damage is not None:
        raise SourceError(f"{config.input_dataset} holds no readable table: {parts[0].damage.detail}")
    if not tables or row_count == 0:
        raise SourceError(f"{config.input_dataset} holds no row")
    roles = {table.url: roles_of(table, config, kind) for table in tables}
    config = without_missing(config, tables, roles, kind)
    return TableSource(config, parts, roles, row_count, kind == "urls", [part.name for part in parts])


def roles_of(table: Table, config: SourceConfig, kind: str) -> Roles:
    image = image_column(table, config, kind)
    caption = config.caption_column if config.caption_column in table.kinds else None
    if config.caption_column is None:
        caption = find(table, CAPTION_NAMES, ("text", "texts"))
    image = image if config.enable_image else None
    others = tuple(name for name in table.kinds if name not in (image, caption)) if config.enable_metadata else ()
    return Roles(image, caption if config.enable_text else None, others)


def image_column(table: Table, config: SourceConfig, kind: str) -> str | None:
    """Return the column of urls, or of pictures: named by the option, else by a common name, else the only one."""
    asked = config.url_column if kind == "urls" else config.image_column
    if asked is not None:
        return asked if asked in table.kinds else None
    if kind == "urls":
        return find(table, URL_NAMES, ("text",))
    pictures = [name for name, held in table.kinds.items() if held in ("bytes", "struct")]
    named = find(table, BYTES_NAMES, ("bytes", "struct")) or find(table, PATH_NAMES, ("text",))
    return named or (pictures[0] if len(pictures) == 1 else None)


def find(table: Table, names: Sequence[str], kinds: Sequence[Kind]) -> str | None:
    """Return the column with the first of these names, in any case, that holds one of these kinds."""
    by_name = {name.lower(): name for name, kind in reversed(list(table.kinds.items())) if kind in kinds}
    return next((by_name[name] for name in names if name in by_name), None)


def without_missing(
    config: SourceConfig, tables: Sequence[Table], roles: Mapping[str, Roles], kind: str
) -> SourceConfig:
    """Do without captions where no table has them; raises SourceError where pictures or a named column are missing."""
    names = "; ".join(dict.fromkeys(f"{name} ({held})" for name, held in tables[0].types.items()))
    there = f"{tables[0].url} has the columns {names}" if names else f"{tables[0].url} has no columns"
    option = "url_column" if kind == "urls" else "image_column"
    has_images = any(role.image for role in roles.values())
    has_texts = any(role.caption for role in roles.values())
    if config.enable_image and not has_images:
        raise SourceError(
            f"{there}; name the one of the pictures with --{option}{hint(tables[0], kind, has_texts=has_texts)}"
        )
    if config.enable_text and not has_texts and (config.caption_column or not config.enable_image):
        raise SourceError(f"{there}; name the one of the captions with --caption_column")
    check_kind(tables, roles, kind)
    if config.enable_text and not has_texts:
        logger.info("%s, none of them captions: embedding pictures only", there)
        return dataclasses.replace(config, enable_text=False)
    return config


def hint(table: Table, kind: str, *, has_texts: bool) -> str:
    has_urls = kind != "urls" and find(table, URL_NAMES, ("text",)) is not None
    urls = ", or fetch its urls with --input_format urls" if has_urls else ""
    return urls + (", or embed captions alone with --enable_image False" if has_texts else "")


def check_kind(tables: Sequence[Table], roles: Mapping[str, Roles], kind: str) -> None:
    """Refuse a column that was named, and holds something else."""
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
    """Return a picture's bytes, or where they are, and its image_path."""
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
    """Return where a path of a table leads: below the table's folder, unless it is whole; never a command or a url."""
    scheme, mark, _ = path.partition("://")
    if "::" in path or (mark and scheme not in STORES):
        return Lost("forbidden_path", f"{path[:200]} is no path of a store; for urls use --input_format urls"), None
    if mark or path.startswith("/"):
        return BlobRef(path), path
    whole = f"{table_url.rpartition('/')[0] or '.'}/{path}" if "/" in table_url else f"./{path}"
    return BlobRef(whole), whole.removeprefix("./")


def may_be_read(url: str, folder: str | None) -> bool:
    """Say whether a path is below a folder once links and `..` are resolved; without a folder any may be."""
    return folder is None or Folder(url).place.startswith(Folder(folder).place.rstrip("/") + "/")


def caption_of(value: Any) -> Blob | None:
    """Return a caption's bytes; of a list of captions the first."""
    if isinstance(value, list):
        value = next((item for item in value if item is not None), None)
    return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value


def metadata_of(row: Mapping[str, Any], roles: Roles) -> Blob:
    """Return the other columns as json; dates and exact decimals are text, bytes are text or else base64."""
    fields = {name: row[name] for name in roles.others}
    lost = next((value for value in fields.values() if isinstance(value, Lost)), None)
    if lost is not None:
        return lost
    picture = row[roles.image] if roles.image is not None else None
    if isinstance(picture, dict) and picture.get("path") is not None:
        fields = {f"{roles.image}.path": picture["path"], **fields}
    return json.dumps(plain(fields)).encode()


def plain(value: Any) -> Any:
    """Return a value that json has a form for."""
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
