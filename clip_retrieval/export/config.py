"""The options of `export`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from clip_retrieval.errors import ConfigError
from clip_retrieval.installed import need
from clip_retrieval.layout import Modality
from clip_retrieval.options import check_least, group, option

Engine = Literal["lance", "pgvector", "qdrant", "milvus", "parquet"]
Precision = Literal["auto", "fp16", "fp32"]
Ann = Literal["auto", "none", "hnsw", "ivf"]

PACKAGES: dict[Engine, str | None] = {
    "lance": "lancedb",
    "pgvector": "psycopg",
    "qdrant": "qdrant_client",
    "milvus": "pymilvus",
    "parquet": None,
}
DEFAULT_TARGETS: dict[Engine, str] = {
    "pgvector": "postgresql://",  # libpq takes the rest from PGHOST, PGUSER, PGPASSWORD and so on
    "qdrant": "http://localhost:6333",
    "milvus": "http://localhost:19530",
}
DEFAULT_TABLE = "embeddings"
# Approximate indices that an engine can build; the first one is the default.
ANN_KINDS: dict[Engine, tuple[Ann, ...]] = {
    "lance": ("ivf", "hnsw", "none"),
    "pgvector": ("hnsw", "ivf", "none"),
    "qdrant": ("hnsw", "none"),
    "milvus": ("hnsw", "ivf", "none"),
    "parquet": ("none",),
}
BATCH_ROWS: dict[Engine, int] = {
    "lance": 65_536,
    "pgvector": 8_192,
    "qdrant": 4_096,
    "milvus": 4_096,
    "parquet": 65_536,
}


@dataclass(frozen=True, kw_only=True)
class RowsConfig:
    """Which rows and columns are exported, and from where."""

    modality: Modality = option("image", help="Export the embeddings of pictures or of captions.")
    embeddings_folder: str | None = option(
        None,
        help="The embeddings that the index was built from. None: the folder that the index names; if it is gone, "
        "the index's own codes, and a note says that they are not the embeddings.",
    )
    columns: tuple[str, ...] | None = option(
        None, help="Metadata columns to export, such as caption,width; an empty list: none. None: all."
    )
    where: str | None = option(None, help="Export only rows that meet a condition over columns, as for filter.")

    def __post_init__(self) -> None:
        if self.where is not None:
            need("duckdb", "--where", ConfigError)


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """What is compared at the end."""

    check_rows: int = option(1000, help="Sampled rows whose vectors and metadata are compared; 0: none.", least=0)
    check_queries: int = option(
        50, help="Sampled queries that both sides answer; exact search takes at most a minute. 0: none.", least=0
    )
    num_results: int = option(20, help="Hits of each query that are compared.", least=1)
    least_recall: float | None = option(
        None, help="Fail if the engine's own approximate index finds a smaller share. None: only report it."
    )


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What is exported, and where to."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("folder", "target")

    folder: str = option(
        help="Folder that index or inference wrote.", aliases=("index_folder", "indice_folder", "input_folder")
    )
    to: Engine = option(help="The engine.")
    target: str | None = option(
        None,
        help="lance, parquet: a folder, here or on a store. pgvector: postgresql://user@host/database. qdrant: a url, "
        "or a local path. milvus: a url, or a local file. None: the server of this machine.",
    )
    table: str = option(DEFAULT_TABLE, help="Table or collection; pgvector takes schema.table.")
    rows: RowsConfig = group(RowsConfig)
    precision: Precision = option(
        "auto", help="Precision of the stored vectors. auto: that of the embeddings, if the engine has it."
    )
    ann: Ann = option("auto", help="The approximate index that the engine builds after loading. auto: its usual one.")
    batch_size: int | None = option(None, help="Rows written in one atomic step. None: by the engine.", least=1)
    overwrite: bool = option(
        False,
        is_switch=True,
        help="Drop an existing table first, even a foreign one; a parquet folder must be an export.",
    )
    check: CheckConfig = group(CheckConfig)

    def __post_init__(self) -> None:
        check_least(self)
        check_least(self.check)
        package = PACKAGES[self.to]
        if package is not None:
            need(package, f"--to {self.to}", ConfigError, extra=self.to)
        if self.target is None and self.to not in DEFAULT_TARGETS:
            raise ConfigError(f"--to {self.to} writes a folder; name it after {self.folder}")
        if self.target is not None and not self.target.strip():
            raise ConfigError("the target is empty; leave it out, or name a place")
        if not self.table.strip():
            raise ConfigError("the table's name is empty")
        if self.to == "parquet" and self.table != DEFAULT_TABLE:
            raise ConfigError("--to parquet writes files and no table; leave out --table")
        self.check_index()

    def check_index(self) -> None:
        """Raise ConfigError if the options of the approximate index do not fit."""
        if self.ann != "auto" and self.ann not in ANN_KINDS[self.to]:
            there = ", ".join(ANN_KINDS[self.to])
            raise ConfigError(f"--to {self.to} has no {self.ann} index; --ann may be {there}")
        if self.check.least_recall is not None and not 0 <= self.check.least_recall <= 1:
            raise ConfigError(f"least_recall is a share from 0 to 1, not {self.check.least_recall:g}")
        if self.check.least_recall is not None and self.chosen_ann == "none":
            what = "--to parquet" if self.to == "parquet" else "--ann none"
            raise ConfigError(f"--least_recall judges an approximate index, and {what} builds none; leave it out")

    @property
    def place(self) -> str:
        """The target, with its default."""
        return self.target if self.target is not None else DEFAULT_TARGETS[self.to]

    @property
    def chosen_ann(self) -> Ann:
        return ANN_KINDS[self.to][0] if self.ann == "auto" else self.ann

    @property
    def batch_rows(self) -> int:
        return self.batch_size or BATCH_ROWS[self.to]
