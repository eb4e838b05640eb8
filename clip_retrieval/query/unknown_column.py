"""The error for a condition with an unknown column; separate from DuckDB, which not every server has."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from clip_retrieval.errors import QueryError
from clip_retrieval.words import counted

ROW_ID = "id"  # the row's index id; a metadata column of this name hides it
SHOWN_COLUMNS = 20


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
        return UnknownColumnError(self.name, {*columns, ROW_ID})
