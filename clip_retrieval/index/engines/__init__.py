"""Engines that build index files, behind one function."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from clip_retrieval.clusters.open import open_cluster
from clip_retrieval.embeddings.vectors import Vectors
from clip_retrieval.errors import ConfigError
from clip_retrieval.index.building.on_disk import sync, sync_folder
from clip_retrieval.index.config import IndexConfig
from clip_retrieval.index.planning.bounds import Bounds
from clip_retrieval.layout import MODALITIES, IndexFolder
from clip_retrieval.storage import Folder

WORK_FOLDER = "_building"


Engine = Callable[[Vectors, Bounds, Path], dict[str, Any]]  # writes the index to the path, returns image.json's keys


@contextmanager
def chosen_engine(config: IndexConfig, target: IndexFolder) -> Iterator[Engine]:
    """Yield the engine: a local one, or one on a cluster, which may write a folder of several files.

    Raises ConfigError if the engine is not installed, or cannot do what is asked for.
    """
    if config.engine == "autofaiss":
        yield open_autofaiss(config)
        return
    from clip_retrieval.index.engines.faiss import FaissEngine
    from clip_retrieval.index.engines.local import LocalRunner

    place = Folder(config.distribution.temporary_indices_folder or f"{target.url}/{WORK_FOLDER}", keeps=True)
    with ExitStack() as stack:
        if config.distribution.distributed is None:
            engine = FaissEngine(LocalRunner(), place)
        else:
            cluster = stack.enter_context(
                open_cluster(config.distribution.distributed, config.distribution.cluster, uses_gpus=False)
            )
            engine = FaissEngine(cluster, place, config.distribution.nb_indices_to_keep)
        yield engine
    if engine.finished:
        sync_indices(target)
    for work in engine.finished:
        work.remove("")
    if config.distribution.temporary_indices_folder is None:
        place.remove("")  # parts of builds with other embeddings or bounds


def sync_indices(target: IndexFolder) -> None:
    """Wait until the published indices are on the disk, since their parts are about to be removed."""
    names = [target.index_name(modality) for modality in MODALITIES]
    for name in names if target.is_local else ():
        if target.exists(name):
            sync(Path(target.path(name)))
    if target.is_local:
        sync_folder(Path(target.root))


def open_autofaiss(config: IndexConfig) -> Engine:
    if config.index_key is not None:
        raise ConfigError("--index_key is for --engine faiss; autofaiss chooses by itself")
    if config.distribution.distributed is not None:
        raise ConfigError("--distributed is done by our engine, not by autofaiss; use --engine faiss")
    if importlib.util.find_spec("autofaiss") is None:
        raise ConfigError("autofaiss is not installed; clip-retrieval brings it, up to Python 3.12. Use --engine faiss")
    from clip_retrieval.index.engines.autofaiss import build_with_autofaiss

    return build_with_autofaiss
