"""The options of `mcp`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from clip_retrieval.options import group, option
from clip_retrieval.server.config import ServedConfig


@dataclass(frozen=True, kw_only=True)
class McpConfig:
    """Which index is offered, and how it is opened."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("index_folder",)

    index_folder: str = option(help="Folder that `clip-retrieval index` wrote.", aliases=("indice_folder",))
    served: ServedConfig = group(ServedConfig)
