"""How an index folder is opened, and which hits are shown: options of every command that searches an index."""

from __future__ import annotations

from dataclasses import dataclass

from clip_retrieval.errors import ConfigError, QueryError
from clip_retrieval.installed import need
from clip_retrieval.layout import Modality
from clip_retrieval.options import check_least, option
from clip_retrieval.query.terms import Words, collect_words


@dataclass(frozen=True, kw_only=True)
class SearcherConfig:
    """Which index of a folder is used, with which model, and how it is searched."""

    modality: Modality = option("image", help="Search pictures or captions.")
    clip_model: str | None = option(None, help="The model of the index; only for folders that do not name theirs.")
    device: str = option("cpu", help="Device that the model runs on.")
    clip_cache_path: str | None = option(None, help="Folder for model downloads.")
    index_param: str | None = option(
        None, help="Search settings such as nprobe=64,efSearch=128; None: those of the index."
    )
    memory_map: bool = option(True, help="Leave the index on disk and read what the query needs, if faiss can.")
    refine_from: str | None = option(
        None, help="The embeddings folder of the index: rerank ten times as many candidates by the stored embeddings."
    )


@dataclass(frozen=True, kw_only=True)
class QueryConfig:
    """The query: terms that are added and subtracted."""

    query: tuple[str, ...] = option(
        (),
        help='A text, a picture (path or URL), an embedding (.npy), or a sum such as "beach + 0.5*photo.jpg - people" '
        "with spaces around the signs; quotes inside keep signs in a text. Several are added up.",
        repeatable=True,
    )
    minus: tuple[str, ...] = option((), help="A text, picture or embedding to subtract.", repeatable=True)
    like: tuple[int, ...] = option((), help="Ids of rows of the index to add: more like these.")
    weight: tuple[float, ...] = option(
        (), help="A factor for each --query, then for each --minus and --like, such as 1,0.5; without it all count 1."
    )

    @property
    def words(self) -> list[Words]:
        """The terms of the query. Raises ConfigError if one of them is invalid."""
        try:
            return collect_words(self.query, self.minus, self.like, self.weight)
        except QueryError as error:
            raise ConfigError(str(error)) from error


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """Which of the rows that a query finds become hits."""

    num_results: int = option(
        100, help="Largest number of hits; 0: all that are as similar as --threshold, or meet --where.", least=0
    )
    threshold: float | None = option(None, help="Leave out hits that are less similar than this (-1 to 1).")
    where: str | None = option(
        None,
        help="Search only rows that meet a condition over metadata columns: \"width >= 512 and license = 'cc0'\". "
        'id is the row\'s id; a metadata column id is "metadata.id", quoted.',
    )
    surprise: float | None = option(
        None,
        help="Leave out hits that this many rows or more would equal by chance, such as 0.1; hits that remain are "
        "real for any model and query.",
    )
    deduplicate: float | None = option(
        None,
        help="Show one of each group of near-duplicates: hits at least this similar to the one shown, such as 0.94.",
    )
    diverse: float | None = option(
        None, help="Prefer hits that differ from each other: 0 ranks only by similarity to the query, 1 by difference."
    )

    def __post_init__(self) -> None:
        check_least(self)
        if self.where is not None:
            need("duckdb", "--where", ConfigError, extra=None)
        if not self.num_results and self.threshold is None and self.where is None:
            raise ConfigError("--num_results 0 means all hits: add --threshold or --where to say what a hit is")
        if self.threshold is not None and not -1 <= self.threshold <= 1:
            raise ConfigError(f"threshold is a similarity between -1 and 1, not {self.threshold:g}")
        if self.surprise is not None and not self.surprise > 0:
            raise ConfigError(f"surprise is a number of rows above 0, such as 0.1, not {self.surprise:g}")
        for name in ("deduplicate", "diverse"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"{name} is a number between 0 and 1, not {value:g}")

    @property
    def is_compared(self) -> bool:
        """Say whether hits are chosen by their similarity to each other; then more of them are looked at."""
        return self.deduplicate is not None or self.diverse is not None
