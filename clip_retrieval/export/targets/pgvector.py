"""A table of PostgreSQL with pgvector: metadata are typed columns, which SQL can query like any other."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import sql
from psycopg.adapt import Dumper
from psycopg.pq import Format
from psycopg.types import TypeInfo
from psycopg.types.json import Jsonb

from clip_retrieval.errors import ExportError, one_line
from clip_retrieval.export.columns import ID, VECTOR, Column, python_values
from clip_retrieval.export.source import Block, Ids, to_precision
from clip_retrieval.export.target import MARK, Fetched, Setup, without_password
from clip_retrieval.export.targets.postgres_types import NUL, dump_json, sql_type, without_nul

CONNECT_SECONDS = 20
CHECK_SECONDS = 5  # after which the server releases what a killed export held, such as its lock
MOST_DIMS = 16_000  # of a column
MOST_INDEXED = {"halfvec": 4_000, "vector": 2_000}  # dimensions
METHODS = {"hnsw": "hnsw", "ivf": "ivfflat"}
EF_SEARCH, ROWS_PER_LIST, MOST_PROBES = 100, 1_000, 20
NO_NUL = "PostgreSQL's texts cannot hold NUL; it is replaced by U+FFFD"
GONE = "; finished rows are kept, run the same command again"


class Stored(bytes):
    """A vector in pgvector's binary form: dimension, zero, then big-endian numbers."""

    __slots__ = ()


def binary_form(rows: NDArray[Any]) -> list[Stored]:
    """Return each row [n, d] as pgvector receives it, in fp16 or fp32."""
    head = struct.pack(">hh", rows.shape[1], 0)
    size = rows.shape[1] * rows.dtype.itemsize
    data = rows.astype(rows.dtype.newbyteorder(">")).tobytes()
    return [Stored(head + data[start : start + size]) for start in range(0, len(data), size)]


class StoredDumper(Dumper):  # type: ignore[misc]  # psycopg is an extra
    """Passes the binary form on; a subclass has the number of the type in a database."""

    format = Format.BINARY

    def dump(self, obj: Stored) -> Stored:
        return obj


class PostgresTarget:
    """A table whose comment says how far the export went; a block and its comment are one transaction."""

    answers_at_once = False

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.dtype = np.dtype(np.float16 if setup.wants_half else np.float32)
        self.type = "halfvec" if setup.wants_half else "vector"
        self.parts = setup.config.table.split(".")
        self.table = sql.Identifier(*self.parts)
        where = without_password(setup.config.place)
        server = "the PostgreSQL of the environment" if where == "postgresql:" else where
        self.name = f'table "{setup.config.table}" of {server}'
        if setup.dim > MOST_DIMS:
            raise ExportError(f"pgvector takes up to {MOST_DIMS:,} dimensions, not {setup.dim:,}")
        with translating(self.name):
            self.connection = psycopg.connect(setup.config.place, connect_timeout=CONNECT_SECONDS, autocommit=True)
            self.connection.execute("SET client_encoding = 'UTF8'")
            with suppress(psycopg.Error):  # before PostgreSQL 14
                self.connection.execute(f"SET client_connection_check_interval = '{CHECK_SECONDS}s'")

    def run(self, query: str, values: Any = None, **names: sql.Composable) -> Any:
        """Run a statement; {table} is our table, %s takes values."""
        return self.connection.execute(sql.SQL(query).format(table=self.table, **names), values)

    def begin(self) -> int:
        """Find or make the table; see Target."""
        with translating(self.name):
            self.load_extension()
            self.lock()
            (found,) = self.run("SELECT to_regclass(%s)::oid", [".".join(map(quoted, self.parts))]).fetchone()
            if found is not None and not self.setup.config.overwrite:
                (comment,) = self.run("SELECT obj_description(%s, 'pg_class')", [found]).fetchone()
                return self.setup.read_mark(strip_mark(comment), self.dtype, self.name)
            with self.connection.transaction():
                self.run("DROP TABLE IF EXISTS {table}")
                self.create()
        return 0

    def load_extension(self) -> None:
        """Load the types of pgvector; raises ExportError if the server lacks them."""
        installed = "SELECT extversion FROM pg_extension WHERE extname = 'vector'"
        if self.run(installed).fetchone() is None:
            try:
                self.run("CREATE EXTENSION vector")
            except psycopg.Error as error:
                raise ExportError(
                    f"{self.name}: the extension vector is missing and cannot be created ({one_line(error)}); install "
                    "pgvector on the server, and run CREATE EXTENSION vector as the owner of the database"
                ) from error
        info = TypeInfo.fetch(self.connection, self.type)
        if info is None:
            (version,) = self.run(installed).fetchone()
            raise ExportError(
                f"{self.name}: pgvector {version} has no {self.type}, which came with 0.7; update it, or give "
                "--precision fp32"
            )
        info.register(self.connection)
        own = type("StoredDumper", (StoredDumper,), {"oid": info.oid})
        self.connection.adapters.register_dumper(Stored, own)

    def lock(self) -> None:
        """Block other exports into this table until the connection ends."""
        (is_ours,) = self.run("SELECT pg_try_advisory_lock(hashtext(%s))", [f"{MARK} {self.parts}"]).fetchone()
        if not is_ours:
            raise ExportError(f"another export is writing into {self.name}; wait until it has ended")

    def create(self) -> None:
        columns = [
            sql.SQL("{} {}").format(sql.Identifier(column.name), sql.SQL(sql_type(column.kind)))
            for column in self.setup.columns
        ]
        head = [sql.SQL("id bigint PRIMARY KEY"), sql.SQL(f"{VECTOR} {self.type}({self.setup.dim}) NOT NULL")]
        self.run("CREATE TABLE {table} ({columns})", columns=sql.SQL(", ").join([*head, *columns]))
        self.mark(0)

    def mark(self, done: int) -> None:
        """Note how far the export is, as the comment of the table."""
        text = sql.Literal(f"{MARK} {self.setup.mark(self.dtype, done)}")
        self.run("COMMENT ON TABLE {table} IS {text}", text=text)

    def write(self, block: Block) -> None:
        """Copy a block and note it, in one transaction."""
        names = [ID, VECTOR, *(column.name for column in self.setup.columns)]
        types = ["int8", self.type, *(sql_type(column.kind).partition("(")[0] for column in self.setup.columns)]
        values = [self.values(block, column) for column in self.setup.columns]
        rows = binary_form(to_precision(block.vectors, self.dtype))
        statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(
            self.table, sql.SQL(", ").join(map(sql.Identifier, names))
        )
        with translating(self.name), self.connection.transaction():
            if rows:
                with self.connection.cursor() as cursor, cursor.copy(statement) as copy:
                    copy.set_types(types)
                    for row in zip(block.ids.tolist(), rows, *values, strict=True):
                        copy.write_row(row)
            self.mark(block.stop)

    def values(self, block: Block, column: Column) -> list[Any]:
        """Return a column for psycopg; counts the texts that PostgreSQL cannot hold unchanged."""
        found = python_values(block.metadata[column.name], self.setup.odd)
        nuls = sum(isinstance(value, str) and NUL in value for value in found)
        if nuls:
            self.setup.odd[NO_NUL] += nuls
        if sql_type(column.kind) == "jsonb":
            return [None if value is None else Jsonb(value, dumps=dump_json) for value in found]
        return [without_nul(value) for value in found]

    def finish(self) -> None:
        """Update the planner's statistics of the table."""
        with translating(self.name):
            self.run("ANALYZE {table}")

    def ids(self) -> Iterator[Ids]:
        with translating(self.name), self.connection.transaction(), self.connection.cursor(MARK, binary=True) as cursor:
            cursor.execute(sql.SQL("SELECT id FROM {}").format(self.table))
            while rows := cursor.fetchmany(100_000):
                yield np.array(rows, np.int64).reshape(-1)

    def fetch(self, ids: Ids) -> Fetched:
        columns = [sql.Identifier(column.name) for column in self.setup.columns]
        picked = sql.SQL(", ").join([sql.SQL(f"id, {VECTOR}::real[]"), *columns])
        statement = sql.SQL("SELECT {} FROM {} WHERE id = ANY(%s)").format(picked, self.table)
        with translating(self.name), self.connection.cursor(binary=True) as cursor:
            found = cursor.execute(statement, [ids.tolist()]).fetchall()
        names = [column.name for column in self.setup.columns]
        vectors = np.array([row[1] for row in found], np.float32).reshape(-1, self.setup.dim)
        rows = [dict(zip(names, row[2:], strict=True)) for row in found]
        return Fetched(np.array([row[0] for row in found], np.int64), vectors, rows)

    def offers_exact(self) -> bool:
        return True

    def search(self, queries: NDArray[np.float32], k: int, *, exact: bool) -> list[Ids]:
        """Order by inner product, with or without the index; see Target."""
        off = ["enable_indexscan", "enable_bitmapscan"] if exact else ["enable_seqscan"]
        found = []
        with translating(self.name), self.connection.transaction():
            for name in off:
                self.run(f"SET LOCAL {name} = off")
            if not exact:
                self.run(f"SET LOCAL hnsw.ef_search = {max(EF_SEARCH, k)}")
                self.run(f"SET LOCAL ivfflat.probes = {self.probes()}")
            statement = sql.SQL("SELECT id FROM {} ORDER BY {} <#> %s::{} LIMIT %s").format(
                self.table, sql.Identifier(VECTOR), sql.SQL(self.type)
            )
            for query in queries:
                rows = self.connection.execute(statement, [text_form(query), k], prepare=False).fetchall()
                found.append(np.array(rows, np.int64).reshape(-1))
        return found

    def probes(self) -> int:
        """Return how many lists of an ivfflat index are searched."""
        return min(MOST_PROBES, max(1, round(math.sqrt(self.setup.row_count / ROWS_PER_LIST))))

    def build_index(self) -> str | None:
        """Build in one transaction; see Target. PGOPTIONS="-c maintenance_work_mem=4GB" gives it memory."""
        ann = self.setup.config.chosen_ann
        if ann == "none":
            return None
        method, most = METHODS[ann], MOST_INDEXED[self.type]
        if self.setup.dim > most:
            raise ExportError(
                f"pgvector indexes up to {most:,} dimensions of a {self.type}, not {self.setup.dim:,}; give --ann none"
                + (", or --precision fp16" if self.type == "vector" else "")
            )
        lists = max(1, self.setup.row_count // ROWS_PER_LIST)
        options = f"WITH (lists = {lists})" if method == "ivfflat" else ""
        with translating(self.name):
            known = self.run(
                "SELECT 1 FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid JOIN pg_am ON pg_am.oid = relam "
                "WHERE indrelid = %s::regclass AND amname = %s AND indisvalid",
                [".".join(map(quoted, self.parts)), method],
            ).fetchone()
            if known is None:
                column = sql.SQL(f"{VECTOR} {self.type}_ip_ops")
                self.run(f"CREATE INDEX ON {{table}} USING {method} ({{column}}) {options}", column=column)
        return f"hnsw, ef_search {EF_SEARCH}" if method == "hnsw" else f"ivfflat, probes {self.probes()}"

    def close(self) -> None:
        self.connection.close()


@contextmanager
def translating(name: str) -> Iterator[None]:
    """Turn PostgreSQL's errors into one sentence."""
    try:
        yield
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        raise ExportError(f"{name} does not answer: {one_line(error)}{GONE}") from error
    except psycopg.Error as error:
        raise ExportError(f"{name}: {one_line(error.diag.message_primary or error)}") from error


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def strip_mark(comment: str | None) -> str | None:
    return comment.removeprefix(MARK).strip() if comment and comment.startswith(MARK) else None


def text_form(query: NDArray[np.float32]) -> str:
    return f"[{','.join(map(repr, query.tolist()))}]"


def open_target(setup: Setup) -> PostgresTarget:
    """Connect to the server."""
    return PostgresTarget(setup)
