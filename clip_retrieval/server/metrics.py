"""/metrics and /metrics-summary: clip-retrieval 2's histograms by their names, and counters of our own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

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

Gauges = Callable[[], Iterable[Metric]]


class Metrics:
    """The figures of one server; nothing is registered globally."""

    def __init__(self) -> None:
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

    def count(self, route: str, status: int) -> None:
        """Count an answer."""
        counter = self.counters.get((route, status))
        if counter is None:
            counter = self.counters[route, status] = self.requests.labels(route, str(status))
        counter.inc()

    def watch(self, gauges: Gauges) -> None:
        """Add gauges that are looked up whenever somebody asks."""
        self.registry.register(Looked(gauges))

    def timing(self, step: str) -> Timing:
        """Count the seconds of a block as one step, whether it succeeds or not."""
        return Timing(self.steps[step])

    def text(self) -> tuple[bytes, bytes]:
        """Return the figures as Prometheus reads them, and the content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST.encode()

    def summary(self) -> str:
        """Return the mean time of each step in the words of clip-retrieval 2."""
        sums = {name: read_histogram(histogram) for name, histogram in self.steps.items()}
        count, total = sums[WHOLE]
        if not count:
            return "No request yet, go do some"
        steps = [(name, *sums[name]) for name in STEPS if name != WHOLE and sums[name][0]]
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
    """The seconds of a block for a histogram; a third of contextlib's cost."""

    def __init__(self, histogram: Histogram) -> None:
        self.histogram = histogram

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.histogram.observe(time.perf_counter() - self.start)


class Looked(Collector):
    """Gauges whose values are looked up when they are asked for."""

    def __init__(self, gauges: Gauges) -> None:
        self.gauges = gauges

    def collect(self) -> Iterable[Metric]:
        return self.gauges()


def gauge(name: str, about: str, values: Iterable[tuple[str, float]], label: str) -> Metric:
    """Return a gauge with one label."""
    family = GaugeMetricFamily(f"clip_retrieval_{name}", about, labels=(label,))
    for value_of, value in values:
        family.add_metric((value_of,), value)
    return family


def read_histogram(histogram: Histogram) -> tuple[float, float]:
    """Return count and sum of a histogram."""
    (metric,) = histogram.collect()
    found = {sample.name: sample.value for sample in metric.samples}
    return found[f"{metric.name}_count"], found[f"{metric.name}_sum"]
