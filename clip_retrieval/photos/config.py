"""The options of `search`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from clip_retrieval.errors import ConfigError
from clip_retrieval.options import build_config, group, option, option_of
from clip_retrieval.query.config import QueryConfig, SelectionConfig

QUERYLESS = ("interactive", "like")  # options with which a single argument that is a folder is no query


@dataclass(frozen=True, kw_only=True)
class PhotoSelection(SelectionConfig):
    """Which rows are hits, in a number that people look at."""

    num_results: int = option_of(SelectionConfig, "num_results", default=10)


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """How the hits are shown."""

    paths: bool = option(False, help="Print paths only, best first, one a line.", is_switch=True)
    null: bool = option(
        False, help="End each path with a NUL character instead, for xargs -0.", aliases=("0",), is_switch=True
    )
    open: bool = option(False, help="Open the hits as a page in the browser.", is_switch=True)
    thumbnails: bool = option(True, help="Show pictures in the table, where the output is a terminal.")
    interactive: bool = option(
        False,
        help="Keep the model loaded and answer line by line; `help` there says what can be asked.",
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
    """What is done with what is kept, instead of a search."""

    list: bool = option(False, help="Show the folders that are known: model, pictures, size, last use.", is_switch=True)
    forget: str | None = option(None, help="Remove what is kept of a folder; its pictures are not touched.")
    use_model: str | None = option(
        None, help="Take this model for folders that are new from now on; auto: the best that is on this machine."
    )

    @property
    def is_asked(self) -> bool:
        return self.list or self.forget is not None or self.use_model is not None


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """A query, the folder of pictures that it is asked of, and how the answer is shown."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("query", "folder")

    asked: QueryConfig = group(QueryConfig)
    folder: str = option(".", help="Folder of pictures, with all folders below it; without it the working folder.")
    clip_model: str | None = option(
        None,
        help="Model to embed a new folder with. None: what --use_model set, else the best on this machine.",
    )
    reembed: bool = option(False, help="Embed the folder anew, with --clip_model where that is given.", is_switch=True)
    selection: PhotoSelection = group(PhotoSelection)
    output: OutputConfig = group(OutputConfig)
    upkeep: UpkeepConfig = group(UpkeepConfig)

    def __post_init__(self) -> None:
        if not self.upkeep.is_asked and not self.asked.words and not self.output.interactive:
            raise ConfigError('there is no query; ask such as: clip-retrieval search "a dog on the beach" FOLDER')


def read_search_config(values: Mapping[str, object], arguments: Sequence[object] = ()) -> SearchConfig:
    """Return the config of `search`; one argument is the folder where the query is elsewhere, or comes later."""
    is_alone = len(arguments) == 1 and not {"query", "folder"} & set(values)
    if is_alone and set(QUERYLESS) & set(values) and Path(str(arguments[0])).is_dir():
        values, arguments = {**values, "folder": arguments[0]}, ()
    return build_config(SearchConfig, values, arguments)
