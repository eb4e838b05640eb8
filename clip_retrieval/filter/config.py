"""The options of `filter`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from clip_retrieval.errors import ConfigError
from clip_retrieval.options import check_least, group, option
from clip_retrieval.query.config import SearcherConfig


@dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """A query, where it is asked, and where its hits go."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("query", "output_folder", "indice_folder", "num_results", "threshold")

    query: str = option(help="A text, the path of a picture, or the path of an embedding (.npy).")
    output_folder: str = option(help="Where the hits go: pictures, results.parquet, results.json, index.html.")
    indice_folder: str = option(help="Folder that index wrote.", aliases=("index_folder",))
    num_results: int = option(100, help="Hits at most.", least=1)
    threshold: float | None = option(None, help="Leave out hits that are less similar than this (-1 to 1).")
    searcher: SearcherConfig = group(SearcherConfig)
    copy_images: bool = option(True, help="Copy the pictures of the hits, out of their tars where they are in some.")

    def __post_init__(self) -> None:
        check_least(self)
        if self.threshold is not None and not -1 <= self.threshold <= 1:
            raise ConfigError(f"threshold is a similarity between -1 and 1, not {self.threshold:g}")
        if not self.query.strip():
            raise ConfigError("the query is empty; give a text, a picture or an embedding (.npy)")
