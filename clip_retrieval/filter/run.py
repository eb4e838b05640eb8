"""The whole of `filter`: a query of the command line, asked of an index folder, and its hits as files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from clip_retrieval.filter.config import FilterConfig
from clip_retrieval.filter.export import claim_output, export_hits, write_sheet, write_tables
from clip_retrieval.filter.query import open_query
from clip_retrieval.layout import IndexFolder
from clip_retrieval.metadata import text_array
from clip_retrieval.options import build_config
from clip_retrieval.query.answer import Answer, answer, tabulate
from clip_retrieval.query.embed import Query
from clip_retrieval.query.hits import json_rows
from clip_retrieval.query.searcher import open_searcher
from clip_retrieval.revision import only_one
from clip_retrieval.storage import Folder, check_writable

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class FilterResult:
    """The hits of one query and where they were written."""

    query: Query
    output_folder: str
    table: pa.Table  # rank, id, similarity, picture, and every metadata column
    unreadable: int  # hits whose picture could not be read
    how: tuple[str, ...] = ()  # the hits were found

    def to_json(self) -> dict[str, Any]:
        return {
            "query": self.query.text,
            "kind": self.query.kind,
            "warning": self.query.warning,
            "how": list(self.how),
            "output_folder": self.output_folder,
            "unreadable_pictures": self.unreadable,
            "results": list(json_rows(self.table)),
        }


def clip_filter(*arguments: object, **options: object) -> pd.DataFrame:
    """Return the hits of a query as a DataFrame, and export them; takes the flags of `clip-retrieval filter`.

    Columns: rank, id, similarity, picture (the exported file), then the metadata. Raises ClipRetrievalError.
    """
    hits: pd.DataFrame = run_filter(build_config(FilterConfig, options, arguments)).table.to_pandas()
    return hits


def run_filter(config: FilterConfig) -> FilterResult:
    """Answer one query and write its results."""
    searcher = open_searcher(IndexFolder(config.indice_folder), config.searcher, workload="once")
    query = open_query(config.words, searcher)
    answered = answer(searcher, query, config.selection)
    table = tabulate(answered, searcher)
    target = Folder(config.output_folder)
    check_writable(target)
    with only_one(target):
        return export(answered, table, target, copy_images=config.copy_images)


def export(answered: Answer, table: pa.Table, target: Folder, *, copy_images: bool) -> FilterResult:
    """Write the hits into a folder that no other query writes into meanwhile."""
    query = answered.query
    claim_output(target)
    exported = export_hits(target, table, copy_images=copy_images)
    table = table.add_column(3, "picture", text_array(exported.names))
    write_tables(target, table, query)
    write_sheet(target, query, len(table), exported.cards)
    target.remove_leftovers()
    return FilterResult(query, target.url, table, exported.unreadable, answered.how)
