"""The figures of each part in /metrics: requests by outcome, seconds, retries, and whether it answers."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from clip_retrieval.server.metrics import BUCKETS, Metrics

LABELS = ("index", "part")


class PartMetrics:
    """The figures of all parts of all indices of a server."""

    def __init__(self, metrics: Metrics) -> None:
        registry = metrics.registry
        self.requests = Counter(
            "clip_retrieval_part_requests", "Requests to a part, by status, timeout or lost.", (*LABELS, "outcome"),
            registry=registry,
        )  # fmt: skip
        self.retries = Counter("clip_retrieval_part_retries", "Retries.", LABELS, registry=registry)
        self.seconds = Histogram(
            "clip_retrieval_part_seconds", "Seconds of a request to a part.", LABELS, registry=registry, buckets=BUCKETS
        )
        self.missing = Counter("clip_retrieval_part_missing", "Answers without a part.", LABELS, registry=registry)
        self.up = Gauge(
            "clip_retrieval_part_up", "Whether a part answered when last asked.", LABELS, registry=registry,
            multiprocess_mode="livemin",
        )  # fmt: skip


class Figures:
    """The figures of the parts of one index."""

    def __init__(self, metrics: PartMetrics, index: str) -> None:
        self.metrics, self.index = metrics, index

    def count(self, part: int, outcome: str, seconds: float) -> None:
        self.metrics.requests.labels(self.index, part, outcome).inc()
        self.metrics.seconds.labels(self.index, part).observe(seconds)
        self.set_up(part, is_up=outcome not in ("timeout", "lost"))

    def set_up(self, part: int, *, is_up: bool) -> None:
        self.metrics.up.labels(self.index, part).set(int(is_up))

    def count_retry(self, part: int) -> None:
        self.metrics.retries.labels(self.index, part).inc()

    def count_missing(self, part: int) -> None:
        self.metrics.missing.labels(self.index, part).inc()
