"""No room left: one sentence that names the folder, what is whole is kept, and the same command goes on later."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from clip_retrieval.blobs import fetch_to_cache
from clip_retrieval.errors import StorageError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="file size limits and tmpfs")

SIZES = (8, 8, 200, 8)  # samples in each tar; the third one's embeddings are too large
MOST_BYTES = 1_000_000
Snapshot = Callable[[Path], dict[str, bytes]]


@pytest.fixture(scope="module")
def source(
    tmp_path_factory: pytest.TempPathFactory,
    write_tar: Callable[..., Path],
    make_sample: Callable[[int], list[tuple[str, bytes]]],
) -> Path:
    tmp_path, number = tmp_path_factory.mktemp("source"), 0
    for shard, size in enumerate(SIZES):
        members = [member for i in range(number, number + size) for member in make_sample(i)]
        write_tar(tmp_path / "shards" / f"{shard}.tar", members)
        number += size
    return tmp_path / "shards"


def embed(
    source: Path, output: Path, device: str, limit: int | None = None, more: Sequence[str] = ()
) -> tuple[int, list[str]]:
    """Run the command, with files of at most `limit` bytes; return its code and what it said."""
    command = [
        *(sys.executable, "-m", "clip_retrieval", "inference", str(source), str(output), "webdataset"),
        *("--clip_model", "hash:4096?size=8", "--output_partition_count", str(len(SIZES)), "--batch_size", "16"),
        *("--num_prepro_workers", "1", "--device", device, *more),
    ]

    def lower() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # products round otherwise with more threads
    done = subprocess.run(
        command, preexec_fn=lower, env=one_thread, capture_output=True, text=True, check=False, timeout=60
    )
    return done.returncode, [line for line in done.stderr.splitlines() if " samples, " not in line]


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the output of a run that has room."""
    output = tmp_path_factory.mktemp("room") / "whole"
    assert embed(source, output, "cpu") == (0, [])
    return output


def files(output: Path) -> set[str]:
    return {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}


@pytest.mark.parametrize("device", ["cpu", "cpu,cpu"])
def test_a_file_that_may_not_grow_ends_the_run_with_a_sentence(
    source: Path, whole: Path, tmp_path: Path, snapshot: Snapshot, device: str
) -> None:
    output = tmp_path / "output"
    code, said = embed(source, output, device, MOST_BYTES)

    assert (code, said) == (1, [f"Error: cannot write to {output}: File too large; what is finished is kept"])
    if device == "cpu":  # of two workers, the one with the large partition may be first
        assert "metadata/metadata_0.parquet" in files(output)
    assert not any("_2." in name or name.startswith("_partial") for name in files(output))
    assert embed(source, output, device) == (0, [])
    assert snapshot(output) == snapshot(whole)
    assert files(output) == files(whole)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of a megabyte, where that is allowed."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_ends_the_run_with_a_sentence(
    source: Path, whole: Path, small_disk: Path, snapshot: Snapshot
) -> None:
    output = small_disk / "output"

    code, said = embed(source, output, "cpu")
    left = files(output)
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)

    assert (code, said) == (
        1, [f"Error: cannot write to {output}: No space left on device; what is finished is kept"]
    )  # fmt: skip
    assert "metadata/metadata_0.parquet" in left
    assert not any("_2." in name or name.startswith("_partial") for name in left)
    assert embed(source, output, "cpu") == (0, [])
    assert snapshot(output) == snapshot(whole)


def test_a_retry_keeps_nothing_on_a_full_disk(source: Path, whole: Path, tmp_path: Path, snapshot: Snapshot) -> None:
    output, shards = tmp_path / "output", tmp_path / "shards"
    shutil.copytree(source, shards)
    cut = shards / "3.tar"
    data = cut.read_bytes()
    cut.write_bytes(data[:6000])
    assert embed(shards, output, "cpu")[0] == 0
    before = snapshot(output)
    cut.write_bytes(data)

    code, said = embed(shards, output, "cpu", 20_000, ["--retry_failed"])

    advice = "the largest size of a file is limited here; see ulimit -f"
    assert (code, said) == (1, [f"Error: cannot write to {output}: File too large; {advice}"])
    assert snapshot(output) == before
    assert embed(shards, output, "cpu", more=["--retry_failed"])[0] == 0
    assert files(output) > files(whole)


def test_a_full_cache_is_no_fault_of_the_input(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    (tmp_path / "0.tar").write_bytes(bytes(2 * MOST_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MOST_BYTES, before[1]))
    try:
        with pytest.raises(StorageError, match=r"^cannot write to .*cache: File too large; make room there$"):
            fetch_to_cache(str(tmp_path / "0.tar"), str(tmp_path / "cache"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    assert list((tmp_path / "cache").iterdir()) == []
