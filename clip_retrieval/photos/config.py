"""The options of `search`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from clip_retrieval.errors import ConfigError
from clip_retrieval.options import build_config, group, option, option_of
from clip_retrieval.query.config import QueryConfig, SelectionConfig

QUERYLESS = ("interactive", "like")  # options with which a single argument that is a folder is not a query


@dataclass(frozen=True, kw_only=True)
class PhotoSelection(SelectionConfig):
    """Which rows are hits; by default as many as people look at."""

    num_results: int = option_of(SelectionConfig, "num_results", default=10)


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """How the hits are shown."""

    paths: bool = option(False, help="Print only paths, best first, one per line.", is_switch=True)
    null: bool = option(
        False, help="End each path with a NUL character instead, for xargs -0.", aliases=("0",), is_switch=True
    )
    open: bool = option(False, help="Open the hits as a page in the browser.", is_switch=True)
    thumbnails: bool = option(True, help="Show pictures in the table, if the output is a terminal.")
    interactive: bool = option(
        False,
        help="Keep the model loaded and answer line by line; type `help` there for the commands.",
        is_switch=True,
    )

    @property
    def is_table(self) -> bool:
        return not self.paths and not self.null

    def __post_init__(self) -> None:
        if self.interactive and (self.paths or self.null or self.open):
            raise ConfigError("--interactive answers with tables; leave out --paths, -0 and --open")


@dataclass(frozen=True, kw_only=True)
class UpkeepConfig:
    """Maintenance of kept folders, instead of a search."""

    list: bool = option(False, help="Show the kept folders: model, pictures, size, last use.", is_switch=True)
    forget: str | None = option(None, help="Remove what is kept for a folder; its pictures are not touched.")
    use_model: str | None = option(
        None, help="Use this model for new folders from now on; auto: the best one on this machine."
    )

    @property
    def is_asked(self) -> bool:
        return self.list or self.forget is not None or self.use_model is not None


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """A query, the folder of pictures to search, and how the answer is shown."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("query", "folder")

    asked: QueryConfig = group(QueryConfig)
    folder: str = option(".", help="Folder of pictures, with all folders below it; without it the working folder.")
    clip_model: str | None = option(
        None,
        help="Model to embed a new folder with. None: what --use_model set, else the best on this machine.",
    )
    reembed: bool = option(False, help="Embed the folder again, with --clip_model if it is given.", is_switch=True)
    selection: PhotoSelection = group(PhotoSelection)
    output: OutputConfig = group(OutputConfig)
    upkeep: UpkeepConfig = group(UpkeepConfig)

    def __post_init__(self) -> None:
        if not self.upkeep.is_asked and not self.asked.words and not self.output.interactive:
            raise ConfigError('there is no query; give one, such as: clip-retrieval search "a dog on the beach" FOLDER')


def read_search_config(values: Mapping[str, object], arguments: Sequence[object] = ()) -> SearchConfig:
    """Return the config of `search`; a single argument is the folder if the query is an option, or comes later."""
    is_alone = len(arguments) == 1 and not {"query", "folder"} & set(values)
    if is_alone and set(QUERYLESS) & set(values) and Path(str(arguments[0])).is_dir():
        values, arguments = {**values, "folder": arguments[0]}, ()
    return build_config(SearchConfig, values, arguments)
