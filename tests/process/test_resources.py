"""Cores and memory that a process may use: machine, affinity, cgroups of both versions, and what is given."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from clip_retrieval.errors import ConfigError
from clip_retrieval.process import resources
from clip_retrieval.process.resources import count_cores, memory_limit

MakeTree = Callable[[str, dict[str, str]], None]
GIB = 1 << 30


@pytest.fixture
def make_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeTree:
    """Give a function that lays out /proc/self/cgroup and /sys/fs/cgroup for a machine of 8 cores and 64 GiB."""
    monkeypatch.delenv(resources.CORES_VARIABLE, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(resources, "CGROUP_ROOT", tmp_path / "cgroup")
    monkeypatch.setattr(resources, "CGROUP_OF_PROCESS", tmp_path / "self")
    monkeypatch.setattr(resources, "MEMORY_OF_MACHINE", tmp_path / "meminfo")
    (tmp_path / "meminfo").write_text(f"MemTotal:       {64 * GIB // 1024} kB\nMemFree:  5 kB\n")

    def make(own: str, files: dict[str, str]) -> None:
        (tmp_path / "self").write_text(own)
        for name, content in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)

    return make


V1 = "12:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/\n"


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {}, 8),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 3),
        ("0::/\n", {"cpu.max": "10000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "6400000 100000\n"}, 8),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "200000 100000\n"}, 2),
        ("0::/a/b\n", {"a/b/cpu.max": "400000 100000\n", "a/cpu.max": "600000 100000\n"}, 4),
        ("0::/host/path\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/../../other\n", {"cpu.max": "200000 100000\n"}, 2),
        (V1, {"cpu/docker/abc/cpu.cfs_quota_us": "150000\n", "cpu/docker/abc/cpu.cfs_period_us": "100000\n"}, 2),
        (V1, {"cpu,cpuacct/cpu.cfs_quota_us": "50000\n", "cpu,cpuacct/cpu.cfs_period_us": "10000\n"}, 5),
        (V1, {"cpu/docker/abc/cpu.cfs_quota_us": "-1\n", "cpu/docker/abc/cpu.cfs_period_us": "100000\n"}, 8),
        ("", {"cpu.max": "damaged"}, 8),
    ],
)
def test_cores_are_those_that_affinity_and_every_cgroup_leave(
    make_tree: MakeTree, own: str, files: dict[str, str], expected: int
) -> None:
    make_tree(own, files)

    assert count_cores() == expected


def test_the_variable_decides(make_tree: MakeTree, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tree("0::/\n", {"cpu.max": "200000 100000\n"})
    monkeypatch.setenv(resources.CORES_VARIABLE, "5")

    assert count_cores() == 5


@pytest.mark.parametrize("value", ["0", "-1", "two", ""])
def test_a_variable_that_is_no_number_of_cores_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(resources.CORES_VARIABLE, value)

    with pytest.raises(ConfigError, match="CLIP_RETRIEVAL_CORES must be a number of cores, at least 1, not"):
        count_cores()


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {}, 64 * GIB),
        ("0::/\n", {"memory.max": "max\n"}, 64 * GIB),
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": f"{8 * GIB}\n"}, 8 * GIB),
        (V1, {"memory/docker/abc/memory.limit_in_bytes": f"{4 * GIB}\n"}, 4 * GIB),
        (V1, {"memory/docker/abc/memory.limit_in_bytes": "9223372036854771712\n"}, 64 * GIB),
    ],
)
def test_memory_is_what_the_machine_and_every_cgroup_leave(
    make_tree: MakeTree, own: str, files: dict[str, str], expected: int
) -> None:
    make_tree(own, files)

    assert memory_limit() == expected


def test_the_limit_of_files_is_raised_as_far_as_it_may_be() -> None:
    code = (
        "import resource\nfrom clip_retrieval.process.resources import raise_file_limit\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 500))\n"
        "for most in (300, 1000, 50):\n"
        "    raise_file_limit(most)\n    print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["300", "500", "500"]
