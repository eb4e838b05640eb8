"""The whole of `filter`: embed the query, search, join the metadata, export."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from clip_retrieval.errors import QueryError
from clip_retrieval.filter.config import FilterConfig
from clip_retrieval.filter.export import claim_output, export_hits, write_sheet, write_tables
from clip_retrieval.filter.query import choose_encoder, open_query
from clip_retrieval.layout import EmbeddingsFolder, IndexFolder, read_manifest
from clip_retrieval.options import build_config
from clip_retrieval.query.embed import Query
from clip_retrieval.query.hits import join_metadata, json_rows
from clip_retrieval.search.index import SearchResult, open_index
from clip_retrieval.search.refine import open_stored, search_stored
from clip_retrieval.search.settings import parse_settings
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

    def to_json(self) -> dict[str, Any]:
        return {
            "query": self.query.text,
            "kind": self.query.kind,
            "warning": self.query.warning,
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
    source, target = IndexFolder(config.indice_folder), Folder(config.output_folder)
    if not source.exists():
        raise QueryError(f"there is no index folder {config.indice_folder}")
    index = open_index(source, config.modality, memory_map=config.memory_map)
    settings = None if config.index_param is None else index.checked(parse_settings(config.index_param))
    manifest = read_manifest(source)
    expected = manifest.get("encoder") if manifest else None
    query = open_query(config.query, choose_encoder(expected, config), expected)
    if config.refine_from is None:
        found = index.search(query.embedding, config.num_results, settings)
    else:
        stored = open_stored(EmbeddingsFolder(config.refine_from), config.modality, index)
        found = search_stored(index, stored, query.embedding, config.num_results, settings)
    if config.threshold is not None:
        close = found.scores >= config.threshold
        found = SearchResult(found.ids[close], found.scores[close])
    check_writable(target)
    return export(config, query, join_metadata(source, found, index.row_count), target)


def export(config: FilterConfig, query: Query, table: pa.Table, target: Folder) -> FilterResult:
    claim_output(target)
    exported = export_hits(target, table, copy_images=config.copy_images)
    table = table.add_column(3, "picture", pa.array(exported.names, pa.string()))
    write_tables(target, table, query)
    write_sheet(target, query, len(table), exported.cards)
    target.remove_leftovers()
    return FilterResult(query, target.url, table, exported.unreadable)
