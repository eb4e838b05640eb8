"""A collection of Milvus, or of Milvus Lite in a local file."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pymilvus import DataType, MilvusClient
from pymilvus.exceptions import MilvusException

from clip_retrieval.errors import ExportError, one_line
from clip_retrieval.export.columns import ID, VECTOR, Column, python_values
from clip_retrieval.export.source import Block, Ids, to_precision
from clip_retrieval.export.target import MARK, Fetched, Setup, without_password
from clip_retrieval.installed import need
from clip_retrieval.query.hits import plain

TOKEN = "MILVUS_TOKEN"  # user:password, or an API key
ROWS = 500  # of one request
MOST_TEXT = 65_535  # bytes of a VARCHAR or JSON value
CUT = f"texts are cut to the {MOST_TEXT:,} bytes that Milvus takes"
EF_SEARCH, NPROBE = 100, 32
INDEX_TYPES = {"hnsw": "HNSW", "ivf": "IVF_FLAT"}
PARAMETERS: dict[str, dict[str, int]] = {
    "FLAT": {},
    "HNSW": {"M": 16, "efConstruction": 200},
    "IVF_FLAT": {"nlist": 1024},
}
TYPES = {
    pa.bool_(): DataType.BOOL,
    pa.int8(): DataType.INT8,
    pa.int16(): DataType.INT16,
    pa.int32(): DataType.INT32,
    pa.uint8(): DataType.INT16,
    pa.uint16(): DataType.INT32,
    pa.uint32(): DataType.INT64,
    pa.int64(): DataType.INT64,
    pa.float16(): DataType.FLOAT,
    pa.float32(): DataType.FLOAT,
    pa.float64(): DataType.DOUBLE,
}


class MilvusTarget:
    """A collection whose properties say how far the export went; rows are upserted by id, so repeats do no harm."""

    answers_at_once = False

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        place = setup.config.place
        self.is_lite = "://" not in place
        if self.is_lite:
            if not place.endswith(".db"):
                raise ExportError(f"{place}: Milvus Lite takes a file that ends in .db; name one, or a server's url")
            need("milvus_lite", f"--to milvus {place}", ExportError, extra="milvus")
        wants_half = setup.wants_half and not self.is_lite
        if self.is_lite and setup.config.precision == "fp16":
            raise ExportError("Milvus Lite stores fp32 only; leave out --precision fp16")
        self.dtype = np.dtype(np.float16 if wants_half else np.float32)
        self.collection = setup.config.table
        self.name = f'collection "{self.collection}" of {without_password(place)}'
        for name in ("pymilvus", "grpc._server"):  # they log tracebacks of errors that they raise or ignore
            logging.getLogger(name).setLevel(logging.CRITICAL)
        with translating(self.name):
            self.client = MilvusClient(place, token=os.environ.get(TOKEN, ""))

    def begin(self) -> int:
        """Find or make the collection; see Target."""
        with translating(self.name):
            is_there = self.client.has_collection(self.collection)
            if is_there and self.setup.config.overwrite:
                self.client.drop_collection(self.collection)
                is_there = False
            if is_there:
                found = self.client.describe_collection(self.collection).get("properties") or {}
                return self.setup.read_mark(found.get(MARK), self.dtype, self.name)
            self.create()
        return 0

    def create(self) -> None:
        schema = self.client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field(ID, DataType.INT64, is_primary=True)
        half = self.dtype == np.float16
        kind = DataType.FLOAT16_VECTOR if half else DataType.FLOAT_VECTOR
        schema.add_field(VECTOR, kind, dim=self.setup.dim)
        for column in self.setup.columns:
            kind = field_type(column.kind)
            longest = {"max_length": MOST_TEXT} if kind == DataType.VARCHAR else {}
            schema.add_field(column.name, kind, nullable=True, **longest)
        mark = {MARK: self.setup.mark(self.dtype)}
        self.client.create_collection(self.collection, schema=schema, properties=mark)
        if MARK not in (self.client.describe_collection(self.collection).get("properties") or {}):
            raise ExportError(f"{self.name}: this server keeps no properties of collections, which an export needs")

    def write(self, block: Block) -> None:
        """Upsert rows, then note how far they go; see Target."""
        columns = {column.name: self.values(block, column) for column in self.setup.columns}
        vectors = to_precision(block.vectors, self.dtype)
        ids = block.ids.tolist()
        with translating(self.name):
            for start in range(0, len(ids), ROWS):
                rows = [
                    {
                        ID: ids[place],
                        VECTOR: vectors[place],
                        **{name: column[place] for name, column in columns.items()},
                    }
                    for place in range(len(ids))[start : start + ROWS]
                ]
                self.client.upsert(self.collection, rows)
            self.note(block.stop)

    def values(self, block: Block, column: Column) -> list[Any]:
        """Return a column's values for its field."""
        found, kind = python_values(block.metadata[column.name], self.setup.odd), field_type(column.kind)
        if kind == DataType.JSON:
            return [None if value is None else plain(value) for value in found]
        return [self.text(value) for value in found] if kind == DataType.VARCHAR else found

    def text(self, value: Any) -> str | None:
        """Return a value as text, cut to the bytes that a field holds."""
        if value is None:
            return None
        raw = str(plain(value)).encode()
        if len(raw) > MOST_TEXT:
            self.setup.odd[CUT] += 1
        return raw[:MOST_TEXT].decode("utf-8", "ignore")

    def note(self, done: int) -> None:
        self.client.alter_collection_properties(self.collection, {MARK: self.setup.mark(self.dtype, done)})

    def finish(self) -> None:
        """Flush, and load the collection; see Target. A collection without an index cannot be searched."""
        with translating(self.name):
            self.client.flush(self.collection)
            if self.index_type() is None:
                self.make_index("FLAT")
            self.client.load_collection(self.collection)

    def index_type(self) -> str | None:
        """Return the kind of index that the vectors have; None if they have none."""
        names = self.client.list_indexes(self.collection, field_name=VECTOR)
        return str(self.client.describe_index(self.collection, names[0])["index_type"]) if names else None

    def make_index(self, kind: str) -> None:
        wanted = self.client.prepare_index_params()
        wanted.add_index(VECTOR, index_name=VECTOR, index_type=kind, metric_type="IP", params=PARAMETERS[kind])
        self.client.create_index(self.collection, wanted)

    def ids(self) -> Iterator[Ids]:
        with translating(self.name):
            pages = self.client.query_iterator(
                self.collection, batch_size=10_000, output_fields=[ID], consistency_level="Strong"
            )
            while page := pages.next():
                yield np.array([row[ID] for row in page], np.int64)
            pages.close()

    def fetch(self, ids: Ids) -> Fetched:
        names = [column.name for column in self.setup.columns]
        with translating(self.name):
            found = self.client.get(self.collection, ids=ids.tolist(), output_fields=[ID, VECTOR, *names])
        vectors = np.array([read_vector(row[VECTOR], self.dtype) for row in found], np.float32)
        rows = [{name: row.get(name) for name in names} for row in found]
        return Fetched(np.array([row[ID] for row in found], np.int64), vectors.reshape(-1, self.setup.dim), rows)

    def offers_exact(self) -> bool:
        with translating(self.name):
            return self.index_type() == "FLAT"

    def search(self, queries: NDArray[np.float32], k: int, *, exact: bool) -> list[Ids]:
        settings = {} if exact else {"ef": max(EF_SEARCH, k), "nprobe": NPROBE}
        asked = list(queries.astype(self.dtype)) if self.dtype == np.float16 else queries.tolist()
        with translating(self.name):
            answers = self.client.search(
                self.collection,
                data=asked,
                anns_field=VECTOR,
                limit=k,
                search_params={"metric_type": "IP", "params": settings},
            )
        return [np.array([hit[ID] for hit in hits], np.int64) for hits in answers]

    def build_index(self) -> str | None:
        """Replace the index that compares all rows by the wanted one; see Target."""
        ann = self.setup.config.chosen_ann
        if ann == "none":
            return None
        kind = INDEX_TYPES[ann]
        with translating(self.name):
            if self.index_type() != kind:
                self.client.release_collection(self.collection)
                self.client.drop_index(self.collection, VECTOR)
                self.make_index(kind)
                self.client.load_collection(self.collection)
        return f"{kind}, ef {EF_SEARCH}" if kind == "HNSW" else f"{kind}, nprobe {NPROBE}"

    def close(self) -> None:
        self.client.close()


def field_type(kind: pa.DataType) -> DataType:
    """Return the type of a column's field: JSON for lists, structs and maps, text for types that Milvus lacks."""
    if kind in TYPES:
        return TYPES[kind]
    return DataType.JSON if pa.types.is_nested(kind) else DataType.VARCHAR


def read_vector(value: Any, dtype: np.dtype[Any]) -> NDArray[np.float32]:
    """Return a vector of an answer: fp16 comes as bytes."""
    if isinstance(value, list) and value and isinstance(value[0], bytes):
        value = value[0]
    raw = np.frombuffer(value, dtype) if isinstance(value, bytes) else np.asarray(value)
    return raw.astype(np.float32)


@contextmanager
def translating(name: str) -> Iterator[None]:
    """Turn Milvus's errors into one sentence."""
    try:
        yield
    except MilvusException as error:
        raise ExportError(
            f"{name}: {one_line(error.message)}; finished rows are kept, run the same command again"
        ) from error
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        raise ExportError(f"{name}: {one_line(error)}") from error


def open_target(setup: Setup) -> MilvusTarget:
    """Open the server or the local file."""
    return MilvusTarget(setup)
