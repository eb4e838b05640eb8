"""The dashboard and the compose file of `examples/`: they name what there is."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
from prometheus_client.parser import text_string_to_metric_families

from clip_retrieval.option_values import literal
from clip_retrieval.options import build_config
from clip_retrieval.server.config import BackConfig
from clip_retrieval.server.run import listening

EXAMPLES = Path(__file__).parents[2] / "examples"
DASHBOARD = json.loads((EXAMPLES / "grafana/clip-retrieval.json").read_text())
NO_METRICS = {"sum", "by", "le", "or", "and", "status", "route", "lane"}
yaml: Any = importlib.import_module("yaml")  # comes with huggingface_hub; it has no types


def expressions() -> Iterator[str]:
    for panel in DASHBOARD["panels"]:
        yield from (target["expr"] for target in panel["targets"])


def metrics_of(expression: str) -> set[str]:
    """Return the metrics that an expression of PromQL names: words outside of braces and brackets, no functions."""
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\"[^\"]*\"", "", expression)
    return set(re.findall(r"\b[a-z_:][a-z_:0-9]*\b(?!\s*\()", bare)) - NO_METRICS


def test_every_metric_of_the_dashboard_is_one_that_the_server_exposes(tmp_path: Path, write_index: Any) -> None:
    index = write_index(tmp_path / "words", pd.DataFrame({"caption": ["cat", "dog"]}))
    with listening(build_config(BackConfig, {"port": 0, "reload_seconds": 0}, [str(index)])) as server:
        asked = {"text": "dog", "modality": "image", "num_images": 1, "indice_name": None}
        assert httpx.post(f"{server.url}/knn-service", json=asked).status_code == 200
        text = httpx.get(f"{server.url}/metrics").text
    exposed = {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}
    named = set().union(*map(metrics_of, expressions()))
    assert "full_knn_request_time_bucket" in named
    assert named <= exposed


def test_the_reader_of_expressions_sees_metrics_and_nothing_else() -> None:
    said = 'histogram_quantile(0.5, sum by (le) (rate(a_bucket{x="y"}[5m]))) / c_total'
    assert metrics_of(said) == {"a_bucket", "c_total"}


def test_the_parts_of_the_compose_file_fit_together() -> None:
    services = yaml.safe_load((EXAMPLES / "compose.yaml").read_text())["services"]
    words = services["server"]["command"]
    flags = {name.removeprefix("--"): literal(value) for name, value in zip(words[2::2], words[3::2], strict=True)}
    config = build_config(BackConfig, flags, words[1:2])
    (scrape,) = yaml.safe_load((EXAMPLES / "prometheus.yml").read_text())["scrape_configs"]
    assert scrape["static_configs"] == [{"targets": [f"server:{config.access.port}"]}]
    assert services["server"]["ports"] == [f"127.0.0.1:{config.access.port}:{config.access.port}"]
    (source,) = yaml.safe_load((EXAMPLES / "grafana/datasources.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    panels = DASHBOARD["panels"]
    used = {part["datasource"]["uid"] for panel in panels for part in (panel, *panel["targets"])}
    assert used == {source["uid"]}
    mounted = [volume for service in services.values() for volume in service["volumes"] if volume.startswith("./")]
    assert len(mounted) == 4
    for volume in mounted:
        assert (EXAMPLES / volume.partition(":")[0]).is_file(), volume


def test_the_image_is_made_of_files_that_are_there_and_serves_as_the_compose_file_says() -> None:
    server = yaml.safe_load((EXAMPLES / "compose.yaml").read_text())["services"]["server"]
    root, place = (EXAMPLES / server["build"]["context"]).resolve(), server["build"]["dockerfile"]
    lines = (root / place).read_text().splitlines()
    copied = [name for line in lines if re.match(r"COPY (?!--from)", line) for name in line.split()[1:-1]]
    assert {"clip_retrieval", "packaging/light"} <= set(copied)
    kept = {line[1:] for line in (root / f"{place}.dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied) == kept
    for name in copied:
        assert (root / name).exists(), name
    (command,) = [line.removeprefix("CMD ") for line in lines if line.startswith("CMD ")]
    assert json.loads(command) == server["command"]
