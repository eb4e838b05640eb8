"""The metadata next to an index: copies of the parquet files, and metadata.arrow made from them."""

from __future__ import annotations

import logging

from clip_retrieval.checksums import FileSums
from clip_retrieval.index.config import IndexConfig
from clip_retrieval.layout import METADATA_ARROW, METADATA_FOLDER, EmbeddingsFolder, IndexFolder
from clip_retrieval.metadata.joined import copy_columns, copy_parquet
from clip_retrieval.metadata.write import write_metadata_arrow

logger = logging.getLogger(__name__)


def place_metadata(config: IndexConfig, source: EmbeddingsFolder, target: IndexFolder) -> FileSums:
    """Copy the metadata and write metadata.arrow, as the options say; return the checksum of metadata.arrow.

    An earlier metadata.arrow is removed first, since it may be of other embeddings.
    """
    target.remove(METADATA_ARROW)
    if config.copy_metadata:
        copy_parquet(source, target, METADATA_FOLDER)
        copy_columns(source, target)
    else:
        drop_stale_copies(source, target)
    return write_metadata_arrow(source, target) if writes_arrow(config) else {}


def drop_stale_copies(source: EmbeddingsFolder, target: IndexFolder) -> None:
    """Remove copies of other rows' metadata from an earlier build: the new index would show them."""
    current = source.sizes(METADATA_FOLDER, ".parquet")
    for name, size in target.sizes(METADATA_FOLDER, ".parquet").items():
        if current.get(name) != size:
            logger.warning("removing %s: it is not of these embeddings", target.path(f"{METADATA_FOLDER}/{name}"))
            target.remove(f"{METADATA_FOLDER}/{name}")


def writes_arrow(config: IndexConfig) -> bool:
    return config.copy_metadata if config.write_arrow is None else config.write_arrow
