"""Where the pictures of an input are: the folders below which a server may read them for strangers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clip_retrieval.errors import SourceError
from clip_retrieval.paths import is_pipe, without_query
from clip_retrieval.sources.parquet import PARQUET_SUFFIXES
from clip_retrieval.sources.patterns import MARKS, is_there, listed_patterns


def list_roots(source: Mapping[str, Any]) -> list[str]:
    """Return the folders and archives that hold the pictures of an input, by the options of its source.

    They are spelled as in the options. For a pattern or a table it is the folder that its files are in. An input of
    urls has none.
    """
    text, below = source.get("input_dataset"), source.get("paths_below")
    if not isinstance(text, str) or source.get("input_format") == "urls":
        return []
    try:
        patterns = listed_patterns(text, "file")
    except SourceError:
        return []
    roots = [root_of(pattern) for pattern in patterns]
    return list(dict.fromkeys([root for root in roots if root] + ([below] if isinstance(below, str) else [])))


def root_of(pattern: str) -> str:
    """Return what the files of a path or pattern are, or are below; nothing for a command."""
    if is_pipe(pattern):
        return ""
    literal = pattern if is_there(pattern) else MARKS.split(pattern, maxsplit=1)[0]
    if literal == pattern and not without_query(pattern).endswith(PARQUET_SUFFIXES):
        return pattern  # a folder, tar or zip
    parent, mark, _ = literal.rpartition("/")  # pictures of a table are next to it
    return parent or mark or "."
