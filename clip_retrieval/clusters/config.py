"""Options of clusters, for every command that sends tasks to one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from clip_retrieval.errors import ConfigError
from clip_retrieval.installed import need
from clip_retrieval.options import option

ClusterEngine = Literal["pyspark", "ray"]
EXTRAS: Mapping[ClusterEngine, str] = {"pyspark": "spark", "ray": "ray"}  # engine -> extra of this distribution


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Where a cluster is, and what a task takes of it."""

    spark_master: str | None = option(
        None,
        help="Such as spark://HOST:7077; None: what spark-submit or Spark's configuration says.",
        may_change=True,
    )
    ray_address: str | None = option(
        None,
        help="Such as HOST:6379; auto: the cluster that this machine belongs to; None: what RAY_ADDRESS says, else a "
        "new one on this machine.",
        may_change=True,
    )
    ray_resources: str | None = option(
        None,
        help="What a task takes on Ray, such as CPU=4,GPU=1 or CPU=1,my_label=1; None: a GPU if there are any, and "
        "its share of the cores, else one core.",
        may_change=True,
    )

    def __post_init__(self) -> None:
        parse_resources(self.ray_resources)

    def check_use(self, engine: str | None, flag: str) -> None:
        """Raise ConfigError if options of one engine are given and `flag` names another, or none."""
        used = {"pyspark": ["spark_master"], "ray": ["ray_address", "ray_resources"]}
        for owner, names in used.items():
            given = [name for name in names if getattr(self, name) is not None]
            if given and engine != owner:
                raise ConfigError(f"{given[0]} is for {flag} {owner}; add that, or leave {given[0]} out")


def parse_resources(words: str | None) -> dict[str, float]:
    """Return amounts by name from words such as CPU=4,GPU=1; raises ConfigError."""
    found: dict[str, float] = {}
    for word in (words or "").split(","):
        name, mark, amount = word.partition("=")
        if not word.strip():
            continue
        try:
            found[name.strip()] = float(amount)
        except ValueError:
            mark = ""
        if not mark or not name.strip() or not 0 <= found[name.strip()] < float("inf"):
            raise ConfigError(f"ray_resources are amounts by name, such as CPU=4,GPU=1, not {words!r}")
    return found


def usual_share(cluster: Mapping[str, float], *, uses_gpus: bool) -> dict[str, float]:
    """Return what a task takes of a Ray cluster with these resources: a GPU and its share of cores, or one core."""
    gpus = cluster.get("GPU", 0) if uses_gpus else 0
    return {"CPU": max(1, cluster.get("CPU", 0) // gpus), "GPU": 1} if gpus >= 1 else {"CPU": 1}


def check_engine(engine: ClusterEngine, subject: str) -> None:
    """Raise ConfigError if the package of an engine is not installed."""
    need(engine, subject, ConfigError, extra=EXTRAS[engine])
