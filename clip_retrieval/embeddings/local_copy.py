"""Embeddings on a store are fetched once: a build reads them five times, and files of this machine can be mapped."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event

from fsspec.callbacks import Callback

from clip_retrieval.blobs import with_retries
from clip_retrieval.embeddings.vectors import VectorFile, Vectors, read_header
from clip_retrieval.errors import IndexBuildError
from clip_retrieval.layout import Modality
from clip_retrieval.progress import Advance, show_progress
from clip_retrieval.storage import Folder
from clip_retrieval.words import in_bytes

logger = logging.getLogger(__name__)

STREAMS = 4  # files that are fetched at once

Found = Mapping[Modality, Vectors]


@contextmanager
def fetched(found: Found, place: Callable[[], AbstractContextManager[Path]], spare_bytes: int = 0) -> Iterator[Found]:
    """Yield the vectors, with local copies of remote files while the block lasts.

    `place` gives a scratch folder. If its disk has no room for them and `spare_bytes` more, each pass reads them from
    the store. Raises IndexBuildError if a file is no longer what its header said.
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
    """Fetch some files at once; the first that fails, or Ctrl-C, ends the others too."""
    copies = {modality: Folder(str(scratch / f"{modality}-embeddings")) for modality in remote}
    for copy in copies.values():
        Path(copy.root).mkdir()
    stop = Event()
    total = sum(vectors.byte_count for vectors in remote.values())
    with show_progress("fetching", total, is_bytes=True) as advance, ThreadPoolExecutor(STREAMS) as pool:
        watch = BlockWatch(stop, advance)
        coming = [
            pool.submit(fetch_file, vectors, file, copies[modality], watch)
            for modality, vectors in remote.items()
            for file in vectors.files
        ]
        try:
            for future in as_completed(coming):
                future.result()
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
    return {modality: replace(vectors, copy=copies[modality]) for modality, vectors in remote.items()}


class BlockWatch(Callback):  # type: ignore[misc]
    """Counts fetched blocks; raises CancelledError once the fetch is to stop."""

    def __init__(self, stop: Event, tell: Advance) -> None:
        super().__init__()
        self.stop, self.tell = stop, tell

    def relative_update(self, inc: int = 1) -> None:
        if self.stop.is_set():
            raise CancelledError
        self.tell(inc)


def fetch_file(vectors: Vectors, file: VectorFile, copy: Folder, watch: BlockWatch) -> None:
    source, target = vectors.path(file), copy.path(file.name)
    fs = vectors.folder.fs
    try:
        with vectors.folder.answering():
            with_retries(fs, lambda: fs.get_file(source, target, callback=watch))
    except FileNotFoundError as error:
        raise IndexBuildError(f"{source} was removed before it was fetched; build the index again") from error
    if read_header(copy, file.name) != file:
        raise IndexBuildError(f"{source} changed while it was fetched; build the index again")
