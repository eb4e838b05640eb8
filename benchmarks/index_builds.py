"""Builds an index in processes of its own, watched from outside: wall time, processor time and memory of them all."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SECONDS_BETWEEN_LOOKS = 0.025
MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Usage:
    """What a command took. Sizes are sums over its processes, looked at some 40 times a second.

    `held` is anonymous and shared memory; `mapped` adds pages of files, which the system drops when it wants to, and
    is where memory-mapped embeddings show. Both come from the kernel's counters (/proc/PID/status): pages that
    processes share count in each, so that the sums are never too small. `largest` is the kernel's own record of the
    resident memory of the largest process, which no look can miss.
    """

    wall_seconds: float
    cpu_seconds: float
    held_megabytes: float
    mapped_megabytes: float
    largest_megabytes: float


@dataclass(frozen=True)
class Build:
    """An index that is there, and what it took; `refusal` where none came out."""

    engine: str
    index: Path
    usage: Usage | None
    info: dict[str, Any]
    refusal: str = ""
    is_reused: bool = False

    @property
    def size(self) -> int:
        files = [self.index] if self.index.is_file() else list(self.index.rglob("*"))
        return sum(file.stat().st_size for file in files)


def build(engine: str, embeddings: Path, folder: Path, bounds: tuple[str, str]) -> Build:
    """Build with one engine into `folder`, from nothing: what a stopped build left there would shorten the time."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    index_bytes, available = bounds
    if engine == "autofaiss":
        command = [sys.executable, __file__, str(embeddings / "img_emb"), str(folder), index_bytes, available]
    else:
        command = [sys.executable, "-m", "clip_retrieval", "index", str(embeddings), str(folder), "--engine", "faiss"]
        command += ["--max_index_memory_usage", index_bytes, "--current_memory_available", available]
        command += ["--copy_metadata", "False", "--json"]
    usage, code, said = watch(command, folder / "build.log")
    index = folder / "image.index"
    refusal = "" if code == 0 and index.exists() else said
    run = {"usage": asdict(usage), "refusal": refusal}
    (folder / "run.json").write_text(json.dumps(run, indent=1))
    return Build(engine, index, usage, read_info(folder), refusal)


def read_build(engine: str, folder: Path) -> Build:
    """Read a finished build: one of ours, or a run.json of {wall, cpu, rss in GB} beside image.index."""
    run = json.loads((folder / "run.json").read_text())
    if "usage" in run:
        return Build(engine, folder / "image.index", Usage(**run["usage"]), read_info(folder), run["refusal"])
    largest = run["rss"] * 1024 * 1000 / MEGABYTE * 1000  # ru_maxrss counts KiB, and was divided by a million
    usage = Usage(run["wall"], run["cpu"], float("nan"), float("nan"), largest)
    return Build(engine, folder / "image.index", usage, read_info(folder), is_reused=True)


def read_info(folder: Path) -> dict[str, Any]:
    path = folder / "image.json"
    return json.loads(path.read_text()) if path.exists() else {}


def watch(command: list[str], log: Path) -> tuple[Usage, int, str]:
    """Run a command to its end; return what it took, its exit code and the last line it said."""
    held = mapped = 0.0
    with log.open("wb") as file:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
        try:
            while True:
                pid, status, resources = os.wait4(process.pid, os.WNOHANG)
                if pid:
                    break
                now_held, now_mapped = look(process.pid)
                held, mapped = max(held, now_held), max(mapped, now_mapped)
                time.sleep(SECONDS_BETWEEN_LOOKS)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    cpu = resources.ru_utime + resources.ru_stime  # includes finished child processes
    usage = Usage(wall, cpu, held, mapped, resources.ru_maxrss * 1024 / MEGABYTE)
    lines = log.read_text(errors="replace").strip().splitlines()
    return usage, process.returncode, lines[-1] if lines else ""


def look(group: int) -> tuple[float, float]:
    """Return the megabytes that the processes of a group hold now: without the pages of files, and with them."""
    held = mapped = 0
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if int((folder / "stat").read_text().rpartition(")")[2].split()[2]) != group:
                continue
            lines = (folder / "status").read_text().splitlines()
        except OSError:
            continue  # it ended while we looked
        sizes = {
            name: int(rest.split()[0]) * 1024
            for name, _, rest in (line.partition(":") for line in lines)
            if "kB" in rest
        }
        now_held = sizes.get("RssAnon", 0) + sizes.get("RssShmem", 0)  # none of them once it has ended
        held += now_held
        mapped += now_held + sizes.get("RssFile", 0)
    return held / MEGABYTE, mapped / MEGABYTE


def run_autofaiss(embeddings: str, folder: str, index_bytes: str, available: str) -> None:
    """Let autofaiss do what its users have it do, in a process with nothing else in it."""
    from autofaiss import build_index

    index, _ = build_index(
        embeddings,
        index_path=f"{folder}/image.index",
        index_infos_path=f"{folder}/image.json",
        max_index_memory_usage=index_bytes,
        current_memory_available=available,
        metric_type="ip",
    )
    if index is None:
        sys.exit("autofaiss built no index; its log says why")


if __name__ == "__main__":
    run_autofaiss(*sys.argv[1:])
