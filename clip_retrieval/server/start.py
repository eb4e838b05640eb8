"""`back`, in this process or in several that this one supervises."""

from __future__ import annotations

from clip_retrieval.server.config import BackConfig


def run_back(config: BackConfig) -> None:
    """Serve until a signal says stop. Raises ClipRetrievalError."""
    if config.workers > 1:
        from clip_retrieval.server.workers.supervisor import run_workers  # loads no NumPy

        run_workers(config)
    else:
        from clip_retrieval.server.run import run_alone  # loads NumPy and faiss

        run_alone(config)
