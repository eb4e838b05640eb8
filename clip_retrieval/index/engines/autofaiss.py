"""autofaiss as an engine: in a separate process, since it resets its host's logging; its refusals are errors."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import tempfile
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from clip_retrieval.embeddings.vectors import Vectors
from clip_retrieval.errors import IndexBuildError
from clip_retrieval.index.planning.bounds import Bounds
from clip_retrieval.process.subprocesses import module_command, module_environment
from clip_retrieval.search.cores import core_variables
from clip_retrieval.words import in_bytes

logger = logging.getLogger(__name__)

KEPT_LINES = 12
STAGE = re.compile(r"^\S+ \S+ \[(INFO|ERROR)\]:\s*(?P<text>.*)$")


def build_with_autofaiss(vectors: Vectors, bounds: Bounds, path: Path) -> dict[str, Any]:
    """Let autofaiss choose, train, fill and tune an index within the bounds."""
    # Use the index's scratch folder, unless autofaiss would read its name as a pattern.
    place = None if any(mark in str(path) for mark in "*?[") else path.parent
    with tempfile.TemporaryDirectory(prefix="embeddings-", dir=place) as scratch:
        stage(vectors, Path(scratch) / "embeddings")
        return run_autofaiss(vectors, bounds, Path(scratch) / "embeddings", path)


def stage(vectors: Vectors, folder: Path) -> None:
    """Link (or copy, from stores) the embeddings' files in row order, under plain names.

    autofaiss reads every npy file below its folder, and reads the folder's name as a glob pattern.
    """
    folder.mkdir()
    for i, file in enumerate(vectors.files):
        link = folder / f"{i:08d}.npy"
        rows = vectors.open(file)
        if vectors.is_here and rows.dtype.isnative:
            link.symlink_to(Path(vectors.path_here(file)).absolute())
        else:
            np.save(link, rows.astype(rows.dtype.newbyteorder("=")))


def run_autofaiss(vectors: Vectors, bounds: Bounds, embeddings: Path, path: Path) -> dict[str, Any]:
    """Run it in a process, and return its report; raises IndexBuildError with what it said."""
    infos_path = embeddings.with_name("infos.json")
    task = {
        "embeddings": str(embeddings),
        "index_path": str(path.absolute()),
        "index_infos_path": str(infos_path),
        "max_index_memory_usage": f"{bounds.max_index_bytes}B",
        "current_memory_available": f"{bounds.available_bytes}B",
        "nb_cores": bounds.cores,
        "metric_type": "ip",
    }
    process = subprocess.Popen(
        module_command("clip_retrieval.index.engines.autofaiss_process"),
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=module_environment(**core_variables(bounds.cores)),
    )
    try:
        lines = converse(process, json.dumps(task))
    finally:
        process.kill()
        process.wait()
    if process.returncode != 0 or not infos_path.exists():
        raise IndexBuildError(explain_refusal(vectors, bounds, lines, process.returncode))
    infos: dict[str, Any] = json.loads(infos_path.read_text())
    if infos["nb vectors"] != vectors.row_count:
        raise IndexBuildError(
            f"autofaiss indexed {infos['nb vectors']:,} of {vectors.row_count:,} vectors; use --engine faiss"
        )
    return infos


def converse(process: subprocess.Popen[str], task: str) -> list[str]:
    """Send the task, log the process's output, and return its last lines."""
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write(task)
    process.stdin.close()
    kept: deque[str] = deque(maxlen=KEPT_LINES)
    for line in process.stderr:
        match = STAGE.match(line)
        if match:
            logger.debug("autofaiss: %s", match["text"])
        kept.append(match["text"] if match else line.strip())
    process.stderr.close()
    process.wait()
    return list(kept)


def explain_refusal(vectors: Vectors, bounds: Bounds, lines: list[str], code: int) -> str:
    said = next((line for line in reversed(lines) if "memory" in line or "Error" in line), lines[-1] if lines else "")
    size = vectors.row_count * vectors.dim * 4
    if code < 0:
        said = f"it was killed by signal {-code}, as the system does when memory runs out"
    return (
        f"autofaiss built no index of {vectors.row_count:,} x {vectors.dim} vectors ({in_bytes(size)} in fp32) "
        f"within max_index_memory_usage {in_bytes(bounds.max_index_bytes)} and current_memory_available "
        f"{in_bytes(bounds.available_bytes)}: {said}. Raise --current_memory_available (it must be well above "
        "--max_index_memory_usage), or change --max_index_memory_usage"
    )
