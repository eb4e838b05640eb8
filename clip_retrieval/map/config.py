"""The options of `map`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from clip_retrieval.errors import ConfigError
from clip_retrieval.layout import Modality
from clip_retrieval.options import check_least, option

Layout = Literal["auto", "pca", "umap"]
MOST_POINTS = 200_000  # more are too slow to draw


@dataclass(frozen=True, kw_only=True)
class MapConfig:
    """What is laid out, how, and where the page goes."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("folder", "output")

    folder: str = option(help="Folder that index or inference wrote.", aliases=("index_folder", "embeddings_folder"))
    output: str = option(help="The page: a file that ends in .html.")
    color: str | None = option(
        None, help="A metadata column that colors the points: its most frequent values, or a scale for numbers."
    )
    modality: Modality = option("image", help="Lay out pictures or captions.")
    layout: Layout = option(
        "auto",
        help="umap places similar points next to each other (install clip-retrieval[map]); pca is the flattest view of "
        "the space. auto: umap if it is installed.",
    )
    points: int = option(100_000, help="Largest number of points; of more rows, this many are drawn evenly.", least=1)
    thumbnails: int = option(
        4000, help="Pictures that the page holds, 64 pixels wide, spread evenly over the map; 0: none.", least=0
    )
    seed: int = option(0, help="Seed of the sampled rows and of umap; the same seed gives the same page.", least=0)

    def __post_init__(self) -> None:
        check_least(self)
        if self.points > MOST_POINTS:
            raise ConfigError(f"points may be at most {MOST_POINTS:,}: more are too slow for a browser")
        if not self.output.endswith((".html", ".htm")):
            raise ConfigError(f"the map is a page: give it a name that ends in .html, not {self.output}")
