"""What builds an index file: one engine each, behind one function."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never

from clip_retrieval.errors import ConfigError
from clip_retrieval.index.config import EngineName, IndexConfig
from clip_retrieval.index.vectors import Vectors
from clip_retrieval.layout import IndexFolder


@dataclass(frozen=True)
class Bounds:
    """What building may use."""

    max_index_bytes: int
    available_bytes: int
    cores: int | None


Engine = Callable[[Vectors, Bounds, Path], dict[str, Any]]  # writes the index to the path, returns image.json's keys


@contextmanager
def chosen_engine(config: IndexConfig, target: IndexFolder) -> Iterator[Engine]:
    """Give what builds: an engine here, or one on a Spark cluster, which may write a folder of several files."""
    if config.spark.distributed is None:
        yield open_engine(config.engine)
        return
    if config.engine == "autofaiss":
        raise ConfigError("--distributed pyspark is done by our engine, not by autofaiss; use --engine faiss")
    from clip_retrieval.index.distributed.build import distributed_engine

    with distributed_engine(config, target) as engine:
        yield engine


def open_engine(name: EngineName) -> Engine:
    """Return the engine; raises ConfigError where it is not installed."""
    has_autofaiss = importlib.util.find_spec("autofaiss") is not None
    match name:
        case "autofaiss" | "auto" if has_autofaiss:
            from clip_retrieval.index.engines.autofaiss import build_with_autofaiss

            return build_with_autofaiss
        case "autofaiss":
            raise ConfigError("autofaiss is not installed (it has no release for this Python); use --engine faiss")
        case "faiss" | "auto":
            from clip_retrieval.index.engines.faiss import build_with_faiss

            return build_with_faiss
        case _:
            assert_never(name)
