"""--metrics_port: what Prometheus reads, and ports that cannot be had."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Callable
from pathlib import Path

import prometheus_client
import pytest
from prometheus_client.parser import text_string_to_metric_families

from clip_retrieval import clip_inference
from clip_retrieval.errors import ConfigError
from clip_retrieval.inference.telemetry.live import Live, News
from clip_retrieval.inference.telemetry.prometheus import serve_metrics
from clip_retrieval.inference.telemetry.stats import Stats


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def read_metrics(port: int) -> dict[tuple[str, ...], float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    families = text_string_to_metric_families(text)
    return {(sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples}


def test_counts_seconds_and_gauges_of_all_workers_are_served(free_port: int) -> None:
    live = Live(3)
    figures = {**Stats().to_json(), "reasons": {"image:decode": 2}, "inference_duration": 1.5}
    with serve_metrics(live, free_port):
        live.hear(1, News(rows=10, dropped=2, part=figures, total=100))
        live.hear(2, News(rows=5, dropped=0, part=figures, total=50))
        live.hear(2, News(is_end=True))
        metrics = read_metrics(free_port)

    assert metrics["clip_retrieval_samples_total",] == 17
    assert metrics["clip_retrieval_rows_total",] == 15
    assert metrics["clip_retrieval_skipped_total",] == 2
    assert metrics["clip_retrieval_unusable_total", "image", "decode"] == 4
    assert metrics["clip_retrieval_stage_seconds_total", "encode"] == 3.0
    assert metrics["clip_retrieval_samples_expected",] == 150
    assert (metrics["clip_retrieval_partitions_done",], metrics["clip_retrieval_partitions",]) == (1, 3)


def test_the_port_is_free_again_and_nothing_is_registered_globally(free_port: int) -> None:
    before = prometheus_client.generate_latest()
    for _ in range(2):
        with serve_metrics(Live(1), free_port):
            assert read_metrics(free_port)["clip_retrieval_rows_total",] == 0

    assert (b"clip_retrieval" in before, b"clip_retrieval" in prometheus_client.generate_latest()) == (False, False)
    with pytest.raises(OSError, match="refused"):
        read_metrics(free_port)


def test_a_port_in_use_is_one_sentence(
    tmp_path: Path, write_pictures: Callable[[Path, int], Path], free_port: int
) -> None:
    write_pictures(tmp_path / "in", 1)
    with (
        serve_metrics(Live(1), free_port),
        pytest.raises(ConfigError, match=f"port {free_port} of 127.0.0.1 is in use"),
    ):
        clip_inference(str(tmp_path / "in"), str(tmp_path / "out"), clip_model="hash:8?size=32", metrics_port=free_port)


@pytest.mark.parametrize("port", [-1, 65536])
def test_what_is_no_port_is_refused(port: int) -> None:
    with pytest.raises(ConfigError, match="metrics_port is a port up to 65535"):
        clip_inference("in", "out", metrics_port=port)


def test_a_run_with_several_workers_is_served_by_their_parent(
    tmp_path: Path, write_pictures: Callable[[Path, int], Path], free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(tmp_path / "in", 40)
    looks: list[dict[tuple[str, ...], float]] = []
    hear = Live.hear

    def hear_and_read(live: Live, worker: int, news: News) -> None:
        hear(live, worker, news)
        looks.append(read_metrics(free_port))

    monkeypatch.setattr(Live, "hear", hear_and_read)
    clip_inference(
        str(tmp_path / "in"), str(tmp_path / "out"), clip_model="hash:8?size=32", device="cpu,cpu", batch_size=8,
        output_partition_count=4, num_prepro_workers=0, metrics_port=free_port,
    )  # fmt: skip

    assert looks[-1]["clip_retrieval_rows_total",] == 40
    assert looks[-1]["clip_retrieval_partitions",] == 4
    assert looks[-1]["clip_retrieval_samples_expected",] == 40
