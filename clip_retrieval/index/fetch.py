"""Embeddings on a store are fetched once: a build reads them five times, and files of this machine can be mapped."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from clip_retrieval.blobs import with_retries
from clip_retrieval.errors import IndexBuildError
from clip_retrieval.index.vectors import VectorFile, Vectors, read_header
from clip_retrieval.layout import Modality
from clip_retrieval.sizes import in_bytes
from clip_retrieval.storage import Folder

logger = logging.getLogger(__name__)

Found = Mapping[Modality, Vectors]


@contextmanager
def fetched(found: Found, place: Callable[[], AbstractContextManager[Path]], spare_bytes: int = 0) -> Iterator[Found]:
    """Give the vectors, with copies of what lies on a store while the block lasts.

    `place` gives a scratch folder. Where its disk has no room for them and `spare_bytes` more, they are read from the
    store again and again. Raises IndexBuildError where a file is no longer what its header said.
    """
    remote = {modality: vectors for modality, vectors in found.items() if not vectors.folder.is_local}
    if not remote:
        yield found
        return
    with place() as scratch:
        yield {**found, **fetch_all(remote, scratch)} if has_room(remote, scratch, spare_bytes) else found


def has_room(remote: Found, scratch: Path, spare_bytes: int) -> bool:
    wanted, free = sum(vectors.byte_count for vectors in remote.values()), shutil.disk_usage(scratch).free
    source = next(iter(remote.values())).folder.url
    if wanted + spare_bytes > free:
        logger.warning(
            "%s of embeddings are read from their store at each of some five passes: %s are free in %s, too little "
            "for a copy of %s and the index",
            *(in_bytes(wanted), in_bytes(free), scratch.parent, source),
        )
        return False
    logger.info("fetching %s of embeddings from %s", in_bytes(wanted), source)
    return True


def fetch_all(remote: Found, scratch: Path) -> dict[Modality, Vectors]:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        bar = progress.add_task("fetching", total=sum(vectors.byte_count for vectors in remote.values()))
        copies = {}
        for modality, vectors in remote.items():
            copy = scratch / f"{modality}-embeddings"
            copy.mkdir()
            for file in vectors.files:
                fetch(vectors, file, Folder(str(copy)))
                progress.advance(bar, file.byte_count)
            copies[modality] = replace(vectors, copy=Folder(str(copy)))
    return copies


def fetch(vectors: Vectors, file: VectorFile, copy: Folder) -> None:
    source, target = vectors.path(file), copy.path(file.name)
    fs = vectors.folder.fs
    with vectors.folder.answering():
        with_retries(fs, lambda: fs.get_file(source, target))
    if read_header(copy, file.name) != file:
        raise IndexBuildError(f"{source} changed while it was fetched; build it again")
