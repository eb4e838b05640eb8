"""The hits as lists for programs: parquet, json, json lines, csv, ids, and datacomp's uids; all in one pass."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from clip_retrieval.filter.config import UID, Format
from clip_retrieval.filter.hits import Hits
from clip_retrieval.metadata import text_array
from clip_retrieval.query.hits import plain
from clip_retrieval.storage import Folder

TABLES: dict[Format, str] = {
    "parquet": "results.parquet",
    "json": "results.json",
    "jsonl": "results.jsonl",
    "csv": "results.csv",
    "ids": "ids.txt",
    "datacomp": "uids.npy",
}
UID_DIGITS = 32  # hexadecimal digits of datacomp's uids
UID_TYPE = np.dtype("u8,u8")
JSON_ROWS = 2_000  # rows that are Python objects at once

Write = Callable[[pa.Table], None]


def write_tables(folder: Folder, hits: Hits, formats: Sequence[Format]) -> list[str]:
    """Write the requested lists, and return notes on what cannot be in them; memory holds one block of hits."""
    writers: dict[Format, Callable[[Folder, Hits], AbstractContextManager[Write]]] = {
        "parquet": write_parquet,
        "json": write_json,
        "jsonl": write_jsonl,
        "csv": write_csv,
    }
    with ExitStack() as stack:
        writes = [stack.enter_context(writers[form](folder, hits)) for form in formats if form in writers]
        for table in hits.blocks() if writes else ():
            for write in writes:
                write(table)
        if hits.failed:
            for write in writes:
                write(hits.failures())
    if "ids" in formats:
        with folder.staged(TABLES["ids"]) as staged:
            staged.write_text("".join(f"{row}\n" for row in dict.fromkeys(hits.ids.tolist())), encoding="utf-8")
    return write_uids(folder, hits) if "datacomp" in formats else []


@contextmanager
def write_parquet(folder: Folder, hits: Hits) -> Iterator[Write]:
    import pyarrow.parquet as pq  # loads TLS: 20 ms, which a start that writes only other lists saves

    schema = hits.first_row().schema  # dictionaries took 40 % of the time and made files larger: hits rarely repeat
    with folder.staged(TABLES["parquet"]) as staged, pq.ParquetWriter(staged, schema, use_dictionary=False) as writer:
        yield writer.write_table


@contextmanager
def write_csv(folder: Folder, hits: Hits) -> Iterator[Write]:
    """Write csv; lists and structs become json, bytes become text."""
    import pyarrow.csv as pa_csv

    schema = flat(hits.first_row()).schema
    with folder.staged(TABLES["csv"]) as staged, pa_csv.CSVWriter(staged, schema) as writer:
        yield lambda table: writer.write_table(flat(table))


def flat(table: pa.Table) -> pa.Table:
    """Return the table with text for columns that a csv cell cannot hold."""
    for place, field in enumerate(table.schema):
        kind = field.type
        if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            values = [plain(value) for value in table.column(place).to_pylist()]
            texts = [
                value if isinstance(value, str | None) else json.dumps(value, ensure_ascii=False) for value in values
            ]
            table = table.set_column(place, field.name, text_array(texts))
    return table


@contextmanager
def write_jsonl(folder: Folder, hits: Hits) -> Iterator[Write]:
    del hits
    with folder.staged(TABLES["jsonl"]) as staged, staged.open("wb") as file:
        yield lambda table: file.writelines(json_lines(table))


@contextmanager
def write_json(folder: Folder, hits: Hits) -> Iterator[Write]:
    """Write one object: about the query or the queries, then the list `results`, one hit per line."""
    about = json.dumps(about_queries(hits), ensure_ascii=False)
    with folder.staged(TABLES["json"]) as staged, staged.open("wb") as file:
        file.write(f'{about.removesuffix("}")}, "results": ['.encode())
        separator = b"\n"

        def write(table: pa.Table) -> None:
            nonlocal separator
            for lines in json_lines(table):
                file.write(separator + lines.removesuffix(b"\n").replace(b"\n", b",\n"))  # a hit itself has no \n
                separator = b",\n"

        yield write
        file.write(b"\n]}\n")


def about_queries(hits: Hits) -> dict[str, Any]:
    if not hits.is_batch:
        (asked,) = hits.asked
        assert asked.answer is not None
        return {"query": asked.text, "kind": asked.answer.query.kind}
    counts = np.diff(hits.starts).tolist()
    return {
        "queries": [
            {
                "query": asked.number,
                "query_text": asked.text,
                "kind": None if asked.answer is None else asked.answer.query.kind,
                "hits": count,
                "problem": asked.problem,
            }
            for asked, count in zip(hits.asked, counts, strict=True)
        ]
    }


def json_lines(table: pa.Table) -> Iterator[bytes]:
    """Yield the rows as json, one per line, many at a time; NaN and infinity become null, dates and bytes text."""
    encode, make_row = msgspec.json.Encoder().encode_lines, row_type(table.column_names)
    for batch in table.to_batches(max_chunksize=JSON_ROWS):
        columns = [
            values if is_json(field.type) else [plain(value) for value in values]
            for field, values in ((field, batch.column(place).to_pylist()) for place, field in enumerate(table.schema))
        ]
        if len(batch):
            yield encode(list(map(make_row, *columns)))


def row_type(names: Sequence[str]) -> Callable[..., Any]:
    """Return a constructor of an object from a row's values: a struct takes a third of the time of a dict."""
    fields = [f"field_{place}" for place in range(len(names))]
    try:
        return msgspec.defstruct("Hit", fields, rename=dict(zip(fields, names, strict=True)), gc=False)
    except ValueError:  # a struct accepts no names that json would escape
        return lambda *values: dict(zip(names, values, strict=True))


def is_json(kind: pa.DataType) -> bool:
    """Say whether msgspec writes every value of a type as needed; it writes NaN as null by itself."""
    tests = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_integer,
        pa.types.is_boolean,
        pa.types.is_floating,
    )
    return any(test(kind) for test in tests)


def write_uids(folder: Folder, hits: Hits) -> list[str]:
    """Write uids.npy as datacomp does, both halves of each uid as u8, sorted; return a note on what is left out."""
    found: set[tuple[int, int]] = set()
    bad: list[int] = []
    for start in range(0, hits.count, 1 << 16):
        ids = hits.ids[start : start + (1 << 16)]
        assert hits.searcher.metadata is not None
        for row, uid in zip(ids.tolist(), hits.searcher.metadata.rows(ids, [UID])[UID].to_pylist(), strict=True):
            halves = parse_uid(uid)
            bad.append(row) if halves is None else found.add(halves)
    with folder.staged(TABLES["datacomp"]) as staged, staged.open("wb") as file:
        np.save(file, np.array(sorted(found), UID_TYPE))
    if not bad:
        return []
    shown = ", ".join(map(str, bad[:5])) + (", …" if len(bad) > 5 else "")
    return [f"{len(bad):,} hits have no uid of {UID_DIGITS} hexadecimal digits and are not in uids.npy: rows {shown}"]


def parse_uid(uid: Any) -> tuple[int, int] | None:
    """Return both halves of a uid; None if it is not a uid."""
    try:
        number = int(uid, 16) if isinstance(uid, str) and len(uid) == UID_DIGITS and uid.isalnum() else None
    except ValueError:
        return None
    return None if number is None else divmod(number, 1 << 64)
