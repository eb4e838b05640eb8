"""--metrics_port: the run as Prometheus text, on this machine only. Nothing is registered globally."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from clip_retrieval.errors import ConfigError
from clip_retrieval.inference.telemetry.live import Live

HOST = "127.0.0.1"
STAGES = {
    "wait": "read_duration",
    "encode": "inference_duration",
    "write": "write_duration",
    "source": "source_duration",
    "read": "reader_read_duration",
    "decode": "reader_decode_duration",
}


class LiveCollector(Collector):
    """Turns one look at the run into metrics, at each request."""

    def __init__(self, live: Live) -> None:
        self.live = live

    def collect(self) -> Iterable[Metric]:
        view = self.live.look()
        counters = {
            "samples": (view.done, "Samples done, those left out among them."),
            "rows": (view.rows, "Rows written."),
            "skipped": (view.dropped, "Samples left out."),
        }
        for name, (count, about) in counters.items():
            yield CounterMetricFamily(f"clip_retrieval_{name}", about, value=count)
        unusable = CounterMetricFamily(
            "clip_retrieval_unusable", "Parts of samples that could not be used.", labels=("part", "reason")
        )
        for name, count in view.stats.reasons.items():
            unusable.add_metric(name.split(":", 1), count)
        yield unusable
        seconds = CounterMetricFamily(
            "clip_retrieval_stage_seconds", "Seconds by stage; read and decode are reader-seconds.", labels=("stage",)
        )
        for stage, name in STAGES.items():
            seconds.add_metric((stage,), getattr(view.stats, name))
        yield seconds
        gauges = {
            "samples_per_second": (view.rate, "Rate over the last half minute, of all workers."),
            "samples_expected": (view.total, "Samples of this run, about."),
            "partitions_done": (view.partitions_done, "Partitions made by this run."),
            "partitions": (view.partition_count, "Partitions that this run has to make."),
        }
        for name, (value, about) in gauges.items():
            if value is not None:
                yield GaugeMetricFamily(f"clip_retrieval_{name}", about, value=value)


@contextmanager
def serve_metrics(live: Live, port: int) -> Iterator[None]:
    """Answer http://127.0.0.1:PORT/metrics while the block runs; raises ConfigError if the port is not available."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(LiveCollector(live))
    try:
        server, thread = start_http_server(port, addr=HOST, registry=registry)
    except OSError as error:
        why = "is in use" if error.errno == errno.EADDRINUSE else f"is not available ({error.strerror or error})"
        raise ConfigError(f"port {port} of {HOST} {why}; name another --metrics_port, or 0 for none") from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
