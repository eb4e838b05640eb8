"""Runs inference, index and three queries once, on the embedded gallery with the embedded model."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_retrieval.filter.config import FilterConfig
from clip_retrieval.filter.run import FilterResult, run_filter
from clip_retrieval.index.build import BuiltIndices, build_indices
from clip_retrieval.index.config import IndexConfig
from clip_retrieval.inference.run import clip_inference
from clip_retrieval.inference.summary import RunSummary
from clip_retrieval.query.config import QueryConfig, SelectionConfig

GALLERY = Path(__file__).parent / "gallery"
QUERIES = ("slice of pizza", "red heart", "dog")
HITS = 24


@dataclass(frozen=True)
class DemoResult:
    """What the demo made."""

    summary: RunSummary
    indices: BuiltIndices
    answers: list[FilterResult]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {
            "inference": self.summary.to_json(),
            "index": self.indices.to_json(),
            "queries": [answer.to_json() for answer in self.answers],
            "seconds": round(self.seconds, 1),
        }


def run_demo(folder: str) -> DemoResult:
    """Embed the gallery, index it and run three queries, all below `folder`."""
    start = time.perf_counter()
    embeddings, index = f"{folder}/embeddings", f"{folder}/index"
    summary = clip_inference(
        str(GALLERY), embeddings, input_format="webdataset", clip_model="demo", enable_metadata=True, device="cpu"
    )
    indices = build_indices(IndexConfig(embeddings_folder=embeddings, index_folder=index))
    answers = [
        run_filter(
            FilterConfig(
                asked=QueryConfig(query=(query,)),
                output_folder=f"{folder}/{query.replace(' ', '-')}",
                indice_folder=index,
                selection=SelectionConfig(num_results=HITS),
            )
        )
        for query in QUERIES
    ]
    return DemoResult(summary, indices, answers, time.perf_counter() - start)
