"""What an export needs of an engine, and the choice of the engine's module."""

from __future__ import annotations

import importlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.errors import ExportError, one_line
from clip_retrieval.export.columns import Column
from clip_retrieval.export.config import ExportConfig
from clip_retrieval.export.source import Block, Ids, Source
from clip_retrieval.installed import pip_install
from clip_retrieval.paths import local_path

MARK = "clip_retrieval.export"  # name under which an engine keeps the mark of an export


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a table is made for; an export with the same setup goes on with an unfinished table."""

    config: ExportConfig
    dim: int
    dtype: np.dtype[Any]  # of the embeddings
    columns: list[Column]
    row_count: int  # of the folder
    identity: str  # of rows, columns and condition
    odd: Counter[str]  # values that had to be changed, by sentence
    notes: list[str]  # more to report at the end

    @property
    def wants_half(self) -> bool:
        precision = self.config.precision
        return precision == "fp16" or (precision == "auto" and self.dtype == np.float16)

    @property
    def advice(self) -> str:
        """What to do if the target is taken."""
        return f"name another {'folder' if self.config.to == 'parquet' else '--table'}, or give --overwrite"

    def mark(self, dtype: np.dtype[Any], done: int = 0) -> str:
        """Return the mark that the engine keeps: which rows these are, and how many rows of the folder are done."""
        return json.dumps(self.facts(dtype) | {"done": done})

    def facts(self, dtype: np.dtype[Any]) -> dict[str, Any]:
        return {
            "export": self.identity,
            "modality": self.config.rows.modality,
            "dim": self.dim,
            "precision": str(dtype),
            "rows": self.row_count,
        }

    def read_mark(self, text: str | None, dtype: np.dtype[Any], name: str) -> int:
        """Return how many rows of the folder an existing table covers; raises ExportError if it is not ours."""
        found, wanted = parse_mark(text), self.facts(dtype)
        if found is None:
            raise ExportError(f"{name} already exists and is not an export; {self.advice}")
        if found.get("dim") != self.dim:
            raise ExportError(
                f"{name} holds vectors of {found.get('dim')} dimensions, not of {self.dim}; {self.advice}"
            )
        if found.get("precision") != wanted["precision"]:
            raise ExportError(
                f"{name} holds {found.get('precision')} vectors, not {wanted['precision']}; {self.advice}"
            )
        if any(found.get(key) != value for key, value in wanted.items()):
            raise ExportError(f"{name} is an export of other rows, columns or conditions; {self.advice}")
        return int(found.get("done", 0))


def parse_mark(text: str | None) -> dict[str, Any] | None:
    """Return the facts in the mark of an export; None if the text is not a mark."""
    try:
        found = json.loads(text or "")
    except ValueError:
        return None
    return found if isinstance(found, dict) and "export" in found else None


@dataclass(frozen=True, eq=False)
class Fetched:
    """Rows as an engine gives them back, in any order."""

    ids: Ids
    vectors: NDArray[np.float32]  # [n, d]
    rows: list[dict[str, Any]]  # metadata by column


class Target(Protocol):
    """An opened engine; methods raise ExportError."""

    name: str  # the table in messages
    dtype: np.dtype[Any]  # of its vectors
    answers_at_once: bool  # many queries take as long as one

    def begin(self) -> int:
        """Open or make the table, and return how many rows of the folder it covers."""
        ...

    def write(self, block: Block) -> None:
        """Store rows and note how far they go: all or nothing, or in a way that can be repeated without effect."""
        ...

    def finish(self) -> None:
        """Make all rows that were written visible to searches."""
        ...

    def ids(self) -> Iterator[Ids]:
        """Yield the ids of all rows, in any order."""
        ...

    def fetch(self, ids: Ids) -> Fetched:
        """Return some hundred rows."""
        ...

    def offers_exact(self) -> bool:
        """Say whether searches can compare every row now."""
        ...

    def search(self, queries: NDArray[np.float32], k: int, *, exact: bool) -> list[Ids]:
        """Return the ids of up to k hits for each query [q, d]: by comparing all rows, or by the approximate index."""
        ...

    def build_index(self) -> str | None:
        """Build the approximate index unless it exists; return its kind and search settings; None: there is none.

        Raises ExportError if the engine refuses.
        """
        ...

    def close(self) -> None:
        """Release connections and locks."""
        ...


def open_target(config: ExportConfig, source: Source) -> Target:
    """Open the engine; only its own module is imported. Raises ExportError."""
    path = local_path(config.place)
    if config.to != "milvus" and path is not None and path.is_file():
        raise ExportError(f"{config.place} is a file; --to {config.to} writes into a folder: name one")
    try:
        module = importlib.import_module(f"clip_retrieval.export.targets.{config.to}")
    except ImportError as error:  # such as psycopg without libpq
        raise ExportError(f"--to {config.to}: {one_line(error)}; {pip_install('', config.to)}") from error
    setup = Setup(
        config=config,
        dim=source.dim,
        dtype=source.dtype,
        columns=source.columns,
        row_count=source.row_count,
        identity=source.identity,
        odd=source.odd,
        notes=source.notes,
    )
    target: Target = module.open_target(setup)
    return target


def without_password(url: str) -> str:
    """Return a url for messages, without the password and anything after a question mark."""
    if "://" not in url:
        return url
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    user = parts.netloc.rpartition("@")[0].partition(":")[0]
    return urlunsplit((parts.scheme, f"{user}@{host}" if user else host, parts.path, "", ""))
