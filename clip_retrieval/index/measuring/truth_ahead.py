"""Exact neighbors, found in a thread during the build of the indices that are measured with them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import faiss

from clip_retrieval.embeddings.vectors import Vectors
from clip_retrieval.index.measuring.evaluate import Truths, find_truths
from clip_retrieval.index.measuring.queries import MOST_QUERIES
from clip_retrieval.index.measuring.truth import Effort, use_one_thread
from clip_retrieval.layout import Modality


class TruthsAhead:
    """Exact answers by modality of the index, computed in a thread; leaving the block stops it.

    Building seldom keeps all cores busy, since it waits for the disk or for one of its threads. Files of a store are
    read only when their turn comes, since each is held in memory as a whole.
    """

    def __init__(
        self,
        found: Mapping[Modality, Vectors],
        modalities: Collection[Modality],
        cores: int | None = None,
        most_queries: int = MOST_QUERIES,
    ) -> None:
        self.found = found
        self.cores = cores or faiss.omp_get_max_threads()
        self.effort = Effort(max(1, self.cores // 2), most_queries=most_queries)
        self.thread = ThreadPoolExecutor(1, initializer=use_one_thread)
        early = [modality for modality in modalities if found[modality].is_here and self.cores > 1]
        self.coming: dict[Modality, Future[Truths]] = {
            modality: self.thread.submit(find_truths, modality, found, self.effort) for modality in early
        }

    def __enter__(self) -> TruthsAhead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.effort.stop.set()
        self.thread.shutdown(cancel_futures=True)

    def of(self, modalities: Collection[Modality]) -> dict[Modality, Truths]:
        """Wait for all truths, so times are measured on an idle machine; return the truths of some indices."""
        coming = {modality: self.coming.get(modality) for modality in modalities}
        alone = Effort(self.cores, most_queries=self.effort.most_queries)
        return {
            modality: future.result() if future else find_truths(modality, self.found, alone)
            for modality, future in coming.items()
        }
