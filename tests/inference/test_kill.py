"""kill -9 or Ctrl-C at any moment, then the same command: the bytes of an undisturbed run, nothing computed twice."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from clip_retrieval.scratch import list_folder
from clip_retrieval.storage import PARTIAL_FOLDER

PARTITIONS = 10
SECONDS = 60  # no process of a test may run longer
Snapshot = Callable[[Path], dict[str, bytes]]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, kills process groups")


def start(source: object, output: Path, *options: str, kind: str = "webdataset") -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "clip_retrieval", "inference", str(source), str(output), kind]
    fixed = ["--clip_model", "hash:16?size=32", "--output_partition_count", str(PARTITIONS), "--batch_size", "5"]
    fixed += ["--enable_metadata"]
    return subprocess.Popen(
        [*command, *fixed, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def readers_for(device: str) -> list[str]:
    """Return the option that gives a run two readers, whether or not it has two workers."""
    return ["--num_prepro_workers", "1" if "," in device else "2"]


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for the end; return exit code and stderr. A process that hangs is killed, and fails the test."""
    try:
        _, errors = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return process.returncode, errors


def kill_group(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=SECONDS)


def said(errors: str) -> list[str]:
    """Return the lines that a run wrote, without those that say how far it is."""
    return [line for line in errors.splitlines() if " samples, " not in line]


def done(output: Path) -> list[str]:
    return sorted(path.stem.rpartition("_")[2] for path in (output / "metadata").glob("*.parquet"))


def times(output: Path, partitions: list[str]) -> dict[str, int]:
    folders = [folder for folder in list_folder(output) if folder.name != PARTIAL_FOLDER]  # that one comes and goes
    paths = [path for name in partitions for folder in folders for path in folder.glob(f"*_{name}.*")]
    return {str(path): path.stat().st_mtime_ns for path in paths}


def children(parent: int, module: str) -> list[int]:
    """Return the processes below `parent`, at any depth, that run a module."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            is_module = module in (folder / "cmdline").read_text()
            group = int((folder / "stat").read_text().rpartition(")")[2].split()[2])
        except OSError:
            continue  # it ended while we looked
        if is_module and group == parent:
            found.append(int(folder.name))
    return sorted(found)


def children_of(parent: int, processes: list[int]) -> list[int]:
    """Return those of the processes that `parent` started itself."""
    found = []
    for number in processes:
        with contextlib.suppress(OSError):  # it ended while we looked
            if int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(number)
    return found


def readers_of(process: subprocess.Popen[str]) -> list[int]:
    return children(process.pid, "clip_retrieval.inference.readers.process")


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + SECONDS
    while not condition() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.001)


def stop_in_the_middle(process: subprocess.Popen[str], output: Path) -> None:
    """Hold the whole run when its first partition is done; `go_on` lets it go."""
    wait_for(lambda: done(output), process)
    os.killpg(process.pid, signal.SIGSTOP)
    if not 1 <= len(done(output)) < PARTITIONS:
        kill_group(process)
        pytest.fail(f"met with {len(done(output))} of {PARTITIONS} partitions done")


def go_on(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, write_shards: Callable[[Path, int, int], Path]) -> Path:
    """Write 20 tars, one of them cut."""
    folder = write_shards(tmp_path_factory.mktemp("source") / "shards", 20, 12)
    (folder / "007.tar").write_bytes((folder / "007.tar").read_bytes()[:7000])
    return folder


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the output of a run that nothing disturbs."""
    output = tmp_path_factory.mktemp("undisturbed") / "whole"
    assert finish(start(source, output, "--num_prepro_workers", "0"))[0] == 0
    return output


@pytest.mark.parametrize(("device", "seed"), [("cpu", 1), ("cpu,cpu", 2)])
def test_killed_and_started_again_makes_the_bytes_of_an_undisturbed_run(
    source: Path, whole: Path, tmp_path: Path, snapshot: Snapshot, device: str, seed: int
) -> None:
    options = ["--device", device, "--num_prepro_workers", "1"]
    killed, rng = tmp_path / "killed", random.Random(seed)

    for least in (0, rng.randint(1, 4), rng.randint(5, 8)):
        process = start(source, killed, *options)
        wait_for(lambda least=least: len(done(killed)) >= least, process)  # type: ignore[misc]
        time.sleep(rng.uniform(0, 0.4 if least == 0 else 0.03))
        finished = done(killed)
        before = times(killed, finished)
        kill_group(process)
        assert times(killed, finished) == before

    finished = done(killed)
    before = times(killed, finished)
    assert finish(start(source, killed, *options))[0] == 0
    assert times(killed, finished) == before
    assert snapshot(killed) == snapshot(whole)
    assert sorted(path.name for path in killed.iterdir()) == sorted(path.name for path in whole.iterdir())


def test_nothing_half_written_is_ever_seen(source: Path, whole: Path, tmp_path: Path, snapshot: Snapshot) -> None:
    killed = tmp_path / "killed"

    process = start(source, killed, "--num_prepro_workers", "0")
    wait_for(lambda: len(done(killed)) >= 3, process)
    kill_group(process)

    expected, seen = snapshot(whole), snapshot(killed)
    assert {name for name, content in seen.items() if expected[name] != content} == set()
    for name in done(killed):
        assert {f"img_emb/img_emb_{name}.npy", f"failures/failures_{name}.parquet"} <= set(seen)


def started(readers: list[int]) -> list[int]:
    """Return the readers that mapped the shared pixels: their start, of which a run loses two at most, is over."""
    found = []
    for reader in readers:
        with contextlib.suppress(OSError):  # it ended while we looked
            if "clip-retrieval-pixels" in Path(f"/proc/{reader}/maps").read_text():
                found.append(reader)
    return found


def kill_readers(process: subprocess.Popen[str], parent: int) -> int:
    """Hold the whole run, kill the readers of one worker, let the run go on; return how many were killed.

    That is 0 after the end of the run: on a busy machine, whoever looks may be late.
    """
    if process.poll() is not None:
        return 0
    os.killpg(process.pid, signal.SIGSTOP)
    readers = started(children_of(parent, readers_of(process)))
    for reader in readers:
        os.kill(reader, signal.SIGKILL)
    go_on(process)
    return len(readers)


def test_readers_killed_again_and_again_change_nothing(
    source: Path, whole: Path, tmp_path: Path, snapshot: Snapshot
) -> None:
    killed, least, count = tmp_path / "killed", 0, 0
    process = start(source, killed, "--num_prepro_workers", "2")

    for _ in range(3):
        wait_for(lambda least=least: len(done(killed)) >= least and started(readers_of(process)), process)  # type: ignore[misc]
        count += kill_readers(process, process.pid)
        # The samples under way are in the next two partitions: a sample that loses a second reader is to blame.
        least = len(done(killed)) + 3
    code, errors = finish(process)

    assert count >= 1
    assert (code, said(errors)) == (0, [])
    assert snapshot(killed) == snapshot(whole)
    assert children(process.pid, "clip_retrieval") == []


def test_readers_of_each_worker_are_killed_and_nothing_changes(
    source: Path, whole: Path, tmp_path: Path, snapshot: Snapshot
) -> None:
    killed, count = tmp_path / "killed", 0
    process = start(source, killed, "--num_prepro_workers", "2", "--device", "cpu,cpu")

    wait_for(lambda: len(workers_of(process)) == 2, process)
    for worker in workers_of(process):
        wait_for(lambda worker=worker: started(children_of(worker, readers_of(process))), process)  # type: ignore[misc]
        count += kill_readers(process, worker)
    code, errors = finish(process)

    assert count >= 1
    assert (code, said(errors)) == (0, [])
    assert snapshot(killed) == snapshot(whole)
    assert children(process.pid, "clip_retrieval") == []


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    return children(process.pid, "clip_retrieval.inference.distributors.worker_process")


def test_the_partitions_of_a_killed_worker_are_made_by_the_other(
    source: Path, whole: Path, tmp_path: Path, snapshot: Snapshot
) -> None:
    killed = tmp_path / "killed"
    process = start(source, killed, "--num_prepro_workers", "1", "--device", "cpu,cpu")
    stop_in_the_middle(process, killed)

    os.kill(workers_of(process)[0], signal.SIGKILL)
    go_on(process)
    code, errors = finish(process)

    assert code == 0, errors
    [line] = said(errors)
    assert re.fullmatch(
        r"the worker on cpu was killed by signal 9( while it made partition \d)?; the others go on", line
    )
    assert snapshot(killed) == snapshot(whole)
    assert sorted(path.name for path in killed.iterdir()) == sorted(path.name for path in whole.iterdir())
    assert children(process.pid, "clip_retrieval") == []


def test_a_run_whose_workers_are_all_killed_says_what_is_not_made(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    process = start(source, output, "--num_prepro_workers", "1", "--device", "cpu,cpu")
    stop_in_the_middle(process, output)
    missing = [str(i) for i in range(PARTITIONS) if i not in map(int, done(output))]

    for worker in workers_of(process):
        os.kill(worker, signal.SIGKILL)
    go_on(process)
    code, errors = finish(process)

    assert code == 1
    assert said(errors)[-1].startswith("Error: the worker on cpu was killed by signal 9 while it made partition ")
    assert f"not made: partitions {', '.join(missing)}; what is finished is kept" in said(errors)[-1]
    assert children(process.pid, "clip_retrieval") == []


def test_workers_share_the_cores(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIP_RETRIEVAL_CORES", "6")
    process = start(source, tmp_path / "output", "--device", "cpu,cpu")
    stop_in_the_middle(process, tmp_path / "output")

    cores = [Path(f"/proc/{worker}/environ").read_bytes().split(b"\0") for worker in workers_of(process)]
    counts = [b"CLIP_RETRIEVAL_CORES=3" in environment for environment in cores]
    reader_count = len(readers_of(process))
    kill_group(process)

    assert counts == [True, True]
    assert reader_count == 6


def wait_for_the_end_of_all(group: int) -> None:
    end = time.monotonic() + SECONDS
    while children(group, "clip_retrieval") and time.monotonic() < end:
        time.sleep(0.01)
    assert children(group, "clip_retrieval") == []


@pytest.mark.parametrize("device", ["cpu", "cpu,cpu"])
def test_all_processes_end_when_the_run_alone_is_killed(source: Path, tmp_path: Path, device: str) -> None:
    process = start(source, tmp_path / "output", *readers_for(device), "--device", device)
    stop_in_the_middle(process, tmp_path / "output")

    process.kill()
    go_on(process)
    process.communicate(timeout=SECONDS)

    wait_for_the_end_of_all(process.pid)


def test_even_a_reader_that_hangs_ends_with_the_run(
    tmp_path: Path, write_pictures: Callable[[Path, int], Path], hanging: tuple[bytes, Path]
) -> None:
    folder = write_pictures(tmp_path / "pictures", 3)
    (folder / "hangs.jpg").write_bytes(hanging[0])
    process = start(folder, tmp_path / "output", "--num_prepro_workers", "1", kind="files")
    wait_for(hanging[1].exists, process)
    assert hanging[1].exists()

    process.kill()
    process.communicate(timeout=SECONDS)

    wait_for_the_end_of_all(process.pid)


@pytest.mark.parametrize("device", ["cpu", "cpu,cpu"])
@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["int", "term"])
def test_a_stopped_run_says_how_far_it_is_and_goes_on(
    source: Path, whole: Path, tmp_path: Path, snapshot: Snapshot, device: str, number: int, expected: int
) -> None:
    output, options = tmp_path / "output", [*readers_for(device), "--device", device]
    process = start(source, output, *options)
    stop_in_the_middle(process, output)

    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)  # a terminal's Ctrl-C reaches the group
    go_on(process)
    code, errors = finish(process)

    finished = done(output)
    assert code == expected
    assert said(errors) == [
        f"stopped: {len(finished)} of {PARTITIONS} partitions are done; give the same command again to go on"
    ]
    assert children(process.pid, "clip_retrieval") == []
    assert not (output / PARTIAL_FOLDER).exists()
    assert not list((output / "stats").glob("wip*"))
    if number == signal.SIGTERM:  # which leaves just the same
        return

    before = times(output, finished)
    assert finish(start(source, output, *options))[0] == 0
    assert times(output, finished) == before
    assert snapshot(output) == snapshot(whole)


@pytest.mark.parametrize("device", ["cpu", "cpu,cpu"])
def test_ctrl_c_while_processes_start_brings_no_traceback(source: Path, tmp_path: Path, device: str) -> None:
    process = start(source, tmp_path / "output", *readers_for(device), "--device", device)
    wait_for(lambda: readers_of(process), process)

    os.killpg(process.pid, signal.SIGINT)
    os.killpg(process.pid, signal.SIGINT)
    code, errors = finish(process)

    assert code == 130
    assert "Traceback" not in errors, errors
    assert said(errors) == [f"stopped: 0 of {PARTITIONS} partitions are done; give the same command again to go on"]
    assert children(process.pid, "clip_retrieval") == []


def test_a_named_pipe_among_the_pictures_does_not_block(
    tmp_path: Path, write_pictures: Callable[[Path, int], Path]
) -> None:
    folder = write_pictures(tmp_path / "pictures", 3)
    os.mkfifo(folder / "fifo.jpg")
    process = start(folder, tmp_path / "output", "--num_prepro_workers", "0", kind="files")

    try:
        process.communicate(timeout=20)
    except subprocess.TimeoutExpired:
        kill_group(process)

    assert process.returncode == 0
