"""Options of clusters: what a task takes, and an address without a cluster."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from clip_retrieval.clusters.base import Checked, why_unreachable
from clip_retrieval.clusters.config import ClusterConfig, ClusterEngine, parse_resources, usual_share
from clip_retrieval.clusters.open import open_cluster
from clip_retrieval.errors import ClusterError, ConfigError
from clip_retrieval.version import __version__


def test_what_a_task_takes_is_read_from_words() -> None:
    assert parse_resources("CPU=4, GPU=0.5,my label=1") == {"CPU": 4, "GPU": 0.5, "my label": 1}
    assert parse_resources(None) == parse_resources("") == {}


@pytest.mark.parametrize("words", ["CPU", "CPU=", "CPU=many", "=1", "CPU=-1", "CPU=nan", "CPU=inf", "CPU=1;GPU=1"])
def test_words_that_are_no_amounts_are_refused(words: str) -> None:
    with pytest.raises(ConfigError, match="amounts by name"):
        ClusterConfig(ray_resources=words)


@pytest.mark.parametrize("given", [{"spark_master": "local"}, {"ray_address": "host:1"}, {"ray_resources": "CPU=1"}])
@pytest.mark.parametrize("engine", [None, "multiprocess", "slurm"])
def test_options_of_an_engine_that_is_not_used_are_refused(given: dict[str, str], engine: str | None) -> None:
    config = ClusterConfig(**given)
    owner = "pyspark" if "spark_master" in given else "ray"
    with pytest.raises(ConfigError, match=f"{next(iter(given))} is for --distributed {owner}"):
        config.check_use(engine, "--distributed")
    config.check_use(owner, "--distributed")


def test_a_cluster_that_is_gone_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(address)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with (
        pytest.raises(ClusterError, match=f"no Ray answers at {address} "),
        open_cluster("ray", ClusterConfig(ray_address="auto"), uses_gpus=False),
    ):
        pass


@pytest.mark.parametrize(
    ("cluster", "share"),
    [
        ({"CPU": 64, "GPU": 8}, {"CPU": 8, "GPU": 1}),
        ({"CPU": 4, "GPU": 8}, {"CPU": 1, "GPU": 1}),
        ({"CPU": 64}, {"CPU": 1}),
        ({}, {"CPU": 1}),
    ],
)
def test_without_words_a_task_takes_a_gpu_and_its_share_of_the_cores(
    cluster: dict[str, float], share: dict[str, float]
) -> None:
    assert usual_share(cluster, uses_gpus=True) == share
    assert usual_share(cluster, uses_gpus=False) == {"CPU": 1}


def test_an_address_where_nobody_listens_is_known_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for spelled in (address, f"ray://{address}"):
            assert "refused" in why_unreachable(spelled)
        taken.listen()
        assert not why_unreachable(address)
    assert not why_unreachable("auto")
    assert "invalid literal" in why_unreachable("host:port")


def test_a_task_of_another_version_is_refused() -> None:
    seen: list[int] = []
    Checked(seen.append)(1)
    with pytest.raises(ClusterError, match=f"is 0.1 here and {__version__} on .*; install one version"):
        Checked(seen.append, "0.1")(2)
    assert seen == [1]


@pytest.mark.parametrize(("engine", "option"), [("pyspark", "spark_master"), ("ray", "ray_address")])
def test_a_cluster_that_is_not_there_is_one_sentence(engine: ClusterEngine, option: str) -> None:
    pytest.importorskip(engine, reason=f"{engine} is not installed")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        config = ClusterConfig(**{option: f"spark://{address}" if engine == "pyspark" else address})
        with (
            pytest.raises(ClusterError, match=f"no .* answers at .*{address}"),
            open_cluster(engine, config, uses_gpus=False),
        ):
            pass
