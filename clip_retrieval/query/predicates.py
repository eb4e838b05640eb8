"""`--where`: finds the ids of the rows that meet a condition over metadata columns, by DuckDB in a sandbox.

The condition is first parsed to DuckDB's syntax tree. Anything but a plain expression over columns is refused:
sub-selects, other tables, aggregates, windows, parameters and functions that are not listed below. The SQL that runs
is generated from the checked tree.
"""

from __future__ import annotations

import difflib
import json
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clip_retrieval.errors import QueryError
from clip_retrieval.metadata import Metadata
from clip_retrieval.query.unknown_column import ROW_ID, UnknownColumnError, columns_in_conditions
from clip_retrieval.query.value_kinds import what_columns_hold

TABLE = "rows"
SECONDS = 10.0  # after which a condition is interrupted
MEMORY = "1GB"
LONGEST = 10_000  # characters
DEEPEST = 100  # levels of brackets
SHOWN_CHARACTERS = 120
MOST_PARTS = 100  # of a condition, that are tried to find the wrong one

CLASSES = {
    "CONJUNCTION",
    "COMPARISON",
    "COLUMN_REF",
    "CONSTANT",
    "FUNCTION",
    "OPERATOR",
    "CASE",
    "CAST",
    "BETWEEN",
    "TYPE",
}
ADVICE = {
    "SUBQUERY": "a sub-select",
    "WINDOW": "a window function",
    "PARAMETER": "a parameter",
    "STAR": "a *",
    "LAMBDA": "a lambda",
}
# Scalar functions that are deterministic, read nothing, and return no more than they are given.
FUNCTIONS = frozenset(
    (
        "~~ !~~ ~~* !~~* ~~~ like_escape not_like_escape ilike_escape not_ilike_escape "
        "regexp_matches regexp_full_match regexp_extract lower upper lcase ucase length len strlen trim ltrim "
        "rtrim contains prefix suffix starts_with "
        "ends_with ^@ strip_accents substring substr left right split_part instr position strpos concat || "
        "+ - * / // % ** abs round floor ceil ceiling sqrt ln log log10 log2 exp pow power sign mod greatest least "
        "isnan isinf isfinite coalesce ifnull nullif if "
        "year month day hour minute second quarter week dayofweek date_part datepart date_trunc datetrunc strftime "
        "strptime try_strptime epoch make_date "
        "list_contains list_has array_contains array_has list_has_any list_has_all array_length "
        "list_value array_extract list_extract struct_extract levenshtein jaccard"
    ).split()
)


@dataclass(frozen=True)
class Predicate:
    """A checked condition: the SQL that runs, the columns that it reads, and its original text."""

    sql: str
    columns: tuple[str, ...]
    text: str
    statement: dict[str, Any]


def check_condition(metadata: Metadata, condition: str) -> None:
    """Raise QueryError if a condition is invalid, or names unknown columns."""
    with open_sandbox() as sandbox:
        parse_predicate(sandbox, condition, metadata.schema.names)


def rows_where(metadata: Metadata, condition: str, *, seconds: float = SECONDS) -> NDArray[np.int64]:
    """Return the ids of the rows that meet a condition, ascending; null does not meet it.

    Raises QueryError if the condition is invalid, names unknown columns, or takes longer than `seconds`.
    """
    names = metadata.schema.names
    with open_sandbox() as sandbox:
        predicate = parse_predicate(sandbox, condition, names)
        known = columns_in_conditions(names)
        sources = {name: source for name, source in known.items() if name in predicate.columns}
        columns = metadata.columns(list(sources.values()))
        table = {ROW_ID: pa.array(np.arange(metadata.row_count, dtype=np.int64))}
        table |= {name_in_table(name, [*known, ROW_ID]): columns[source] for name, source in sources.items()}
        sandbox.register(TABLE, pa.table(table))
        try:
            return run(sandbox, predicate, seconds)
        except (duckdb.ConversionException, duckdb.BinderException) as error:
            part, sql = wrong_part(sandbox, predicate)
            used = dict.fromkeys(node["column_names"][0] for node in nodes(part) if node["class"] == "COLUMN_REF")
            about = what_columns_hold({name: table[name].type for name in used}, names)
            said = f"{shown(sql)} does not fit: {about}" if about else first_line(error)
            raise QueryError(f"--where {shown(condition)}: {said}") from error


def wrong_part(sandbox: duckdb.DuckDBPyConnection, predicate: Predicate) -> tuple[dict[str, Any], str]:
    """Return the smallest part of a condition that DuckDB cannot plan, else the whole condition; and its SQL."""
    node = predicate.statement["node"]
    whole: dict[str, Any] = node["where_clause"]
    parts = [part for part in nodes(whole) if part["class"] not in ("COLUMN_REF", "CONSTANT", "TYPE")]
    for part in sorted(parts[:MOST_PARTS], key=lambda part: len(json.dumps(part))):
        sql = sql_of(sandbox, {**predicate.statement, "node": {**node, "where_clause": part}})
        try:
            sandbox.execute(f"EXPLAIN SELECT {sql} FROM {TABLE}")
        except duckdb.Error:
            return part, sql
    return whole, predicate.sql


def run(sandbox: duckdb.DuckDBPyConnection, predicate: Predicate, seconds: float) -> NDArray[np.int64]:
    """Return the ids, ascending, from the registered table. Raises duckdb.Error for values of the wrong kind."""
    sandbox.execute("SET lock_configuration = true")
    timer = threading.Timer(seconds, sandbox.interrupt)
    timer.start()
    try:
        found = sandbox.execute(f'SELECT "{ROW_ID}" FROM {TABLE} WHERE {predicate.sql}').fetchnumpy()[ROW_ID]
    except duckdb.InterruptException as error:
        raise QueryError(f"--where took longer than {seconds:g} s; make it simpler") from error
    except (duckdb.ConversionException, duckdb.BinderException):
        raise
    except duckdb.Error as error:
        raise QueryError(f"--where {shown(predicate.text)}: {first_line(error)}") from error
    finally:
        timer.cancel()
    return np.sort(np.asarray(found, dtype=np.int64))


def open_sandbox() -> duckdb.DuckDBPyConnection:
    """Open a new database in memory, without files, network or extensions; it takes about 25 ms of CPU."""
    return duckdb.connect(
        ":memory:",
        config={
            "enable_external_access": "false",
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "allow_community_extensions": "false",
            "memory_limit": MEMORY,
            "temp_directory": "",
            "max_expression_depth": str(DEEPEST),
        },
    )


def parse_predicate(sandbox: duckdb.DuckDBPyConnection, condition: str, columns: Sequence[str]) -> Predicate:
    """Return the condition as checked SQL; raises QueryError that says what is wrong with it."""
    if not condition.strip():
        raise QueryError("--where is empty; write a condition such as \"width >= 512 and license = 'cc0'\"")
    if len(condition) > LONGEST:
        raise QueryError(f"--where has {len(condition):,} characters; at most {LONGEST:,} are allowed")
    statement = read_statement(sandbox, condition)
    used: dict[str, None] = {}
    check_tree(statement["node"]["where_clause"], [*columns_in_conditions(columns), ROW_ID], used)
    return Predicate(sql_of(sandbox, statement), tuple(used), condition, statement)


def sql_of(sandbox: duckdb.DuckDBPyConnection, statement: dict[str, Any]) -> str:
    """Return the SQL of a statement's condition."""
    tree = json.dumps({"error": False, "statements": [statement]})
    ((sql,),) = sandbox.execute("SELECT json_deserialize_sql(?)", [tree]).fetchall()
    return str(sql.split(" WHERE ", 1)[1])


def read_statement(sandbox: duckdb.DuckDBPyConnection, condition: str) -> dict[str, Any]:
    """Parse the condition as the WHERE of one SELECT over one table, and nothing else."""
    try:
        parsed = parse(sandbox, f"(\n{condition}\n)")
        if parsed["error"]:
            # DuckDB names the token where it stopped, which may be our parenthesis: get its error without ours
            bare = parse(sandbox, f"\n{condition}\n")
            parsed = bare if bare.get("error_type") == "parser" else parsed
    except duckdb.Error as error:
        raise QueryError(f"--where {shown(condition)}: {first_line(error)}") from error
    if parsed["error"]:
        said = " ".join(parsed["error_message"].split())
        raise QueryError(
            f"--where {shown(condition)}: {said[:SHOWN_CHARACTERS]}; write one condition, such as width >= 512"
        )
    statements = parsed["statements"]
    node = statements[0]["node"]
    is_plain = (
        len(statements) == 1
        and node["type"] == "SELECT_NODE"
        and node["from_table"]["type"] == "BASE_TABLE"
        and not any(
            node.get(name) for name in ("modifiers", "group_expressions", "group_sets", "having", "qualify", "sample")
        )
        and not node["cte_map"]["map"]
    )
    if not is_plain:
        raise QueryError(f"--where {shown(condition)}: it is more than one condition; write only what may follow WHERE")
    return dict(statements[0])


def parse(sandbox: duckdb.DuckDBPyConnection, condition: str) -> dict[str, Any]:
    """Return DuckDB's syntax tree of a query with this WHERE, or its error. Raises duckdb.Error."""
    text = f"SELECT 1 FROM {TABLE} WHERE {condition}"
    ((answer,),) = sandbox.execute("SELECT json_serialize_sql(?)", [text]).fetchall()
    return dict(json.loads(answer))


@lru_cache(256)
def names_in(condition: str) -> frozenset[str]:
    """Return the columns that a condition names, as written. Raises QueryError if it is invalid."""
    with open_sandbox() as sandbox:
        tree = read_statement(sandbox, condition)["node"]["where_clause"]
    named = [node["column_names"] for node in nodes(tree) if node["class"] == "COLUMN_REF"]
    return frozenset(".".join(parts) for parts in named)


def check_tree(tree: Any, columns: Sequence[str], used: dict[str, None]) -> None:
    """Refuse what is not on the lists, note the used columns, and replace each column by its full name."""
    for node in nodes(tree):
        kind = node["class"]
        if kind not in CLASSES:
            what = ADVICE.get(kind, f"{kind.lower()} expressions")
            raise QueryError(f"--where takes conditions over columns; {what} is not one")
        if kind == "FUNCTION":
            check_function(node)
        if kind == "COLUMN_REF":
            name = resolve(node["column_names"], columns)
            used[name] = None
            node["column_names"] = [name_in_table(name, columns)]


def nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Yield every expression of a syntax tree; without recursion, since trees can be deep."""
    left = [tree]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            if "class" in part:
                yield part
            left += part.values()
        elif isinstance(part, list):
            left += part


def check_function(node: dict[str, Any]) -> None:
    name = node["function_name"].lower()
    if name == "row":  # DuckDB's name for values in parentheses
        what = "parentheses hold several values" if node.get("children") else "() holds no values"
        raise QueryError(f"--where: {what}; write a list of values after in, such as license in ('cc0', 'by')")
    if name not in FUNCTIONS or node["schema"] or node["catalog"] or node["filter"] or node["distinct"]:
        near = difflib.get_close_matches(name, FUNCTIONS, 1)
        hint = (
            f"did you mean {near[0]}?"
            if near
            else "comparisons, like, in, between, text, number and date functions are"
        )
        raise QueryError(f"--where: {name} is not a function that conditions may use; {hint}")


def resolve(parts: Sequence[str], columns: Sequence[str]) -> str:
    """Return the column that a name means: exactly, or ignoring case; names of nested fields contain dots."""
    name = ".".join(parts)
    if name in columns:
        return name
    same = [column for column in columns if column.lower() == name.lower()]
    if len(same) == 1:
        return same[0]
    raise UnknownColumnError(name, columns)


def name_in_table(name: str, columns: Sequence[str]) -> str:
    """Return a column's name in DuckDB's table, where names that differ only in case would be one."""
    same = [column for column in columns if column.lower() == name.lower()]
    return name if name == ROW_ID or len(same) == 1 or name not in same else f"{name} ({same.index(name) + 1})"


def shown(condition: str) -> str:
    text = " ".join(condition.split())
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"


def first_line(error: Exception) -> str:
    """Return what DuckDB says, without the name of its error."""
    return re.sub(r"^[A-Z][A-Za-z ]* Error: ", "", str(error).strip().split("\n")[0])
