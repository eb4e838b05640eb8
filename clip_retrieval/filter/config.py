"""The options of `filter`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from clip_retrieval.errors import ConfigError, QueryError
from clip_retrieval.options import group, option
from clip_retrieval.query.config import SearcherConfig, SelectionConfig
from clip_retrieval.query.terms import Words, collect_words


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
    selection: SelectionConfig = group(SelectionConfig)
    searcher: SearcherConfig = group(SearcherConfig)
    copy_images: bool = option(True, help="Copy the pictures of the hits, out of their tars where they are in some.")

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
        if not self.words:
            raise ConfigError("there is no query; give a text, a picture, an embedding (.npy), or --like ID")
