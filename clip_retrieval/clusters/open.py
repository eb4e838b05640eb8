"""Connects to the cluster that options name; the one place that imports an engine."""

from __future__ import annotations

from contextlib import AbstractContextManager

from clip_retrieval.clusters.base import Cluster, ShowProgress
from clip_retrieval.clusters.config import ClusterConfig, ClusterEngine
from clip_retrieval.progress import show_progress


def open_cluster(
    engine: ClusterEngine, config: ClusterConfig, show: ShowProgress = show_progress, *, uses_gpus: bool
) -> AbstractContextManager[Cluster]:
    """Yield a connected cluster; raises ClusterError if it cannot be reached."""
    if engine == "ray":
        from clip_retrieval.clusters.ray import open_ray

        return open_ray(config, show, uses_gpus=uses_gpus)
    from clip_retrieval.clusters.spark import open_spark

    return open_spark(config.spark_master, show)
