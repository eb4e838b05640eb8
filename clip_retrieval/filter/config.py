"""The options of `filter`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from clip_retrieval.errors import ConfigError, QueryError
from clip_retrieval.options import group, option
from clip_retrieval.query.config import SearcherConfig, SelectionConfig
from clip_retrieval.query.terms import Words, collect_words

MARKER = ".clip-retrieval-results"  # in a folder that a query wrote into

Export = Literal["copy", "hardlink", "symlink", "none"]
Format = Literal["parquet", "json", "html", "jsonl", "csv", "ids", "datacomp", "webdataset"]


@dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """A query, where it is asked, and where its hits go."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("query", "output_folder", "indice_folder", "num_results", "threshold")

    query: tuple[str, ...] = option(
        (),
        help='A text, a picture (path or URL), an embedding (.npy), or a sum such as "beach + 0.5*photo.jpg - people" '
        "with spaces around the signs; quotes inside keep signs in a text. Several are added up.",
        repeatable=True,
    )
    output_folder: str = option(help="Where the hits go: pictures, results.parquet, results.json, index.html.")
    indice_folder: str = option(help="Folder that index wrote.", aliases=("index_folder",))
    minus: tuple[str, ...] = option((), help="A text, picture or embedding to take away.", repeatable=True)
    like: tuple[int, ...] = option((), help="Ids of rows of the index to add: more like these.")
    weight: tuple[float, ...] = option(
        (), help="A factor for each --query, then for each --minus and --like, such as 1,0.5; without it all count 1."
    )
    queries: str | None = option(
        None,
        help="A file of queries instead: txt with one a line, or csv, parquet or json lines with a column `query` "
        "(else the first column of texts). All are searched at once; results begin with number and text of the query.",
    )
    recipe: str | None = option(
        None, help="The recipe.json beside an earlier answer: make the same selection again; options given win."
    )
    selection: SelectionConfig = group(SelectionConfig)
    searcher: SearcherConfig = group(SearcherConfig)
    export: Export = option(
        "copy",
        help="How the pictures of the hits come into images/: copied, or linked where they are files of this machine "
        "(pictures in tars, zips and tables are copied then, too).",
    )
    copy_images: bool = option(True, help="False: as --export none.")
    write: tuple[Format, ...] = option(
        ("parquet", "json", "html"),
        help="What is written of the hits: parquet, json, jsonl, csv, html (a sheet), ids (a row id a line), datacomp "
        "(an npy of uids) and webdataset (tars with the samples of the hits).",
    )

    @property
    def export_mode(self) -> Export:
        return self.export if self.copy_images else "none"

    @property
    def words(self) -> list[Words]:
        """The terms of the query. Raises ConfigError where one of them is none."""
        try:
            return collect_words(self.query, self.minus, self.like, self.weight)
        except QueryError as error:
            raise ConfigError(str(error)) from error

    def __post_init__(self) -> None:
        if not self.output_folder:
            raise ConfigError("output_folder is empty; name a folder")
        has_words = bool(self.words)
        if self.queries is not None and has_words:
            raise ConfigError("give queries in a file or in words, not both")
        if self.queries is None and not has_words:
            raise ConfigError(
                "there is no query; give a text, a picture, an embedding (.npy), --like ID or --queries FILE"
            )
        if not self.write:
            raise ConfigError("write is empty; name what is written, such as parquet,json")
