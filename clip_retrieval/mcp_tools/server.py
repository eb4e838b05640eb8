"""An index folder as tools of a language model, over the Model Context Protocol (https://modelcontextprotocol.io)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, ParamSpec, TypeVar

import numpy as np
from mcp.server import MCPServer
from mcp.server.mcpserver import Image
from mcp.server.mcpserver.exceptions import ToolError
from numpy.typing import NDArray
from pydantic import Field

from clip_retrieval.errors import ClipRetrievalError, ConfigError, QueryError
from clip_retrieval.query.answer import answer
from clip_retrieval.query.config import SelectionConfig
from clip_retrieval.query.embed import Query, add_up
from clip_retrieval.query.searcher import Searcher
from clip_retrieval.query.selection import NEAR_DUPLICATE
from clip_retrieval.query.terms import parse_words
from clip_retrieval.server.config import BackConfig, ServedConfig
from clip_retrieval.server.indices import EncoderPool, Generation, open_generation
from clip_retrieval.server.named import list_served
from clip_retrieval.server.pictures import make_thumbnail, read_original
from clip_retrieval.server.rows import read_rows
from clip_retrieval.version import __version__

P = ParamSpec("P")
R = TypeVar("R")

INSTRUCTIONS = (
    "Finds pictures (and captions) in an index of CLIP embeddings. A query says in words what a picture shows; "
    "similarities compare hits of one query only. Look at hits with `picture`, go on from one with `more_like`."
)
Limit = Annotated[int, Field(ge=1, le=100, description="Most hits.")]
Side = Annotated[int, Field(ge=16, le=1024, description="Longest side in pixels.")]
Row = Annotated[int, Field(ge=0, description="Id of a hit.")]
Searched = Annotated[Literal["image", "text"], Field(description="Search pictures or captions.")]
Where = Annotated[
    str | None, Field(description='Only rows that meet this condition over metadata columns: "width >= 512".')
]


@dataclass(frozen=True)
class Tools:
    """What a language model may call; it reads the docstrings."""

    generation: Generation

    def search(
        self,
        query: Annotated[str, Field(description='Words, or a sum of them: "beach - people", "dog + 0.5 * snow".')],
        limit: Limit = 10,
        where: Where = None,
        modality: Searched = "image",
    ) -> dict[str, Any]:
        """Find what fits a description best: id, similarity and metadata of each hit, without near-duplicates."""
        searcher = self.searcher(modality)
        return self.ask(searcher, embed_words(searcher, query), limit, where)

    def more_like(self, row: Row, limit: Limit = 10, where: Where = None) -> dict[str, Any]:
        """Find what is most similar to a hit of an earlier search."""
        searcher = self.generation.first
        return self.ask(searcher, searcher.like_row(row), limit, where)

    def describe(self) -> dict[str, Any]:
        """Describe the index: number of rows, model, and the metadata columns that `where` may use."""
        metadata = self.generation.first.metadata
        types = {} if metadata is None else {field.name: str(field.type) for field in metadata.schema}
        about = self.generation.describe()
        return {**about, "columns": {name: types[name] for name in about["columns"]}}

    def picture(self, row: Row, size: Side = 512) -> Image:
        """Show the picture of a hit."""
        data = make_thumbnail(read_original(self.generation, row), size) if row < self.row_count else None
        if data is None:
            raise QueryError(
                f"row {row} has no picture on this machine that may be shown; its metadata may have its url on the web"
            )
        return Image(data=data, format="jpeg")

    @property
    def row_count(self) -> int:
        return self.generation.first.index.row_count

    def searcher(self, modality: Searched) -> Searcher:
        found = self.generation.searchers.get(modality)
        if found is None:
            raise QueryError(f"the index has only {' and '.join(self.generation.searchers)} rows, no {modality} rows")
        return found

    def ask(self, searcher: Searcher, query: Query, limit: int, where: str | None) -> dict[str, Any]:
        selection = SelectionConfig(num_results=limit, where=where, deduplicate=NEAR_DUPLICATE)
        found = answer(searcher, query, selection)
        rows = self.rows(found.found.ids)
        hits = [
            {"id": row_id, "similarity": round(score, 4), "metadata": row}
            for row_id, score, row in zip(found.found.ids.tolist(), found.found.scores.tolist(), rows, strict=True)
        ]
        told = [*found.how, *([query.warning] if query.warning else [])]
        return {"hits": hits, "notes": told} if told else {"hits": hits}

    def rows(self, ids: NDArray[np.int64]) -> list[dict[str, Any]]:
        return read_rows(self.generation, ids, self.generation.columns)


def embed_words(searcher: Searcher, query: str) -> Query:
    """Return the query of texts and their weights; a word is never a path. Raises QueryError."""
    terms = parse_words(query)
    parts = [(words.weight, searcher.embed_text(words.text)) for words in terms]
    return parts[0][1] if len(parts) == 1 and parts[0][0] > 0 else add_up(query, parts)


def run_mcp(index_folder: str, config: ServedConfig) -> None:
    """Answer a client over stdin and stdout until it hangs up. Raises ClipRetrievalError if there is no index."""
    indices = list_served(BackConfig(indices_paths=index_folder, served=config))
    if len(indices) > 1:
        raise ConfigError(f"{index_folder} names {len(indices)} indices; give the folder of one")
    make_server(open_generation(indices[0], EncoderPool())).run("stdio")


def make_server(generation: Generation) -> MCPServer:
    """Return a server of an opened index."""
    server = MCPServer("clip-retrieval", instructions=INSTRUCTIONS, version=__version__, log_level="WARNING")
    tools = Tools(generation)
    for tool in (tools.search, tools.more_like, tools.describe, tools.picture):
        server.tool()(telling_errors(tool))
    return server


def telling_errors(tool: Callable[P, R]) -> Callable[P, R]:
    """Return a tool whose errors reach the language model as our sentences; the package hides other errors."""

    @functools.wraps(tool)
    def call(*arguments: P.args, **options: P.kwargs) -> R:
        try:
            return tool(*arguments, **options)
        except ClipRetrievalError as error:
            raise ToolError(str(error)) from error

    return call
