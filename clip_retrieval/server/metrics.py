"""/metrics and /metrics-summary: clip-retrieval 2's histograms under their names, and our own counters."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

STEPS = {
    "full_knn_request_time": "Time spent processing a knn request",
    "download_time": "Time spent downloading the picture of a request",
    "text_clip_inference_time": "Time spent encoding texts, a batch",
    "image_clip_inference_time": "Time spent encoding pictures, a batch",
    "metadata_get_time": "Time spent fetching metadata, a batch",
    "knn_index_time": "Time spent searching the index, a batch",
    "dedup_time": "Time spent leaving out near-duplicates",
    "safety_time": "Always empty: there is no safety model",
    "image_prepro_time": "Time spent decoding and resizing the picture of a request",
    "text_prepro_time": "Always empty: texts are tokenized with their encoding",
}
WHOLE = "full_knn_request_time"
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

LaneFigures = Callable[[], Iterable[tuple[str, int, float]]]  # name, waiting items, age of the oldest work


class Metrics:
    """The figures of one server; nothing is registered globally.

    With a folder, several processes keep their figures in it, and each reports the sum of all (prometheus_client's
    multiprocess mode, which an environment variable turns on).
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.registry = CollectorRegistry(auto_describe=False)
        self.steps = {
            name: Histogram(name, about, registry=self.registry, buckets=BUCKETS) for name, about in STEPS.items()
        }
        self.requests = Counter(
            "clip_retrieval_requests", "Requests by route and status.", ("route", "status"), registry=self.registry
        )
        self.counters: dict[tuple[str, int], Counter] = {}
        self.gone = Counter(
            "clip_retrieval_hang_ups", "Requests whose client hung up before the answer.", registry=self.registry
        )
        self.waiting = Gauge(
            "clip_retrieval_waiting", "Requests that wait, by lane.", ("lane",), registry=self.registry,
            multiprocess_mode="livesum",
        )  # fmt: skip
        self.behind = Gauge(
            "clip_retrieval_seconds_behind", "Age of the oldest work of a lane.", ("lane",), registry=self.registry,
            multiprocess_mode="livemax",
        )  # fmt: skip
        self.look: LaneFigures = tuple

    def count(self, route: str, status: int) -> None:
        """Count an answer."""
        counter = self.counters.get((route, status))
        if counter is None:
            counter = self.counters[route, status] = self.requests.labels(route, str(status))
        counter.inc()

    def publish(self) -> None:
        """Set the gauges to the current values."""
        for lane, waiting, seconds in self.look():
            self.waiting.labels(lane).set(waiting)
            self.behind.labels(lane).set(seconds)

    def timing(self, step: str) -> Timing:
        """Count the seconds of a block as one step, whether it succeeds or not."""
        return Timing(self.steps[step])

    def text(self) -> tuple[bytes, bytes]:
        """Return the figures as Prometheus reads them, and the content type."""
        self.publish()
        return generate_latest(self.everything()), CONTENT_TYPE_LATEST.encode()

    def everything(self) -> CollectorRegistry:
        """Return the figures of all processes of this server."""
        if self.folder is None:
            return self.registry
        registry = CollectorRegistry(auto_describe=False)
        MultiProcessCollector(registry, str(self.folder))  # type: ignore[no-untyped-call]
        return registry

    def summary(self) -> str:
        """Return the mean time of each step in the words of clip-retrieval 2."""
        sums = read_histograms(self.everything())
        count, total = sums.get(WHOLE, (0.0, 0.0))
        if not count:
            return "No request yet, go do some"
        steps = [(name, *sums[name]) for name in STEPS if name != WHOLE and sums.get(name, (0,))[0]]
        steps.sort(key=lambda step: step[2] / step[1], reverse=True)
        lines = [f"{'name':<28}{'description':<58}{'calls':>8}{'average':>10}{'proportion':>12}"]
        lines += [
            f"{name:<28}{STEPS[name]:<58}{calls:>8.0f}{f'{spent / calls:.4f}s':>10}{f'{spent / total:.1%}':>12}"
            for name, calls, spent in steps
        ]
        return (
            f"Among {count:.0f} calls to the knn end point with an average latency of {total / count:.4f}s per "
            "request, the step costs are (in order): \n\n" + "\n".join(lines)
        )


class Timing:
    """The seconds of a block for a histogram; costs a third of contextlib."""

    def __init__(self, histogram: Histogram) -> None:
        self.histogram = histogram

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.histogram.observe(time.perf_counter() - self.start)


def read_histograms(registry: CollectorRegistry) -> dict[str, tuple[float, float]]:
    """Return count and sum of each step."""
    sums = {}
    for metric in registry.collect():
        if metric.name in STEPS:
            found = {sample.name: sample.value for sample in metric.samples}
            sums[metric.name] = found[f"{metric.name}_count"], found[f"{metric.name}_sum"]
    return sums
