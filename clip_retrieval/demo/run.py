"""Everything once, on the embedded gallery with the embedded model: inference, index, three queries."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from clip_retrieval.filter.config import FilterConfig
from clip_retrieval.filter.report import hit_table
from clip_retrieval.filter.run import FilterResult, run_filter
from clip_retrieval.index.build import BuiltIndices, build_indices
from clip_retrieval.index.config import IndexConfig
from clip_retrieval.inference.run import RunSummary, clip_inference

GALLERY = Path(__file__).parent / "gallery"
QUERIES = ("slice of pizza", "red heart", "dog")
SHOWN_HITS = 4
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
    """Embed the gallery, index it and ask three queries, all below `folder`."""
    start = time.perf_counter()
    embeddings, index = f"{folder}/embeddings", f"{folder}/index"
    summary = clip_inference(
        str(GALLERY), embeddings, input_format="webdataset", clip_model="demo", enable_metadata=True, device="cpu"
    )
    indices = build_indices(IndexConfig(embeddings_folder=embeddings, index_folder=index))
    answers = [
        run_filter(
            FilterConfig(
                query=query, output_folder=f"{folder}/{query.replace(' ', '-')}", indice_folder=index, num_results=HITS
            )
        )
        for query in QUERIES
    ]
    return DemoResult(summary, indices, answers, time.perf_counter() - start)


def print_demo(result: DemoResult) -> None:
    """Print the first hits of each query, and where to look at all of them."""
    console = Console(highlight=False, markup=False, emoji=False)
    for answer in result.answers:
        console.print(hit_table(answer, SHOWN_HITS))
    count, seconds = result.summary.stats.sample_count, result.seconds
    console.print(f"{count:,} pictures embedded, indexed and asked {len(QUERIES)} times in {seconds:.0f} s.")
    console.print("Look at all hits in a browser:")
    for answer in result.answers:
        console.print(f"  {Path(answer.output_folder).absolute() / 'index.html'}", soft_wrap=True)
    folder = Path(result.indices.index_folder)
    console.print("Ask more:")
    console.print(f"  {own_command()} filter 'smiling face' {folder.parent}/smiling-face {folder}", soft_wrap=True)


def own_command() -> str:
    """Return how this command can be called again: by its name where that is on the path, else as it was."""
    return "clip-retrieval" if shutil.which("clip-retrieval") else sys.argv[0]
