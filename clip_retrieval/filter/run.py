"""The whole of `filter`: queries of the command line, answered by an index folder, and their hits as files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec
import pyarrow as pa

from clip_retrieval.errors import ConfigError, QueryError
from clip_retrieval.filter.config import UID, FilterConfig, Format
from clip_retrieval.filter.hits import Asked, Hits, collect_hits
from clip_retrieval.filter.opening import Opening
from clip_retrieval.filter.query import open_query
from clip_retrieval.filter.recipe import compare_recipe, read_config, write_recipe
from clip_retrieval.installed import need
from clip_retrieval.layout import IndexFolder, check_not_inside
from clip_retrieval.query.answer import answer
from clip_retrieval.query.embed import Query
from clip_retrieval.query.hits import json_rows
from clip_retrieval.query.searcher import Searcher, open_searcher
from clip_retrieval.revision import only_one
from clip_retrieval.storage import Folder, check_writable

if TYPE_CHECKING:
    import pandas as pd


class FilterResult(msgspec.Struct, frozen=True, kw_only=True, eq=False, dict=True):
    """The hits of one query, or of a file of queries, and where they were written."""

    hits: Hits
    output_folder: str
    files: Sequence[str]  # below the folder
    how: Sequence[str] = ()  # notes on how the hits were found, and on what could not be written as requested
    warnings: Sequence[str] = ()

    @property
    def query(self) -> Query:
        """The one query. A file of queries has none."""
        (asked,) = self.hits.asked
        assert asked.answer is not None
        return asked.answer.query

    @cached_property
    def table(self) -> pa.Table:
        """All hits: rank, id, similarity, picture, and every metadata column; in a batch, the query comes first."""
        return self.hits.table()

    @property
    def unreadable(self) -> int:
        """Hits that could not be exported; the column `problem` says why."""
        return len(self.hits.problems)

    def to_json(self) -> dict[str, Any]:
        about: dict[str, Any]
        if self.hits.is_batch:
            failed = [
                {"query": asked.number, "query_text": asked.text, "problem": asked.problem}
                for asked in self.hits.failed
            ]
            about = {"queries": len(self.hits.asked), "failed_queries": failed}
        else:
            about = {"query": self.query.text, "kind": self.query.kind, "warning": self.query.warning}
        return about | {
            "how": list(self.how),
            "warnings": list(self.warnings),
            "output_folder": self.output_folder,
            "unreadable_pictures": self.unreadable,
            "results": list(json_rows(self.table)),
        }


def clip_filter(*arguments: object, **options: object) -> pd.DataFrame:
    """Return the hits of a query as a DataFrame, and export them; takes the flags of `clip-retrieval filter`.

    Columns: rank, id, similarity, picture (the exported file), then the metadata. Raises ClipRetrievalError.
    """
    need("pandas", "clip_filter, which returns a DataFrame,", ConfigError)
    hits: pd.DataFrame = run_filter(read_config(options, arguments)).table.to_pandas()
    return hits


def run_filter(config: FilterConfig, opening: Opening | None = None) -> FilterResult:
    """Answer the queries and write their results; `opening` is the model and index that are already being opened."""
    target = Folder(config.output_folder)
    check_not_inside(target, QueryError)  # before anything is written or searched
    if config.export_mode in ("hardlink", "symlink") and not target.is_local:
        raise ConfigError(f"{target.url} can hold no links to pictures; give --export copy")
    searcher = open_searcher(
        IndexFolder(config.indice_folder),
        config.searcher,
        workload="once",
        ahead=opening,
    )
    check_formats(config.write, searcher)
    hits = ask(config, searcher)
    check_writable(target)
    with only_one(target):
        return export(config, hits, target)


def check_formats(formats: Sequence[Format], searcher: Searcher) -> None:
    """Raise QueryError if the index lacks what a format needs."""
    columns = [] if searcher.metadata is None else searcher.metadata.schema.names
    if "datacomp" in formats and UID not in columns:
        raise QueryError(
            f"{searcher.name} has no column {UID} in its metadata, which --write datacomp lists; embed with "
            "--enable_metadata True"
        )


def ask(config: FilterConfig, searcher: Searcher) -> Hits:
    """Return the hits of the query, or of each query of the file."""
    if config.queries is not None:
        from clip_retrieval.filter.queries import answer_file

        return collect_hits(searcher, answer_file(config.queries, searcher, config.selection), is_batch=True)
    query = open_query(config.asked.words, searcher)
    searcher.free_model()
    return collect_hits(searcher, [Asked(1, query.text, answer(searcher, query, config.selection))], is_batch=False)


def export(config: FilterConfig, hits: Hits, target: Folder) -> FilterResult:
    """Write the hits and their recipe into a folder, locked against other queries."""
    from clip_retrieval.filter.export import FILES, write_hits  # 40 ms, which the command spends during the search

    notes = write_hits(target, hits, config.write, config.export_mode)
    write_recipe(target, config, hits.searcher)
    asked = hits.asked[0].answer
    how = () if hits.is_batch or asked is None else asked.how
    return FilterResult(
        hits=hits,
        output_folder=target.url,
        files=[FILES[form] for form in FILES if form in config.write],
        how=(*how, *notes),
        warnings=compare_recipe(config, hits.searcher),
    )
