"""Names of columns in conditions, and the error for unknown ones; separate from DuckDB, which servers may lack."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

from clip_retrieval.errors import QueryError
from clip_retrieval.words import counted

ROW_ID = "id"  # the row's index id, even if a metadata column has this name
SHOWN_COLUMNS = 20


def name_apart(name: str, others: Collection[str]) -> str:
    """Return a name for a metadata column that has one of our names: with `metadata.` before it, until it is free."""
    while name in others:
        name = f"metadata.{name}"
    return name


def columns_in_conditions(columns: Collection[str]) -> dict[str, str]:
    """Map the name of each metadata column in conditions to its own: a column `id` has the name that results show."""
    return {name_apart(name, columns) if name == ROW_ID else name: name for name in columns}


class UnknownColumnError(QueryError):
    """A condition names an unknown column."""

    def __init__(self, name: str, columns: Iterable[str]) -> None:
        self.name, there = name, sorted(columns)
        near = difflib.get_close_matches(name, there, 1)
        more = len(there) - SHOWN_COLUMNS
        rest = f" and {counted(more, 'other')}" if more > 0 else ""
        hint = f"Did you mean {near[0]}? " if near else ""
        listed = ", ".join(there[:SHOWN_COLUMNS])
        super().__init__(
            f"--where: there is no column {name}. {hint}The columns are {listed}{rest}; put texts in single quotes"
        )

    def among(self, columns: Iterable[str]) -> UnknownColumnError:
        """Return the same error with only these columns named, for callers that may not see the others."""
        return UnknownColumnError(self.name, {*columns_in_conditions(list(columns)), ROW_ID})
