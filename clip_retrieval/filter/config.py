"""The options of `filter`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from clip_retrieval.errors import ConfigError
from clip_retrieval.options import group, option
from clip_retrieval.query.config import QueryConfig, SearcherConfig, SelectionConfig

MARKER = ".clip-retrieval-results"  # in a folder that a query wrote into

UID = "uid"  # datacomp's column

Export = Literal["copy", "hardlink", "symlink", "none"]
Format = Literal["parquet", "json", "html", "jsonl", "csv", "ids", "datacomp", "webdataset"]


@dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """A query, the index that answers it, and where its hits go."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("query", "output_folder", "indice_folder", "num_results", "threshold")

    asked: QueryConfig = group(QueryConfig)
    output_folder: str = option(help="Where the hits go: pictures, results.parquet, results.json, index.html.")
    indice_folder: str = option(help="Folder that index wrote.", aliases=("index_folder",))
    queries: str | None = option(
        None,
        help="A file of queries instead: txt with one per line, or csv, parquet or json lines with a column `query` "
        "(else the first column of texts). All are searched at once; results begin with number and text of the query.",
    )
    recipe: str | None = option(
        None, help="The recipe.json of an earlier answer: make the same selection again; other options given here win."
    )
    selection: SelectionConfig = group(SelectionConfig)
    searcher: SearcherConfig = group(SearcherConfig)
    export: Export = option(
        "copy",
        help="How the pictures of the hits get into images/: copied, or linked if they are files of this machine "
        "(pictures in tars, zips and tables are always copied).",
    )
    copy_images: bool = option(True, help="False: the same as --export none.")
    write: tuple[Format, ...] = option(
        ("parquet", "json", "html"),
        help="What is written of the hits: parquet, json, jsonl, csv, html (a sheet), ids (one row id per line), "
        "datacomp (an npy of uids) and webdataset (tars with the samples of the hits).",
    )

    @property
    def export_mode(self) -> Export:
        return self.export if self.copy_images else "none"

    def __post_init__(self) -> None:
        if not self.output_folder:
            raise ConfigError("output_folder is empty; name a folder")
        has_words = bool(self.asked.words)
        if self.queries is not None and has_words:
            raise ConfigError("give queries in a file or in words, not both")
        if self.queries is None and not has_words:
            raise ConfigError(
                "there is no query; give a text, a picture, an embedding (.npy), --like ID or --queries FILE"
            )
        if not self.write:
            raise ConfigError("write is empty; name what is written, such as parquet,json")
